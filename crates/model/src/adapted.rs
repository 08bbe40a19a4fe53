//! The adapted linear: a linear layer and whatever is trained at it. Every way of fine-tuning is a
//! choice of sites here; forward, backward and tangent are written once, and families only compose them.

use crate::bottleneck::{self, Bottleneck};
use crate::lora_xs::LoraXs;
use crate::pass::Pass;
use crate::tangent::TangentPass;
use ops::{Dual, Linear, Mat, Result, dense, lora};
use std::ops::Range;

/// `y = x W^T + b`, plus `scale * x A^T B^T` with LoRA, then a bottleneck adapter if there is one.
#[derive(Clone, Debug)]
pub(crate) struct AdaptedLinear {
    pub core: Core,
    pub lora: Option<Lora>,
    pub xs: Option<LoraXs>,
    pub bottleneck: Option<Bottleneck>,
}

/// The layer itself.
#[derive(Clone, Debug)]
pub(crate) enum Core {
    /// Nothing of it is trained; it is packed, and no gradient of it is ever computed.
    Frozen(Linear),
    /// BitFit: a frozen weight and a trained bias.
    TrainedBias { weight: Linear, bias: Range<usize> },
    /// Full fine-tuning: the weight stays a dense `out` x `width_in` range of `theta`.
    Trained { weight: Range<usize>, bias: Option<Range<usize>>, out: usize, width_in: usize },
}

/// A low-rank update: ranges of `theta`.
#[derive(Clone, Debug)]
pub(crate) struct Lora {
    /// r x width_in.
    pub a: Range<usize>,
    /// out x r, right behind `a`.
    pub b: Range<usize>,
    pub scale: f32,
}

/// What the backward reads, besides the input.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    /// `x A^T`.
    lora: Option<Mat>,
    /// `x V`.
    xs: Option<Mat>,
    bottleneck: Option<bottleneck::Saved>,
}

impl AdaptedLinear {
    /// rows x width_in becomes rows x out.
    pub fn forward(&self, pass: Pass<'_>, x: &Mat) -> Result<(Mat, Saved)> {
        let mut y = self.core.forward(pass, x)?;
        let mut saved = Saved::default();
        if let Some(Lora { a, b, scale }) = &self.lora {
            let (a, b) = (&pass.theta[a.clone()], &pass.theta[b.clone()]);
            saved.lora = Some(lora::forward(pass.ws, x, a, b, *scale, &mut y)?);
        }
        if let Some(xs) = &self.xs {
            saved.xs = Some(xs.forward(pass, x, &mut y)?);
        }
        if let Some(bottleneck) = &self.bottleneck {
            let (out, inside) = bottleneck.forward(pass, y)?;
            saved.bottleneck = Some(inside);
            y = out;
        }
        Ok((y, saved))
    }

    /// [`AdaptedLinear::forward`] with tangents.
    pub fn tangent(&self, pass: TangentPass<'_>, x: &Dual) -> Result<Dual> {
        let y = self.linear_tangent(pass, x)?;
        self.after_linear_tangent(pass, y)
    }

    /// The same where nothing else reads `x`, which is gone before a bottleneck takes its memory.
    pub fn tangent_last(&self, pass: TangentPass<'_>, x: Dual) -> Result<Dual> {
        let y = self.linear_tangent(pass, &x)?;
        drop(x);
        self.after_linear_tangent(pass, y)
    }

    fn linear_tangent(&self, pass: TangentPass<'_>, x: &Dual) -> Result<Dual> {
        let mut y = self.core.tangent(pass, x)?;
        if let Some(lora) = &self.lora {
            y = lora.tangent(pass, x, y)?;
        }
        match &self.xs {
            Some(xs) => xs.tangent(pass, x, y),
            None => Ok(y),
        }
    }

    fn after_linear_tangent(&self, pass: TangentPass<'_>, y: Dual) -> Result<Dual> {
        match &self.bottleneck {
            Some(bottleneck) => bottleneck.tangent(pass, y),
            None => Ok(y),
        }
    }

