//! Time and peak memory of one forward pass, or one LoRA forward and backward pass, on the CPU: our
//! side of `bench/compare.py`, whose other side is `bench/train_step.py`.
//!
//! ```text
//! cargo run --release --example train_step -- --shape minilm --threads 2 --what train
//! ```
//!
//! One process takes one measurement and prints it as one JSON line. Random weights, batch 8 x 128
//! tokens, LoRA r 8 on query and value, mean pooling and six classes; `train` keeps activations,
//! `train-recompute` keeps block inputs only.

use base::{Meter, Seed};
use clap::{Parser, ValueEnum};
use model::{
    Activations, Model, PeftConfig, PeftKind, Pooling, Shape, Source, Spec, Targets, Task, Tokens,
};
use ops::Workspace;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 8;
const SEQUENCE: usize = 128;
const CLASSES: usize = 6;

#[derive(Parser)]
struct Options {
    #[arg(long, value_enum)]
    shape: Architecture,
    #[arg(long)]
    threads: usize,
    #[arg(long, value_enum)]
    what: What,
    #[arg(long, default_value_t = 20)]
    runs: usize,
    #[arg(long, default_value_t = 3)]
    warmup: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Architecture {
    Minilm,
    BertBase,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Forward,
    Train,
    TrainRecompute,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let (model, theta) = load(options.shape, options.what)?;
    let (tokens, targets) = batch(&model);
    let workspace = Workspace::new(&Meter::unlimited(), options.threads);
    let mut gradient = vec![0f32; theta.len()];
    let mut step = || -> Result<f64, model::Error> {
        let activations = match options.what {
            What::Forward => return Ok(model::loss(&workspace, &model, &theta, &tokens, &targets)?.mean()),
            What::Train => Activations::Keep,
            What::TrainRecompute => Activations::Recompute,
        };
        gradient.fill(0.0);
        let loss = model::loss_and_gradient(
            &workspace,
            &model,
            &theta,
            &tokens,
            &targets,
            activations,
            &mut gradient,
        )?;
        Ok(loss.mean())
    };
    let mut times = Vec::new();
    for run in 0..options.warmup + options.runs {
        let start = Instant::now();
        let loss = step()?;
        if run >= options.warmup {
            times.push(1000.0 * start.elapsed().as_secs_f64());
        }
        assert!(loss.is_finite(), "a loss must come out, so that nothing can be left out");
    }
    times.sort_by(f64::total_cmp);
    let line = serde_json::json!({
        "peer": "undertone",
        "shape": name(options.shape),
        "threads": options.threads,
        "what": name(options.what),
        "ms_median": round(median(&times)),
        "ms_min": round(times[0]),
        "runs": options.runs,
        "peak_bytes": peak_bytes(),
        "job_peak_bytes": workspace.meter().peak(),
        "allocator": "mimalloc",
    });
    println!("{line}");
    Ok(())
}

/// The model from a file of random weights, read as any other. `forward` has no adapter.
fn load(shape: Architecture, what: What) -> Result<(Model, Vec<f32>), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let task = Task::Classification { classes: CLASSES, pooling: Pooling::Mean, squash: None };
    write_random(directory.path(), shape, &task)?;
    let peft = match what {
        What::Forward => PeftConfig::new(PeftKind::Head),
        What::Train | What::TrainRecompute => PeftConfig::lora(8, 16.0, &["query", "value"]),
    };
    Ok(Model::load(&Source::Directory(directory.path().to_owned()), &task, &peft, Seed(0))?)
}

/// `config.json`, and `model.safetensors` written number by number, so that no copy of it is ever in
/// the memory that is measured.
fn write_random(
    directory: &Path,
    shape: Architecture,
    task: &Task,
) -> Result<(), Box<dyn std::error::Error>> {
    let (layers, width, ffn) = match shape {
        Architecture::Minilm => (6, 384, 1536),
        Architecture::BertBase => (12, 768, 3072),
    };
    let config = serde_json::json!({
        "model_type": "bert", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 12,
        "intermediate_size": ffn, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "architectures": ["BertModel"],
    })
    .to_string();
    fs::write(directory.join("config.json"), &config)?;
    let spec = Spec::from_config(&config)?;
    let tensors: Vec<(String, Vec<usize>, f32)> = spec
        .modules(task, 0..spec.layers)
        .iter()
        .filter(|module| module.name != "classifier")
        .flat_map(|module| tensors(&module.name, module.shape))
        .collect();
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape, _) in &tensors {
        let end = offset + 4 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let header = serde_json::to_vec(&header)?;
    let mut file = BufWriter::new(File::create(directory.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut draws = Seed(0).stream();
    for (_, shape, mean) in tensors {
        for _ in 0..shape.iter().product() {
            let value = mean + 0.04 * (draws.unit() as f32 - 0.5);
            file.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(file.flush()?)
}

/// Name, shape and mean value of a module's tensors.
fn tensors(module: &str, shape: Shape) -> Vec<(String, Vec<usize>, f32)> {
    let (weight, mean, bias) = match shape {
        Shape::Linear { out, width_in, bias } => (vec![out, width_in], 0.0, bias.then_some(out)),
        Shape::Norm { width, bias } => (vec![width], 1.0, bias.then_some(width)),
        Shape::Table { rows, width } => (vec![rows, width], 0.0, None),
    };
    let bias = bias.map(|width| (format!("{module}.bias"), vec![width], 0.0));
    std::iter::once((format!("{module}.weight"), weight, mean)).chain(bias).collect()
}

fn batch(model: &Model) -> (Tokens, Targets) {
    let mut draws = Seed(1).stream();
    let mut sequence =
        || -> Vec<u32> { (0..SEQUENCE).map(|_| draws.below(model.spec.vocab as u64) as u32).collect() };
    let sequences: Vec<Vec<u32>> = (0..BATCH).map(|_| sequence()).collect();
    let classes = (0..BATCH).map(|row| (row % CLASSES) as u32).collect();
    (Tokens::of(&sequences), Targets::Classes(classes))
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// `VmHWM`: the most that was ever resident. `None` where there is no /proc.
fn peak_bytes() -> Option<u64> {
    let status: io::Result<String> = fs::read_to_string("/proc/self/status");
    let text = status.ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}
