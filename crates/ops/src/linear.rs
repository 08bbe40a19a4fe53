//! A frozen linear layer.

use crate::aligned::Aligned;
use crate::error::same;
use crate::gemm::{Product, Right, Write};
use crate::panels::{Panels, View, pack_all};
use crate::simd::{Kernel, Simd};
use crate::{Dual, Level, Mat, Result, Workspace};

/// `y = x W^T + b` with weights that never change.
///
/// There is one copy of W, cut into panels as the forward kernel reads them: the outputs of one
/// input stand side by side. The backward kernel transposes slices of that same copy as it comes to
/// them.
#[derive(Clone, Debug)]
pub struct Linear {
    out: usize,
    in_: usize,
    panels: Aligned,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Pack `weight`, out x in row-major as Hugging Face stores it. Its original can be dropped.
    pub fn pack(out: usize, in_: usize, weight: &[f32], bias: Option<&[f32]>) -> Result<Linear> {
        same("the size of the weight", out * in_, weight.len())?;
        if let Some(bias) = bias {
            same("the length of the bias", out, bias.len())?;
        }
        let mut panels = Aligned::zeros(Panels::size(in_, out));
        Level::best().run(Pack { out, in_, weight, panels: &mut panels });
        Ok(Linear { out, in_, panels, bias: bias.map(<[f32]>::to_vec) })
    }

    /// The width of the output.
    pub fn out(&self) -> usize {
        self.out
    }

    /// The width of the input.
    pub fn width_in(&self) -> usize {
        self.in_
    }

    /// The memory it holds.
    pub fn bytes(&self) -> u64 {
        4 * (self.panels.len() + self.bias.as_ref().map_or(0, Vec::len)) as u64
    }

    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The weights as they were given to [`Linear::pack`].
    pub fn unpack(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.out * self.in_];
        for (o, row) in weight.chunks_exact_mut(self.in_.max(1)).enumerate() {
            self.copy_row(o, row);
        }
        weight
    }

    /// Row `index` of W (of length in), for an embedding that is tied to this layer.
    pub fn row(&self, index: usize, row: &mut [f32]) -> Result<()> {
        crate::error::inside("row", index, self.out)?;
        same("the length of a row", self.in_, row.len())?;
        self.copy_row(index, row);
        Ok(())
    }

    fn copy_row(&self, index: usize, row: &mut [f32]) {
        let (at, stride) = Panels::place(self.in_, self.out, 0, index);
        for (value, weight) in row.iter_mut().zip(self.panels[at..].iter().step_by(stride)) {
            *value = *weight;
        }
    }

    fn panels(&self) -> Panels<'_> {
        Panels { data: &self.panels, k: self.in_, n: self.out }
    }

    /// `x W^T + b`: rows x in becomes rows x out.
    pub fn forward(&self, ws: &Workspace, x: &Mat) -> Result<Mat> {
        self.forward_with(ws, x, self.bias())
    }

    /// [`Linear::forward`] with a bias of the caller's (BitFit trains it) in place of the frozen one.
    pub fn forward_with_bias(&self, ws: &Workspace, x: &Mat, bias: &[f32]) -> Result<Mat> {
        self.forward_with(ws, x, Some(bias))
    }

    /// [`Linear::forward_with_bias`] of an activation with tangents: one product, whose bias goes to the
    /// activation's rows alone.
    pub fn tangent(&self, ws: &Workspace, x: &Dual, bias: Option<&[f32]>) -> Result<Dual> {
        x.map(|stack| self.product(ws, stack, bias, x.rows()))
    }

    fn forward_with(&self, ws: &Workspace, x: &Mat, bias: Option<&[f32]>) -> Result<Mat> {
        self.product(ws, x, bias, x.rows())
    }

    fn product(&self, ws: &Workspace, x: &Mat, bias: Option<&[f32]>, biased: usize) -> Result<Mat> {
        x.expect("the input of a linear layer", x.rows(), self.in_)?;
        if let Some(bias) = bias {
            same("the length of the bias", self.out, bias.len())?;
        }
        let mut y = ws.scratch(x.rows(), self.out)?;
        let (left, right) = (View::rows(x, self.in_), Right::Packed(self.panels()));
        Product::new(x.rows(), self.out, self.in_, left, right)
            .write(bias.map_or(Write::Set, Write::SetWithBias))
            .biased(biased)
            .run(ws, &mut y)?;
        Ok(y)
    }

    /// `dx = dy W`: rows x out becomes rows x in.
    pub fn backward(&self, ws: &Workspace, dy: &Mat) -> Result<Mat> {
        let mut dx = ws.scratch(dy.rows(), self.in_)?;
        self.backward_into(ws, dy, &mut dx, Write::Set)?;
        Ok(dx)
    }

    /// `dx += dy W`, where several layers read the same input or a residual runs beside this one.
    pub fn backward_add(&self, ws: &Workspace, dy: &Mat, dx: &mut Mat) -> Result<()> {
        self.backward_into(ws, dy, dx, Write::Add)
    }

    fn backward_into(&self, ws: &Workspace, dy: &Mat, dx: &mut Mat, write: Write<'_>) -> Result<()> {
        dy.expect("the gradient of a linear layer's output", dy.rows(), self.out)?;
        dx.expect("the gradient of a linear layer's input", dy.rows(), self.in_)?;
        let (left, right) = (View::rows(dy, self.out), Right::Transposed(self.panels()));
        Product::new(dy.rows(), self.in_, self.out, left, right).write(write).run(ws, dx)
    }
}

/// Cuts `weight` (out x in) into panels.
struct Pack<'a> {
    out: usize,
    in_: usize,
    weight: &'a [f32],
    panels: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let right = View::rows(self.weight, self.in_).transposed();
        pack_all(s, right, self.in_, self.out, self.panels);
    }
}
