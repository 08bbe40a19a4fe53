//! Random numbers by position: any part of a long vector without the parts before it.
//!
//! A direction in the space of a model's parameters is such a vector. Both ends of a connection build it
//! from eight bytes, one site at a time, so it never stands in memory whole. ChaCha8 is seekable, and
//! the rest is additions, multiplications and square roots, which every machine rounds alike.

use crate::Seed;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Words of a block: what ChaCha8 makes at once.
const WORDS: usize = 64;
/// Half a block: the cosines of a block of normals, then its sines.
const HALF: usize = WORDS / 2;
/// Signs of a block, one a bit.
const SIGNS: usize = 32 * WORDS;

impl Seed {
    /// Elements `first..` of this seed's endless vector of standard normals (Box-Muller in f32; none is
    /// further than 5.8 from zero).
    pub fn normals(self, first: usize, to: &mut [f32]) {
        self.blocks::<WORDS>(first, to, |words, normals| {
            let (lower, upper) = words.split_at(HALF);
            let (cosines, sines) = normals.split_at_mut(HALF);
            let pairs = lower.iter().zip(upper).zip(cosines.iter_mut().zip(sines));
            for ((lower, upper), (cosine, sine)) in pairs {
                (*cosine, *sine) = pair(*lower, *upper);
            }
        });
    }

    /// Elements `first..` of this seed's endless vector of signs: 1 or -1, each as likely.
    pub fn signs(self, first: usize, to: &mut [f32]) {
        self.blocks::<SIGNS>(first, to, |words, signs| {
            for (word, signs) in words.iter().zip(signs.chunks_exact_mut(32)) {
                for (bit, sign) in signs.iter_mut().enumerate() {
                    *sign = f32::from_bits(1f32.to_bits() | (word >> bit) << 31);
                }
            }
        });
    }

    /// Makes whole blocks of `N` elements and copies what was asked for.
    fn blocks<const N: usize>(
        self,
        first: usize,
        to: &mut [f32],
        make: impl Fn(&[u32; WORDS], &mut [f32; N]),
    ) {
        if to.is_empty() {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.0);
        rng.set_word_pos((first / N * WORDS) as u128);
        let (mut bytes, mut words, mut block) = ([0; 4 * WORDS], [0; WORDS], [0.0; N]);
        let (mut skip, mut rest) = (first % N, to);
        while !rest.is_empty() {
            rng.fill_bytes(&mut bytes);
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u32::from_le_bytes(*bytes);
            }
            make(&words, &mut block);
            let (now, later) = rest.split_at_mut((N - skip).min(rest.len()));
            now.copy_from_slice(&block[skip..][..now.len()]);
            (skip, rest) = (0, later);
        }
    }
}

/// Two independent normals: `r cos a` and `r sin a` with r^2 = -2 ln u.
#[inline(always)]
fn pair(lower: u32, upper: u32) -> (f32, f32) {
    const STEP: f32 = 1.0 / (1 << 24) as f32;
    let unit = ((lower >> 8) + 1) as i32 as f32 * STEP;
    let radius = (-2.0 * logarithm(unit)).sqrt();
    let (cosine, sine) = turn((upper >> 8) as i32 as f32 * STEP);
    (radius * cosine, radius * sine)
}

