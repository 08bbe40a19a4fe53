//! The device's own head, and its last word: how much of the side network's output it adds.
//!
//! The head is trained from the states that the one forward pass left. Some rows are kept back from
//! head and server alike; on these the device chooses the weight, and 0 is among the choices: on them
//! the sum is never worse than the head alone.

use super::Word;
use super::bench::{Rows, SideBench};
use super::device_head::{FEATURES, HeadKind};
use super::observe::WEIGHTS;
use super::trainer::Shape;
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use federation::Fault;
use ops::{Mat, Workspace};
use serde::{Deserialize, Serialize};

/// Taps and states of the rows that are kept back, as they would have been sent.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Validation {
    taps: Blob,
    features: Blob,
}

/// Train the head on the states of every chunk; returns it, what is kept back, and the differences of
/// each chunk.
pub fn train_head(
    bench: &SideBench,
    node: Node,
    features: &[Blob],
    meter: &Meter,
) -> Result<(Blob, Validation, Vec<Blob>), Fault> {
    let rows = bench.rows(node);
    let kept = bench.forward(node, &rows.validation, meter)?;
    let _held = hold(meter, states_bytes(bench, &rows) + 4 * bench.head.parameters() as u64)?;
    let all: Vec<u8> = features.iter().flat_map(|blob| blob.0.iter().copied()).collect();
    let labels = bench.labels(node, &rows.training)?;
    if all.len() != labels.len() * FEATURES.row_bytes(bench.head.width) {
        return Err(Fault("some states that the head is trained on are gone".into()));
    }
    let order = bench.lab.seed.child("device head", node.0.into());
    let head = bench.head.train(&all, &labels, order, meter)?;
    let (ws, mut differences) = (Workspace::new(meter, 1), Vec::new());
    for (index, blob) in (0..).zip(features) {
        let (mut out, stride) = (Vec::new(), FEATURES.row_bytes(bench.head.width));
        for (batch, positions) in blob.0.chunks(64 * stride).zip(bench.chunk(node, index).chunks(64)) {
            let own = bench.own(&ws, &head, batch)?;
            for (at, &position) in positions.iter().enumerate() {
                bench.difference(node, position, own.row(at), &mut out)?;
            }
        }
        differences.push(Blob(out.into()));
    }
    let validation = Validation { taps: Blob(kept.taps.into()), features: Blob(kept.features.into()) };
    Ok((Blob::from_f32(&head), validation, differences))
}

/// Choose the weight on what was kept back, then measure the sum on the test rows.
pub fn weigh(
    bench: &SideBench,
    node: Node,
    (theta, head): (&Blob, &Blob),
    validation: &Validation,
    meter: &Meter,
) -> Result<Word, Fault> {
    let _held = hold(meter, (theta.len() + head.len()) as u64)?;
    let theta = bench.theta(theta)?;
    let head = head.to_f32(bench.head.parameters()).map_err(|error| Fault(error.to_string()))?;
    let labels = bench.labels(node, &bench.rows(node).validation)?;
    let (ws, mut errors) = (Workspace::new(meter, 1), [0.0; WEIGHTS.len()]);
    let size = bench.lab.work.recipe.per_device_train_batch_size.get();
    let features = validation.features.0.chunks(size * FEATURES.row_bytes(bench.head.width));
    let backbone = bench.backbones.of(node);
    let taps = validation.taps.0.chunks(size * backbone.shape.tap_bytes());
    for ((features, taps), labels) in features.zip(taps).zip(labels.chunks(size)) {
        let own = bench.own(&ws, &head, features)?;
        let side = bench.side(&ws, &theta, backbone.number, &read_taps(backbone.shape, &ws, taps)?)?;
        bench.add_errors(&own, &side, labels, &mut errors);
    }
    drop(ws);
    let weight = if labels.is_empty() { 1.0 } else { best(&errors) };
    let (eval, alone) = bench.judge(backbone, (&theta, &head), weight, meter)?;
    Ok(Word { weight, eval, alone })
}

/// The weight with the least error; the smallest of equals.
fn best(errors: &[f64; WEIGHTS.len()]) -> f32 {
    let least = errors.iter().copied().fold(f64::INFINITY, f64::min);
    WEIGHTS.iter().zip(errors).find(|(_, error)| **error == least).map_or(1.0, |(weight, _)| *weight)
}

/// Taps as they are sent, one rows x width matrix a layer.
fn read_taps(shape: Shape, ws: &Workspace, taps: &[u8]) -> Result<Vec<Mat>, Fault> {
    let stride = shape.tap_bytes();
    let mat = |_| ws.scratch(taps.len() / stride, shape.width).map_err(|error| Fault(error.to_string()));
    let mut mats = (0..shape.taps).map(mat).collect::<Result<Vec<Mat>, Fault>>()?;
    let mut row = vec![0.0; shape.taps * shape.width];
    for (at, bytes) in taps.chunks_exact(stride).enumerate() {
        shape.format.read(bytes, &mut row).map_err(|error| Fault(error.to_string()))?;
        for (mat, values) in mats.iter_mut().zip(row.chunks_exact(shape.width)) {
            mat.row_mut(at).copy_from_slice(values);
        }
    }
    Ok(mats)
}

fn states_bytes(bench: &SideBench, rows: &Rows) -> u64 {
    let row = FEATURES.row_bytes(bench.head.width) + 4 * bench.outputs + 8;
    (rows.training.len() * row) as u64
}

/// What [`train_head`] takes.
pub fn price_of_head(bench: &SideBench, node: Node) -> Cost {
    let rows = bench.rows(node);
    let forward = bench.price_of_forward(node, &rows.validation);
    let head = bench.head.price(rows.training.len());
    let states = states_bytes(bench, &rows) + 8 * bench.head.parameters() as u64;
    Cost { flops: forward.flops + head.flops, bytes: forward.bytes.max(head.bytes + states) }
}

/// What [`weigh`] takes.
pub fn price(bench: &SideBench, node: Node) -> Cost {
    let rows = bench.rows(node).validation.len();
    let parameters = (bench.network.total() + bench.head.parameters()) as u64;
    let flops = 2 * parameters * rows as u64;
    Cost { flops, bytes: 4 * parameters + bench.price_of_judging(bench.backbones.of(node)) }
}

/// What the device keeps between jobs: nothing, where its head is zero.
pub fn kept_bytes(bench: &SideBench, rows: &Rows) -> u64 {
    match bench.options.head {
        HeadKind::Zero => 0,
        HeadKind::Trained => {
            let states = rows.training.len() * FEATURES.row_bytes(bench.head.width);
            states as u64
                + bench.forwarded_bytes(bench.backbones.first(), rows.validation.len())
                + 4 * bench.head.parameters() as u64
        }
    }
}
