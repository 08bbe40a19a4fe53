//! Rotary position embedding (Su et al. 2021), in Hugging Face's order: element i of a head is
//! rotated with element i + head_dim / 2.

use crate::error::{inside, same};
use crate::ragged::sequences;
use crate::{Mat, Result, Workspace};

/// Cosines and sines of every position and frequency.
#[derive(Debug)]
pub struct Table {
    head_dim: usize,
    positions: usize,
    /// positions x head_dim / 2 each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    /// Frequencies `theta^(-2i / head_dim)`.
    pub fn new(head_dim: usize, positions: usize, theta: f64) -> Table {
        let exponent = |i: usize| -2.0 * i as f64 / head_dim as f64;
        let frequencies: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(exponent(i))).collect();
        Table::with_frequencies(&frequencies, positions)
    }

    /// For models that scale their frequencies; `head_dim` is twice their number.
    pub fn with_frequencies(frequencies: &[f64], positions: usize) -> Table {
        let angles = || (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        let cos = angles().map(|angle| angle.cos() as f32).collect();
        let sin = angles().map(|angle| angle.sin() as f32).collect();
        Table { head_dim: 2 * frequencies.len(), positions, cos, sin }
    }

    pub fn bytes(&self) -> u64 {
        4 * (self.cos.len() + self.sin.len()) as u64
    }

    /// Rotates every head of every row in place. `x` is rows x (heads * head_dim); the first row of
    /// each sequence has position `first` (above 0 only when a cache precedes it).
    pub fn apply(
        &self,
        ws: &Workspace,
        x: &mut Mat,
        heads: usize,
        starts: &[u32],
        first: usize,
    ) -> Result<()> {
        self.rotate(ws, x, heads, starts, first, 1.0)
    }

    /// Turns the gradient of the output of [`Table::apply`] into that of its input, in place: the
    /// inverse rotation.
    pub fn apply_backward(&self, ws: &Workspace, dy: &mut Mat, heads: usize, starts: &[u32]) -> Result<()> {
        self.rotate(ws, dy, heads, starts, 0, -1.0)
    }

    fn rotate(
        &self,
        _ws: &Workspace,
        x: &mut Mat,
        heads: usize,
        starts: &[u32],
        first: usize,
        direction: f32,
    ) -> Result<()> {
        same("the width of rotated rows", heads * self.head_dim, x.width())?;
        let half = self.head_dim / 2;
        for range in sequences(starts, x.rows())? {
            inside("position", first + range.len() - 1, self.positions)?;
            for (position, r) in range.enumerate().map(|(i, r)| (first + i, r)) {
                let cos = &self.cos[position * half..][..half];
                let sin = &self.sin[position * half..][..half];
                for head in x.row_mut(r).chunks_exact_mut(self.head_dim) {
                    let (low, high) = head.split_at_mut(half);
                    for i in 0..half {
                        let (l, h, s) = (low[i], high[i], direction * sin[i]);
                        low[i] = l * cos[i] - h * s;
                        high[i] = h * cos[i] + l * s;
                    }
                }
            }
        }
        Ok(())
    }
}
