//! A transformer block: attention and feed-forward, each with a norm and a residual.

use crate::attention::{self, Attention, Cache};
use crate::families::NormOrder;
use crate::mlp::{self, Mlp};
use crate::norm::Norm;
use crate::pass::{Below, Pass, Save};
use crate::tangent::TangentPass;
use ops::{Dual, Mat, Result};

#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub attention: Attention,
    pub attention_norm: Norm,
    pub mlp: Mlp,
    pub mlp_norm: Norm,
    pub order: NormOrder,
}

/// What a block computes.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// rows x width.
    pub y: Mat,
    /// The sum before the last norm, of a post-norm block that saves; the output is its norm.
    pub sum: Option<Mat>,
    pub saved: Option<Saved>,
}

/// What a block's backward reads, besides the block's input and last sum.
#[derive(Debug)]
pub(crate) struct Saved {
    attention: attention::Saved,
    mlp: mlp::Saved,
    /// The sum after attention: the input of the attention norm (post) or of the MLP norm (pre).
    middle: Mat,
    /// The normalised input of attention, where a projection reads it (pre only).
    attention_in: Option<Mat>,
    /// The input of the MLP, where a projection reads it.
    mlp_in: Option<Mat>,
}

/// A block up to the input of its MLP.
struct Half {
    /// `None` where neither a residual nor the backward will read it.
    middle: Option<Mat>,
    mlp_in: Mat,
    attention: Option<attention::Saved>,
    attention_in: Option<Mat>,
}

/// What attention returns, to be put between norms and residuals.
type Attended = (Mat, Option<attention::Saved>);

impl Block {
    /// rows x width becomes rows x width.
    pub fn forward(&self, pass: Pass<'_>, x: &Mat, save: Save) -> Result<Forwarded> {
        let half = self.half(pass, x, |x| self.attention.forward(pass, x, save))?;
        self.finish(pass, half, save)
    }

    /// [`Block::forward`] with tangents. Of the block's activations only those that are still read stand in
    /// memory, each with its tangents.
    pub fn tangent(&self, pass: TangentPass<'_>, x: Dual) -> Result<Dual> {
        let ws = pass.ws();
        match self.order {
            NormOrder::Post => {
                let middle = self.attention.tangent(pass, &x)?.add(ws, &x)?;
                drop(x);
                let mlp_in = self.attention_norm.tangent(pass, &middle)?;
                drop(middle);
                let sum = self.mlp.tangent(pass, &mlp_in)?.add(ws, &mlp_in)?;
                drop(mlp_in);
                self.mlp_norm.tangent(pass, &sum)
            }
            NormOrder::Pre => {
                let attention_in = self.attention_norm.tangent(pass, &x)?;
                let attended = self.attention.tangent(pass, &attention_in)?;
                drop(attention_in);
                let middle = attended.add(ws, &x)?;
                drop(x);
                let mlp_in = self.mlp_norm.tangent(pass, &middle)?;
                let sum = self.mlp.tangent(pass, &mlp_in)?;
                drop(mlp_in);
                sum.add(ws, &middle)
            }
        }
    }

    /// The next positions of a single sequence, of which `first` are in the cache already.
    pub fn decode(&self, pass: Pass<'_>, x: &Mat, first: usize, cache: &mut Cache) -> Result<Mat> {
        let half = self.half(pass, x, |x| Ok((self.attention.decode(pass, x, first, cache)?, None)))?;
        Ok(self.finish(pass, half, Save::Nothing)?.y)
    }

    /// What [`Block::forward`] saved, once more: without the last product and what is behind it.
    pub fn recompute(&self, pass: Pass<'_>, x: &Mat) -> Result<Option<Saved>> {
        let half = self.half(pass, x, |x| self.attention.forward(pass, x, Save::ForBackward))?;
        let mlp = self.mlp.recompute(pass, &half.mlp_in)?;
        Ok(self.saved(half, Some(mlp)))
    }

    /// The output of a post-norm block, from its last sum.
    pub fn output(&self, pass: Pass<'_>, sum: &Mat) -> Result<Mat> {
        self.mlp_norm.forward(pass, sum)
    }

    /// `norm(x + attention(x))`, or `x + attention(norm(x))` and its norm.
    fn half(&self, pass: Pass<'_>, x: &Mat, attend: impl FnOnce(&Mat) -> Result<Attended>) -> Result<Half> {
        match self.order {
            NormOrder::Post => {
                let (mut middle, attention) = attend(x)?;
                middle.add(x)?;
                let mlp_in = self.attention_norm.forward(pass, &middle)?;
                let middle = attention.is_some().then_some(middle);
                Ok(Half { middle, mlp_in, attention, attention_in: None })
            }
            NormOrder::Pre => {
                let attention_in = self.attention_norm.forward(pass, x)?;
                let (mut middle, attention) = attend(&attention_in)?;
                let needed = attention.is_some() && self.attention.needs_input();
                let attention_in = needed.then_some(attention_in);
                middle.add(x)?;
                let mlp_in = self.mlp_norm.forward(pass, &middle)?;
                Ok(Half { middle: Some(middle), mlp_in, attention, attention_in })
            }
        }
    }