/// The natural logarithm of a number in (0, 1], within 2e-7 of itself. (Cephes logf.)
#[inline(always)]
fn logarithm(x: f32) -> f32 {
    // Exponent and mantissa such that the latter lies between sqrt(1/2) and sqrt(2).
    let shifted = x.to_bits().wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let exponent = ((shifted as i32) >> 23) as f32;
    let mantissa = f32::from_bits((shifted & 0x007f_ffff) + std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let f = mantissa - 1.0;
    let square = f * f;
    let coefficients = [
        7.037_683_6e-2,
        -0.115_146_1,
        0.116_769_984,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_57,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ];
    let cubic = polynomial(f, coefficients) * f * square;
    // ln 2 in two parts, the first exact in few bits.
    let low = cubic + exponent * -2.121_944_4e-4 - 0.5 * square;
    f + low + exponent * 0.693_359_4
}

/// Cosine and sine of 2 pi times a number in [0, 1). (Cephes sinf and cosf.)
#[inline(always)]
fn turn(part: f32) -> (f32, f32) {
    let quarters = 4.0 * part;
    let nearest = (quarters + 0.5) as i32;
    let angle = (quarters - nearest as f32) * std::f32::consts::FRAC_PI_2;
    let square = angle * angle;
    let sine = [-1.951_529_6e-4, 8.332_161e-3, -0.166_666_55];
    let sine = polynomial(square, sine) * square * angle + angle;
    let cosine = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    let cosine = polynomial(square, cosine) * square * square - 0.5 * square + 1.0;
    let (across, up) = if nearest & 1 == 0 { (cosine, sine) } else { (sine, cosine) };
    let sign = |negative: bool| if negative { -1.0 } else { 1.0 };
    (across * sign((nearest + 1) & 2 != 0), up * sign(nearest & 2 != 0))
}

/// `c[0] x^(n - 1) + ... + c[n - 1]`.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    c[1..].iter().fold(c[0], |sum, c| sum * x + c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_agrees_with_the_whole() {
        let (mut normals, mut signs) = (vec![0.0; 5000], vec![0.0; 5000]);
        Seed(7).normals(0, &mut normals);
        Seed(7).signs(0, &mut signs);
        for (first, len) in [(0, 1), (63, 2), (64, 64), (100, 900), (2047, 2), (4999, 1), (17, 0)] {
            let mut part = vec![0.0; len];
            Seed(7).normals(first, &mut part);
            assert_eq!(part, normals[first..first + len]);
            Seed(7).signs(first, &mut part);
            assert_eq!(part, signs[first..first + len]);
        }
    }

    /// Of 1,000,000 draws; the bounds are five standard errors.
    #[test]
    fn moments_and_quantiles() {
        let mut x = vec![0.0; 1_000_000];
        Seed(3).normals(0, &mut x);
        let n = x.len() as f64;
        let mean = |power: i32| x.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / n;
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let bound = 5.0 * f64::sqrt(variance / n);
            assert!((mean(power) - expected).abs() < bound, "moment {power}: {}", mean(power));
        }
        for bound in [0.1f32, 0.5, 1.0, 2.0, 3.0] {
            let inside = x.iter().filter(|x| x.abs() < bound).count() as f64 / n;
            let expected = libm::erf(f64::from(bound) / std::f64::consts::SQRT_2);
            let error = (expected * (1.0 - expected) / n).sqrt();
            assert!((inside - expected).abs() < 5.0 * error, "{inside} inside of {bound}");
        }
        let (left, right) = x.split_at(x.len() / 2);
        let product: f64 = left.iter().zip(right).map(|(x, y)| f64::from(x * y)).sum::<f64>() / n;
        assert!(product.abs() < 5.0 / n.sqrt());
        Seed(3).signs(0, &mut x);
        let sum: f64 = x.iter().map(|x| f64::from(*x)).sum();
        assert!(sum.abs() < 5.0 * n.sqrt() && x.iter().all(|x| x.abs() == 1.0), "{sum}");
    }

    #[test]
    fn logarithm_and_turn_are_as_exact_as_they_say() {
        for step in 1..=1 << 14 {
            let x = step as f32 / (1 << 14) as f32;
            let exact = f64::from(x).ln();
            let error = (f64::from(logarithm(x)) - exact).abs();
            assert!(error <= 2e-7 * exact.abs() + 1e-12, "ln {x}: off by {error:e}");
            let (cosine, sine) = turn(x - 1.0 / (1 << 14) as f32);
            let angle = std::f64::consts::TAU * (f64::from(x) - 1.0 / f64::from(1 << 14));
            let off = (f64::from(cosine) - angle.cos()).abs().max((f64::from(sine) - angle.sin()).abs());
            assert!(off < 3e-7, "turn {x}: off by {off:e}");
        }
    }

    /// A phone and a server must agree for ever: these numbers are part of the format.
    #[test]
    fn the_numbers_are_frozen() {
        let mut x = [0.0; 130];
        Seed(7).child("direction", 3).normals(0, &mut x);
        let drawn = [0, 31, 32, 64, 129].map(|i| x[i].to_bits());
        assert_eq!(drawn, FROZEN, "{drawn:?}");
        Seed(7).signs(0, &mut x);
        let first = x[..32].iter().enumerate().map(|(bit, x)| (x.to_bits() >> 31) << bit).sum::<u32>();
        assert_eq!(first, FROZEN_SIGNS);
    }
    const FROZEN: [u32; 5] = [1073854480, 1063602496, 1059179769, 3189367531, 1067260428];
    const FROZEN_SIGNS: u32 = 601310139;
}
