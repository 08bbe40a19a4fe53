//! Backbone and side network together.

use super::{AddedTo, SideNetwork};
use crate::Error;
use ops::{Mat, Workspace};

/// The least share of its own probability that a device's prediction keeps: a sum of residuals can leave
/// the simplex.
const KEPT: f32 = 0.1;

/// The joint prediction of one row: `own` is the device's, `output` the side network's, which counts `weight`
/// times. Probabilities, but for a number; an output added to logits is added to those behind `own`.
pub fn joint(added_to: AddedTo, own: &[f32], output: &[f32], weight: f32) -> Vec<f32> {
    let pairs = own.iter().zip(output);
    let mut joint: Vec<f32> = match added_to {
        AddedTo::Number => return pairs.map(|(own, y)| own + weight * y).collect(),
        AddedTo::Probabilities => {
            pairs.map(|(own, y)| (own + weight * y).max((KEPT * own).max(1e-8))).collect()
        }
        AddedTo::Logits => {
            let logits: Vec<f32> =
                pairs.map(|(own, y)| own.max(f32::MIN_POSITIVE).ln() + weight * y).collect();
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            logits.into_iter().map(|logit| (logit - most).exp()).collect()
        }
    };
    let total: f32 = joint.iter().sum();
    ops::slice::scale(1.0 / total, &mut joint);
    joint
}

/// A trained side network beside a language model.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    pub network: &'a SideNetwork,
    pub theta: &'a [f32],
    /// The tapped layers.
    pub layers: &'a [usize],
}

impl Beside<'_> {
    /// In place of the backbone's logits of the next token those of the joint distribution, from one row
    /// a tap.
    pub(crate) fn add(&self, ws: &Workspace, taps: &[Mat], logits: &mut Mat) -> Result<(), Error> {
        let output = self.network.forward(ws, self.theta, 0, taps)?;
        let even = vec![1.0; logits.width()];
        let own = joint(AddedTo::Logits, &even, logits.row(0), 1.0);
        let sum = joint(AddedTo::Probabilities, &own, output.row(0), 1.0);
        logits.row_mut(0).iter_mut().zip(sum).for_each(|(logit, p)| *logit = p.ln());
        Ok(())
    }
}
