//! Rotary position embedding (Su et al. 2021), in Hugging Face's order: element i of a head is
//! rotated with element i + head_dim / 2.

use crate::error::{inside, same};
use crate::ragged::sequences;
use crate::simd::{Kernel, Simd};
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
    /// Frequencies `theta^(-2i / head_dim)`. Frequencies and angles are rounded to f32 as PyTorch
    /// rounds them, since these are the angles that models were trained with.
    pub fn new(head_dim: usize, positions: usize, theta: f64) -> Table {
        let frequency = |i: usize| {
            let power = theta.powf(f64::from(2.0 * i as f32 / head_dim as f32)) as f32;
            1.0 / power
        };
        let frequencies: Vec<f32> = (0..head_dim / 2).map(frequency).collect();
        let angles =
            || (0..positions).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
        let cos = angles().map(|angle| angle.cos() as f32).collect();
        let sin = angles().map(|angle| angle.sin() as f32).collect();
        Table { head_dim, positions, cos, sin }
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
        ws: &Workspace,
        x: &mut Mat,
        heads: usize,
        starts: &[u32],
        first: usize,
        direction: f32,
    ) -> Result<()> {
        same("the width of rotated rows", heads * self.head_dim, x.width())?;
        let mut positions = Vec::with_capacity(x.rows());
        for range in sequences(starts, x.rows())? {
            inside("position", first + range.len() - 1, self.positions)?;
            positions.extend(first..first + range.len());
        }
        ws.by_rows(x, |rows, x| {
            ws.level().run(Rotate { table: self, positions: &positions[rows], direction, x });
        });
        Ok(())
    }
}

/// Rotates rows at these positions; direction -1 turns back.
struct Rotate<'a> {
    table: &'a Table,
    positions: &'a [usize],
    direction: f32,
    x: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.table.head_dim / 2;
        if half == 0 || self.positions.is_empty() {
            return;
        }
        let direction = s.splat(self.direction);
        let width = self.x.len() / self.positions.len();
        for (position, row) in self.positions.iter().zip(self.x.chunks_exact_mut(width)) {
            let cos = self.table.cos[position * half..][..half].chunks(S::LANES);
            let sin = self.table.sin[position * half..][..half].chunks(S::LANES);
            for head in row.chunks_exact_mut(2 * half) {
                let (low, high) = head.split_at_mut(half);
                let pairs = low.chunks_mut(S::LANES).zip(high.chunks_mut(S::LANES));
                for ((low, high), (cos, sin)) in pairs.zip(cos.clone().zip(sin.clone())) {
                    let (l, h, c) = (s.load(low), s.load(high), s.load(cos));
                    let turn = s.mul(direction, s.load(sin));
                    s.store(low, s.sub(s.mul(l, c), s.mul(h, turn)));
                    s.store(high, s.add(s.mul(h, c), s.mul(l, turn)));
                }
            }
        }
    }
}
