//! Training the side network from the cache, with no device in the loop.

use super::backbone::Backbones;
use super::cache::{Cache, Chunk, Part, RowReader};
use super::format::TapFormat;
use crate::lab::Lab;
use crate::train::hold;
use base::{Cost, Meter, Node, Seed};
use federation::Fault;
use model::optim::{Optimizer, clip_norm};
use model::side::{SideNetwork, squared_loss_backward};
use ops::{Mat, Workspace};
use serde::{Deserialize, Serialize};

/// What a device's contribution looks like: every length is known before a byte of it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tapped layers.
    pub taps: usize,
    /// Width of the device's backbone.
    pub width: usize,
    pub outputs: usize,
    pub format: TapFormat,
    pub differences: Differences,
}

/// How a prediction difference is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differences {
    /// An f32 for every output.
    Dense,
    /// Index and f32 of so many outputs; the others are zero.
    Sparse { entries: usize },
}

/// What the server holds of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    pub node: Node,
    /// Rows of each chunk.
    pub rows: Vec<u32>,
}

/// A sample in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub node: Node,
    pub chunk: u32,
    pub row: u32,
}

/// How much there is to train on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub samples: u64,
    /// In the cache.
    pub bytes: u64,
}

/// Samples of one backbone as the side network reads them.
pub struct Batch {
    /// rows x width, one a tapped layer.
    pub taps: Vec<Mat>,
    /// rows x outputs
    pub differences: Mat,
}

impl Shape {
    /// Bytes of a sample's taps.
    pub fn tap_bytes(self) -> usize {
        self.format.row_bytes(self.taps * self.width)
    }

    /// Bytes of a sample's prediction difference.
    pub fn difference_bytes(self) -> usize {
        match self.differences {
            Differences::Dense => 4 * self.outputs,
            Differences::Sparse { entries } => 8 * entries,
        }
    }

    /// Bytes of a sample in the cache.
    pub fn sample_bytes(self) -> usize {
        self.tap_bytes() + self.difference_bytes()
    }

    /// Read a difference; every output is written.
    fn read_difference(self, bytes: &[u8], row: &mut [f32]) -> Result<(), &'static str> {
        match self.differences {
            Differences::Dense => {
                row.iter_mut().zip(bytes.chunks_exact(4)).for_each(|(value, bytes)| *value = float(bytes));
            }
            Differences::Sparse { .. } => {
                row.fill(0.0);
                for entry in bytes.chunks_exact(8) {
                    let index = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
                    *row.get_mut(index).ok_or("a prediction difference of no output")? = float(&entry[4..]);
                }
            }
        }
        if ops::slice::all_finite(row) {
            Ok(())
        } else {
            Err("a prediction difference is no finite number")
        }
    }

    /// Refuse taps and differences that are not of `rows` samples, or hold what is no number.
    pub fn check(self, rows: u32, taps: &[u8], differences: Option<&[u8]>) -> Result<(), String> {
        let rows = rows as usize;
        if rows == 0 || taps.len() != rows * self.tap_bytes() {
            return Err(format!("{} bytes of taps for {rows} samples", taps.len()));
        }
        let mut row = vec![0.0; self.taps * self.width];
        for bytes in taps.chunks_exact(self.tap_bytes()) {
            self.format.read(bytes, &mut row).map_err(|error| error.to_string())?;
        }
        differences.map_or(Ok(()), |differences| self.check_differences(rows as u32, differences))
    }

    /// Refuse differences that are not of `rows` samples, or hold what is no number.
    pub fn check_differences(self, rows: u32, differences: &[u8]) -> Result<(), String> {
        let rows = rows as usize;
        if differences.len() != rows * self.difference_bytes() {
            return Err(format!("{} bytes of differences for {rows} samples", differences.len()));
        }
        let mut row = vec![0.0; self.outputs];
        let mut all = differences.chunks_exact(self.difference_bytes());
        all.try_for_each(|bytes| self.read_difference(bytes, &mut row)).map_err(str::to_owned)
    }
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Every sample of these devices, in node, chunk and row order. A device that was erased since is left
/// out.
pub fn samples(cache: &Cache, holdings: &[Holding]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for holding in holdings {
        for (chunk, &rows) in (0u32..).zip(&holding.rows) {
            let key = Chunk { node: holding.node, index: chunk, part: Part::Taps };
            if cache.len(key).is_some() {
                samples.extend((0..rows).map(|row| Sample { node: holding.node, chunk, row }));
            }
        }
    }
    samples
}

/// Read samples of one backbone from the cache.
pub fn read(
    ws: &Workspace,
    reader: &mut RowReader<'_>,
    shape: Shape,
    samples: &[Sample],
) -> Result<Batch, Fault> {
    let fault = |error: std::io::Error| Fault(format!("the activation cache: {error}"));
    let mat = |width| ws.scratch(samples.len(), width).map_err(|error| Fault(error.to_string()));
    let mut taps = (0..shape.taps).map(|_| mat(shape.width)).collect::<Result<Vec<Mat>, Fault>>()?;
    let mut differences = mat(shape.outputs)?;
    let mut bytes = vec![0; shape.tap_bytes()];
    let mut difference = vec![0; shape.difference_bytes()];
    let mut row = vec![0.0; shape.taps * shape.width];
    for (at, sample) in samples.iter().enumerate() {
        let key = |part| Chunk { node: sample.node, index: sample.chunk, part };
        reader.read(key(Part::Taps), sample.row, &mut bytes).map_err(fault)?;
        shape.format.read(&bytes, &mut row).map_err(|error| Fault(error.to_string()))?;
        for (tap, values) in taps.iter_mut().zip(row.chunks_exact(shape.width)) {
            tap.row_mut(at).copy_from_slice(values);
        }
        reader.read(key(Part::Differences), sample.row, &mut difference).map_err(fault)?;
        shape
            .read_difference(&difference, differences.row_mut(at))
            .map_err(|error| Fault(format!("the activation cache: {error}")))?;
    }
    Ok(Batch { taps, differences })
}

