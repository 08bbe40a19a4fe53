//! What the tests of this crate share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use base::{Meter, Seed};
use ops::Workspace;
use serde_json::Value;
use std::path::{Path, PathBuf};
use undertone_model::{Model, PeftConfig, PeftKind, Pooling, Source, Task};

/// A file under the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A pretrained model that is kept beside the repository, if it is there.
pub fn shared_model(name: &str) -> Option<PathBuf> {
    let path = repository("../shared/models").join(name);
    if !path.exists() {
        println!("SKIPPED: ../shared not found ({})", path.display());
        return None;
    }
    Some(path)
}

pub fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// A list of lists of numbers, one after another.
pub fn flat(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().flat_map(floats).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub fn workspace(threads: usize) -> Workspace {
    Workspace::new(&Meter::unlimited(), threads)
}

pub fn mean_head(classes: usize) -> Task {
    Task::Classification { classes, pooling: Pooling::Mean, squash: None }
}

pub fn load(dir: &Path, task: &Task, peft: &PeftConfig) -> (Model, Vec<f32>) {
    Model::load(&Source::Directory(dir.to_owned()), task, peft, Seed(7)).unwrap()
}

pub fn full() -> PeftConfig {
    PeftConfig::new(PeftKind::Full)
}

pub fn norm(values: &[f32]) -> f64 {
    ops::slice::norm2(values).sqrt()
}

pub fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}
