//! A trainable linear layer. Its weight stays a plain `out x in` slice, as Hugging Face stores it.

use crate::error::same;
use crate::gemm::{View, accumulate};
use crate::{Mat, Result, Workspace};

/// `y = x W^T + b`: x is rows x in, `w` out x in, y rows x out.
pub fn forward(ws: &Workspace, x: &Mat, w: &[f32], bias: Option<&[f32]>, out: usize) -> Result<Mat> {
    same("the size of the weight", out * x.width(), w.len())?;
    let mut y = ws.zeros(x.rows(), out)?;
    if let Some(bias) = bias {
        add_bias(ws, bias, &mut y)?;
    }
    let (x_view, w_view) = (View::rows(x, x.width()), View::rows(w, x.width()));
    accumulate(out, x.width(), 1.0, x_view, w_view.transposed(), &mut y);
    Ok(y)
}

/// `y += b` on every row.
pub fn add_bias(_ws: &Workspace, bias: &[f32], y: &mut Mat) -> Result<()> {
    same("the length of the bias", y.width(), bias.len())?;
    for row in y.chunks_exact_mut(bias.len().max(1)) {
        crate::slice::axpy(1.0, bias, row);
    }
    Ok(())
}

/// `dx = dy W`: dy is rows x out, `w` out x in, dx rows x in.
pub fn backward_input(ws: &Workspace, dy: &Mat, w: &[f32], in_: usize) -> Result<Mat> {
    let mut dx = ws.zeros(dy.rows(), in_)?;
    backward_input_add(ws, dy, w, &mut dx)?;
    Ok(dx)
}

/// `dx += dy W`, where several layers read the same input.
pub fn backward_input_add(_ws: &Workspace, dy: &Mat, w: &[f32], dx: &mut Mat) -> Result<()> {
    let (out, in_) = (dy.width(), dx.width());
    same("the size of the weight", out * in_, w.len())?;
    dx.expect("the gradient of the input", dy.rows(), in_)?;
    accumulate(in_, out, 1.0, View::rows(dy, out), View::rows(w, in_), dx);
    Ok(())
}

/// `dw += dy^T x`: x is rows x in, dy rows x out, `dw` out x in.
pub fn backward_weight(_ws: &Workspace, x: &Mat, dy: &Mat, dw: &mut [f32]) -> Result<()> {
    let (out, in_) = (dy.width(), x.width());
    same("the number of rows", x.rows(), dy.rows())?;
    same("the size of the weight's gradient", out * in_, dw.len())?;
    accumulate(in_, x.rows(), 1.0, View::rows(dy, out).transposed(), View::rows(x, in_), dw);
    Ok(())
}

/// `db +=` the sum of the rows of `dy`.
pub fn bias_gradient(_ws: &Workspace, dy: &Mat, db: &mut [f32]) -> Result<()> {
    same("the length of the bias's gradient", dy.width(), db.len())?;
    for row in dy.chunks_exact(db.len().max(1)) {
        crate::slice::axpy(1.0, row, db);
    }
    Ok(())
}
