//! One bottleneck adapter a tap, each handing its state to the next.
//!
//! ```text
//! s_i = (1 - mu_i) a_i + mu_i h_{i-1}        mu_i = sigmoid(alpha_i), h_0 = 0        (Eq. 1)
//! h_i = s_i + gelu(s_i D_i^T + c_i) U_i^T                                            (Eq. 2)
//! ```
//!
//! The gates start at 1/2 and every U at zero, so that the first state is a mean of the taps in which
//! a layer counts twice as much as the one below it.

use super::{SideConfig, Sites, Start};
use ops::act::Activation;
use ops::slice::{axpy, dot, scale};
use ops::{Mat, Result, Workspace, dense};
use std::ops::Range;

#[derive(Clone, Debug)]
pub(super) struct Cascade {
    adapters: Vec<Adapter>,
    width: usize,
    r: usize,
}

#[derive(Clone, Debug)]
struct Adapter {
    /// alpha, one number
    gate: Range<usize>,
    /// r x width
    down: Range<usize>,
    down_bias: Range<usize>,
    /// width x r
    up: Range<usize>,
}

/// `(s_i, s_i D^T + c, h_i)` of every adapter.
#[derive(Debug)]
pub(super) struct Trail(Vec<Step>);

#[derive(Debug)]
struct Step {
    input: Mat,
    inner: Mat,
    /// The state handed to the next adapter; the last one's is the trail's owner's.
    output: Option<Mat>,
}

impl Cascade {
    pub fn new(config: &SideConfig, r: usize, sites: &mut Sites) -> Cascade {
        let width = config.width;
        let mut adapter = |i: usize| Adapter {
            gate: sites.add(format!("adapters.{i}.gate"), (1, 1), Start::Zero),
            down: sites.add(format!("adapters.{i}.down.weight"), (r, width), Start::Normal),
            down_bias: sites.add(format!("adapters.{i}.down.bias"), (1, r), Start::Zero),
            up: sites.add(format!("adapters.{i}.up.weight"), (width, r), Start::Zero),
        };
        Cascade { adapters: (0..config.taps).map(&mut adapter).collect(), width, r }
    }

    /// The last state, rows x width.
    pub fn forward(&self, ws: &Workspace, theta: &[f32], taps: &[Mat]) -> Result<(Mat, Trail)> {
        let mut steps: Vec<Step> = Vec::with_capacity(taps.len());
        let mut state = ws.zeros(taps[0].rows(), self.width)?;
        for (index, (adapter, tap)) in self.adapters.iter().zip(taps).enumerate() {
            let mu = adapter.mu(theta);
            let mut input = ws.copy(&state)?;
            scale(mu, &mut input);
            axpy(1.0 - mu, tap, &mut input);
            let bias = &theta[adapter.down_bias.clone()];
            let inner = dense::forward(ws, &input, &theta[adapter.down.clone()], Some(bias), self.r)?;
            let active = Activation::Gelu.forward(ws, &inner)?;
            let mut output = dense::forward(ws, &active, &theta[adapter.up.clone()], None, self.width)?;
            output.add(&input)?;
            let before = std::mem::replace(&mut state, output);
            if index > 0 {
                steps[index - 1].output = Some(before);
            }
            steps.push(Step { input, inner, output: None });
        }
        Ok((state, Trail(steps)))
    }

    /// The gradients of the taps if `wanted`, else nothing, from that of the last state.
    pub fn backward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        taps: &[Mat],
        (Trail(mut steps), mut dstate): (Trail, Mat),
        wanted: bool,
        grad: &mut [f32],
    ) -> Result<Vec<Mat>> {
        let mut dtaps = Vec::new();
        for index in (0..self.adapters.len()).rev() {
            let (adapter, tap) = (&self.adapters[index], &taps[index]);
            let Some(step) = steps.pop() else { break };
            let before = index.checked_sub(1).and_then(|below| steps[below].output.take());
            let dinput = adapter.backward(ws, theta, &step, dstate, grad)?;
            let mu = adapter.mu(theta);
            let along_state = before.as_ref().map_or(0.0, |before| dot(&dinput, before));
            grad[adapter.gate.start] += mu * (1.0 - mu) * (along_state - dot(&dinput, tap)) as f32;
            if wanted {
                let mut dtap = ws.copy(&dinput)?;
                scale(1.0 - mu, &mut dtap);
                dtaps.push(dtap);
            }
            dstate = dinput;
            scale(mu, &mut dstate);
        }
        dtaps.reverse();
        Ok(dtaps)
    }
}

impl Adapter {
    fn mu(&self, theta: &[f32]) -> f32 {
        1.0 / (1.0 + (-theta[self.gate.start]).exp())
    }

    /// The gradient of `s_i` from that of `h_i`.
    fn backward(
        &self,
        ws: &Workspace,
        theta: &[f32],
        step: &Step,
        dstate: Mat,
        grad: &mut [f32],
    ) -> Result<Mat> {
        let active = Activation::Gelu.forward(ws, &step.inner)?;
        dense::backward_weight(ws, &active, &dstate, &mut grad[self.up.clone()])?;
        let up = &theta[self.up.clone()];
        let mut dinner = dense::backward_input(ws, &dstate, up, step.inner.width())?;
        Activation::Gelu.backward(ws, &step.inner, &mut dinner)?;
        dense::backward_weight(ws, &step.input, &dinner, &mut grad[self.down.clone()])?;
        dense::bias_gradient(ws, &dinner, &mut grad[self.down_bias.clone()])?;
        let mut dinput = dstate;
        dense::backward_input_add(ws, &dinner, &theta[self.down.clone()], &mut dinput)?;
        Ok(dinput)
    }
}
