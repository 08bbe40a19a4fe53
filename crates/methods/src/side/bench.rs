//! What the jobs of side-tuning may touch, and the device's one forward pass.

use super::backbone::{Backbone, Backbones};
use super::cache::Cache;
use super::device_head::{DeviceHead, FEATURES, HeadKind, softmax};
use super::language::samples;
use super::options::{Options, network};
use super::privacy::{Privacy, mixed, secret_mix, unmixed};
use super::trainer::Trainer;
use crate::lab::{Lab, gather};
use crate::train::hold;
use crate::{Draws, Saver, Setup, SetupError};
use base::{Blob, Cost, Meter, Node, Seed};
use data::{Encoded, Label, Target};
use federation::Fault;
use model::side::{AddedTo, Reads, SideCard, SideConfig, SideNetwork, Tapped, save};
use model::{LoadError, Task};
use ops::{Mat, Workspace};
use std::sync::Arc;

/// The bench of both halves.
pub struct SideBench {
    pub lab: Arc<Lab>,
    pub options: Options,
    pub network: SideNetwork,
    pub backbones: Backbones,
    /// Classes, the vocabulary, or one number.
    pub outputs: usize,
    pub head: DeviceHead,
    pub cache: Arc<Cache>,
    pub traffic: Option<Arc<Cache>>,
    /// Where the devices' draws come from. Whoever knows it undoes them: see [`Draws`].
    secret: Seed,
    /// The secret mix of the output coordinates, row by row, where there is one.
    pub mix: Option<Vec<f32>>,
    pub peaks: Peaks,
}

/// The most bytes of the side network's workspace, whichever backbone feeds it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peaks {
    /// A step of the server.
    pub training: u64,
    /// A batch of an evaluation.
    pub evaluation: u64,
    /// A batch of a device.
    pub device: u64,
}

impl Peaks {
    fn of(
        network: &SideNetwork,
        backbones: &Backbones,
        lab: &Lab,
        options: &Options,
    ) -> Result<Peaks, model::Error> {
        let (recipe, mut peaks) = (&lab.work.recipe, Peaks::default());
        for backbone in backbones.iter() {
            let longest = backbone.test.iter().map(samples).max().unwrap_or(1);
            let each = if backbone.pooling.is_some() { 1 } else { longest };
            let (number, evaluated) = (backbone.number, recipe.per_device_eval_batch_size.get() * each);
            let training = network.training_bytes(number, options.server_batch_size.get())?;
            let evaluation = network.inference_bytes(number, evaluated)?;
            let device = network.inference_bytes(number, recipe.per_device_train_batch_size.get())?;
            peaks.training = peaks.training.max(training);
            peaks.evaluation = peaks.evaluation.max(evaluation);
            peaks.device = peaks.device.max(device);
        }
        Ok(peaks)
    }
}

/// A device's rows, by what they are for: positions in its shard.
pub struct Rows {
    pub training: Vec<u32>,
    pub validation: Vec<u32>,
}

/// What a forward pass over some rows leaves.
#[derive(Default)]
pub struct Forwarded {
    /// Samples.
    pub rows: u32,
    /// In the wire's format, row after row.
    pub taps: Vec<u8>,
    /// The states that the device's head reads; empty where that is zero.
    pub features: Vec<u8>,
    /// Absent where the device's head is still to be trained.
    pub differences: Option<Vec<u8>>,
}

