//! What the built-in model reaches on the built-in data: frozen with a trained head, and tuned.

use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context, Result};
use base::units;
use data::{Dataset, Encoded, LongRows, Tokenizer, utterances};
use model::optim::{OptimizerConfig, Schedule, SchedulerType};
use model::{Model, PeftConfig, PeftKind, Pooling, Source, Task};

use crate::builtin::directory;
use crate::training::{self, Recipe};

/// Longest sequence; no generated utterance is cut.
const MAX_SEQ_LENGTH: usize = 64;

const EVERY_LINEAR: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Print what a few ways of tuning reach.
pub fn run() -> Result<()> {
    let probe = Probe::new()?;
    println!("{:<38} {:>8} {:>9} {:>8}", "mean pooling, linear head", "trained", "accuracy", "time");
    for (name, peft, epochs, learning_rate) in [
        ("frozen backbone, 10 epochs", PeftConfig::new(PeftKind::Head), 10, 1e-2),
        ("LoRA r=8 on q, v, 3 epochs", lora(&["q_proj", "v_proj"]), 3, 3e-3),
        ("LoRA r=8 on q, v, 10 epochs", lora(&["q_proj", "v_proj"]), 10, 3e-3),
        ("LoRA r=8 on every linear, 3 epochs", lora(&EVERY_LINEAR), 3, 3e-3),
    ] {
        let began = Instant::now();
        let (trained, accuracy) = probe.reach(&peft, epochs, learning_rate)?;
        let spent = units::seconds(began.elapsed().as_secs_f64());
        println!("{name:<38} {trained:>8} {accuracy:>9.3} {spent:>8}");
    }
    Ok(())
}

fn lora(target_modules: &[&str]) -> PeftConfig {
    PeftConfig::lora(8, 16.0, target_modules)
}

/// The built-in data, encoded.
struct Probe {
    classes: usize,
    train: Vec<Encoded>,
    test: Vec<Encoded>,
}

impl Probe {
    fn new() -> Result<Probe> {
        let (train, test) = utterances::generate(utterances::TRAIN, utterances::TEST, utterances::SEED);
        let tokenizer = Tokenizer::load(&directory())?;
        let classes = train.labels.len();
        Ok(Probe { classes, train: encode(&tokenizer, &train)?, test: encode(&tokenizer, &test)? })
    }

    /// Train on the training set: how many parameters were trained, and the accuracy on the test set.
    fn reach(&self, peft: &PeftConfig, epochs: u64, learning_rate: f32) -> Result<(usize, f64)> {
        let task = Task::Classification { classes: self.classes, pooling: Pooling::Mean, squash: None };
        let source = Source::Directory(directory());
        let (model, mut theta) = Model::load(&source, &task, peft, utterances::SEED)?;
        let recipe = Recipe {
            optimizer: OptimizerConfig { learning_rate, ..OptimizerConfig::default() },
            schedule: Schedule { lr_scheduler_type: SchedulerType::Linear, warmup_ratio: 0.05 },
            max_grad_norm: 1.0,
            batch: NonZeroUsize::new(16).context("a batch has rows")?,
            epochs,
        };
        let ws = training::workspace();
        training::train(&ws, &model, &mut theta, &self.train, &recipe, utterances::SEED, |_, _, _| {})?;
        let loss = training::evaluate(&ws, &model, &theta, &self.test)?;
        Ok((theta.len(), loss.correct as f64 / loss.count as f64))
    }
}

fn encode(tokenizer: &Tokenizer, dataset: &Dataset) -> Result<Vec<Encoded>> {
    let rows: Vec<u32> = (0..dataset.len() as u32).collect();
    Ok(tokenizer.encode_rows(dataset, &rows, MAX_SEQ_LENGTH, LongRows::Truncate)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data is worth tuning for: a head alone does not do.
    #[test]
    fn tuning_beats_the_frozen_model_clearly() {
        let probe = Probe::new().unwrap();
        let (_, frozen) = probe.reach(&PeftConfig::new(PeftKind::Head), 5, 1e-2).unwrap();
        let (_, tuned) = probe.reach(&lora(&EVERY_LINEAR), 2, 3e-3).unwrap();
        println!("frozen {frozen:.3}, tuned {tuned:.3}");
        assert!(frozen < 0.75 && tuned > 0.92, "frozen {frozen}, tuned {tuned}");
    }
}
