//! Low-rank adapters: `y += scale * x A^T B^T` (Hu et al. 2021, LoRA, equation 3).

use crate::error::same;
use crate::gemm::{Product, Right, Write};
use crate::panels::View;
use crate::{Mat, Result, Workspace};

/// Adds the adapter's output to `y` (rows x out) and returns `h = x A^T` (rows x r), which
/// [`backward`] reads. `a` is r x in, `b` is out x r.
pub fn forward(ws: &Workspace, x: &Mat, a: &[f32], b: &[f32], scale: f32, y: &mut Mat) -> Result<Mat> {
    let rank = rank(x.width(), y.width(), a, b)?;
    y.expect("the output of the adapter", x.rows(), y.width())?;
    let (in_, out) = (x.width(), y.width());
    let mut h = ws.scratch(x.rows(), rank)?;
    let down = Right::Strided(View::rows(a, in_).transposed());
    Product::new(x.rows(), rank, in_, View::rows(x, in_), down).run(ws, &mut h)?;
    let up = Right::Strided(View::rows(b, rank).transposed());
    Product::new(x.rows(), out, rank, View::rows(&h, rank), up)
        .scaled(scale)
        .write(Write::Add)
        .run(ws, y)?;
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
    let (rows, dy) = (dy.rows(), View::rows(dy, out));
    Product::new(out, rank, rows, dy.transposed(), Right::Strided(View::rows(h, rank)))
        .scaled(scale)
        .write(Write::Add)
        .run(ws, grads.b)?;
    let mut dh = ws.scratch(rows, rank)?;
    Product::new(rows, rank, out, dy, Right::Strided(View::rows(b, rank)))
        .scaled(scale)
        .run(ws, &mut dh)?;
    let dh = View::rows(&dh, rank);
    Product::new(rank, in_, rows, dh.transposed(), Right::Strided(View::rows(x, in_)))
        .write(Write::Add)
        .run(ws, grads.a)?;
    if let Some(dx) = dx {
        dx.expect("the gradient of the input", rows, in_)?;
        let right = Right::Strided(View::rows(a, in_));
        Product::new(rows, in_, rank, dh, right).write(Write::Add).run(ws, dx)?;
    }
    Ok(())
}

fn rank(in_: usize, out: usize, a: &[f32], b: &[f32]) -> Result<usize> {
    let rank = a.len() / in_.max(1);
    same("the size of A", rank * in_, a.len())?;
    same("the size of B", out * rank, b.len())?;
    Ok(rank)
}