    /// What [`AdaptedLinear::forward`] saved, once more, without the output where nothing is behind it.
    pub fn recompute(&self, pass: Pass<'_>, x: &Mat) -> Result<Saved> {
        if self.bottleneck.is_some() {
            return Ok(self.forward(pass, x)?.1);
        }
        let hidden = |lora: &Lora| {
            let (a, rank) = (&pass.theta[lora.a.clone()], lora.a.len() / x.width());
            dense::forward(pass.ws, x, a, None, rank)
        };
        Ok(Saved {
            lora: self.lora.as_ref().map(hidden).transpose()?,
            xs: self.xs.as_ref().map(|xs| xs.hidden(pass, x)).transpose()?,
            bottleneck: None,
        })
    }

    /// Whether [`AdaptedLinear::recompute`] reads the input.
    pub fn recomputes(&self) -> bool {
        self.lora.is_some() || self.xs.is_some() || self.bottleneck.is_some()
    }

    /// Whether the backward reads the input, so that it has to be kept.
    pub fn needs_input(&self) -> bool {
        self.lora.is_some() || matches!(self.core, Core::Trained { .. })
    }

    /// Whether anything here is trained.
    pub fn is_trained(&self) -> bool {
        self.recomputes() || !matches!(self.core, Core::Frozen(_))
    }

    /// The gradient of the input; those of the sites are accumulated into `grad`. `x` is the input
    /// where [`AdaptedLinear::needs_input`].
    pub fn backward(
        &self,
        pass: Pass<'_>,
        x: Option<&Mat>,
        saved: &Saved,
        dy: &Mat,
        grad: &mut [f32],
    ) -> Result<Mat> {
        let inner = self.before_bottleneck(pass, saved, dy, grad)?;
        let dy = inner.as_ref().unwrap_or(dy);
        let mut dx = self.core.backward(pass, dy)?;
        self.sites_backward(pass, x, saved, dy, Some(&mut dx), grad)?;
        Ok(dx)
    }

    /// As [`AdaptedLinear::backward`], but adds to `dx`; without one, only the sites get gradients.
    pub fn backward_add(
        &self,
        pass: Pass<'_>,
        x: Option<&Mat>,
        saved: &Saved,
        dy: &Mat,
        mut dx: Option<&mut Mat>,
        grad: &mut [f32],
    ) -> Result<()> {
        let inner = self.before_bottleneck(pass, saved, dy, grad)?;
        let dy = inner.as_ref().unwrap_or(dy);
        if let Some(dx) = dx.as_deref_mut() {
            self.core.backward_add(pass, dy, dx)?;
        }
        self.sites_backward(pass, x, saved, dy, dx, grad)
    }

    fn before_bottleneck(
        &self,
        pass: Pass<'_>,
        saved: &Saved,
        dy: &Mat,
        grad: &mut [f32],
    ) -> Result<Option<Mat>> {
        let parts = self.bottleneck.as_ref().zip(saved.bottleneck.as_ref());
        parts.map(|(bottleneck, saved)| bottleneck.backward(pass, saved, dy, grad)).transpose()
    }

    /// The gradients of bias, weight and LoRA, and what LoRA adds to that of the input.
    fn sites_backward(
        &self,
        pass: Pass<'_>,
        x: Option<&Mat>,
        saved: &Saved,
        dy: &Mat,
        mut dx: Option<&mut Mat>,
        grad: &mut [f32],
    ) -> Result<()> {
        match &self.core {
            Core::Frozen(_) => {}
            Core::TrainedBias { bias, .. } => dense::bias_gradient(pass.ws, dy, &mut grad[bias.clone()])?,
            Core::Trained { weight, bias, .. } => {
                let x = x.expect("kept, since needs_input");
                dense::backward_weight(pass.ws, x, dy, &mut grad[weight.clone()])?;
                if let Some(bias) = bias {
                    dense::bias_gradient(pass.ws, dy, &mut grad[bias.clone()])?;
                }
            }
        }
        if let Some((xs, h)) = self.xs.as_ref().zip(saved.xs.as_ref()) {
            xs.backward(pass, h, dy, dx.as_deref_mut(), grad)?;
        }
        let Some((Lora { a, b, scale }, h)) = self.lora.as_ref().zip(saved.lora.as_ref()) else {
            return Ok(());
        };
        let x = x.expect("kept, since needs_input");
        let (grad_a, grad_b) = grad[a.start..b.end].split_at_mut(a.len());
        let factors = (&pass.theta[a.clone()], &pass.theta[b.clone()], *scale);
        lora::backward(pass.ws, x, h, dy, factors, dx, lora::Grads { a: grad_a, b: grad_b })
    }

