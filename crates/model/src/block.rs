//! A transformer block: attention and feed-forward, each with a norm and a residual.

use crate::attention::{self, Attention, Cache};
use crate::families::NormOrder;
use crate::mlp::{self, Mlp};
use crate::norm::Norm;
use crate::pass::{Below, Pass, Save};
use ops::{Mat, Result};

#[derive(Debug)]
pub(crate) struct Block {
    pub attention: Attention,
    pub attention_norm: Norm,
    pub mlp: Mlp,
    pub mlp_norm: Norm,
    pub order: NormOrder,
}

/// What a block's backward reads, besides the block's input.
#[derive(Debug)]
pub(crate) struct Saved {
    attention: attention::Saved,
    mlp: mlp::Saved,
    /// The sum after attention: the input of the attention norm (post) or of the MLP norm (pre).
    middle: Mat,
    /// The sum after the MLP: the input of the MLP norm (post only).
    last: Option<Mat>,
    /// The normalised input of attention, where a projection reads it (pre only).
    attention_in: Option<Mat>,
    /// The input of the MLP, where a projection reads it.
    mlp_in: Option<Mat>,
}

/// What attention returns, to be put between norms and residuals.
type Attended = (Mat, Option<attention::Saved>);

impl Block {
    /// rows x width becomes rows x width.
    pub fn forward(&self, pass: Pass<'_>, x: &Mat, save: Save) -> Result<(Mat, Option<Saved>)> {
        let attend = |x: &Mat| self.attention.forward(pass, x, save);
        match self.order {
            NormOrder::Post => self.forward_post(pass, x, save, attend),
            NormOrder::Pre => self.forward_pre(pass, x, save, attend),
        }
    }

    /// The next positions of a single sequence, of which `first` are in the cache already.
    pub fn decode(&self, pass: Pass<'_>, x: &Mat, first: usize, cache: &mut Cache) -> Result<Mat> {
        let attend = |x: &Mat| Ok((self.attention.decode(pass, x, first, cache)?, None));
        let (y, _) = match self.order {
            NormOrder::Post => self.forward_post(pass, x, Save::Nothing, attend)?,
            NormOrder::Pre => self.forward_pre(pass, x, Save::Nothing, attend)?,
        };
        Ok(y)
    }

    /// The gradient of the input `x`, if something below is trained; gradients of the sites are
    /// accumulated into `grad`.
    pub fn backward(
        &self,
        pass: Pass<'_>,
        x: &Mat,
        saved: Saved,
        dy: Mat,
        below: Below,
        grad: &mut [f32],
    ) -> Result<Option<Mat>> {
        match self.order {
            NormOrder::Post => self.backward_post(pass, x, saved, dy, below, grad),
            NormOrder::Pre => self.backward_pre(pass, x, saved, dy, below, grad),
        }
    }

    /// `m = norm(x + attention(x)); y = norm(m + mlp(m))`
    fn forward_post(
        &self,
        pass: Pass<'_>,
        x: &Mat,
        save: Save,
        attend: impl FnOnce(&Mat) -> Result<Attended>,
    ) -> Result<(Mat, Option<Saved>)> {
        let (mut middle, attention) = attend(x)?;
        middle.add(x)?;
        let mlp_in = self.attention_norm.forward(pass, &middle)?;
        let middle = save.keep(|| middle);
        let (mut last, mlp) = self.mlp.forward(pass, &mlp_in, save)?;
        last.add(&mlp_in)?;
        let mlp_in = self.mlp.needs_input().then_some(mlp_in);
        let y = self.mlp_norm.forward(pass, &last)?;
        let parts = attention.zip(mlp).zip(middle);
        let saved = parts.map(|((attention, mlp), middle)| Saved {
            attention,
            mlp,
            middle,
            last: Some(last),
            attention_in: None,
            mlp_in,
        });
        Ok((y, saved))
    }

    fn backward_post(
        &self,
        pass: Pass<'_>,
        x: &Mat,
        saved: Saved,
        dy: Mat,
        below: Below,
        grad: &mut [f32],
    ) -> Result<Option<Mat>> {
        let last = saved.last.expect("kept by forward_post");
        let dlast = self.mlp_norm.backward(pass, &last, &dy, grad)?;
        drop((last, dy));
        let mut dmlp_in = self.enters_attention(below).then(|| pass.ws.copy(&dlast)).transpose()?;
        self.mlp.backward(pass, saved.mlp_in.as_ref(), saved.mlp, &dlast, dmlp_in.as_mut(), grad)?;
        drop((dlast, saved.mlp_in));
        let Some(dmlp_in) = dmlp_in else {
            return Ok(None);
        };
        let dmiddle = self.attention_norm.backward(pass, &saved.middle, &dmlp_in, grad)?;
        drop((saved.middle, dmlp_in));
        let mut dx = (below == Below::Trained).then(|| pass.ws.copy(&dmiddle)).transpose()?;
        self.attention.backward(pass, Some(x), saved.attention, &dmiddle, dx.as_mut(), grad)?;
        Ok(dx)
    }

    /// `m = x + attention(norm(x)); y = m + mlp(norm(m))`
    fn forward_pre(
        &self,
        pass: Pass<'_>,
        x: &Mat,
        save: Save,
        attend: impl FnOnce(&Mat) -> Result<Attended>,
    ) -> Result<(Mat, Option<Saved>)> {
        let attention_in = self.attention_norm.forward(pass, x)?;
        let (mut middle, attention) = attend(&attention_in)?;
        let attention_in = self.attention.needs_input().then_some(attention_in);
        let attention = attention.zip(Some(attention_in));
        middle.add(x)?;
        let mlp_in = self.mlp_norm.forward(pass, &middle)?;
        let (mut y, mlp) = self.mlp.forward(pass, &mlp_in, save)?;
        y.add(&middle)?;
        let mlp_in = self.mlp.needs_input().then_some(mlp_in);
        let saved = attention.zip(mlp).map(|((attention, attention_in), mlp)| Saved {
            attention,
            mlp,
            middle,
            last: None,
            attention_in,
            mlp_in,
        });
        Ok((y, saved))
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
