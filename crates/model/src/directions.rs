//! Directions in the space of `theta`, along which derivatives are taken.

use base::Seed;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Directions, of which a pass asks for one site of one direction at a time.
///
/// A trait because they are drawn from seeds where they are many and long, so that no more of them stands
/// in memory than one site's part, and given as vectors where they mean something.
pub trait Directions: Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// The range of `theta` they move; outside of it all are zero, and nothing is computed for it.
    fn moves(&self) -> Range<usize>;

    /// Writes the elements `first..first + to.len()` of direction `index`; they lie inside of
    /// [`Directions::moves`].
    fn write(&self, index: usize, first: usize, to: &mut [f32]);
}

/// How the elements of a direction are drawn. Both have mean 0 and variance 1, so that the mean of
/// `(gradient . direction) direction` over many directions is the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Draw {
    /// Standard normal, as in FwdLLM.
    #[default]
    Normal,
    /// 1 or -1, each as likely. The estimate varies a little less: its relative error is (d - 1) / K
    /// where that of normals is (d + 1) / K.
    Sign,
}

impl Draw {
    /// Elements `first..` of the direction of this seed.
    pub fn write(self, seed: Seed, first: usize, to: &mut [f32]) {
        match self {
            Draw::Normal => seed.normals(first, to),
            Draw::Sign => seed.signs(first, to),
        }
    }
}

/// Directions drawn from seeds. An element depends on the seed and its place in `theta` alone.
#[derive(Clone, Debug)]
pub struct Seeded<'a> {
    pub seeds: &'a [Seed],
    pub draw: Draw,
    pub moves: Range<usize>,
}

impl Directions for Seeded<'_> {
    fn count(&self) -> usize {
        self.seeds.len()
    }

    fn moves(&self) -> Range<usize> {
        self.moves.clone()
    }

    fn write(&self, index: usize, first: usize, to: &mut [f32]) {
        self.draw.write(self.seeds[index], first, to);
    }
}

/// Directions given as they are, each as long as `theta`.
#[derive(Clone, Debug)]
pub struct Given<'a>(pub &'a [Vec<f32>]);

impl Directions for Given<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn moves(&self) -> Range<usize> {
        0..self.0.first().map_or(0, Vec::len)
    }

    fn write(&self, index: usize, first: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.0[index][first..first + to.len()]);
    }
}
