//! Time and peak memory of one forward pass, or one LoRA forward and backward pass, on the CPU: our
//! side of `bench/compare.py`, whose other side is `bench/train_step.py`.
//!
//! ```text
//! cargo run --release --example train_step -- --shape minilm --threads 2 --what train
//! ```
//!
//! One process takes one measurement and prints it as one JSON line. Random weights, batch 8 x 128
//! tokens, LoRA r 8 on query and value, mean pooling and six classes; `train` keeps activations,
//! `train-recompute` keeps block inputs only. `tangents` takes the derivatives along `--directions` seeded
//! directions through bottleneck adapters of 24 behind both outputs of each block, in turns with a plain
//! forward pass of the same model, and also prints what one of them costs in such passes:
//!
//! ```text
//! cargo run --release --example train_step -- --shape minilm --threads 1 --what tangents --sequence 64
//! ```

use base::{Meter, Seed};
use clap::{Parser, ValueEnum};
use model::tangent::{self, Fan};
use model::{
    Activations, Draw, Model, PeftConfig, PeftKind, Pooling, Seeded, Shape, Source, Spec, Targets, Task,
    Tokens,
};
use ops::Workspace;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 8;
const CLASSES: usize = 6;

#[derive(Parser)]
struct Options {
    #[arg(long, value_enum)]
    shape: Architecture,
    #[arg(long)]
    threads: usize,
    #[arg(long, value_enum)]
    what: What,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 128)]
    sequence: usize,
    /// Of `tangents`: directions at once
    #[arg(long, default_value_t = 16)]
    directions: u64,
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
    Tangents,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let (model, theta) = load(options.shape, options.what)?;
    let (tokens, targets) = batch(&model, options.sequence);
    if let What::Tangents = options.what {
        return tangents(&options, &model, &theta, (&tokens, &targets));
    }
    let workspace = Workspace::new(&Meter::unlimited(), options.threads);
    let mut gradient = vec![0f32; theta.len()];
    let mut step = || -> Result<f64, model::Error> {
        let activations = match options.what {
            What::Forward | What::Tangents => {
                return Ok(model::loss(&workspace, &model, &theta, &tokens, &targets)?.mean());
            }
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

/// Derivatives along many directions in one pass, and plain forward passes, in turns.
fn tangents(
    options: &Options,
    model: &Model,
    theta: &[f32],
    (tokens, targets): (&Tokens, &Targets),
) -> Result<(), Box<dyn std::error::Error>> {
    let run = |count: u64| -> Result<(f64, u64), model::Error> {
        let workspace = Workspace::new(&Meter::unlimited(), options.threads);
        let seeds: Vec<Seed> = (0..count).map(Seed).collect();
        let directions = Seeded { seeds: &seeds, draw: Draw::Normal, moves: 0..theta.len() };
        let start = Instant::now();
        let loss = match count {
            0 => model::loss(&workspace, model, theta, tokens, targets)?,
            _ => tangent::loss(&workspace, model, theta, tokens, targets, Fan::batch(&directions))?.loss,
        };
        let time = 1000.0 * start.elapsed().as_secs_f64();
        assert!(loss.sum.is_finite(), "a loss must come out, so that nothing can be left out");
        Ok((time, workspace.meter().peak()))
    };
    let (mut plain, mut many, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.warmup + options.runs {
        let (forward, all) = (run(0)?.0, run(options.directions)?.0);
        if round >= options.warmup {
            plain.push(forward);
            many.push(all);
            ratios.push(all / forward / options.directions as f64);
        }
    }
    [&mut plain, &mut many, &mut ratios].into_iter().for_each(|times| times.sort_by(f64::total_cmp));
    let mib = |bytes: u64| round(bytes as f64 / f64::from(1 << 20));
    let line = serde_json::json!({
        "peer": "undertone",
        "shape": name(options.shape),
        "threads": options.threads,
        "what": name(options.what),
        "directions": options.directions,
        "batch": [BATCH, options.sequence],
        "parameters": theta.len(),
        "forward_ms_median": round(median(&plain)),
        "forward_ms_min": round(plain[0]),
        "all_ms_median": round(median(&many)),
        "all_ms_min": round(many[0]),
        "forwards_a_direction_median": round(median(&ratios)),
        "forwards_a_direction_of_minima": round(many[0] / plain[0] / options.directions as f64),
        "runs": options.runs,
        "peak_mib": { "forward": mib(run(0)?.1), "one": mib(run(1)?.1), "all": mib(run(options.directions)?.1) },
        "process_peak_bytes": peak_bytes(),
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
        What::Tangents => PeftConfig { bottleneck_size: 24, ..PeftConfig::new(PeftKind::Bottleneck) },
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

fn batch(model: &Model, length: usize) -> (Tokens, Targets) {
    let mut draws = Seed(1).stream();
    let mut sequence =
        || -> Vec<u32> { (0..length).map(|_| draws.below(model.spec.vocab as u64) as u32).collect() };
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
