//! Activation functions, element by element.

use crate::{Mat, Result, Workspace};

/// A function applied to every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * Phi(x)` with the exact Gaussian distribution function (Hendrycks and Gimpel 2016).
    Gelu,
    /// Its tanh approximation (`gelu_new` and `gelu_pytorch_tanh` in Hugging Face).
    GeluTanh,
    Relu,
    Tanh,
    /// `x * sigmoid(x)`, also called swish.
    Silu,
}

impl Activation {
    pub fn forward(self, ws: &Workspace, x: &Mat) -> Result<Mat> {
        let mut y = ws.copy(x)?;
        self.apply(ws, &mut y);
        Ok(y)
    }

    /// [`Activation::forward`] in place, where the input is needed no more.
    pub fn apply(self, _ws: &Workspace, x: &mut Mat) {
        x.iter_mut().for_each(|x| *x = self.value(*x));
    }

    /// Turns `dy` into `dx = dy * f'(x)` in place; `x` is the input of the forward.
    pub fn backward(self, _ws: &Workspace, x: &Mat, dy: &mut Mat) -> Result<()> {
        dy.expect("the gradient of an activation", x.rows(), x.width())?;
        dy.iter_mut().zip(x.iter()).for_each(|(dy, x)| *dy *= self.slope(*x));
        Ok(())
    }

    fn value(self, x: f32) -> f32 {
        match self {
            Activation::Gelu => x * phi(x),
            Activation::GeluTanh => 0.5 * x * (1.0 + (ALPHA * (x + BETA * x * x * x)).tanh()),
            Activation::Relu => x.max(0.0),
            Activation::Tanh => x.tanh(),
            Activation::Silu => x * sigmoid(x),
        }
    }

    fn slope(self, x: f32) -> f32 {
        match self {
            Activation::Gelu => phi(x) + x * (-0.5 * x * x).exp() * 0.398_942_3,
            Activation::GeluTanh => {
                let t = (ALPHA * (x + BETA * x * x * x)).tanh();
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * ALPHA * (1.0 + 3.0 * BETA * x * x)
            }
            Activation::Relu => f32::from(x > 0.0),
            Activation::Tanh => 1.0 - x.tanh() * x.tanh(),
            Activation::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
        }
    }
}

const ALPHA: f32 = 0.797_884_6;
const BETA: f32 = 0.044_715;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The Gaussian distribution function (Abramowitz and Stegun 7.1.26, error below 1.5e-7).
fn phi(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly =
        t * (0.254_829_6 + t * (-0.284_496_72 + t * (1.421_413_8 + t * (-1.453_152 + t * 1.061_405_4))));
    let half = 0.5 * poly * (-z * z).exp();
    if x < 0.0 { half } else { 1.0 - half }
}

/// SwiGLU: `silu(gate) * up` (Shazeer 2020). All rows x ffn.
pub fn silu_gate(ws: &Workspace, gate: &Mat, up: &Mat) -> Result<Mat> {
    up.expect("the up projection", gate.rows(), gate.width())?;
    let mut y = ws.scratch(gate.rows(), gate.width())?;
    for ((y, g), u) in y.iter_mut().zip(gate.iter()).zip(up.iter()) {
        *y = g * sigmoid(*g) * u;
    }
    Ok(y)
}

/// `(dgate, dup)` of [`silu_gate`]; `dy` becomes `dup`'s storage.
pub fn silu_gate_backward(ws: &Workspace, gate: &Mat, up: &Mat, mut dy: Mat) -> Result<(Mat, Mat)> {
    up.expect("the up projection", gate.rows(), gate.width())?;
    dy.expect("the gradient of a gate", gate.rows(), gate.width())?;
    let mut dgate = ws.scratch(gate.rows(), gate.width())?;
    for (((dg, dy), g), u) in dgate.iter_mut().zip(dy.iter_mut()).zip(gate.iter()).zip(up.iter()) {
        *dg = *dy * u * Activation::Silu.slope(*g);
        *dy *= g * sigmoid(*g);
    }
    Ok((dgate, dy))
}
