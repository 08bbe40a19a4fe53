//! The operations once more: plain loops in f64, nothing clever.

use std::ops::Range;
use undertone_ops::attention::{Heads, Mask};
use undertone_ops::pool::Pooling;

pub type Values = Vec<f64>;

pub fn sequences(starts: &[u32]) -> Vec<Range<usize>> {
    starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect()
}

/// `x w^T + b` with w out x in.
pub fn linear(x: &[f64], w: &[f64], b: Option<&[f64]>, out: usize) -> Values {
    let in_ = w.len() / out;
    let mut y = Vec::new();
    for x in x.chunks_exact(in_) {
        for (o, w) in w.chunks_exact(in_).enumerate() {
            y.push(x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + b.map_or(0.0, |b| b[o]));
        }
    }
    y
}

pub fn sum(x: &[f64], y: &[f64]) -> Values {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

pub fn norm(x: &[f64], w: &[f64], b: Option<&[f64]>, eps: f64) -> Values {
    let n = w.len();
    let mut y = Vec::new();
    for x in x.chunks_exact(n) {
        let mean = b.map_or(0.0, |_| x.iter().sum::<f64>() / n as f64);
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        for i in 0..n {
            y.push((x[i] - mean) / (var + eps).sqrt() * w[i] + b.map_or(0.0, |b| b[i]));
        }
    }
    y
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2))
}

pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub fn rope(x: &[f64], heads: usize, head_dim: usize, starts: &[u32], first: usize, theta: f64) -> Values {
    let mut y = x.to_vec();
    for range in sequences(starts) {
        for (position, row) in range.enumerate() {
            for head in 0..heads {
                for i in 0..head_dim / 2 {
                    let frequency = theta.powf(-2.0 * i as f64 / head_dim as f64);
                    let (sin, cos) = ((first + position) as f64 * frequency).sin_cos();
                    let low = (row * heads + head) * head_dim + i;
                    let high = low + head_dim / 2;
                    (y[low], y[high]) = (x[low] * cos - x[high] * sin, x[high] * cos + x[low] * sin);
                }
            }
        }
    }
    y
}

pub fn attention(q: &[f64], k: &[f64], v: &[f64], heads: Heads, starts: &[u32], mask: Mask) -> Values {
    let Heads { head_dim: dim, .. } = heads;
    let mut y = vec![0.0; q.len()];
    for range in sequences(starts) {
        for (head, i) in (0..heads.heads).flat_map(|head| range.clone().map(move |i| (head, i))) {
            let kv = head / (heads.heads / heads.kv_heads);
            let q = &q[(i * heads.heads + head) * dim..][..dim];
            let cell = |x: &[f64], j: usize, d: usize| x[(j * heads.kv_heads + kv) * dim + d];
            let end = if mask == Mask::Causal { i + 1 } else { range.end };
            let score = |j| (0..dim).map(|d| q[d] * cell(k, j, d)).sum::<f64>() / (dim as f64).sqrt();
            let weights: Values = (range.start..end).map(|j| f64::exp(score(j))).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                let mixed = weights.iter().zip(range.start..end).map(|(w, j)| w * cell(v, j, d));
                y[(i * heads.heads + head) * dim + d] = mixed.sum::<f64>() / total;
            }
        }
    }
    y
}

pub fn gather(table: &[f64], width: usize, ids: &[u32]) -> Values {
    ids.iter().flat_map(|&id| table[id as usize * width..][..width].to_vec()).collect()
}

pub fn pool(x: &[f64], width: usize, starts: &[u32], pooling: Pooling) -> Values {
    let mut y = Vec::new();
    for range in sequences(starts) {
        let count = range.len() as f64;
        let rows = match pooling {
            Pooling::Cls => range.start..range.start + 1,
            Pooling::Last => range.end - 1..range.end,
            Pooling::Mean => range,
        };
        let share = if pooling == Pooling::Mean { 1.0 / count } else { 1.0 };
        y.extend((0..width).map(|i| share * rows.clone().map(|r| x[r * width + i]).sum::<f64>()));
    }
    y
}

/// The sum of the losses of the rows that have a target.
pub fn cross_entropy(logits: &[f64], classes: usize, targets: &[u32]) -> f64 {
    let rows = logits.chunks_exact(classes).zip(targets).filter(|(_, target)| **target != u32::MAX);
    rows.map(|(row, &target)| {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest - row[target as usize]
    })
    .sum()
}
