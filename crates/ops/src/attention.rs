//! Scaled dot-product attention (Vaswani et al. 2017, equation 1) over ragged batches, with grouped
//! key and value heads (Ainslie et al. 2023).
//!
//! Only q, k and v are kept for the backward; the probabilities are computed again.

use crate::error::same;
use crate::ragged::sequences;
use crate::{Error, Mat, Result, Workspace};
use std::ops::Range;

/// How rows are cut into heads. Query head `h` reads key and value head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// The width of q and of the output.
    pub fn width(self) -> usize {
        self.heads * self.head_dim
    }

    /// The width of k and of v.
    pub fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn check(self, q: &Mat, k: &Mat, v: &Mat) -> Result<()> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let what = "the remainder of heads by key and value heads";
            return Err(Error::Shape { what, expected: 0, found: self.heads });
        }
        q.expect("the queries", q.rows(), self.width())?;
        k.expect("the keys", q.rows(), self.kv_width())?;
        v.expect("the values", q.rows(), self.kv_width())
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of its sequence.
    Full,
    /// Those at or before its own position.
    Causal,
}

/// `softmax(q k^T / sqrt(head_dim)) v` for every sequence and head. q is rows x width, k and v are
/// rows x kv_width, the output is rows x width.
pub fn forward(
    ws: &Workspace,
    q: &Mat,
    k: &Mat,
    v: &Mat,
    heads: Heads,
    starts: &[u32],
    mask: Mask,
) -> Result<Mat> {
    heads.check(q, k, v)?;
    let mut y = ws.zeros(q.rows(), heads.width())?;
    for range in sequences(starts, q.rows())? {
        for head in 0..heads.heads {
            for i in range.clone() {
                let (_, kv) = stripes(heads, head);
                let p = probabilities(q.row(i), k, heads, head, seen(&range, i, mask));
                for (p, j) in p.iter().zip(range.clone()) {
                    crate::slice::axpy(
                        *p,
                        &v.row(j)[kv.clone()],
                        &mut y.row_mut(i)[stripes(heads, head).0],
                    );
                }
            }
        }
    }
    Ok(y)
}

/// `(dq, dk, dv)` of [`forward`] from its inputs.
pub fn backward(
    ws: &Workspace,
    q: &Mat,
    k: &Mat,
    v: &Mat,
    dy: &Mat,
    heads: Heads,
    starts: &[u32],
    mask: Mask,
) -> Result<(Mat, Mat, Mat)> {
    heads.check(q, k, v)?;
    dy.expect("the gradient of attention", q.rows(), heads.width())?;
    let mut dq = ws.zeros(q.rows(), heads.width())?;
    let mut dk = ws.zeros(q.rows(), heads.kv_width())?;
    let mut dv = ws.zeros(q.rows(), heads.kv_width())?;
    let scale = 1.0 / (heads.head_dim as f32).sqrt();
    for range in sequences(starts, q.rows())? {
        for head in 0..heads.heads {
            let (own, kv) = stripes(heads, head);
            for i in range.clone() {
                let p = probabilities(q.row(i), k, heads, head, seen(&range, i, mask));
                let dy = &dy.row(i)[own.clone()];
                let dp: Vec<f32> = (range.clone()).map(|j| product(dy, &v.row(j)[kv.clone()])).collect();
                let mean = product(&p, &dp[..p.len()]);
                for ((p, dp), j) in p.iter().zip(&dp).zip(range.clone()) {
                    let ds = p * (dp - mean) * scale;
                    crate::slice::axpy(*p, dy, &mut dv.row_mut(j)[kv.clone()]);
                    crate::slice::axpy(ds, &q.row(i)[own.clone()], &mut dk.row_mut(j)[kv.clone()]);
                    crate::slice::axpy(ds, &k.row(j)[kv.clone()], &mut dq.row_mut(i)[own.clone()]);
                }
            }
        }
    }
    Ok((dq, dk, dv))
}

/// Attention of one sequence whose earlier keys and values are cached: `q` holds the last positions
/// of `keys` and `values` (positions x kv_width, row-major), and sees those at or before its own.
/// With one row this is a decoding step, with all of them the prompt.
pub fn cached(ws: &Workspace, q: &Mat, keys: &[f32], values: &[f32], heads: Heads) -> Result<Mat> {
    let wide = heads.kv_width().max(1);
    same("the number of cached values", keys.len(), values.len())?;
    let positions = keys.len() / wide;
    same("the number of cached keys", positions * wide, keys.len())?;
    if q.rows() > positions {
        return Err(Error::Shape { what: "the number of queries", expected: positions, found: q.rows() });
    }
    let k = ws.from_slice(positions, wide, keys)?;
    let v = ws.from_slice(positions, wide, values)?;
    let mut y = ws.zeros(q.rows(), heads.width())?;
    for i in 0..q.rows() {
        for head in 0..heads.heads {
            let (own, kv) = stripes(heads, head);
            let p = probabilities(q.row(i), &k, heads, head, 0..positions - q.rows() + i + 1);
            for (j, p) in p.iter().enumerate() {
                crate::slice::axpy(*p, &v.row(j)[kv.clone()], &mut y.row_mut(i)[own.clone()]);
            }
        }
    }
    Ok(y)
}

fn seen(range: &Range<usize>, i: usize, mask: Mask) -> Range<usize> {
    match mask {
        Mask::Full => range.clone(),
        Mask::Causal => range.start..i + 1,
    }
}

fn stripes(heads: Heads, head: usize) -> (Range<usize>, Range<usize>) {
    let (dim, kv) = (heads.head_dim, head / (heads.heads / heads.kv_heads));
    (head * dim..(head + 1) * dim, kv * dim..(kv + 1) * dim)
}

fn probabilities(q: &[f32], k: &Mat, heads: Heads, head: usize, keys: Range<usize>) -> Vec<f32> {
    let (own, kv) = stripes(heads, head);
    let scale = 1.0 / (heads.head_dim as f32).sqrt();
    let mut p: Vec<f32> = keys.map(|j| product(&q[own.clone()], &k.row(j)[kv.clone()]) * scale).collect();
    let largest = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    p.iter_mut().for_each(|p| *p = (*p - largest).exp());
    let sum: f32 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

fn product(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
