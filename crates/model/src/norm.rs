//! Normalisation with weights that are frozen or trained.

use crate::pass::{Pass, Values};
use crate::tangent::TangentPass;
use ops::{Dual, Mat, Result, norm};

/// Layer norm or RMS norm.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    Layer { weight: Values, bias: Values, eps: f32 },
    Rms { weight: Values, eps: f32 },
}

impl Norm {
    pub fn forward(&self, pass: Pass<'_>, x: &Mat) -> Result<Mat> {
        match self {
            Norm::Layer { weight, bias, eps } => {
                norm::layer(pass.ws, x, weight.get(pass.theta), bias.get(pass.theta), *eps)
            }
            Norm::Rms { weight, eps } => norm::rms(pass.ws, x, weight.get(pass.theta), *eps),
        }
    }

    /// [`Norm::forward`] with tangents.
    pub fn tangent(&self, pass: TangentPass<'_>, x: &Dual) -> Result<Dual> {
        let (ws, theta) = (pass.ws(), pass.theta());
        match self {
            Norm::Layer { weight, bias, eps } => {
                let y = norm::layer_tangent(ws, x, weight.get(theta), bias.get(theta), *eps)?;
                let y = pass.add_rows(weight.range(), y, |dw, rows| {
                    let (x, zeros) = (pass.copy_rows(x, rows)?, ws.zeros(1, dw.len())?);
                    norm::layer(ws, &x, dw, &zeros, *eps)
                })?;
                pass.add_bias(bias.range(), y)
            }
            Norm::Rms { weight, eps } => {
                let y = norm::rms_tangent(ws, x, weight.get(theta), *eps)?;
                pass.add_rows(weight.range(), y, |dw, rows| {
                    norm::rms(ws, &pass.copy_rows(x, rows)?, dw, *eps)
                })
            }
        }
    }

    /// The gradient of the input `x` from that of the output.
    pub fn backward(&self, pass: Pass<'_>, x: &Mat, dy: &Mat, grad: &mut [f32]) -> Result<Mat> {
        match self {
            Norm::Rms { weight, eps } => {
                norm::rms_backward(pass.ws, x, dy, weight.get(pass.theta), *eps, weight.gradient(grad))
            }
            Norm::Layer { weight, bias, eps } => {
                let w = weight.get(pass.theta);
                if let (Values::Trained(range), Values::Trained(behind)) = (weight, bias) {
                    let grads = grad[range.start..behind.end].split_at_mut(range.len());
                    return norm::layer_backward(pass.ws, x, dy, w, *eps, Some(grads));
                }
                if let Some(dbias) = bias.gradient(grad) {
                    ops::dense::bias_gradient(pass.ws, dy, dbias)?;
                }
                norm::layer_backward(pass.ws, x, dy, w, *eps, None)
            }
        }
    }

    pub fn is_trained(&self) -> bool {
        match self {
            Norm::Layer { weight, bias, .. } => weight.is_trained() || bias.is_trained(),
            Norm::Rms { weight, .. } => weight.is_trained(),
        }
    }

    pub fn bytes(&self) -> u64 {
        match self {
            Norm::Layer { weight, bias, .. } => weight.bytes() + bias.bytes(),
            Norm::Rms { weight, .. } => weight.bytes(),
        }
    }
}
