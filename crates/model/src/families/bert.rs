//! BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and DistilBERT (Sanh et al. 2019): encoders
//! with learned positions, post-norm blocks and a two-linear feed-forward part.

use super::{Family, NormKind, NormOrder, Row};
use crate::error::LoadError;
use crate::spec::{Config, Role, Spec};

pub static BERT: Family = Family {
    model_type: "bert",
    prefix: "bert.",
    embedding: EMBEDDING,
    block: BLOCK,
    last: &[],
    norm_order: NormOrder::Post,
    norm: NormKind::Layer,
    causal: false,
    parse: |config| parse(config, &BERT, 0),
};

/// Positions start at row 2 of their table, after the padding index.
pub static ROBERTA: Family = Family {
    model_type: "roberta",
    prefix: "roberta.",
    parse: |config| parse(config, &ROBERTA, config.size_or("pad_token_id", 1)?.saturating_add(1)),
    ..BERT
};

pub static DISTILBERT: Family = Family {
    model_type: "distilbert",
    prefix: "distilbert.",
    embedding: &[EMBEDDING[0], EMBEDDING[1], EMBEDDING[3]],
    block: &[
        (Role::Query, "transformer.layer.{}.attention.q_lin"),
        (Role::Key, "transformer.layer.{}.attention.k_lin"),
        (Role::Value, "transformer.layer.{}.attention.v_lin"),
        (Role::AttentionOutput, "transformer.layer.{}.attention.out_lin"),
        (Role::AttentionNorm, "transformer.layer.{}.sa_layer_norm"),
        (Role::Up, "transformer.layer.{}.ffn.lin1"),
        (Role::Down, "transformer.layer.{}.ffn.lin2"),
        (Role::MlpNorm, "transformer.layer.{}.output_layer_norm"),
    ],
    parse: parse_distilbert,
    ..BERT
};

const EMBEDDING: &[Row] = &[
    (Role::WordEmbedding, "embeddings.word_embeddings"),
    (Role::PositionEmbedding, "embeddings.position_embeddings"),
    (Role::TypeEmbedding, "embeddings.token_type_embeddings"),
    (Role::EmbeddingNorm, "embeddings.LayerNorm"),
];

const BLOCK: &[Row] = &[
    (Role::Query, "encoder.layer.{}.attention.self.query"),
    (Role::Key, "encoder.layer.{}.attention.self.key"),
    (Role::Value, "encoder.layer.{}.attention.self.value"),
    (Role::AttentionOutput, "encoder.layer.{}.attention.output.dense"),
    (Role::AttentionNorm, "encoder.layer.{}.attention.output.LayerNorm"),
    (Role::Up, "encoder.layer.{}.intermediate.dense"),
    (Role::Down, "encoder.layer.{}.output.dense"),
    (Role::MlpNorm, "encoder.layer.{}.output.LayerNorm"),
];

fn parse(config: &Config, family: &'static Family, position_offset: usize) -> Result<Spec, LoadError> {
    config.expect_text("position_embedding_type", "absolute")?;
    let (width, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    let positions = config.size("max_position_embeddings")?;
    Ok(Spec {
        family,
        layers: config.size("num_hidden_layers")?,
        width,
        heads,
        kv_heads: heads,
        head_dim: head_dim(width, heads)?,
        ffn: config.size("intermediate_size")?,
        vocab: config.size("vocab_size")?,
        max_positions: positions.saturating_sub(position_offset),
        position_offset,
        type_vocab: config.size_or("type_vocab_size", 2)?,
        norm_eps: config.number_or("layer_norm_eps", 1e-12)?,
        activation: config.activation("hidden_act")?,
        rope_theta: None,
        tied: true,
        qkv_bias: true,
        attention_output_bias: true,
        mlp_bias: true,
    })
}

fn parse_distilbert(config: &Config) -> Result<Spec, LoadError> {
    let (width, heads) = (config.size("dim")?, config.size("n_heads")?);
    Ok(Spec {
        family: &DISTILBERT,
        layers: config.size("n_layers")?,
        width,
        heads,
        kv_heads: heads,
        head_dim: head_dim(width, heads)?,
        ffn: config.size("hidden_dim")?,
        vocab: config.size("vocab_size")?,
        max_positions: config.size("max_position_embeddings")?,
        position_offset: 0,
        type_vocab: 0,
        norm_eps: 1e-12,
        activation: config.activation("activation")?,
        rope_theta: None,
        tied: true,
        qkv_bias: true,
        attention_output_bias: true,
        mlp_bias: true,
    })
}

fn head_dim(width: usize, heads: usize) -> Result<usize, LoadError> {
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(LoadError::Config(format!("a width of {width} does not divide into {heads} heads")));
    }
    Ok(width / heads)
}