impl SideBench {
    pub fn new(options: Options, setup: &Setup) -> Result<SideBench, SetupError> {
        options.check(setup)?;
        let lab = setup.lab()?;
        let squash = match lab.work.model.task {
            Task::Classification { squash, .. } => squash,
            Task::Regression { .. } => {
                options.check_regression()?;
                None
            }
            Task::CausalLm => {
                options.check_language()?;
                None
            }
        };
        let backbones = Backbones::new(&options, &lab, setup)?;
        let shape = backbones.first().shape;
        let (outputs, widths) = (shape.outputs, backbones.widths(options.width));
        let network = network(options.form, shape.taps, widths, outputs)?;
        let head = DeviceHead {
            width: shape.width,
            classes: outputs,
            squash,
            epochs: options.head_epochs,
            learning_rate: options.head_learning_rate,
        };
        let peaks = Peaks::of(&network, &backbones, &lab, &options)
            .map_err(|error| SetupError(error.to_string()))?;
        let secret = match setup.keep.draws {
            Draws::Own(secret) => secret,
            // A server draws nothing for its devices.
            Draws::Run | Draws::Theirs => setup.seed.child("device secrets", 0),
        };
        let mix =
            (options.privacy == Privacy::Mixed {}).then(|| secret_mix(outputs, secret.child("mix", 0)));
        Ok(SideBench {
            options,
            network,
            backbones,
            outputs,
            head,
            cache: setup.keep.cache.clone(),
            traffic: setup.keep.traffic.clone(),
            secret,
            mix,
            peaks,
            lab,
        })
    }

    /// How a device's rows are split. The same every time it is asked.
    pub fn rows(&self, node: Node) -> Rows {
        let count = self.lab.shard(node).len();
        let mut training: Vec<u32> = (0..count as u32).collect();
        if self.options.head == HeadKind::Zero {
            return Rows { training, validation: Vec::new() };
        }
        let kept = (self.options.validation_fraction * count as f64) as usize;
        self.lab.seed.child("validation", node.0.into()).stream().shuffle(&mut training);
        let mut validation = training.split_off(count - kept);
        training.sort_unstable();
        validation.sort_unstable();
        Rows { training, validation }
    }

    /// The positions of a chunk of the rows that are sent.
    pub fn chunk(&self, node: Node, index: u32) -> Vec<u32> {
        let rows = self.rows(node).training;
        rows.chunks(self.options.chunk_rows.get()).nth(index as usize).unwrap_or_default().to_vec()
    }

    pub fn chunks(&self, node: Node) -> u32 {
        self.rows(node).training.len().div_ceil(self.options.chunk_rows.get()) as u32
    }

    /// The label that everything on the device goes by.
    pub fn label(&self, node: Node, position: u32) -> Result<Label, Fault> {
        let row = &self.lab.work.train[self.lab.shard(node)[position as usize] as usize];
        Ok(match self.true_label(row)? {
            Label::Class(class) => {
                let sample = self.sample(node, position);
                Label::Class(self.options.privacy.label(class, self.outputs, sample))
            }
            number @ Label::Number(_) => number,
        })
    }

    /// What a row should come to.
    pub fn true_label(&self, row: &Encoded) -> Result<Label, Fault> {
        match row.target {
            Target::Number(number) if self.is_number() => Ok(Label::Number(number)),
            Target::Class(class) if !self.is_number() && (class as usize) < self.outputs => {
                Ok(Label::Class(class))
            }
            _ => Err(Fault("a row without a label, or with one the model has no output for".into())),
        }
    }

    fn sample(&self, node: Node, position: u32) -> Seed {
        self.secret.child("device", node.0.into()).child("sample", position.into())
    }

    /// The prediction difference of a row as it leaves the device; `own` is the device's prediction.
    pub fn difference(
        &self,
        node: Node,
        position: u32,
        own: &[f32],
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let difference = match self.label(node, position)? {
            Label::Number(number) => vec![number - own[0]],
            Label::Class(class) => self.options.privacy.difference(class, own, self.sample(node, position)),
        };
        let difference = match &self.mix {
            Some(mix) => mixed(mix, &difference),
            None => difference,
        };
        out.extend(difference.iter().flat_map(|value| value.to_le_bytes()));
        Ok(())
    }

    /// The differences of rows that no head of the device's own has seen.
    pub fn differences_of_zero_head(&self, node: Node, positions: &[u32]) -> Result<Vec<u8>, Fault> {
        let own = vec![self.undecided(); self.outputs];
        let mut out = Vec::with_capacity(4 * positions.len() * self.outputs);
        for &position in positions {
            self.difference(node, position, &own, &mut out)?;
        }
        Ok(out)
    }

