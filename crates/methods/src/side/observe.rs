//! What backbone and side network say together, and how often they are right.

use super::bench::SideBench;
use super::device_head::FEATURES;
use super::privacy::unmixed;
use crate::evaluate::macro_f1;
use crate::lab::{Lab, Workload, gather, starts};
use crate::train::hold;
use base::{Blob, Cost, Meter};
use federation::{Eval, Fault};
use model::side::{AddedTo, Tapped, joint, tap};
use model::{Model, Targets, argmax, price};
use ops::{Mat, Workspace};
use std::ops::Range;

/// The weights of the side network's output that a device tries; 0 is its own head alone.
pub const WEIGHTS: [f32; 16] =
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5];

/// The taps of the test rows, rows x width each, and the true classes.
pub(super) struct Observed {
    taps: Vec<Vec<f32>>,
    truth: Vec<u32>,
}

/// Counts predictions.
#[derive(Default)]
pub struct Score {
    loss: f64,
    truth: Vec<u32>,
    predicted: Vec<u32>,
}

impl Score {
    /// Add rows: `weight` times `side` to `own`, against the true classes.
    pub fn add(&mut self, added_to: AddedTo, own: &Mat, side: &Mat, weight: f32, truth: &[u32]) {
        for (at, &class) in truth.iter().enumerate() {
            let joint = joint(added_to, own.row(at), side.row(at), weight);
            self.loss -= f64::from(joint[class as usize].max(f32::MIN_POSITIVE)).ln();
            self.predicted.push(argmax(&joint));
        }
        self.truth.extend(truth);
    }

    pub fn eval(&self) -> Eval {
        let hits = self.truth.iter().zip(&self.predicted).filter(|(truth, said)| truth == said).count();
        let count = self.truth.len().max(1) as f64;
        Eval {
            loss: self.loss / count,
            examples: self.truth.len() as u64,
            accuracy: Some(hits as f64 / count),
            macro_f1: Some(macro_f1(&self.truth, &self.predicted)),
            ..Eval::default()
        }
    }
}

impl SideBench {
    /// The side network's output in the devices' own coordinates.
    pub fn side(&self, ws: &Workspace, theta: &[f32], taps: &[Mat]) -> Result<Mat, Fault> {
        let side = self.network.forward(ws, theta, 0, taps);
        let mut side = side.map_err(|error| Fault(format!("the side network: {error}")))?;
        if let Some(mix) = &self.mix {
            for at in 0..side.rows() {
                let row = unmixed(mix, side.row(at));
                side.row_mut(at).copy_from_slice(&row);
            }
        }
        Ok(side)
    }

    /// Count, for each of [`WEIGHTS`], how often the sum is right on these rows.
    pub fn count_hits(&self, own: &Mat, side: &Mat, truth: &[u32], hits: &mut [usize; WEIGHTS.len()]) {
        for (hits, &weight) in hits.iter_mut().zip(&WEIGHTS) {
            for (at, class) in truth.iter().enumerate() {
                let joint = joint(self.options.loss.added_to(), own.row(at), side.row(at), weight);
                *hits += usize::from(argmax(&joint) == *class);
            }
        }
    }

    /// Backbone, head and side network together on the test rows, and without the side network: batch by
    /// batch and keeping nothing.
    pub fn judge(
        &self,
        theta: &[f32],
        head: &[f32],
        weight: f32,
        meter: &Meter,
    ) -> Result<(Eval, Eval), Fault> {
        let (ws, mut score, mut alone) = (Workspace::new(meter, 1), Score::default(), Score::default());
        let _held = hold(meter, self.lab.work.initial.len() as u64)?;
        let frozen = self.lab.parameters_from(&self.lab.work.initial)?;
        for rows in test_batches(&self.lab, self.lab.work.recipe.per_device_train_batch_size.get()) {
            let (tapped, truth) = self.observe(&ws, &frozen, rows)?;
            let side = self.side(&ws, theta, &tapped.taps)?;
            let mut features = Vec::new();
            (0..tapped.hidden.rows()).for_each(|at| FEATURES.write(tapped.hidden.row(at), &mut features));
            let own = self.own(&ws, head, &features)?;
            score.add(self.options.loss.added_to(), &own, &side, weight, &truth);
            alone.add(self.options.loss.added_to(), &own, &side, 0.0, &truth);
        }
        Ok((score.eval(), alone.eval()))
    }