    /// `norm(m + mlp(m))`, or `m + mlp(norm(m))`.
    fn finish(&self, pass: Pass<'_>, half: Half, save: Save) -> Result<Forwarded> {
        let (mut sum, mlp) = self.mlp.forward(pass, &half.mlp_in, save)?;
        match self.order {
            NormOrder::Post => {
                sum.add(&half.mlp_in)?;
                let saved = self.saved(half, mlp);
                let y = self.output(pass, &sum)?;
                Ok(Forwarded { y, sum: (save != Save::Nothing).then_some(sum), saved })
            }
            NormOrder::Pre => {
                if let Some(middle) = &half.middle {
                    sum.add(middle)?;
                }
                Ok(Forwarded { y: sum, sum: None, saved: self.saved(half, mlp) })
            }
        }
    }

    fn saved(&self, half: Half, mlp: Option<mlp::Saved>) -> Option<Saved> {
        let Half { middle, mlp_in, attention, attention_in } = half;
        let mlp_in = self.mlp.needs_input().then_some(mlp_in);
        Some(Saved { attention: attention?, mlp: mlp?, middle: middle?, attention_in, mlp_in })
    }

    /// The gradient of the input `x`, if something below is trained; gradients of the sites are
    /// accumulated into `grad`. `sum` is that of [`Forwarded`].
    pub fn backward(
        &self,
        pass: Pass<'_>,
        x: &Mat,
        (saved, sum): (Saved, Option<Mat>),
        dy: Mat,
        below: Below,
        grad: &mut [f32],
    ) -> Result<Option<Mat>> {
        let Some(sum) = sum else {
            return self.backward_pre(pass, x, saved, dy, below, grad);
        };
        let dsum = self.mlp_norm.backward(pass, &sum, &dy, grad)?;
        drop((sum, dy));
        self.backward_post(pass, x, saved, dsum, below, grad)
    }

    /// From the gradient of the last sum.
    fn backward_post(
        &self,
        pass: Pass<'_>,
        x: &Mat,
        saved: Saved,
        dsum: Mat,
        below: Below,
        grad: &mut [f32],
    ) -> Result<Option<Mat>> {
        let mut dmlp_in = self.enters_attention(below).then(|| pass.ws.copy(&dsum)).transpose()?;
        self.mlp.backward(pass, saved.mlp_in.as_ref(), saved.mlp, &dsum, dmlp_in.as_mut(), grad)?;
        drop((dsum, saved.mlp_in));
        let Some(dmlp_in) = dmlp_in else {
            return Ok(None);
        };
        let dmiddle = self.attention_norm.backward(pass, &saved.middle, &dmlp_in, grad)?;
        drop((saved.middle, dmlp_in));
        let mut dx = (below == Below::Trained).then(|| pass.ws.copy(&dmiddle)).transpose()?;
        self.attention.backward(pass, Some(x), saved.attention, &dmiddle, dx.as_mut(), grad)?;
        Ok(dx)
    }

    fn backward_pre(
        &self,
        pass: Pass<'_>,
        x: &Mat,
        saved: Saved,
        dy: Mat,
        below: Below,
        grad: &mut [f32],
    ) -> Result<Option<Mat>> {
        let (rows, width) = (dy.rows(), dy.width());
        let zeros = || pass.ws.zeros(rows, width);
        let enters = self.enters_attention(below) || self.mlp_norm.is_trained();
        let mut dmlp_in = enters.then(zeros).transpose()?;
        self.mlp.backward(pass, saved.mlp_in.as_ref(), saved.mlp, &dy, dmlp_in.as_mut(), grad)?;
        drop(saved.mlp_in);
        let Some(dmlp_in) = dmlp_in else {
            return Ok(None);
        };
        let mut dmiddle = self.mlp_norm.backward(pass, &saved.middle, &dmlp_in, grad)?;
        drop((saved.middle, dmlp_in));
        dmiddle.add(&dy)?;
        drop(dy);
        let enters = below == Below::Trained || self.attention_norm.is_trained();
        let mut dattention_in = enters.then(zeros).transpose()?;
        let (inside, input) = (saved.attention, saved.attention_in);
        self.attention.backward(pass, input.as_ref(), inside, &dmiddle, dattention_in.as_mut(), grad)?;
        drop(input);
        let Some(dattention_in) = dattention_in else {
            return Ok(None);
        };
        let mut dx = self.attention_norm.backward(pass, x, &dattention_in, grad)?;
        dx.add(&dmiddle)?;
        Ok((below == Below::Trained).then_some(dx))
    }

    /// Whether a gradient has to come down to the output of attention.
    fn enters_attention(&self, below: Below) -> bool {
        below == Below::Trained || self.attention.is_trained() || self.attention_norm.is_trained()
    }

    /// The memory its frozen part holds.
    pub fn bytes(&self) -> u64 {
        self.attention.bytes() + self.attention_norm.bytes() + self.mlp.bytes() + self.mlp_norm.bytes()
    }
}