    /// The labels that everything on the device goes by.
    pub fn labels(&self, node: Node, positions: &[u32]) -> Result<Vec<Label>, Fault> {
        positions.iter().map(|&position| self.label(node, position)).collect()
    }

    /// What the device's own head says, rows x outputs: probabilities, or a number.
    pub fn own(&self, ws: &Workspace, head: &[f32], features: &[u8]) -> Result<Mat, Fault> {
        let x = self.head.features(ws, features)?;
        let mut own = self.head.logits(ws, head, &x)?;
        if !self.is_number() {
            ops::slice::scale(1.0 / self.options.head_temperature, &mut own);
            softmax(&mut own);
        }
        Ok(own)
    }

    /// What a head says that is zero: every class is equally likely, the number is 0.
    fn undecided(&self) -> f32 {
        if self.is_number() { 0.0 } else { 1.0 / self.outputs as f32 }
    }

    /// The same for so many rows, rows x outputs.
    pub fn uniform(&self, ws: &Workspace, rows: usize) -> Result<Mat, Fault> {
        let mut own = ws.zeros(rows, self.outputs).map_err(|error| Fault(error.to_string()))?;
        own.fill(self.undecided());
        Ok(own)
    }

    /// What trains from the cache.
    pub fn trainer(&self) -> Trainer<'_> {
        Trainer {
            network: &self.network,
            cache: &self.cache,
            lab: &self.lab,
            backbones: &self.backbones,
            batch: self.options.server_batch_size.get(),
            working_bytes: self.peaks.training,
        }
    }

    /// Whether a language model is tuned.
    pub fn is_language(&self) -> bool {
        self.backbones.first().pooling.is_none()
    }

    /// Whether a number is learned.
    pub fn is_number(&self) -> bool {
        matches!(self.lab.work.model.task, Task::Regression { .. })
    }

    /// What the trained output is added to.
    pub fn added_to(&self) -> AddedTo {
        if self.is_number() { AddedTo::Number } else { self.options.loss.added_to() }
    }

    /// The most samples that a chunk can hold.
    pub fn chunk_limit(&self) -> u32 {
        let positions = if self.is_language() { self.lab.work.model.spec.max_positions } else { 1 };
        (self.options.chunk_rows.get() * positions).min(u32::MAX as usize) as u32
    }

    /// Samples of a device: what its training rows come to.
    pub fn samples(&self, node: Node) -> usize {
        let rows = self.rows(node).training;
        if !self.is_language() {
            return rows.len();
        }
        self.places(node, &rows).map(|row| samples(&self.lab.work.train[row])).sum()
    }

    /// Where these rows of a device stand in the workload.
    pub(super) fn places<'a>(
        &'a self,
        node: Node,
        positions: &'a [u32],
    ) -> impl Iterator<Item = usize> + Clone + 'a {
        let shard = self.lab.shard(node);
        positions.iter().map(|&position| shard[position as usize] as usize)
    }

    /// The one frozen forward pass over these rows of a device.
    pub fn forward(&self, node: Node, positions: &[u32], meter: &Meter) -> Result<Forwarded, Fault> {
        if self.is_language() {
            return self.forward_language(node, positions, meter);
        }
        let (work, backbone) = (&self.lab.work, self.backbones.of(node));
        let kept = self.forwarded_bytes(backbone, positions.len());
        let _held = hold(meter, kept + backbone.frozen_bytes())?;
        let (frozen, pivot) = (backbone.frozen()?, backbone.pivot());
        let ws = Workspace::new(meter, 1);
        let mut out = Forwarded { rows: positions.len() as u32, ..Forwarded::default() };
        for batch in positions.chunks(work.recipe.per_device_train_batch_size.get()) {
            let (tokens, _) = gather(&work.train, self.places(node, batch));
            self.write(backbone, &backbone.tap(&ws, &frozen, &tokens, &pivot)?, &mut out);
        }
        if self.options.head == HeadKind::Zero {
            out.differences = Some(self.differences_of_zero_head(node, positions)?);
        }
        Ok(out)
    }

    pub(super) fn write(&self, backbone: &Backbone, tapped: &Tapped, out: &mut Forwarded) {
        let shape = backbone.shape;
        let mut row = Vec::with_capacity(shape.taps * shape.width);
        for at in 0..tapped.hidden.rows() {
            row.clear();
            tapped.taps.iter().for_each(|tap| row.extend_from_slice(tap.row(at)));
            shape.format.write(&row, &mut out.taps);
            if self.options.head == HeadKind::Trained {
                FEATURES.write(tapped.hidden.row(at), &mut out.features);
            }
        }
    }

    /// Bytes that a forward pass over this many rows leaves.
    pub fn forwarded_bytes(&self, backbone: &Backbone, rows: usize) -> u64 {
        let features = match self.options.head {
            HeadKind::Zero => 0,
            HeadKind::Trained => FEATURES.row_bytes(backbone.shape.width),
        };
        (rows * (backbone.shape.sample_bytes() + features)) as u64
    }

    /// What [`SideBench::forward`] will take.
    pub fn price_of_forward(&self, node: Node, positions: &[u32]) -> Cost {
        if self.is_language() {
            return self.price_of_language(node, positions);
        }
        let (work, backbone) = (&self.lab.work, self.backbones.of(node));
        let (shape, mut cost) = (backbone.shape, Cost::FREE);
        for batch in positions.chunks(work.recipe.per_device_train_batch_size.get()) {
            let mut inference = backbone.inference(&work.train, self.places(node, batch));
            inference.bytes += 4 * (batch.len() * (shape.taps + 2) * shape.width) as u64;
            cost = cost + inference;
        }
        let kept = self.forwarded_bytes(backbone, positions.len()) + backbone.frozen_bytes();
        Cost { flops: cost.flops, bytes: cost.bytes + kept }
    }

    /// Writes a trained side network for devices to load.
    pub fn saver(&self) -> Saver {
        let network = self.network.config().clone();
        let layers = self.backbones.iter().map(|backbone| backbone.layers.clone()).collect();
        let added_to = self.added_to();
        let card = SideCard { network, layers, reads: Reads::Pivot, added_to, labels: Vec::new() };
        let (total, mix) = (self.network.total(), self.mix.clone());
        Box::new(move |dir, theta, labels| {
            let theta = theta.to_f32(total).map_err(|error| LoadError::Config(error.to_string()))?;
            let theta =
                mix.as_ref().map_or_else(|| theta.clone(), |mix| unmix_head(&card.network, &theta, mix));
            save(dir, &SideCard { labels: labels.to_vec(), ..card.clone() }, &theta)
        })
    }

    /// Parameters of the side network from elsewhere.
    pub fn theta(&self, blob: &Blob) -> Result<Vec<f32>, Fault> {
        let theta = blob.to_f32(self.network.total()).map_err(|error| Fault(error.to_string()))?;
        if ops::slice::all_finite(&theta) {
            Ok(theta)
        } else {
            Err(Fault("a side network that is not finite".into()))
        }
    }
}

/// The side network in the devices' own coordinates: its head, which is linear, times the inverse of the
/// mix.
fn unmix_head(config: &SideConfig, theta: &[f32], mix: &[f32]) -> Vec<f32> {
    let mut theta = theta.to_vec();
    // The head is the last of the parameters: outputs x width, then outputs.
    let outputs = config.outputs;
    let width = match config.form {
        model::side::Form::Cascade { .. } => config.width,
        model::side::Form::Mlp { hidden } => hidden,
    };
    let head = theta.len() - outputs * (width + 1);
    let (weight, bias) = theta[head..].split_at_mut(outputs * width);
    for column in 0..width {
        let mixed: Vec<f32> = (0..outputs).map(|row| weight[row * width + column]).collect();
        let own = unmixed(mix, &mixed);
        (0..outputs).for_each(|row| weight[row * width + column] = own[row]);
    }
    let own = unmixed(mix, bias);
    bias.copy_from_slice(&own);
    theta
}
