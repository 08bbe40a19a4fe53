//! One hidden layer over all taps together: `h = gelu(sum_i a_i W_i^T + c)`.

use super::{SideConfig, Sites, Start};
use ops::act::Activation;
use ops::{Mat, Result, Workspace, dense};
use std::ops::Range;

#[derive(Clone, Debug)]
pub(super) struct Mlp {
    /// hidden x width, one a tap
    weights: Vec<Range<usize>>,
    bias: Range<usize>,
    width: usize,
    hidden: usize,
}

/// What goes into the GELU.
#[derive(Debug)]
pub(super) struct Trail(Mat);

impl Mlp {
    pub fn new(config: &SideConfig, hidden: usize, sites: &mut Sites) -> Mlp {
        let width = config.width;
        let mut weight = |i| sites.add(format!("taps.{i}.weight"), (hidden, width), Start::Normal);
        let weights = (0..config.taps).map(&mut weight).collect();
        let bias = sites.add("hidden.bias", (1, hidden), Start::Zero);
        Mlp { weights, bias, width, hidden }
    }

    /// rows x hidden
    pub fn forward(&self, ws: &Workspace, theta: &[f32], taps: &[Mat]) -> Result<(Mat, Trail)> {
        let mut inner = ws.zeros(taps[0].rows(), self.hidden)?;
        dense::add_bias(ws, &theta[self.bias.clone()], &mut inner)?;
        for (tap, weight) in taps.iter().zip(&self.weights) {
            inner.add(&dense::forward(ws, tap, &theta[weight.clone()], None, self.hidden)?)?;
        }
        let state = Activation::Gelu.forward(ws, &inner)?;
        Ok((state, Trail(inner)))
    }

    /// The gradients of the taps if `wanted`, else nothing, from that of the state.
    pub fn backward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        taps: &[Mat],
        (Trail(inner), mut dstate): (Trail, Mat),
        wanted: bool,
        grad: &mut [f32],
    ) -> Result<Vec<Mat>> {
        Activation::Gelu.backward(ws, &inner, &mut dstate)?;
        dense::bias_gradient(ws, &dstate, &mut grad[self.bias.clone()])?;
        let mut dtaps = Vec::new();
        for (tap, weight) in taps.iter().zip(&self.weights) {
            dense::backward_weight(ws, tap, &dstate, &mut grad[weight.clone()])?;
            if wanted {
                dtaps.push(dense::backward_input(ws, &dstate, &theta[weight.clone()], self.width)?);
            }
        }
        Ok(dtaps)
    }
}