    /// The memory its frozen part holds.
    pub fn bytes(&self) -> u64 {
        let xs = self.xs.as_ref().map_or(0, LoraXs::bytes);
        xs + match &self.core {
            Core::Frozen(linear) | Core::TrainedBias { weight: linear, .. } => linear.bytes(),
            Core::Trained { .. } => 0,
        }
    }
}

impl Lora {
    /// Adds the adapter's output and its tangents to `y`:
    /// `dy += scale * (dx A^T B^T + x dA^T B^T + x A^T dB^T)`.
    fn tangent(&self, pass: TangentPass<'_>, x: &Dual, y: Dual) -> Result<Dual> {
        let (ws, theta) = (pass.ws(), pass.theta());
        let (rank, out) = (self.a.len() / x.width(), y.width());
        let h = dense::tangent(ws, x, &theta[self.a.clone()], None, rank)?;
        let h = pass.add_product(x, Some(&self.a), 1.0, h)?;
        let mut y = y.widen(ws, h.directions())?;
        let reached = h.stack().rows() * out;
        let (b, y_rows) = (&theta[self.b.clone()], &mut y.stack_mut()[..reached]);
        dense::forward_add(ws, h.stack(), b, self.scale, y_rows, (rank, out))?;
        pass.add_product(&h, Some(&self.b), self.scale, y)
    }
}

impl Core {
    /// `dy = dx W^T + x dW^T + db`.
    fn tangent(&self, pass: TangentPass<'_>, x: &Dual) -> Result<Dual> {
        let (ws, theta) = (pass.ws(), pass.theta());
        match self {
            Core::Frozen(linear) => linear.tangent(ws, x, linear.bias()),
            Core::TrainedBias { weight, bias } => {
                let y = weight.tangent(ws, x, Some(&theta[bias.clone()]))?;
                pass.add_bias(Some(bias), y)
            }
            Core::Trained { weight, bias, out, .. } => {
                let known = bias.as_ref().map(|bias| &theta[bias.clone()]);
                let y = dense::tangent(ws, x, &theta[weight.clone()], known, *out)?;
                pass.add_bias(bias.as_ref(), pass.add_product(x, Some(weight), 1.0, y)?)
            }
        }
    }

    fn forward(&self, pass: Pass<'_>, x: &Mat) -> Result<Mat> {
        let theta = pass.theta;
        match self {
            Core::Frozen(linear) => linear.forward(pass.ws, x),
            Core::TrainedBias { weight, bias } => {
                weight.forward_with_bias(pass.ws, x, &theta[bias.clone()])
            }
            Core::Trained { weight, bias, out, .. } => {
                let bias = bias.as_ref().map(|bias| &theta[bias.clone()]);
                dense::forward(pass.ws, x, &theta[weight.clone()], bias, *out)
            }
        }
    }

    fn backward(&self, pass: Pass<'_>, dy: &Mat) -> Result<Mat> {
        match self {
            Core::Frozen(linear) | Core::TrainedBias { weight: linear, .. } => linear.backward(pass.ws, dy),
            Core::Trained { weight, width_in, .. } => {
                dense::backward_input(pass.ws, dy, &pass.theta[weight.clone()], *width_in)
            }
        }
    }

    fn backward_add(&self, pass: Pass<'_>, dy: &Mat, dx: &mut Mat) -> Result<()> {
        match self {
            Core::Frozen(linear) | Core::TrainedBias { weight: linear, .. } => {
                linear.backward_add(pass.ws, dy, dx)
            }
            Core::Trained { weight, .. } => {
                dense::backward_input_add(pass.ws, dy, &pass.theta[weight.clone()], dx)
            }
        }
    }
}
