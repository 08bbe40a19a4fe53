//! Normalisation of rows.

use crate::dense::{bias_gradient, by_columns};
use crate::error::same;
use crate::parallel::{Parts, block};
use crate::simd::math::{dot, map, sum};
use crate::simd::{Kernel, Simd};
use crate::workspace::Buffer;
use crate::{Dual, Mat, Result, Workspace};
use std::ops::Range;

/// Layer normalisation (Ba et al. 2016): `(x - mean) / sqrt(var + eps) * w + b` on every row.
pub fn layer(ws: &Workspace, x: &Mat, w: &[f32], b: &[f32], eps: f32) -> Result<Mat> {
    same("the length of the norm's bias", x.width(), b.len())?;
    forward(ws, x, w, Some(b), (Centre::Mean, eps))
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
    let dx = input_gradient(ws, x, dy, w, (Centre::Mean, eps))?;
    if let Some((dw, db)) = grads {
        bias_gradient(ws, dy, db)?;
        weight_gradient(ws, x, dy, dw, (Centre::Mean, eps))?;
    }
    Ok(dx)
}

/// [`layer`] with tangents, as far as they come from `x`: what a direction that moves w or b adds is
/// [`layer`] of the activation with its parts in their places.
pub fn layer_tangent(ws: &Workspace, x: &Dual, w: &[f32], b: &[f32], eps: f32) -> Result<Dual> {
    same("the length of the norm's bias", x.width(), b.len())?;
    tangent(ws, x, w, Some(b), (Centre::Mean, eps))
}

/// Root-mean-square normalisation (Zhang and Sennrich 2019): `x / sqrt(mean(x^2) + eps) * w`.
pub fn rms(ws: &Workspace, x: &Mat, w: &[f32], eps: f32) -> Result<Mat> {
    forward(ws, x, w, None, (Centre::Zero, eps))
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
    let dx = input_gradient(ws, x, dy, w, (Centre::Zero, eps))?;
    if let Some(dw) = dw {
        weight_gradient(ws, x, dy, dw, (Centre::Zero, eps))?;
    }
    Ok(dx)
}

/// [`rms`] with tangents, as far as they come from `x`: what a direction that moves w adds is [`rms`] of
/// the activation with its part in its place.
pub fn rms_tangent(ws: &Workspace, x: &Dual, w: &[f32], eps: f32) -> Result<Dual> {
    tangent(ws, x, w, None, (Centre::Zero, eps))
}

/// What a row is measured from.
#[derive(Clone, Copy)]
enum Centre {
    Mean,
    Zero,
}

/// The centre, and the eps under the root.
type Kind = (Centre, f32);

fn forward(ws: &Workspace, x: &Mat, w: &[f32], b: Option<&[f32]>, kind: Kind) -> Result<Mat> {
    same("the length of the norm's weight", x.width(), w.len())?;
    let mut y = ws.scratch(x.rows(), x.width())?;
    let width = x.width();
    ws.by_rows(&mut y, |rows, y| {
        ws.level().run(Normalise { x: &x[rows.start * width..rows.end * width], w, b, kind, y });
    });
    Ok(y)
}

fn tangent(ws: &Workspace, x: &Dual, w: &[f32], b: Option<&[f32]>, kind: Kind) -> Result<Dual> {
    same("the length of the norm's weight", x.width(), w.len())?;
    let (rows, width, directions) = (x.rows(), x.width(), x.directions());
    let mut y = ws.scratch(x.stack().rows(), width)?;
    let out = Parts::new(&mut y);
    /// Rows of a task.
    const ROWS: usize = 16;
    ws.share_scratch(rows.div_ceil(ROWS), width, |index, unit| {
        let rows = block(rows, ROWS, index);
        let cells = rows.start * width..rows.end * width;
        // SAFETY: blocks of rows are disjoint.
        let y = unsafe { out.part(cells.clone()) };
        ws.level().run(Normalise { x: &x.primal()[cells], w, b, kind, y });
        if directions > 0 {
            ws.level().run(Tangent { x, w, kind, rows, unit, dy: out });
        }
    })?;
    Dual::stacked(y, rows)
}

fn input_gradient(ws: &Workspace, x: &Mat, dy: &Mat, w: &[f32], kind: Kind) -> Result<Mat> {
    same("the length of the norm's weight", x.width(), w.len())?;
    dy.expect("the gradient of a norm", x.rows(), x.width())?;
    let mut dx = ws.scratch(x.rows(), x.width())?;
    let width = x.width();
    ws.by_rows(&mut dx, |rows, dx| {
        let cells = rows.start * width..rows.end * width;
        ws.level().run(InputGradient { x: &x[cells.clone()], dy: &dy[cells], w, kind, dx });
    });
    Ok(dx)
}

fn weight_gradient(ws: &Workspace, x: &Mat, dy: &Mat, dw: &mut [f32], kind: Kind) -> Result<()> {
    same("the length of the norm's weight gradient", x.width(), dw.len())?;
    let mut stats = ws.buffer(2 * x.rows())?;
    ws.level().run(Statistics { x, kind, stats: &mut stats });
    let stats: &Buffer = &stats;
    by_columns(ws, dw, |columns, dw| {
        for (r, stats) in stats.chunks_exact(2).enumerate() {
            let (mean, inverse) = (stats[0], stats[1]);
            let (x, dy) = (&x.row(r)[columns.clone()], &dy.row(r)[columns.clone()]);
            for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
                *dw += dy * ((x - mean) * inverse);
            }
        }
    });
    Ok(())
}

