//! Randomness is named, never drawn from a shared generator.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// A position in a tree of seeds: `seed.child("cohort", round).child("pick", node)`.
///
/// Both sides of a connection rebuild the same numbers from eight bytes, and the order in which
/// children are evaluated cannot change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

impl Seed {
    /// The child of this seed with that name and index.
    #[must_use]
    pub fn child(self, label: &str, index: u64) -> Seed {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.0.to_le_bytes()).update(&index.to_le_bytes()).update(label.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
        Seed(u64::from_le_bytes(first))
    }

    /// The numbers at this position, from the start.
    pub fn stream(self) -> Stream {
        Stream { rng: ChaCha8Rng::seed_from_u64(self.0), spare: None }
    }
}

/// The numbers of one [`Seed`]: ChaCha8 and pure-Rust `libm`, the same on every machine.
#[derive(Clone, Debug)]
pub struct Stream {
    rng: ChaCha8Rng,
    spare: Option<f64>,
}

impl Stream {
    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, without modulo bias.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "an empty range has nothing to draw");
        let zone = u64::MAX - u64::MAX % n;
        loop {
            let bits = self.bits();
            if bits < zone {
                return bits % n;
            }
        }
    }

    /// Standard normal (Box-Muller, both numbers used).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
        let angle = std::f64::consts::TAU * self.unit();
        self.spare = Some(radius * libm::sin(angle));
        radius * libm::cos(angle)
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -libm::log(1.0 - self.unit())
    }

    /// Gamma with this shape and scale 1 (Marsaglia and Tsang 2000; shapes below 1 are boosted).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = libm::pow(1.0 - self.unit(), 1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && libm::log(1.0 - self.unit()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
                return d * v;
            }
        }
    }

    /// Shuffle in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_depends_on_every_part_of_its_path() {
        let seed = Seed(7);
        let all = [seed, seed.child("a", 0), seed.child("a", 1), seed.child("b", 0), Seed(8).child("a", 0)];
        for (i, left) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|right| left != right));
        }
        assert_eq!(seed.child("a", 1), Seed(7).child("a", 1));
    }

    #[test]
    fn moments_of_the_draws() {
        let mut stream = Seed(1).stream();
        let n = 200_000;
        let mean = |draws: &[f64]| draws.iter().sum::<f64>() / draws.len() as f64;
        let normal: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let squares: Vec<f64> = normal.iter().map(|x| x * x).collect();
        assert!(mean(&normal).abs() < 0.01 && (mean(&squares) - 1.0).abs() < 0.02);
        for shape in [0.3, 1.0, 4.5] {
            let gamma: Vec<f64> = (0..n).map(|_| stream.gamma(shape)).collect();
            assert!((mean(&gamma) / shape - 1.0).abs() < 0.02, "gamma({shape})");
        }
        let below: Vec<f64> = (0..n).map(|_| stream.below(7) as f64).collect();
        assert!((mean(&below) - 3.0).abs() < 0.03);
    }

    /// A phone and a server must agree for ever: these numbers are part of the format.
    #[test]
    fn the_numbers_are_frozen() {
        let mut stream = Seed(7).child("direction", 3).stream();
        let drawn = (stream.bits(), stream.unit().to_bits(), stream.normal().to_bits());
        assert_eq!(drawn, FROZEN, "{drawn:?}");
    }
    const FROZEN: (u64, u64, u64) = (16126899557461207205, 4599016149056689984, 13827016070759130548);
}
