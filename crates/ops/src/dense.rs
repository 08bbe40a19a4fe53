//! A trainable linear layer. Its weight stays a plain `out x in` slice, as Hugging Face stores it.

use crate::error::same;
use crate::gemm::{Product, Right, Write};
use crate::panels::View;
use crate::parallel::{Parts, block, share_out};
use crate::{Dual, Mat, Result, Workspace};

/// `y = x W^T + b`: x is rows x in, `w` out x in, y rows x out.
pub fn forward(ws: &Workspace, x: &Mat, w: &[f32], bias: Option<&[f32]>, out: usize) -> Result<Mat> {
    product(ws, x, w, bias, (out, x.rows()))
}

/// [`forward`] of an activation with tangents, as far as they come from `x`: what a direction that moves
/// W or b adds is [`forward_add`] of the activation with its part, and [`add_bias`].
pub fn tangent(ws: &Workspace, x: &Dual, w: &[f32], bias: Option<&[f32]>, out: usize) -> Result<Dual> {
    x.map(|stack| product(ws, stack, w, bias, (out, x.rows())))
}

/// `y += scale * x W^T` on some rows: x is rows x in, `w` out x in, y rows x out.
pub fn forward_add(
    ws: &Workspace,
    x: &[f32],
    w: &[f32],
    scale: f32,
    y: &mut [f32],
    (in_, out): (usize, usize),
) -> Result<()> {
    let rows = x.len() / in_.max(1);
    same("the size of the input", rows * in_, x.len())?;
    same("the size of the weight", out * in_, w.len())?;
    same("the size of the output", rows * out, y.len())?;
    let right = Right::Strided(View::rows(w, in_).transposed());
    Product::new(rows, out, in_, View::rows(x, in_), right).scaled(scale).write(Write::Add).run(ws, y)
}

fn product(
    ws: &Workspace,
    x: &Mat,
    w: &[f32],
    bias: Option<&[f32]>,
    (out, biased): (usize, usize),
) -> Result<Mat> {
    let in_ = x.width();
    same("the size of the weight", out * in_, w.len())?;
    if let Some(bias) = bias {
        same("the length of the bias", out, bias.len())?;
    }
    let mut y = ws.scratch(x.rows(), out)?;
    let right = Right::Strided(View::rows(w, in_).transposed());
    Product::new(x.rows(), out, in_, View::rows(x, in_), right)
        .write(bias.map_or(Write::Set, Write::SetWithBias))
        .biased(biased)
        .run(ws, &mut y)?;
    Ok(y)
}

/// `y += b` on every row.
pub fn add_bias(ws: &Workspace, bias: &[f32], y: &mut Mat) -> Result<()> {
    same("the length of the bias", y.width(), bias.len())?;
    ws.by_rows(y, |_, part| {
        part.chunks_exact_mut(bias.len().max(1)).for_each(|row| crate::slice::axpy(1.0, bias, row));
    });
    Ok(())
}

/// `dx = dy W`: dy is rows x out, `w` out x in, dx rows x in.
pub fn backward_input(ws: &Workspace, dy: &Mat, w: &[f32], in_: usize) -> Result<Mat> {
    let mut dx = ws.scratch(dy.rows(), in_)?;
    input_gradient(ws, dy, w, &mut dx, Write::Set)?;
    Ok(dx)
}

/// `dx += dy W`, where several layers read the same input.
pub fn backward_input_add(ws: &Workspace, dy: &Mat, w: &[f32], dx: &mut Mat) -> Result<()> {
    input_gradient(ws, dy, w, dx, Write::Add)
}

fn input_gradient(ws: &Workspace, dy: &Mat, w: &[f32], dx: &mut Mat, write: Write<'_>) -> Result<()> {
    let (out, in_) = (dy.width(), dx.width());
    same("the size of the weight", out * in_, w.len())?;
    dx.expect("the gradient of the input", dy.rows(), in_)?;
    let right = Right::Strided(View::rows(w, in_));
    Product::new(dy.rows(), in_, out, View::rows(dy, out), right).write(write).run(ws, dx)
}

/// `dw += dy^T x`: x is rows x in, dy rows x out, `dw` out x in.
pub fn backward_weight(ws: &Workspace, x: &Mat, dy: &Mat, dw: &mut [f32]) -> Result<()> {
    let (out, in_) = (dy.width(), x.width());
    same("the number of rows", x.rows(), dy.rows())?;
    same("the size of the weight's gradient", out * in_, dw.len())?;
    let (left, right) = (View::rows(dy, out).transposed(), Right::Strided(View::rows(x, in_)));
    Product::new(out, in_, x.rows(), left, right).write(Write::Add).run(ws, dw)
}

/// `db +=` the sum of the rows of `dy`.
pub fn bias_gradient(ws: &Workspace, dy: &Mat, db: &mut [f32]) -> Result<()> {
    same("the length of the bias's gradient", dy.width(), db.len())?;
    by_columns(ws, db, |columns, db| {
        for r in 0..dy.rows() {
            crate::slice::axpy(1.0, &dy.row(r)[columns.clone()], db);
        }
    });
    Ok(())
}

/// Shares out sums over rows by columns, so that no sum is ever split.
pub(crate) fn by_columns(
    ws: &Workspace,
    sums: &mut [f32],
    task: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) {
    /// Columns of a task: whole cache lines.
    const COLUMNS: usize = 128;
    let len = sums.len();
    let parts = Parts::new(sums);
    share_out(ws.threads(), len.div_ceil(COLUMNS), |_, index| {
        let columns = block(len, COLUMNS, index);
        // SAFETY: blocks of columns are disjoint.
        task(columns.clone(), unsafe { parts.part(columns) });
    });
}
