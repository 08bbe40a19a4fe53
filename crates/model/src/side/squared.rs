//! The loss of residual training.
//!
//! With the backbone's output `b`, the truth `y` and their difference `d = y - b`, the squared error of
//! the sum `|b + s - y|^2` *is* `|s - d|^2`: who holds the difference can train the side network without
//! knowing the truth or the backbone's output. One stage of gradient boosting.

use ops::{Error, Mat, Result, Workspace};

/// The sum over rows of `|y - target|^2`; both rows x outputs.
pub fn squared_loss(y: &Mat, target: &Mat) -> Result<f64> {
    same(y, target)?;
    let distance = |(y, target): (&f32, &f32)| f64::from(y - target).powi(2);
    let sum = y.iter().zip(target.iter()).map(distance).sum::<f64>();
    if sum.is_finite() { Ok(sum) } else { Err(Error::NonFinite { what: "the squared loss" }) }
}

/// [`squared_loss`], and the gradient of `scale` times it: give `1 / rows` for that of the mean.
pub fn squared_loss_backward(ws: &Workspace, y: &Mat, target: &Mat, scale: f32) -> Result<(f64, Mat)> {
    let sum = squared_loss(y, target)?;
    let mut dy = ws.copy(y)?;
    for (dy, target) in dy.iter_mut().zip(target.iter()) {
        *dy = 2.0 * scale * (*dy - target);
    }
    Ok((sum, dy))
}

fn same(y: &Mat, target: &Mat) -> Result<()> {
    if (y.rows(), y.width()) == (target.rows(), target.width()) {
        return Ok(());
    }
    let what = "the number of prediction differences";
    Err(Error::Shape { what, expected: y.rows() * y.width(), found: target.rows() * target.width() })
}
