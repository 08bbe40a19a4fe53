//! The bottleneck adapter (Houlsby et al. 2019, figure 2): `y + up(relu(down(y)))` after a linear.

use crate::pass::Pass;
use crate::tangent::TangentPass;
use ops::act::Activation;
use ops::{Dual, Mat, Result, dense};
use std::ops::Range;

/// Two trained linears around a narrow middle; every field is a range of `theta`.
#[derive(Clone, Debug)]
pub(crate) struct Bottleneck {
    /// size x width.
    pub down: Range<usize>,
    pub down_bias: Range<usize>,
    /// width x size.
    pub up: Range<usize>,
    pub up_bias: Range<usize>,
}

/// What the backward reads.
#[derive(Debug)]
pub(crate) struct Saved {
    input: Mat,
    /// After the ReLU, which tells its slope as well as before.
    inner: Mat,
}

impl Bottleneck {
    pub fn forward(&self, pass: Pass<'_>, y: Mat) -> Result<(Mat, Saved)> {
        let (ws, width) = (pass.ws, y.width());
        let part = |range: &Range<usize>| &pass.theta[range.clone()];
        let size = self.down_bias.len();
        let mut inner = dense::forward(ws, &y, part(&self.down), Some(part(&self.down_bias)), size)?;
        Activation::Relu.apply(ws, &mut inner);
        let mut out = dense::forward(ws, &inner, part(&self.up), Some(part(&self.up_bias)), width)?;
        out.add(&y)?;
        Ok((out, Saved { input: y, inner }))
    }

    /// [`Bottleneck::forward`] with tangents.
    pub fn tangent(&self, pass: TangentPass<'_>, y: Dual) -> Result<Dual> {
        let (ws, width, size) = (pass.ws(), y.width(), self.down_bias.len());
        let part = |range: &Range<usize>| &pass.theta()[range.clone()];
        let inner = dense::tangent(ws, &y, part(&self.down), Some(part(&self.down_bias)), size)?;
        let inner = pass.add_product(&y, Some(&self.down), 1.0, inner)?;
        let mut inner = pass.add_bias(Some(&self.down_bias), inner)?;
        Activation::Relu.tangent(ws, &mut inner)?;
        let out = dense::tangent(ws, &inner, part(&self.up), Some(part(&self.up_bias)), width)?;
        let out = pass.add_product(&inner, Some(&self.up), 1.0, out)?;
        pass.add_bias(Some(&self.up_bias), out)?.add(ws, &y)
    }

    /// The gradient of the input from that of the output.
    pub fn backward(&self, pass: Pass<'_>, saved: &Saved, dy: &Mat, grad: &mut [f32]) -> Result<Mat> {
        let ws = pass.ws;
        dense::backward_weight(ws, &saved.inner, dy, &mut grad[self.up.clone()])?;
        dense::bias_gradient(ws, dy, &mut grad[self.up_bias.clone()])?;
        let size = self.down_bias.len();
        let mut dinner = dense::backward_input(ws, dy, &pass.theta[self.up.clone()], size)?;
        Activation::Relu.backward(ws, &saved.inner, &mut dinner)?;
        dense::backward_weight(ws, &saved.input, &dinner, &mut grad[self.down.clone()])?;
        dense::bias_gradient(ws, &dinner, &mut grad[self.down_bias.clone()])?;
        let mut dx = ws.copy(dy)?;
        dense::backward_input_add(ws, &dinner, &pass.theta[self.down.clone()], &mut dx)?;
        Ok(dx)
    }
}
