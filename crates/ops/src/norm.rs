//! Normalisation of rows.

use crate::error::same;
use crate::{Mat, Result, Workspace};

/// Layer normalisation (Ba et al. 2016): `(x - mean) / sqrt(var + eps) * w + b` on every row.
pub fn layer(ws: &Workspace, x: &Mat, w: &[f32], b: &[f32], eps: f32) -> Result<Mat> {
    same("the length of the norm's weight", x.width(), w.len())?;
    same("the length of the norm's bias", x.width(), b.len())?;
    let mut y = ws.scratch(x.rows(), x.width())?;
    for r in 0..x.rows() {
        let (mean, inverse) = layer_stats(x.row(r), eps);
        for (((y, x), w), b) in y.row_mut(r).iter_mut().zip(x.row(r)).zip(w).zip(b) {
            *y = (x - mean) * inverse * w + b;
        }
    }
    Ok(y)
}

/// `dx` of [`layer`] from its input; where wanted, `grads = (dw, db)` are accumulated.
pub fn layer_backward(
    ws: &Workspace,
    x: &Mat,
    dy: &Mat,
    w: &[f32],
    eps: f32,
    grads: Option<(&mut [f32], &mut [f32])>,
) -> Result<Mat> {
    same("the length of the norm's weight", x.width(), w.len())?;
    dy.expect("the gradient of a norm", x.rows(), x.width())?;
    let mut dx = ws.scratch(x.rows(), x.width())?;
    for r in 0..x.rows() {
        let (mean, inverse) = layer_stats(x.row(r), eps);
        input_gradient(x.row(r), dy.row(r), w, (mean, inverse, true), dx.row_mut(r));
    }
    if let Some((dw, db)) = grads {
        same("the length of the norm's weight gradient", x.width(), dw.len())?;
        crate::dense::bias_gradient(ws, dy, db)?;
        for r in 0..x.rows() {
            let (mean, inverse) = layer_stats(x.row(r), eps);
            weight_gradient(x.row(r), dy.row(r), mean, inverse, dw);
        }
    }
    Ok(dx)
}

/// Root-mean-square normalisation (Zhang and Sennrich 2019): `x / sqrt(mean(x^2) + eps) * w`.
pub fn rms(ws: &Workspace, x: &Mat, w: &[f32], eps: f32) -> Result<Mat> {
    same("the length of the norm's weight", x.width(), w.len())?;
    let mut y = ws.scratch(x.rows(), x.width())?;
    for r in 0..x.rows() {
        let inverse = rms_stats(x.row(r), eps);
        for ((y, x), w) in y.row_mut(r).iter_mut().zip(x.row(r)).zip(w) {
            *y = x * inverse * w;
        }
    }
    Ok(y)
}

/// `dx` of [`rms`] from its input; where wanted, `dw` is accumulated.
pub fn rms_backward(
    ws: &Workspace,
    x: &Mat,
    dy: &Mat,
    w: &[f32],
    eps: f32,
    dw: Option<&mut [f32]>,
) -> Result<Mat> {
    same("the length of the norm's weight", x.width(), w.len())?;
    dy.expect("the gradient of a norm", x.rows(), x.width())?;
    let mut dx = ws.scratch(x.rows(), x.width())?;
    for r in 0..x.rows() {
        input_gradient(x.row(r), dy.row(r), w, (0.0, rms_stats(x.row(r), eps), false), dx.row_mut(r));
    }
    if let Some(dw) = dw {
        same("the length of the norm's weight gradient", x.width(), dw.len())?;
        for r in 0..x.rows() {
            weight_gradient(x.row(r), dy.row(r), 0.0, rms_stats(x.row(r), eps), dw);
        }
    }
    Ok(dx)
}

fn layer_stats(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
    (mean, 1.0 / (var + eps).sqrt())
}

fn rms_stats(x: &[f32], eps: f32) -> f32 {
    1.0 / (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32 + eps).sqrt()
}

fn input_gradient(
    x: &[f32],
    dy: &[f32],
    w: &[f32],
    (mean, inverse, centred): (f32, f32, bool),
    dx: &mut [f32],
) {
    let n = x.len() as f32;
    let (mut sum, mut along) = (0.0, 0.0);
    for ((x, dy), w) in x.iter().zip(dy).zip(w) {
        sum += dy * w;
        along += dy * w * (x - mean) * inverse;
    }
    let sum = if centred { sum / n } else { 0.0 };
    for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
        *dx = inverse * (dy * w - sum - (x - mean) * inverse * along / n);
    }
}

fn weight_gradient(x: &[f32], dy: &[f32], mean: f32, inverse: f32, dw: &mut [f32]) {
    for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
        *dw += dy * (x - mean) * inverse;
    }
}
