//! LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604): a low-rank update whose outer factors are the weight's own
//! leading singular vectors, frozen; only the r x r core between them is trained.
//!
//! With W about U S V': `y += scale * x V R' (U S)'`. The core starts at zero.

use crate::pass::Pass;
use crate::tangent::TangentPass;
use base::Seed;
use ops::{Dual, Mat, Result, dense};
use std::ops::Range;

#[derive(Clone, Debug)]
pub(crate) struct LoraXs {
    /// V', r x width_in.
    down: Vec<f32>,
    /// R, r x r: a range of `theta`.
    core: Range<usize>,
    /// U S, out x r.
    up: Vec<f32>,
    scale: f32,
    rank: usize,
}

impl LoraXs {
    /// For a weight of `out` x `width_in`.
    pub fn new(weight: &[f32], width_in: usize, core: Range<usize>, rank: usize, scale: f32) -> LoraXs {
        let (down, up) = leading(weight, width_in, rank);
        LoraXs { down, core, up, scale, rank }
    }

    /// Adds the adapter's output to `y`; returns `x V`, which the backward reads.
    pub fn forward(&self, pass: Pass<'_>, x: &Mat, y: &mut Mat) -> Result<Mat> {
        let h = self.hidden(pass, x)?;
        let u = dense::forward(pass.ws, &h, &pass.theta[self.core.clone()], None, self.rank)?;
        let shape = (self.rank, y.width());
        dense::forward_add(pass.ws, &u, &self.up, self.scale, y, shape)?;
        Ok(h)
    }

    /// `x V`.
    pub fn hidden(&self, pass: Pass<'_>, x: &Mat) -> Result<Mat> {
        dense::forward(pass.ws, x, &self.down, None, self.rank)
    }

    /// [`LoraXs::forward`] with tangents.
    pub fn tangent(&self, pass: TangentPass<'_>, x: &Dual, y: Dual) -> Result<Dual> {
        let (ws, rank, out) = (pass.ws(), self.rank, y.width());
        let h = dense::tangent(ws, x, &self.down, None, rank)?;
        let u = dense::tangent(ws, &h, &pass.theta()[self.core.clone()], None, rank)?;
        let u = pass.add_product(&h, Some(&self.core), 1.0, u)?;
        let mut y = y.widen(ws, u.directions())?;
        let reached = u.stack().rows() * out;
        dense::forward_add(
            ws,
            u.stack(),
            &self.up,
            self.scale,
            &mut y.stack_mut()[..reached],
            (rank, out),
        )?;
        Ok(y)
    }

    /// Adds the core's gradient to `grad`, and the input's to `dx` if one is wanted.
    pub fn backward(
        &self,
        pass: Pass<'_>,
        h: &Mat,
        dy: &Mat,
        dx: Option<&mut Mat>,
        grad: &mut [f32],
    ) -> Result<()> {
        let mut du = dense::backward_input(pass.ws, dy, &self.up, self.rank)?;
        ops::slice::scale(self.scale, &mut du);
        dense::backward_weight(pass.ws, h, &du, &mut grad[self.core.clone()])?;
        let Some(dx) = dx else { return Ok(()) };
        let dh = dense::backward_input(pass.ws, &du, &pass.theta[self.core.clone()], self.rank)?;
        dense::backward_input_add(pass.ws, &dh, &self.down, dx)
    }

    /// The memory its frozen factors hold.
    pub fn bytes(&self) -> u64 {
        4 * (self.down.len() + self.up.len()) as u64
    }
}

/// Vectors carried beside the wanted ones, and rounds: together they separate what lies a tenth apart.
const EXTRA: usize = 8;
const ROUNDS: usize = 12;

