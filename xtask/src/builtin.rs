//! Makes the built-in model: a small LLaMA-style decoder, pre-trained from nothing on generated
//! utterances by this project's own training path.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use base::{Seed, units};
use data::{Dataset, Encoded, Example, Input, LongRows, Tokenizer, utterances, vocabulary};
use half::f16;
use model::optim::{OptimizerConfig, Schedule, SchedulerType};
use model::{Layout, Model, PeftConfig, PeftKind, Source, Spec, Task};
use ops::Workspace;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::training::{self, Recipe};

/// Lines of the pre-training corpus, each seen once.
const LINES: usize = 100_000;
/// Tokens of the vocabulary.
const VOCABULARY: usize = 1024;
const LAYERS: usize = 4;
/// Positions the model has; the longest generated utterance has about 40 tokens.
const POSITIONS: usize = 128;

/// Where the model lies in the repository.
pub fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/builtin"))
}

/// Generate, pre-train and write the model.
pub fn make() -> Result<()> {
    let (train_set, test_set) = utterances::generate(utterances::TRAIN, utterances::TEST, utterances::SEED);
    println!("data: {} training and {} test utterances, generated", train_set.len(), test_set.len());
    let corpus = utterances::corpus(LINES, &test_set, utterances::SEED);
    let tokenizer_json = vocabulary::train(&corpus, VOCABULARY)?;
    let tokenizer_config = pretty(&tokenizer_config())?;
    let tokenizer = Tokenizer::from_bytes(&tokenizer_json, Some(tokenizer_config.as_bytes()))?;
    let config = pretty(&config())?;

    let corpus = encode(&tokenizer, corpus)?;
    let held_out = test_set.examples.iter().filter_map(|example| match &example.input {
        Input::Text(text) => Some(text.clone()),
        _ => None,
    });
    let held_out = encode(&tokenizer, held_out.collect())?;
    let tokens: usize = corpus.iter().map(|row| row.ids.len()).sum();
    println!("corpus: {LINES} lines, {tokens} tokens of a vocabulary of {}", tokenizer.vocabulary());

    let (model, mut theta) = untrained(&config)?;
    println!("model: {} parameters, {LAYERS} layers of width {}", theta.len(), model.spec.width);
    let ws = training::workspace();
    pretrain(&ws, &model, &mut theta, &corpus)?;
    let loss = training::evaluate(&ws, &model, &theta, &held_out)?.mean();
    println!("held-out utterances: loss {loss:.4}, perplexity {:.2} a token", loss.exp());

    let directory = directory();
    std::fs::create_dir_all(&directory)?;
    let weights = write(&model.layout, &theta, Number::F16)?;
    println!("weights: {} as f16", units::bytes(weights.len() as u64));
    for (name, bytes) in [
        ("config.json", config.into_bytes()),
        ("tokenizer.json", tokenizer_json),
        ("tokenizer_config.json", tokenizer_config.into_bytes()),
        ("model.safetensors", weights),
    ] {
        let path = directory.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// `config.json`, in the words of Hugging Face.
fn config() -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float16",
    })
}

fn tokenizer_config() -> serde_json::Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary::BOS,
        "eos_token": vocabulary::EOS,
        "add_bos_token": true,
        "add_eos_token": false,
        "model_max_length": POSITIONS,
    })
}