/// The centre of a row, and one over its distance from there.
#[inline(always)]
fn measure<S: Simd>(s: S, x: &[f32], (centre, eps): Kind) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = match centre {
        Centre::Mean => sum(s, x) / n,
        Centre::Zero => 0.0,
    };
    let means = s.splat(mean);
    let whole = x.chunks_exact(S::LANES);
    let tail: f32 = whole.remainder().iter().map(|x| (x - mean) * (x - mean)).sum();
    let mut squares = s.splat(0.0);
    for x in whole {
        let distance = s.sub(s.load(x), means);
        squares = s.fma(distance, distance, squares);
    }
    (mean, 1.0 / ((s.sum(squares) + tail) / n + eps).sqrt())
}

/// `y = (x - mean) * inverse * w + b`.
struct Normalise<'a> {
    x: &'a [f32],
    w: &'a [f32],
    b: Option<&'a [f32]>,
    kind: Kind,
    y: &'a mut [f32],
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.w.len().max(1);
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let (mean, inverse) = measure(s, x, self.kind);
            let (mean, inverse) = (s.splat(mean), s.splat(inverse));
            let rows = x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)).zip(self.w.chunks(S::LANES));
            match self.b {
                Some(b) => rows.zip(b.chunks(S::LANES)).for_each(|(((x, y), w), b)| {
                    let unit = s.mul(s.sub(s.load(x), mean), inverse);
                    s.store(y, s.fma(unit, s.load(w), s.load(b)));
                }),
                None => rows.for_each(|((x, y), w)| {
                    s.store(y, s.mul(s.mul(s.load(x), inverse), s.load(w)));
                }),
            }
        }
    }
}

/// With unit = (x - mean) * inverse and g = dy * w:
/// `dx = inverse * (g - mean(g) - unit * mean(g * unit))`, where a norm around zero has no `mean(g)`.
struct InputGradient<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    w: &'a [f32],
    kind: Kind,
    dx: &'a mut [f32],
}

impl Kernel for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.w.len().max(1);
        let rows = self.x.chunks_exact(width).zip(self.dy.chunks_exact(width));
        for ((x, dy), dx) in rows.zip(self.dx.chunks_exact_mut(width)) {
            let (mean, inverse) = measure(s, x, self.kind);
            let (means, inverses) = (s.splat(mean), s.splat(inverse));
            let inputs = x.chunks(S::LANES).zip(dy.chunks(S::LANES)).zip(self.w.chunks(S::LANES));
            let (mut total, mut along) = (s.splat(0.0), s.splat(0.0));
            for ((x, dy), w) in inputs.clone() {
                // Beyond the end of a row g is 0, so that it adds nothing to either sum.
                let g = s.mul(s.load(dy), s.load(w));
                total = s.add(total, g);
                along = s.fma(g, s.mul(s.sub(s.load(x), means), inverses), along);
            }
            let share = 1.0 / width as f32;
            let total = match self.kind.0 {
                Centre::Mean => s.splat(s.sum(total) * share),
                Centre::Zero => s.splat(0.0),
            };
            let along = s.splat(s.sum(along) * share);
            for (((x, dy), w), dx) in inputs.zip(dx.chunks_mut(S::LANES)) {
                let unit = s.mul(s.sub(s.load(x), means), inverses);
                let g = s.mul(s.load(dy), s.load(w));
                s.store(dx, s.mul(inverses, s.sub(s.sub(g, total), s.mul(unit, along))));
            }
        }
    }
}

/// `dy = inverse * w * (dx - mean(dx) - unit * mean(dx * unit))`, where a norm around zero has no
/// `mean(dx)`: the transpose of [`InputGradient`].
struct Tangent<'a, 's> {
    x: &'a Dual,
    w: &'a [f32],
    kind: Kind,
    rows: Range<usize>,
    /// Scratch for a row.
    unit: &'s mut [f32],
    /// All of the output; its tangents at `rows` are this task's own.
    dy: Parts<'a>,
}

impl Kernel for Tangent<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tangent { x, w, kind, rows, unit, dy } = self;
        let (width, share) = (w.len(), 1.0 / w.len() as f32);
        for row in rows {
            let (mean, inverse) = measure(s, x.stack().row(row), kind);
            let (means, inverses) = (s.splat(mean), s.splat(inverse));
            unit.copy_from_slice(x.stack().row(row));
            map(s, unit, |x| s.mul(s.sub(x, means), inverses));
            for below in 1..=x.directions() {
                let row = below * x.rows() + row;
                let dx = x.stack().row(row);
                let total = match kind.0 {
                    Centre::Mean => s.splat(sum(s, dx) * share),
                    Centre::Zero => s.splat(0.0),
                };
                let along = s.splat(dot(s, dx, unit) * share);
                // SAFETY: nobody else writes the tangents of this row.
                let dy = unsafe { dy.part(row * width..(row + 1) * width) };
                let inputs = dx.chunks(S::LANES).zip(unit.chunks(S::LANES)).zip(w.chunks(S::LANES));
                for (((dx, unit), w), dy) in inputs.zip(dy.chunks_mut(S::LANES)) {
                    let rest = s.sub(s.sub(s.load(dx), total), s.mul(s.load(unit), along));
                    s.store(dy, s.mul(s.mul(inverses, s.load(w)), rest));
                }
            }
        }
    }
}

/// Centre and inverse of every row, side by side.
struct Statistics<'a> {
    x: &'a Mat,
    kind: Kind,
    stats: &'a mut [f32],
}

impl Kernel for Statistics<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (r, stats) in self.stats.chunks_exact_mut(2).enumerate() {
            (stats[0], stats[1]) = measure(s, self.x.row(r), self.kind);
        }
    }
}