/// `(V', U S)` of the `rank` largest singular values of an out x width_in matrix, by subspace iteration
/// (Halko et al. 2011, algorithm 4.4) in f64.
fn leading(weight: &[f32], width_in: usize, rank: usize) -> (Vec<f32>, Vec<f32>) {
    let out = weight.len() / width_in.max(1);
    let count = (rank + EXTRA).min(out).min(width_in);
    // Vectors are rows here.
    let mut right = vec![0f32; count * width_in];
    Seed(0).child("lora-xs", 0).normals(0, &mut right);
    let mut right: Vec<f64> = right.into_iter().map(f64::from).collect();
    orthonormalise(&mut right, width_in);
    for _ in 0..ROUNDS {
        let mut left = times(weight, width_in, &right);
        orthonormalise(&mut left, out);
        right = times_transposed(weight, width_in, &left);
        orthonormalise(&mut right, width_in);
    }
    let left = times(weight, width_in, &right);
    let (lefts, rights) =
        (|i: usize| &left[i * out..][..out], |i: usize| &right[i * width_in..][..width_in]);
    let mut gram = vec![0.0; count * count];
    for i in 0..count {
        for j in 0..count {
            gram[i * count + j] = dot(lefts(i), lefts(j));
        }
    }
    let (values, turn) = eigen(gram, count);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&i, &j| values[j].total_cmp(&values[i]));
    let mut down = vec![0f32; rank * width_in];
    let mut up = vec![0f32; out * rank];
    for (r, &at) in order.iter().take(rank).enumerate() {
        for i in 0..count {
            let share = turn[i * count + at];
            for (value, v) in down[r * width_in..][..width_in].iter_mut().zip(rights(i)) {
                *value += (share * v) as f32;
            }
            for (o, u) in lefts(i).iter().enumerate() {
                up[o * rank + r] += (share * u) as f32;
            }
        }
    }
    (down, up)
}

/// Rows `W v`.
fn times(weight: &[f32], width_in: usize, vectors: &[f64]) -> Vec<f64> {
    let of = |v: &[f64]| -> Vec<f64> {
        weight
            .chunks_exact(width_in)
            .map(|row| row.iter().zip(v).map(|(w, v)| f64::from(*w) * v).sum())
            .collect()
    };
    vectors.chunks_exact(width_in).flat_map(of).collect()
}

/// Rows `W' u`.
fn times_transposed(weight: &[f32], width_in: usize, vectors: &[f64]) -> Vec<f64> {
    let of = |u: &[f64]| {
        let mut sum = vec![0.0; width_in];
        for (row, u) in weight.chunks_exact(width_in).zip(u) {
            sum.iter_mut().zip(row).for_each(|(sum, w)| *sum += u * f64::from(*w));
        }
        sum
    };
    vectors.chunks_exact(weight.len() / width_in).flat_map(of).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Gram-Schmidt over rows, twice, which is enough. A row that depends on those before it becomes zero.
fn orthonormalise(rows: &mut [f64], width: usize) {
    for i in 0..rows.len() / width {
        let (done, rest) = rows.split_at_mut(i * width);
        let row = &mut rest[..width];
        let length = dot(row, row).sqrt();
        for before in done.chunks_exact(width).chain(done.chunks_exact(width)) {
            let along = dot(before, row);
            row.iter_mut().zip(before).for_each(|(x, b)| *x -= along * b);
        }
        let left = dot(row, row).sqrt();
        let inverse = if left > 1e-12 * length { 1.0 / left } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// Eigenvalues and, in columns, eigenvectors of a symmetric n x n matrix (cyclic Jacobi rotations).
fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut turn: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for _ in 0..30 {
        for p in 0..n {
            for q in p + 1..n {
                let apart = a[q * n + q] - a[p * n + p];
                let off = a[p * n + q];
                if off == 0.0 {
                    continue;
                }
                let theta = apart / (2.0 * off);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let (c, s) = (1.0 / (t * t + 1.0).sqrt(), t / (t * t + 1.0).sqrt());
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (turn[k * n + p], turn[k * n + q]);
                    (turn[k * n + p], turn[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), turn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of rank 3 and a little noise: the factors give it back.
    #[test]
    fn the_leading_factors_are_those_of_the_weight() {
        let (out, width_in, rank) = (40, 25, 3);
        let mut stream = Seed(4).stream();
        let left: Vec<f64> = (0..out * rank).map(|_| stream.normal()).collect();
        let right: Vec<f64> = (0..rank * width_in).map(|_| stream.normal()).collect();
        let cell = |o: usize, i: usize| -> f64 {
            (0..rank).map(|r| left[o * rank + r] * right[r * width_in + i]).sum()
        };
        let weight: Vec<f32> =
            (0..out * width_in).map(|at| cell(at / width_in, at % width_in) as f32).collect();
        let (down, up) = leading(&weight, width_in, rank);
        for o in 0..out {
            for i in 0..width_in {
                let found: f64 = (0..rank)
                    .map(|r| f64::from(up[o * rank + r]) * f64::from(down[r * width_in + i]))
                    .sum();
                assert!((found - cell(o, i)).abs() < 1e-4, "{found} for {}", cell(o, i));
            }
        }
        for r in 0..rank {
            for s in 0..rank {
                let rows = down[r * width_in..][..width_in].iter().zip(&down[s * width_in..]);
                let product: f64 = rows.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                assert!((product - f64::from(u8::from(r == s))).abs() < 1e-5);
            }
        }
    }
}
