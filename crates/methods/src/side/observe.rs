//! What backbone and side network say together, and how often they are right.

use super::backbone::Backbone;
use super::bench::SideBench;
use super::device_head::FEATURES;
use super::privacy::unmixed;
use crate::evaluate::macro_f1;
use crate::lab::gather;
use crate::train::hold;
use base::{Blob, Cost, Meter};
use federation::{Eval, Fault};
use model::side::{AddedTo, Tapped, joint};
use model::{Targets, argmax};
use ops::{Mat, Workspace};
use std::collections::BTreeMap;
use std::ops::Range;

/// The weights of the side network's output that a device tries; 0 is its own head alone.
pub const WEIGHTS: [f32; 16] =
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5];

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

    fn extend(&mut self, other: Score) {
        self.loss += other.loss;
        self.truth.extend(other.truth);
        self.predicted.extend(other.predicted);
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
    pub fn side(&self, ws: &Workspace, theta: &[f32], backbone: usize, taps: &[Mat]) -> Result<Mat, Fault> {
        let side = self.network.forward(ws, theta, backbone, taps);
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
        backbone: &Backbone,
        (theta, head): (&[f32], &[f32]),
        weight: f32,
        meter: &Meter,
    ) -> Result<(Eval, Eval), Fault> {
        let (ws, mut score, mut alone) = (Workspace::new(meter, 1), Score::default(), Score::default());
        let _held = hold(meter, backbone.frozen_bytes())?;
        let frozen = backbone.frozen()?;
        for rows in backbone.test_batches(self.lab.work.recipe.per_device_train_batch_size.get()) {
            let (tapped, truth) = self.observe(backbone, &ws, &frozen, rows)?;
            let side = self.side(&ws, theta, backbone.number, &tapped.taps)?;
            let mut features = Vec::new();
            (0..tapped.hidden.rows()).for_each(|at| FEATURES.write(tapped.hidden.row(at), &mut features));
            let own = self.own(&ws, head, &features)?;
            score.add(self.options.loss.added_to(), &own, &side, weight, &truth);
            alone.add(self.options.loss.added_to(), &own, &side, 0.0, &truth);
        }
        Ok((score.eval(), alone.eval()))
    }

    /// The side network alone on the test rows, as every backbone reads them: over all of these, and where
    /// there are several by the classes of devices that have each.
    pub fn evaluate(&self, theta: &Blob, meter: &Meter) -> Result<Eval, Fault> {
        let _held = hold(meter, theta.len() as u64 + self.observed_bytes())?;
        let theta = self.theta(theta)?;
        if self.is_language() {
            return self.evaluate_language(&theta, meter);
        }
        let (mut everyone, mut by_class) = (Score::default(), BTreeMap::new());
        for backbone in self.backbones.iter() {
            let score = self.score(backbone, &theta, meter)?;
            if self.backbones.are_several() {
                by_class.extend(backbone.classes.iter().map(|class| (class.clone(), score.eval())));
            }
            everyone.extend(score);
        }
        Ok(Eval { by_class, ..everyone.eval() })
    }

    /// The test rows as one backbone reads them. Their taps are computed once and kept.
    fn score(&self, backbone: &Backbone, theta: &[f32], meter: &Meter) -> Result<Score, Fault> {
        let observed = match backbone.observed.get() {
            Some(observed) => observed,
            None => {
                let computed = self.observe_all(backbone, meter)?;
                backbone.observed.get_or_init(|| computed)
            }
        };
        let (ws, mut score) = (Workspace::new(meter, self.lab.work.threads), Score::default());
        let width = backbone.shape.width;
        for rows in backbone.test_batches(self.lab.work.recipe.per_device_eval_batch_size.get()) {
            let part = |tap: &Vec<f32>| {
                let values = &tap[rows.start * width..rows.end * width];
                ws.from_slice(rows.len(), width, values).map_err(|error| Fault(error.to_string()))
            };
            let taps = observed.iter().map(part).collect::<Result<Vec<Mat>, Fault>>()?;
            let side = self.side(&ws, theta, backbone.number, &taps)?;
            let own = self.uniform(&ws, side.rows())?;
            let (_, truth) = gather(&backbone.test, rows);
            score.add(self.options.loss.added_to(), &own, &side, 1.0, &self.truth(truth)?);
        }
        Ok(score)
    }

    fn observe_all(&self, backbone: &Backbone, meter: &Meter) -> Result<Vec<Vec<f32>>, Fault> {
        let ws = Workspace::new(meter, self.lab.work.threads);
        let _held = hold(meter, backbone.frozen_bytes())?;
        let frozen = backbone.frozen()?;
        let mut observed = vec![Vec::new(); backbone.layers.len()];
        for rows in backbone.test_batches(self.lab.work.recipe.per_device_eval_batch_size.get()) {
            let (tapped, _) = self.observe(backbone, &ws, &frozen, rows)?;
            for (kept, tap) in observed.iter_mut().zip(&tapped.taps) {
                kept.extend_from_slice(tap);
            }
        }
        Ok(observed)
    }

    fn observe(
        &self,
        backbone: &Backbone,
        ws: &Workspace,
        frozen: &[f32],
        rows: Range<usize>,
    ) -> Result<(Tapped, Vec<u32>), Fault> {
        let (tokens, truth) = gather(&backbone.test, rows);
        Ok((backbone.tap(ws, frozen, &tokens, &backbone.pivot())?, self.truth(truth)?))
    }

    fn truth(&self, truth: Targets) -> Result<Vec<u32>, Fault> {
        match truth {
            Targets::Classes(truth) if truth.iter().all(|&class| (class as usize) < self.outputs) => {
                Ok(truth)
            }
            _ => Err(Fault("a test row without a label, or with one the model has no class for".into())),
        }
    }

    fn observed_bytes(&self) -> u64 {
        let of = |backbone: &Backbone| match backbone.pooling {
            Some(_) => 4 * (backbone.test.len() * backbone.shape.taps * backbone.shape.width) as u64,
            None => 0,
        };
        self.backbones.iter().map(of).sum()
    }

    /// What [`SideBench::evaluate`] takes. Measuring is the observer's work: it takes no virtual time.
    pub fn price_of_evaluation(&self) -> Cost {
        let parameters = 4 * self.network.total() as u64;
        if self.is_language() {
            return Cost { flops: 0, bytes: self.price_of_language_evaluation() + parameters };
        }
        let batch = self.lab.work.recipe.per_device_eval_batch_size.get();
        let own = 4 * (batch * self.outputs) as u64;
        let observing = self.backbones.iter().map(|backbone| price_of_observing(backbone, batch));
        let most = observing.max().unwrap_or(0).max(self.peaks.evaluation + own);
        Cost { flops: 0, bytes: most + self.observed_bytes() + parameters }
    }

    /// What [`SideBench::judge`] takes beside the parameters it is given.
    pub fn price_of_judging(&self, backbone: &Backbone) -> u64 {
        let batch = self.lab.work.recipe.per_device_train_batch_size.get();
        let joint = 4 * (batch * (2 * backbone.shape.width + self.outputs)) as u64;
        price_of_observing(backbone, batch).max(self.peaks.device + joint)
    }
}

/// The largest forward pass over a batch of test rows.
fn price_of_observing(backbone: &Backbone, batch: usize) -> u64 {
    let inference = |rows: Range<usize>| {
        let taps = 4 * (rows.len() * (backbone.shape.taps + 1) * backbone.shape.width) as u64;
        backbone.inference(&backbone.test, rows).bytes + taps
    };
    backbone.test_batches(batch).map(inference).max().unwrap_or(0) + backbone.frozen_bytes()
}
