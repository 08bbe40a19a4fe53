//! A workload of unequal devices, for the tests of several methods.

use base::Blob;
use data::Encoded;
use model::Model;
use std::sync::Arc;
use undertone_methods::{TrainConfig, Workload};

/// Device i has i times `each` of these rows; `held_out` of them are for testing.
pub fn unequal(
    (model, theta): (Model, Vec<f32>),
    devices: u32,
    each: u32,
    held_out: u32,
    mut row: impl FnMut() -> Encoded,
) -> Workload {
    let mut rows = |count: u32| -> Arc<[Encoded]> { (0..count).map(|_| row()).collect() };
    let (mut shards, mut next) = (Vec::new(), 0);
    for device in 1..=devices {
        shards.push((next..next + each * device).collect());
        next += each * device;
    }
    let recipe = TrainConfig {
        per_device_train_batch_size: 4.try_into().unwrap(),
        max_grad_norm: 0.0,
        learning_rate: 1e-2,
        ..TrainConfig::default()
    };
    Workload {
        model: Arc::new(model),
        initial: Blob::from_f32(&theta),
        train: rows(next),
        shards: shards.into(),
        test: rows(held_out),
        owners: Arc::default(),
        recipe,
        threads: 1,
        others: Arc::default(),
    }
}
