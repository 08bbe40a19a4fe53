//! LLaMA (Touvron et al. 2023; also SmolLM, TinyLlama) and Qwen2: decoders with rotary positions,
//! grouped-query attention, RMS pre-norm blocks and SwiGLU.

use super::{Family, NormKind, NormOrder};
use crate::error::LoadError;
use crate::spec::{Activation, Config, Role, Spec};

pub static LLAMA: Family = Family {
    model_type: "llama",
    prefix: "",
    embedding: &[(Role::WordEmbedding, "model.embed_tokens")],
    block: &[
        (Role::AttentionNorm, "model.layers.{}.input_layernorm"),
        (Role::Query, "model.layers.{}.self_attn.q_proj"),
        (Role::Key, "model.layers.{}.self_attn.k_proj"),
        (Role::Value, "model.layers.{}.self_attn.v_proj"),
        (Role::AttentionOutput, "model.layers.{}.self_attn.o_proj"),
        (Role::MlpNorm, "model.layers.{}.post_attention_layernorm"),
        (Role::Gate, "model.layers.{}.mlp.gate_proj"),
        (Role::Up, "model.layers.{}.mlp.up_proj"),
        (Role::Down, "model.layers.{}.mlp.down_proj"),
    ],
    last: &[(Role::FinalNorm, "model.norm")],
    norm_order: NormOrder::Pre,
    norm: NormKind::Rms,
    causal: true,
    parse: |config| {
        let bias = config.flag_or("attention_bias", false)?;
        Ok(Spec { qkv_bias: bias, attention_output_bias: bias, ..parse(config, &LLAMA)? })
    },
};

/// LLaMA with a bias on query, key and value.
pub static QWEN2: Family = Family {
    model_type: "qwen2",
    parse: |config| {
        if config.flag_or("use_sliding_window", false)? {
            return Err(LoadError::Config("use_sliding_window is not supported".into()));
        }
        Ok(Spec { qkv_bias: true, ..parse(config, &QWEN2)? })
    },
    ..LLAMA
};

fn parse(config: &Config, family: &'static Family) -> Result<Spec, LoadError> {
    config.expect_text("hidden_act", "silu")?;
    if config.is_set("rope_scaling") {
        return Err(LoadError::Config("rope_scaling is not supported; only plain rotary positions".into()));
    }
    let rope = config.section("rope_parameters");
    if let Some(rope) = &rope {
        rope.expect_text("rope_type", "default")?;
    }
    let rope_theta = match &rope {
        Some(rope) if !config.is_set("rope_theta") => rope.number_or("rope_theta", 10_000.0)?,
        _ => config.number_or("rope_theta", 10_000.0)?,
    };
    let (width, heads) = (config.size("hidden_size")?, config.size("num_attention_heads")?);
    Ok(Spec {
        family,
        layers: config.size("num_hidden_layers")?,
        width,
        heads,
        kv_heads: config.size_or("num_key_value_heads", heads)?,
        head_dim: config.size_or("head_dim", width / heads.max(1))?,
        ffn: config.size("intermediate_size")?,
        vocab: config.size("vocab_size")?,
        max_positions: config.size("max_position_embeddings")?,
        position_offset: 0,
        type_vocab: 0,
        norm_eps: config.number_or("rms_norm_eps", 1e-6)?,
        activation: Activation::SiluGate,
        rope_theta: Some(rope_theta),
        tied: config.flag_or("tie_word_embeddings", false)?,
        qkv_bias: false,
        attention_output_bias: false,
        mlp_bias: config.flag_or("mlp_bias", false)?,
    })
}
