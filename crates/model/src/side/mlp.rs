//! One hidden layer over all taps together: `h = gelu(sum_i norm(a_i) W_i^T + c)`.
//!
//! Each tap is brought to mean 0 and variance 1 first, since layers differ in scale.

use super::{SideConfig, Sites, Start};
use ops::act::Activation;
use ops::{Mat, Result, Workspace, dense, norm};
use std::ops::Range;

const EPS: f32 = 1e-5;

#[derive(Clone, Debug)]
pub(super) struct Mlp {
    /// hidden x width, one a tap
    weights: Vec<Range<usize>>,
    bias: Range<usize>,
    width: usize,
    hidden: usize,
    /// The norm's fixed weight and bias.
    ones: Vec<f32>,
    zeros: Vec<f32>,
}

/// The normed taps, and what goes into the GELU.
#[derive(Debug)]
pub(super) struct Trail {
    normed: Vec<Mat>,
    inner: Mat,
}

impl Mlp {
    pub fn new(config: &SideConfig, hidden: usize, sites: &mut Sites) -> Mlp {
        let width = config.width;
        let mut weight = |i| sites.add(format!("taps.{i}.weight"), (hidden, width), Start::Normal);
        let weights = (0..config.taps).map(&mut weight).collect();
        let bias = sites.add("hidden.bias", (1, hidden), Start::Zero);
        Mlp { weights, bias, width, hidden, ones: vec![1.0; width], zeros: vec![0.0; width] }
    }

    /// rows x hidden
    pub fn forward(&self, ws: &Workspace, theta: &[f32], taps: &[Mat]) -> Result<(Mat, Trail)> {
        let norm = |tap: &Mat| norm::layer(ws, tap, &self.ones, &self.zeros, EPS);
        let normed = taps.iter().map(norm).collect::<Result<Vec<Mat>>>()?;
        let mut inner = ws.zeros(taps[0].rows(), self.hidden)?;
        dense::add_bias(ws, &theta[self.bias.clone()], &mut inner)?;
        for (tap, weight) in normed.iter().zip(&self.weights) {
            inner.add(&dense::forward(ws, tap, &theta[weight.clone()], None, self.hidden)?)?;
        }
        let state = Activation::Gelu.forward(ws, &inner)?;
        Ok((state, Trail { normed, inner }))
    }

    /// The gradients of the taps if `wanted`, else nothing, from that of the state.
    pub fn backward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        taps: &[Mat],
        (trail, mut dstate): (Trail, Mat),
        wanted: bool,
        grad: &mut [f32],
    ) -> Result<Vec<Mat>> {
        Activation::Gelu.backward(ws, &trail.inner, &mut dstate)?;
        dense::bias_gradient(ws, &dstate, &mut grad[self.bias.clone()])?;
        let mut dtaps = Vec::new();
        for ((tap, normed), weight) in taps.iter().zip(&trail.normed).zip(&self.weights) {
            dense::backward_weight(ws, normed, &dstate, &mut grad[weight.clone()])?;
            if wanted {
                let dnormed = dense::backward_input(ws, &dstate, &theta[weight.clone()], self.width)?;
                dtaps.push(norm::layer_backward(ws, tap, &dnormed, &self.ones, EPS, None)?);
            }
        }
        Ok(dtaps)
    }
}
