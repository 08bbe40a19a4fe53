//! Exact training: the server proposes logits, the devices answer with the gradient of cross-entropy.
//!
//! The sum of logits is `z = z_own + z_side`, and the gradient `softmax(z) - onehot(y)` needs the
//! device's own logits and the label, which only the device has. So a step costs a few numbers a sample
//! each way, and no forward pass of the backbone.

use super::bench::SideBench;
use super::cache::RowReader;
use super::device_head::FEATURES;
use super::trainer::{Holding, Sample, Trainer, Volume, read, samples};
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use data::Label;
use federation::Fault;
use model::optim::Optimizer;
use model::side::{AddedTo, joint};
use ops::{Mat, Workspace};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a device, as chunk and row, and the side network's logits of each.
#[derive(Clone, Serialize, Deserialize)]
pub struct Ask {
    rows: Vec<(u32, u32)>,
    side: Blob,
}

/// What a device is asked.
#[derive(Serialize, Deserialize)]
pub struct Proposal {
    pub node: Node,
    pub ask: Ask,
}

/// A step on its way: who was asked, and what has come.
#[derive(Serialize, Deserialize)]
pub struct Asking {
    /// Of the round.
    pub step: u32,
    pub steps: u32,
    pub holdings: Vec<Holding>,
    asked: BTreeSet<Node>,
    /// Each device's gradient and the sum of its losses.
    pub gradients: BTreeMap<Node, (Blob, f64)>,
}

impl Asking {
    pub fn new(step: u32, steps: u32, holdings: Vec<Holding>) -> Asking {
        Asking { step, steps, holdings, asked: BTreeSet::new(), gradients: BTreeMap::new() }
    }

    pub fn ask(&mut self, node: Node) {
        self.asked.insert(node);
    }

    /// Whether that was awaited of this device at this step.
    pub fn answer(&mut self, node: Node, step: u32, gradient: Blob, loss: f64) -> bool {
        let awaited = step == self.step && self.asked.remove(&node);
        if awaited {
            self.gradients.insert(node, (gradient, loss));
        }
        awaited
    }

    /// Whether a device that is gone was awaited.
    pub fn lose(&mut self, node: Node) -> bool {
        self.asked.remove(&node)
    }

    pub fn is_complete(&self) -> bool {
        self.asked.is_empty()
    }
}

impl Trainer<'_> {
    /// The samples of a step of exact training, counted over the run: by backbone and device.
    fn batch(&self, holdings: &[Holding], step: u32) -> Vec<Sample> {
        let mut all = samples(self.cache, holdings);
        let steps = all.len().div_ceil(self.batch).max(1) as u32;
        self.order(step / steps).stream().shuffle(&mut all);
        let mut batch: Vec<Sample> =
            all.chunks(self.batch).nth((step % steps) as usize).unwrap_or_default().to_vec();
        batch.sort_unstable_by_key(|sample| (self.backbones.of(sample.node).number, sample.node));
        batch
    }

    /// What proposing or taking one step takes.
    pub fn price_of_step(&self, holdings: &[Holding]) -> Cost {
        let samples: u64 = holdings.iter().flat_map(|held| &held.rows).map(|&rows| u64::from(rows)).sum();
        let step = self.price(&[], super::trainer::Span { first: 0, count: 1, total: 1 });
        let order = size_of::<Sample>() as u64 * samples;
        Cost { flops: 6 * self.network.total() as u64 * self.batch as u64, bytes: step.bytes + order }
    }
}

impl SideBench {
    /// The side network's logits of a step's samples, device by device, and how much there is in all.
    pub fn propose(
        &self,
        theta: &Blob,
        holdings: &[Holding],
        step: u32,
        meter: &Meter,
    ) -> Result<(Vec<Proposal>, Volume), Fault> {
        let trainer = self.trainer();
        let _held = hold(meter, theta.len() as u64)?;
        let theta = self.theta(theta)?;
        let (ws, mut reader) = (Workspace::new(meter, self.lab.work.threads), RowReader::new(&self.cache));
        let mut proposals = Vec::new();
        for (backbone, samples) in self.backbones.groups(&mut trainer.batch(holdings, step)) {
            let taps = read(&ws, &mut reader, backbone.shape, samples)?.taps;
            let side = self.network.forward(&ws, &theta, backbone.number, &taps);
            let side = side.map_err(|error| Fault(format!("the side network: {error}")))?;
            let mut from = 0;
            for group in samples.chunk_by(|a, b| a.node == b.node) {
                let values = &side[from * side.width()..(from + group.len()) * side.width()];
                let rows = group.iter().map(|sample| (sample.chunk, sample.row)).collect();
                let ask = Ask { rows, side: Blob::from_f32(values) };
                proposals.push(Proposal { node: group[0].node, ask });
                from += group.len();
            }
        }
        Ok((proposals, trainer.volume(&samples(&self.cache, holdings))))
    }

