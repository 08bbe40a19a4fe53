//! The side network on every token: what `mobillm` computes, on the device and on the server.

use super::format::TapFormat;
use super::options::{network, tapped};
use super::score::Score;
use crate::lab::{Lab, gather, starts};
use crate::train::hold;
use crate::{Saver, Setup, SetupError};
use base::{Blob, Cost, Meter};
use data::Label;
use federation::{Eval, Fault};
use model::optim::{Optimizer, clip_norm};
use model::side::{AddedTo, Form, Pivot, Reads, SideCard, SideNetwork, Width, save, tap};
use model::{LoadError, Model, Pooling, Targets, Task, price};
use ops::{Mat, Workspace, loss};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `[method]` beside `name`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    pub form: Form,
    /// The tapped layers, counted from 0; all of them when neither this nor `blocks` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Cut the backbone into this many equal blocks and tap the last layer of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    pub tap_format: TapFormat,
}

impl Default for Options {
    fn default() -> Options {
        let (form, tap_format) = (Form::Cascade { r: 64 }, TapFormat::default());
        Options { form, layers: None, blocks: None, tap_format }
    }
}

/// A batch as it leaves a device.
#[derive(Clone, Serialize, Deserialize)]
pub struct Batch {
    step: u32,
    /// Batches in this round.
    steps: u32,
    /// Where the sequences begin, and the end.
    starts: Vec<u32>,
    labels: Vec<u32>,
    /// Every token's states, one tapped layer after another, token by token.
    taps: Blob,
}

impl Batch {
    pub fn step(&self) -> u32 {
        self.step
    }

    pub fn steps(&self) -> u32 {
        self.steps
    }

    pub fn sequences(&self) -> u64 {
        self.labels.len() as u64
    }

    fn tokens(&self) -> usize {
        self.starts.last().map_or(0, |&end| end as usize)
    }
}

/// The bench of both halves.
pub struct EveryToken {
    pub lab: Arc<Lab>,
    pub network: SideNetwork,
    layers: Vec<usize>,
    pooling: Pooling,
    classes: usize,
    format: TapFormat,
    /// Tokens of the largest batches there can be, of a device and of an evaluation.
    longest: (usize, usize),
    /// Bytes of the side network's workspace on these.
    peaks: (u64, u64),
}

impl EveryToken {
    pub fn new(options: &Options, setup: &Setup) -> Result<EveryToken, SetupError> {
        let lab = setup.lab()?;
        let (spec, recipe) = (&lab.work.model.spec, &lab.work.recipe);
        let Task::Classification { classes, pooling, .. } = lab.work.model.task else {
            return Err(SetupError("it trains classifiers: set model.task = \"classification\"".into()));
        };
        let layers = tapped(options.layers.as_deref(), options.blocks, spec.layers)?;
        let network = network(options.form, layers.len(), (spec.width, vec![Width::Own]), classes)?;
        // A server that holds no rows knows of none how long it is.
        let most = |rows: &[data::Encoded], batch: usize| {
            batch * rows.iter().map(|row| row.ids.len()).max().unwrap_or(spec.max_positions)
        };
        let longest = (
            most(&lab.work.train, recipe.per_device_train_batch_size.get()),
            most(&lab.work.test, recipe.per_device_eval_batch_size.get()),
        );
        let dry_run = |error: model::Error| SetupError(error.to_string());
        let peaks = (
            network.training_bytes(0, longest.0).map_err(dry_run)?,
            network.inference_bytes(0, longest.1).map_err(dry_run)?,
        );
        let format = options.tap_format;
        Ok(EveryToken { network, layers, pooling, classes, format, longest, peaks, lab })
    }