fn pretty(value: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// One sequence a line, closed by the end-of-text token.
fn encode(tokenizer: &Tokenizer, lines: Vec<String>) -> Result<Vec<Encoded>> {
    let rows: Vec<u32> = (0..lines.len() as u32).collect();
    let example = |(text, line)| Example { input: Input::Text(text), label: None, client: None, line };
    let examples = lines.into_iter().zip(1..).map(example).collect();
    let dataset = Dataset { examples, labels: Vec::new(), path: "corpus".into() };
    Ok(tokenizer.encode_rows(&dataset, &rows, POSITIONS, LongRows::Chunk)?)
}

/// The model before training: every weight of it is in `theta`.
fn untrained(config: &str) -> Result<(Model, Vec<f32>)> {
    let peft = PeftConfig::new(PeftKind::Full);
    let layout = Layout::new(&Spec::from_config(config)?, &Task::CausalLm, &peft);
    let weights = write(&layout, &initial(&layout, utterances::SEED.child("weights", 0)), Number::F32)?;
    let source = Source::Memory { config: Cow::Owned(config.to_owned()), weights: Cow::Owned(weights) };
    Ok(Model::load(&source, &Task::CausalLm, &peft, utterances::SEED)?)
}

/// Norms at 1, everything else normal; what writes into the residual stream starts smaller, so that
/// its variance does not grow with depth (Radford et al. 2019).
fn initial(layout: &Layout, seed: Seed) -> Vec<f32> {
    let mut theta = vec![1.0; layout.total()];
    for site in layout.sites.iter().filter(|site| site.rows > 1) {
        let residual = site.name.contains("o_proj") || site.name.contains("down_proj");
        let deviation = if residual { 0.04 / (2.0 * LAYERS as f64).sqrt() } else { 0.04 };
        let mut stream = seed.child(&site.name, 0).stream();
        theta[site.range()].fill_with(|| (deviation * stream.normal()) as f32);
    }
    theta
}

fn pretrain(ws: &Workspace, model: &Model, theta: &mut [f32], corpus: &[Encoded]) -> Result<()> {
    let recipe = Recipe {
        optimizer: OptimizerConfig {
            learning_rate: 3e-3,
            weight_decay: 0.01,
            ..OptimizerConfig::default()
        },
        schedule: Schedule { lr_scheduler_type: SchedulerType::Cosine, warmup_ratio: 0.03 },
        max_grad_norm: 1.0,
        batch: NonZeroUsize::new(32).context("a batch has rows")?,
        epochs: 1,
    };
    let began = Instant::now();
    let mut recent = Vec::new();
    training::train(ws, model, theta, corpus, &recipe, utterances::SEED, |step, total, loss| {
        recent.push(loss);
        if step % 250 == 0 || step == total {
            let mean = recent.iter().sum::<f64>() / recent.len() as f64;
            let spent = units::seconds(began.elapsed().as_secs_f64());
            println!("  step {step:>5}/{total}  loss {mean:.4}  {spent}");
            recent.clear();
        }
    })?;
    Ok(())
}

enum Number {
    F32,
    F16,
}

/// The sites of a layout as safetensors.
fn write(layout: &Layout, theta: &[f32], number: Number) -> Result<Vec<u8>> {
    let mut tensors = Vec::new();
    for site in &layout.sites {
        let values = &theta[site.range()];
        let (dtype, bytes): (Dtype, Vec<u8>) = match number {
            Number::F32 => (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            Number::F16 => {
                (Dtype::F16, values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect())
            }
        };
        let shape = if site.rows == 1 { vec![site.cols] } else { vec![site.rows, site.cols] };
        tensors.push((site.name.clone(), dtype, shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let about = [("format".to_owned(), "pt".to_owned())].into();
    Ok(safetensors::serialize(views, Some(about))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Meter;

    /// Whoever makes the model again gets the vocabulary that its weights were trained on.
    #[test]
    fn the_tokenizer_in_the_repository_is_what_the_command_makes() {
        let (_, test_set) = utterances::generate(utterances::TRAIN, utterances::TEST, utterances::SEED);
        let corpus = utterances::corpus(LINES, &test_set, utterances::SEED);
        let made = vocabulary::train(&corpus, VOCABULARY).unwrap();
        assert!(made == std::fs::read(directory().join("tokenizer.json")).unwrap());
        let config = std::fs::read_to_string(directory().join("config.json")).unwrap();
        assert_eq!(config, pretty(&super::config()).unwrap());
    }

    #[test]
    fn pre_training_learns_and_does_not_depend_on_threads() {
        let tokenizer = Tokenizer::load(&directory()).unwrap();
        let lines = utterances::corpus(640, &utterances::generate(0, 0, utterances::SEED).1, Seed(1));
        let corpus = encode(&tokenizer, lines).unwrap();
        let (model, start) = untrained(&pretty(&config()).unwrap()).unwrap();
        let trained = [1, 2].map(|threads| {
            let ws = Workspace::new(&Meter::unlimited(), threads);
            let mut theta = start.clone();
            pretrain(&ws, &model, &mut theta, &corpus).unwrap();
            let loss = training::evaluate(&ws, &model, &theta, &corpus).unwrap().mean();
            assert!(loss < 6.0, "a uniform guess has {:.2}, this {loss:.2}", (VOCABULARY as f64).ln());
            theta
        });
        assert!(trained[0] == trained[1]);
    }
}