    /// The side network alone on the test rows. Their taps are computed once and kept.
    pub fn evaluate(&self, theta: &Blob, meter: &Meter) -> Result<Eval, Fault> {
        let _held = hold(meter, theta.len() as u64 + self.observed_bytes())?;
        let theta = self.theta(theta)?;
        if self.pivot.is_none() {
            return self.evaluate_language(&theta, meter);
        }
        let observed = match self.observed.get() {
            Some(observed) => observed,
            None => {
                let computed = self.observe_all(meter)?;
                self.observed.get_or_init(|| computed)
            }
        };
        let ws = Workspace::new(meter, self.lab.work.threads);
        let mut score = Score::default();
        let width = self.shape.width;
        for rows in test_batches(&self.lab, self.lab.work.recipe.per_device_eval_batch_size.get()) {
            let part = |tap: &Vec<f32>| {
                let values = &tap[rows.start * width..rows.end * width];
                ws.from_slice(rows.len(), width, values).map_err(|error| Fault(error.to_string()))
            };
            let taps = observed.taps.iter().map(part).collect::<Result<Vec<Mat>, Fault>>()?;
            let side = self.side(&ws, &theta, &taps)?;
            let own = self.uniform(&ws, side.rows())?;
            score.add(self.options.loss.added_to(), &own, &side, 1.0, &observed.truth[rows]);
        }
        Ok(score.eval())
    }

    fn observe_all(&self, meter: &Meter) -> Result<Observed, Fault> {
        let ws = Workspace::new(meter, self.lab.work.threads);
        let _held = hold(meter, self.lab.work.initial.len() as u64)?;
        let frozen = self.lab.parameters_from(&self.lab.work.initial)?;
        let mut observed = Observed { taps: vec![Vec::new(); self.layers.len()], truth: Vec::new() };
        for rows in test_batches(&self.lab, self.lab.work.recipe.per_device_eval_batch_size.get()) {
            let (tapped, truth) = self.observe(&ws, &frozen, rows)?;
            for (kept, tap) in observed.taps.iter_mut().zip(&tapped.taps) {
                kept.extend_from_slice(tap);
            }
            observed.truth.extend(truth);
        }
        Ok(observed)
    }

    fn observe(
        &self,
        ws: &Workspace,
        frozen: &[f32],
        rows: Range<usize>,
    ) -> Result<(Tapped, Vec<u32>), Fault> {
        let (tokens, truth) = gather(&self.lab.work.test, rows);
        let tapped = tap(ws, &self.lab.work.model, frozen, &tokens, &self.layers, self.pooled())
            .map_err(|error| Fault(format!("evaluation: {error}")))?;
        match truth {
            Targets::Classes(truth) if truth.iter().all(|&class| (class as usize) < self.shape.outputs) => {
                Ok((tapped, truth))
            }
            _ => Err(Fault("a test row without a label, or with one the model has no class for".into())),
        }
    }

    fn observed_bytes(&self) -> u64 {
        match self.pivot {
            Some(_) => 4 * (self.lab.work.test.len() * self.shape.taps * self.shape.width) as u64,
            None => 0,
        }
    }

    /// What [`SideBench::evaluate`] takes. Measuring is the observer's work: it takes no virtual time.
    pub fn price_of_evaluation(&self) -> Cost {
        let parameters = 4 * self.network.total() as u64;
        if self.pivot.is_none() {
            return Cost { flops: 0, bytes: self.price_of_language_evaluation() + parameters };
        }
        let batch = self.lab.work.recipe.per_device_eval_batch_size.get();
        let own = 4 * (batch * self.shape.outputs) as u64;
        let most = self.price_of_observing(batch).max(self.peaks.evaluation + own);
        Cost { flops: 0, bytes: most + self.observed_bytes() + parameters }
    }

    /// What [`SideBench::judge`] takes beside the parameters it is given.
    pub fn price_of_judging(&self) -> u64 {
        let batch = self.lab.work.recipe.per_device_train_batch_size.get();
        let joint = 4 * (batch * (2 * self.shape.width + self.shape.outputs)) as u64;
        self.price_of_observing(batch).max(self.peaks.device + joint)
    }

    /// The largest forward pass over a batch of test rows.
    fn price_of_observing(&self, batch: usize) -> u64 {
        let Workload { model, test, .. } = &self.lab.work;
        let inference = |rows: Range<usize>| {
            let taps = 4 * (rows.len() * (self.shape.taps + 1) * self.shape.width) as u64;
            let Model { spec, task, layout, .. } = &**model;
            price::inference(spec, task, layout, &starts(test, rows)).bytes + taps
        };
        test_batches(&self.lab, batch).map(inference).max().unwrap_or(0)
            + self.lab.work.initial.len() as u64
    }
}

/// The test rows in batches of this size.
fn test_batches(lab: &Lab, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let total = lab.work.test.len();
    (0..total.div_ceil(size)).map(move |i| i * size..((i + 1) * size).min(total))
}