/// A side network in training.
pub struct Trainer<'a> {
    pub network: &'a SideNetwork,
    pub cache: &'a Cache,
    pub lab: &'a Lab,
    pub backbones: &'a Backbones,
    /// Samples of a step.
    pub batch: usize,
    /// What the workspace holds in a step.
    pub working_bytes: u64,
}

/// Which epochs of the run these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub first: u32,
    pub count: u32,
    /// Of the whole run, for the learning rate.
    pub total: u32,
}

impl Trainer<'_> {
    /// How much these samples are.
    pub fn volume(&self, samples: &[Sample]) -> Volume {
        let bytes = samples.iter().map(|sample| self.backbones.of(sample.node).shape.sample_bytes() as u64);
        Volume { samples: samples.len() as u64, bytes: bytes.sum() }
    }

    /// Epochs over shuffled samples by the residual loss; returns the mean loss of the last, and how much
    /// there is.
    pub fn epochs(
        &self,
        theta: &mut [f32],
        optimizer: &mut Optimizer,
        holdings: &[Holding],
        span: Span,
        meter: &Meter,
    ) -> Result<(f64, Volume), Fault> {
        let mut samples = samples(self.cache, holdings);
        let _held = hold(meter, (size_of::<Sample>() * 2 * samples.len() + 4 * theta.len()) as u64)?;
        let canonical = samples.clone();
        let (ws, mut reader) = (Workspace::new(meter, self.lab.work.threads), RowReader::new(self.cache));
        let mut grad = vec![0f32; theta.len()];
        let steps = canonical.len().div_ceil(self.batch) as u32;
        let mut loss = 0.0;
        for epoch in span.first..span.first + span.count {
            samples.copy_from_slice(&canonical);
            self.order(epoch).stream().shuffle(&mut samples);
            loss = 0.0;
            for (step, batch) in (0u32..).zip(samples.chunks_mut(self.batch)) {
                loss += self.gradient(&ws, &mut reader, theta, batch, &mut grad)?;
                self.step(theta, optimizer, &mut grad, (epoch * steps + step, span.total * steps));
            }
        }
        if !ops::slice::all_finite(theta) {
            let advice = "lower learning_rate";
            return Err(Fault(format!(
                "the side network is not finite after epoch {}: {advice}",
                span.first
            )));
        }
        Ok((loss / canonical.len().max(1) as f64, self.volume(&canonical)))
    }

    pub(super) fn order(&self, epoch: u32) -> Seed {
        self.lab.seed.child("side epoch", epoch.into())
    }

    /// The sum of the losses of these samples, and the gradient of its mean.
    fn gradient(
        &self,
        ws: &Workspace,
        reader: &mut RowReader<'_>,
        theta: &[f32],
        samples: &mut [Sample],
        grad: &mut [f32],
    ) -> Result<f64, Fault> {
        let fault = |error: model::Error| Fault(format!("training the side network: {error}"));
        let (scale, mut loss) = (1.0 / samples.len() as f32, 0.0);
        grad.fill(0.0);
        for (backbone, samples) in self.backbones.groups(samples) {
            let batch = read(ws, reader, backbone.shape, samples)?;
            let forward = self.network.forward_for_backward(ws, theta, backbone.number, &batch.taps);
            let (y, trail) = forward.map_err(fault)?;
            let (sum, dy) = squared_loss_backward(ws, &y, &batch.differences, scale)
                .map_err(|error| fault(error.into()))?;
            self.network
                .backward(ws, theta, backbone.number, &batch.taps, (trail, &dy), grad)
                .map_err(fault)?;
            loss += sum;
        }
        Ok(loss)
    }

    /// One step of the optimiser, the `step`th `of` the run.
    pub(super) fn step(
        &self,
        theta: &mut [f32],
        optimizer: &mut Optimizer,
        grad: &mut [f32],
        (step, of): (u32, u32),
    ) {
        let recipe = &self.lab.work.recipe;
        if recipe.max_grad_norm > 0.0 {
            clip_norm(grad, recipe.max_grad_norm);
        }
        optimizer.step(theta, grad, recipe.learning_rate * recipe.schedule().factor(step, of));
    }

    /// What [`Trainer::epochs`] will take.
    pub fn price(&self, holdings: &[Holding], span: Span) -> Cost {
        let parameters = self.network.total() as u64;
        let samples: u64 =
            holdings.iter().flat_map(|holding| &holding.rows).map(|&rows| u64::from(rows)).sum();
        let optimizer = Optimizer::state_bytes(&self.lab.work.recipe.optimizer(), self.network.total());
        let state = 8 * parameters + optimizer;
        let order = 2 * size_of::<Sample>() as u64 * samples;
        Cost {
            flops: 6 * parameters * samples * u64::from(span.count),
            bytes: state + order + self.working_bytes,
        }
    }
}
