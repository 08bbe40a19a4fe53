//! What backbone and side network say together, and how often they are right.

use super::backbone::Backbone;
use super::bench::SideBench;
use super::device_head::FEATURES;
use super::privacy::unmixed;
use super::score::Score;
use crate::lab::gather;
use crate::train::hold;
use base::{Blob, Cost, Meter};
use data::{Encoded, Label};
use federation::{Eval, Fault};
use model::argmax;
use model::side::{Tapped, joint};
use ops::{Mat, Workspace};
use std::collections::BTreeMap;
use std::ops::Range;

/// The weights of the side network's output that a device tries; 0 is its own head alone.
pub const WEIGHTS: [f32; 16] =
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5];

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

    /// Add up, for each of [`WEIGHTS`], how wrong the sum is on these rows: an error a wrong class, the squared
    /// distance of a number.
    pub fn add_errors(&self, own: &Mat, side: &Mat, truth: &[Label], errors: &mut [f64; WEIGHTS.len()]) {
        for (errors, &weight) in errors.iter_mut().zip(&WEIGHTS) {
            for (at, label) in truth.iter().enumerate() {
                let joint = joint(self.added_to(), own.row(at), side.row(at), weight);
                *errors += match label {
                    Label::Class(class) => f64::from(u8::from(argmax(&joint) != *class)),
                    Label::Number(number) => f64::from(joint[0] - number).powi(2),
                };
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
            score.add(self.added_to(), &own, &side, weight, &truth);
            alone.add(self.added_to(), &own, &side, 0.0, &truth);
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
            score.add(self.added_to(), &own, &side, 1.0, &self.truth(&backbone.test[rows])?);
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
    ) -> Result<(Tapped, Vec<Label>), Fault> {
        let truth = self.truth(&backbone.test[rows.clone()])?;
        let (tokens, _) = gather(&backbone.test, rows);
        Ok((backbone.tap(ws, frozen, &tokens, &backbone.pivot())?, truth))
    }

    fn truth(&self, rows: &[Encoded]) -> Result<Vec<Label>, Fault> {
        rows.iter().map(|row| self.true_label(row)).collect()
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