    /// The device's answer: the gradient of each row's loss, and the sum of the losses.
    pub fn answer(
        &self,
        node: Node,
        ask: &Ask,
        head: Option<&Blob>,
        features: &[Blob],
        meter: &Meter,
    ) -> Result<(Blob, f64), Fault> {
        let ws = Workspace::new(meter, 1);
        let outputs = self.outputs;
        let side = ask.side.to_f32(ask.rows.len() * outputs).map_err(|error| Fault(error.to_string()))?;
        let own = self.own_rows(&ws, &ask.rows, head, features)?;
        let (mut gradient, mut loss) = (Vec::with_capacity(side.len()), 0.0);
        for (at, (&(chunk, row), side)) in ask.rows.iter().zip(side.chunks_exact(outputs)).enumerate() {
            let position = self.chunk(node, chunk).get(row as usize).copied();
            let position =
                position.ok_or_else(|| Fault(format!("there is no row {row} in chunk {chunk}")))?;
            let Label::Class(label) = self.label(node, position)? else {
                return Err(Fault("a number has no cross-entropy".into()));
            };
            let label = label as usize;
            let mut joint = joint(AddedTo::Logits, own.row(at), side, 1.0);
            loss -= f64::from(joint[label].max(f32::MIN_POSITIVE)).ln();
            joint[label] -= 1.0;
            gradient.extend(joint);
        }
        Ok((Blob::from_f32(&gradient), loss))
    }

    fn own_rows(
        &self,
        ws: &Workspace,
        rows: &[(u32, u32)],
        head: Option<&Blob>,
        features: &[Blob],
    ) -> Result<Mat, Fault> {
        let Some(head) = head else { return self.uniform(ws, rows.len()) };
        let head = head.to_f32(self.head.parameters()).map_err(|error| Fault(error.to_string()))?;
        let stride = FEATURES.row_bytes(self.head.width);
        let mut bytes = Vec::with_capacity(rows.len() * stride);
        for &(chunk, row) in rows {
            let states = features.get(chunk as usize).map_or(&[][..], |blob| &blob.0[..]);
            let state = states.get(row as usize * stride..(row as usize + 1) * stride);
            bytes.extend_from_slice(state.ok_or_else(|| Fault("a row that was never sent".into()))?);
        }
        self.own(ws, &head, &bytes)
    }

    /// What [`SideBench::answer`] takes.
    pub fn price_of_answer(&self, ask: &Ask) -> Cost {
        let rows = ask.rows.len();
        let row = 2 * self.head.width + 4 * self.outputs;
        let head = self.head.parameters() as u64;
        Cost { flops: 2 * head * rows as u64, bytes: 4 * (rows * row) as u64 + 8 * head + (1 << 16) }
    }

    /// One step of the optimiser along the gradients that came; a device that gave none counts as zero.
    /// Returns those whose gradients are none too, and why.
    pub fn exact_step(
        &self,
        theta: &Blob,
        optimizer: &mut Optimizer,
        holdings: &[Holding],
        step: (u32, u32),
        gradients: &BTreeMap<Node, Blob>,
        meter: &Meter,
    ) -> Result<(Blob, Vec<(Node, String)>), Fault> {
        let trainer = self.trainer();
        let _held = hold(meter, 2 * theta.len() as u64)?;
        let mut theta = self.theta(theta)?;
        let (ws, mut reader) = (Workspace::new(meter, self.lab.work.threads), RowReader::new(&self.cache));
        let fault = |error: model::Error| Fault(format!("training the side network: {error}"));
        let mut batch = trainer.batch(holdings, step.0);
        let (scale, mut refused) = (1.0 / batch.len().max(1) as f32, Vec::new());
        let mut grad = vec![0f32; theta.len()];
        for (backbone, samples) in self.backbones.groups(&mut batch) {
            let (taps, number) = (read(&ws, &mut reader, backbone.shape, samples)?.taps, backbone.number);
            let (y, trail) =
                self.network.forward_for_backward(&ws, &theta, number, &taps).map_err(fault)?;
            let zeros = ws.zeros(y.rows(), y.width());
            let mut dy = zeros.map_err(|error| Fault(error.to_string()))?;
            refused.extend(lay(&mut dy, samples, gradients));
            ops::slice::scale(scale, &mut dy);
            self.network.backward(&ws, &theta, number, &taps, (trail, &dy), &mut grad).map_err(fault)?;
        }
        trainer.step(&mut theta, optimizer, &mut grad, step);
        Ok((Blob::from_f32(&theta), refused))
    }
}

/// Lay each device's gradients on its samples; returns those whose gradients are none, and why.
fn lay(dy: &mut Mat, samples: &[Sample], gradients: &BTreeMap<Node, Blob>) -> Vec<(Node, String)> {
    let (width, mut from, mut refused) = (dy.width(), 0, Vec::new());
    for group in samples.chunk_by(|a, b| a.node == b.node) {
        let rows = from * width..(from + group.len()) * width;
        from += group.len();
        let Some(gradient) = gradients.get(&group[0].node) else { continue };
        match gradient.to_f32(rows.len()) {
            Ok(values) if ops::slice::all_finite(&values) => dy[rows].copy_from_slice(&values),
            Ok(_) => refused.push((group[0].node, "its gradient is not finite".to_owned())),
            Err(error) => refused.push((group[0].node, format!("its gradient: {error}"))),
        }
    }
    refused
}