    /// Bytes of a token's states.
    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.layers.len() * self.lab.work.model.spec.width)
    }

    /// Bytes of what a batch of these rows sends: batch x tokens x layers x width in the number format,
    /// and the labels.
    pub fn batch_bytes(&self, rows: &[u32]) -> u64 {
        let tokens = self.starts(rows).last().map_or(0, |&end| end as usize);
        (tokens * self.row_bytes() + 4 * rows.len()) as u64
    }

    fn starts(&self, rows: &[u32]) -> Vec<u32> {
        starts(&self.lab.work.train, rows.iter().map(|&row| row as usize))
    }

    /// A frozen forward pass, as it is sent.
    pub fn forward(&self, rows: &[u32], step: (u32, u32), meter: &Meter) -> Result<Batch, Fault> {
        let work = &self.lab.work;
        let _held = hold(meter, self.batch_bytes(rows) + work.initial.len() as u64)?;
        let (ws, theta) = (Workspace::new(meter, 1), self.lab.parameters_from(&work.initial)?);
        let (tokens, targets) = gather(&work.train, rows.iter().map(|&row| row as usize));
        let Targets::Classes(labels) = targets else { return Err(Fault("a row without a label".into())) };
        let tapped = tap(&ws, &work.model, &theta, &tokens, &self.layers, &Pivot::Every)
            .map_err(|error| Fault(format!("the forward pass: {error}")))?;
        let mut taps = Vec::with_capacity(tokens.rows() * self.row_bytes());
        let mut states = Vec::new();
        for row in 0..tokens.rows() {
            states.clear();
            tapped.taps.iter().for_each(|tap| states.extend_from_slice(tap.row(row)));
            self.format.write(&states, &mut taps);
        }
        Ok(Batch { step: step.0, steps: step.1, starts: tokens.starts, labels, taps: Blob(taps.into()) })
    }

    /// What [`EveryToken::forward`] takes.
    pub fn price_of_forward(&self, rows: &[u32]) -> Cost {
        let work = &self.lab.work;
        let (starts, Model { spec, task, layout, .. }) = (self.starts(rows), &*work.model);
        let tokens = starts.last().map_or(0, |&end| end as u64);
        let cost = price::inference(spec, task, layout, &starts);
        let states = 4 * tokens * (self.layers.len() + 2) as u64 * spec.width as u64;
        Cost { bytes: cost.bytes + states + self.batch_bytes(rows) + work.initial.len() as u64, ..cost }
    }

    /// What is wrong with a batch, if anything.
    fn objection(&self, batch: &Batch) -> Option<String> {
        let (tokens, sequences) = (batch.tokens(), batch.labels.len());
        let rising = batch.starts.windows(2).all(|pair| pair[0] < pair[1]);
        if batch.starts.len() != sequences + 1 || batch.starts[0] != 0 || !rising || sequences == 0 {
            return Some("its sequences are none".into());
        }
        if tokens > self.longest.0 {
            let most = self.longest.0;
            return Some(format!("a batch of {tokens} tokens, where {most} are the most"));
        }
        if batch.labels.iter().any(|&label| label as usize >= self.classes) {
            return Some("a label that the model has no class for".into());
        }
        (batch.taps.len() != tokens * self.row_bytes())
            .then(|| format!("{} bytes of taps for {tokens} tokens", batch.taps.len()))
    }

    /// One optimiser step on a batch: the sum of its losses, or what is wrong with it.
    pub fn step(
        &self,
        theta: &mut [f32],
        optimizer: &mut Optimizer,
        batch: &Batch,
        rate: f32,
        meter: &Meter,
    ) -> Result<Result<f64, String>, Fault> {
        if let Some(objection) = self.objection(batch) {
            return Ok(Err(objection));
        }
        let fault = |error: model::Error| Fault(format!("training the side network: {error}"));
        let ws = Workspace::new(meter, self.lab.work.threads);
        let taps = match self.read(&ws, batch)? {
            Ok(taps) => taps,
            Err(objection) => return Ok(Err(objection)),
        };
        let (y, trail) = self.network.forward_for_backward(&ws, theta, 0, &taps).map_err(fault)?;
        let pooling = ops::pool::Pooling::from(self.pooling);
        let (sum, dy) = (|| {
            let mut logits = pooling.forward(&ws, &y, &batch.starts)?;
            let scale = 1.0 / batch.labels.len() as f32;
            let loss = loss::cross_entropy_backward(&ws, &mut logits, &batch.labels, scale)?;
            Ok((loss.sum, pooling.backward(&ws, &logits, &batch.starts)?))
        })()
        .map_err(|error: ops::Error| fault(error.into()))?;
        let mut grad = vec![0.0; theta.len()];
        self.network.backward(&ws, theta, 0, &taps, (trail, &dy), &mut grad).map_err(fault)?;
        let recipe = &self.lab.work.recipe;
        if recipe.max_grad_norm > 0.0 {
            clip_norm(&mut grad, recipe.max_grad_norm);
        }
        optimizer.step(theta, &grad, rate);
        Ok(Ok(sum))
    }

    fn read(&self, ws: &Workspace, batch: &Batch) -> Result<Result<Vec<Mat>, String>, Fault> {
        let (width, tokens) = (self.lab.work.model.spec.width, batch.tokens());
        let mat = |_| ws.scratch(tokens, width).map_err(|error| Fault(error.to_string()));
        let mut taps = (0..self.layers.len()).map(mat).collect::<Result<Vec<Mat>, Fault>>()?;
        let mut states = vec![0.0; self.layers.len() * width];
        for (row, bytes) in batch.taps.0.chunks_exact(self.row_bytes()).enumerate() {
            if let Err(error) = self.format.read(bytes, &mut states) {
                return Ok(Err(error.to_string()));
            }
            for (tap, values) in taps.iter_mut().zip(states.chunks_exact(width)) {
                tap.row_mut(row).copy_from_slice(values);
            }
        }
        Ok(Ok(taps))
    }

    /// What a step on each of these batches takes, with an optimiser whose state is this large.
    pub fn price_of_training<'a>(&self, batches: impl Iterator<Item = &'a Batch>, state: u64) -> Cost {
        let tokens: usize = batches.map(Batch::tokens).sum();
        let parameters = self.network.total() as u64;
        Cost { flops: 6 * parameters * tokens as u64, bytes: 8 * parameters + state + self.peaks.0 }
    }

    /// The pooled outputs of the side network on the test rows.
    pub fn evaluate(&self, theta: &Blob, meter: &Meter) -> Result<Eval, Fault> {
        let work = &self.lab.work;
        let _held = hold(meter, (theta.len() + work.initial.len()) as u64)?;
        let (theta, frozen) = (self.theta(theta)?, self.lab.parameters_from(&work.initial)?);
        let (ws, mut score) = (Workspace::new(meter, work.threads), Score::default());
        let fault = |error: model::Error| Fault(format!("evaluation: {error}"));
        let rows: Vec<usize> = (0..work.test.len()).collect();
        for rows in rows.chunks(work.recipe.per_device_eval_batch_size.get()) {
            let (tokens, truth) = gather(&work.test, rows.iter().copied());
            let Targets::Classes(truth) = truth else { return Err(Fault("a row without a label".into())) };
            let tapped = tap(&ws, &work.model, &frozen, &tokens, &self.layers, &Pivot::Every);
            let side = self.network.forward(&ws, &theta, 0, &tapped.map_err(fault)?.taps).map_err(fault)?;
            let pooled = Pivot::Pooled(self.pooling).select(&ws, &side, &tokens.starts);
            let pooled = pooled.map_err(|error| fault(error.into()))?;
            let mut own = ws.zeros(pooled.rows(), self.classes).map_err(|error| fault(error.into()))?;
            own.fill(1.0 / self.classes as f32);
            let truth: Vec<Label> = truth.into_iter().map(Label::Class).collect();
            score.add(AddedTo::Logits, &own, &pooled, 1.0, &truth);
        }
        Ok(score.eval())
    }

    /// What [`EveryToken::evaluate`] takes: it takes no virtual time.
    pub fn price_of_evaluation(&self) -> Cost {
        let Model { spec, task, layout, .. } = &*self.lab.work.model;
        let test = &self.lab.work.test;
        let size = self.lab.work.recipe.per_device_eval_batch_size.get();
        let inference = |batch: usize| {
            let rows = batch * size..((batch + 1) * size).min(test.len());
            let starts = starts(test, rows);
            let states =
                starts.last().map_or(0, |&end| end as usize) * (self.layers.len() + 1) * spec.width;
            price::inference(spec, task, layout, &starts).bytes + 4 * states as u64
        };
        let observing = (0..test.len().div_ceil(size)).map(inference).max().unwrap_or(0);
        let hidden = 4 * (self.longest.1 * spec.width) as u64;
        let fixed = 4 * self.network.total() as u64 + self.lab.work.initial.len() as u64;
        Cost {
            flops: 0,
            bytes: fixed + observing.max(self.peaks.1 + hidden) + 8 * (size * self.classes) as u64,
        }
    }

    /// Parameters of the side network.
    pub fn theta(&self, blob: &Blob) -> Result<Vec<f32>, Fault> {
        blob.to_f32(self.network.total()).map_err(|error| Fault(error.to_string()))
    }

    /// Writes a trained side network for devices to load.
    pub fn saver(&self) -> Saver {
        let card = SideCard {
            network: self.network.config().clone(),
            layers: vec![self.layers.clone()],
            reads: Reads::EveryToken,
            added_to: AddedTo::Logits,
            labels: Vec::new(),
        };
        let total = self.network.total();
        Box::new(move |dir, theta, labels| {
            let theta = theta.to_f32(total).map_err(|error| LoadError::Config(error.to_string()))?;
            save(dir, &SideCard { labels: labels.to_vec(), ..card.clone() }, &theta)
        })
    }
}
