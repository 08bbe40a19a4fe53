//! Low-rank adapters: `y += scale * x A^T B^T` (Hu et al. 2021, LoRA, equation 3).

use crate::error::same;
use crate::gemm::{View, accumulate};
use crate::{Mat, Result, Workspace};

/// Adds the adapter's output to `y` (rows x out) and returns `h = x A^T` (rows x r), which
/// [`backward`] reads. `a` is r x in, `b` is out x r.
pub fn forward(ws: &Workspace, x: &Mat, a: &[f32], b: &[f32], scale: f32, y: &mut Mat) -> Result<Mat> {
    let rank = rank(x.width(), y.width(), a, b)?;
    y.expect("the output of the adapter", x.rows(), y.width())?;
    let mut h = ws.zeros(x.rows(), rank)?;
    let (x_view, a_view) = (View::rows(x, x.width()), View::rows(a, x.width()));
    accumulate(rank, x.width(), 1.0, x_view, a_view.transposed(), &mut h);
    accumulate(y.width(), rank, scale, View::rows(&h, rank), View::rows(b, rank).transposed(), y);
    Ok(h)
}

/// The adapter's parameters, seen from its backward pass.
pub struct Grads<'a> {
    /// r x in.
    pub a: &'a mut [f32],
    /// out x r.
    pub b: &'a mut [f32],
}

/// Accumulates `dB += scale * dy^T h` and `dA += scale * (dy B)^T x` into `grads`, and adds
/// `scale * dy B A` to `dx` (rows x in) where the input's gradient is wanted.
pub fn backward(
    ws: &Workspace,
    x: &Mat,
    h: &Mat,
    dy: &Mat,
    (a, b, scale): (&[f32], &[f32], f32),
    dx: Option<&mut Mat>,
    grads: Grads<'_>,
) -> Result<()> {
    let (in_, out) = (x.width(), dy.width());
    let rank = rank(in_, out, a, b)?;
    h.expect("the adapter's hidden rows", x.rows(), rank)?;
    same("the number of rows", x.rows(), dy.rows())?;
    same("the size of A's gradient", a.len(), grads.a.len())?;
    same("the size of B's gradient", b.len(), grads.b.len())?;
    let dy_view = View::rows(dy, out);
    accumulate(rank, dy.rows(), scale, dy_view.transposed(), View::rows(h, rank), grads.b);
    let mut dh = ws.zeros(dy.rows(), rank)?;
    accumulate(rank, out, scale, dy_view, View::rows(b, rank), &mut dh);
    let dh_view = View::rows(&dh, rank);
    accumulate(in_, dy.rows(), 1.0, dh_view.transposed(), View::rows(x, in_), grads.a);
    if let Some(dx) = dx {
        dx.expect("the gradient of the input", x.rows(), in_)?;
        accumulate(in_, rank, 1.0, dh_view, View::rows(a, in_), dx);
    }
    Ok(())
}

fn rank(in_: usize, out: usize, a: &[f32], b: &[f32]) -> Result<usize> {
    let rank = a.len() / in_.max(1);
    same("the size of A", rank * in_, a.len())?;
    same("the size of B", out * rank, b.len())?;
    Ok(rank)
}
