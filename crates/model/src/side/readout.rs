//! From the side state to the outputs: a layer norm, and a linear head that starts at zero.

use super::{Sites, Start};
use ops::{Mat, Result, Workspace, dense, norm};
use std::ops::Range;

const EPS: f32 = 1e-5;

/// `y = norm(state) W^T + b`
#[derive(Clone, Debug)]
pub(super) struct Readout {
    scale: Range<usize>,
    shift: Range<usize>,
    weight: Range<usize>,
    bias: Range<usize>,
    width: usize,
    outputs: usize,
}

impl Readout {
    pub fn new(width: usize, outputs: usize, sites: &mut Sites) -> Readout {
        Readout {
            scale: sites.add("norm.weight", (1, width), Start::One),
            shift: sites.add("norm.bias", (1, width), Start::Zero),
            weight: sites.add("head.weight", (outputs, width), Start::Zero),
            bias: sites.add("head.bias", (1, outputs), Start::Zero),
            width,
            outputs,
        }
    }

    /// rows x outputs
    pub fn forward(&self, ws: &Workspace, theta: &[f32], state: &Mat) -> Result<Mat> {
        let normed = self.normed(ws, theta, state)?;
        let bias = &theta[self.bias.clone()];
        dense::forward(ws, &normed, &theta[self.weight.clone()], Some(bias), self.outputs)
    }

    /// The gradient of the state.
    pub fn backward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        state: &Mat,
        dy: &Mat,
        grad: &mut [f32],
    ) -> Result<Mat> {
        let normed = self.normed(ws, theta, state)?;
        dense::backward_weight(ws, &normed, dy, &mut grad[self.weight.clone()])?;
        dense::bias_gradient(ws, dy, &mut grad[self.bias.clone()])?;
        let dnormed = dense::backward_input(ws, dy, &theta[self.weight.clone()], self.width)?;
        let (scale, shift) = grad[self.scale.start..self.shift.end].split_at_mut(self.width);
        let weight = &theta[self.scale.clone()];
        norm::layer_backward(ws, state, &dnormed, weight, EPS, Some((scale, shift)))
    }

    fn normed(&self, ws: &Workspace, theta: &[f32], state: &Mat) -> Result<Mat> {
        norm::layer(ws, state, &theta[self.scale.clone()], &theta[self.shift.clone()], EPS)
    }
}
