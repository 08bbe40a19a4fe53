//! Elementary functions and reductions over vectors.

use super::Simd;

/// `e^x` within 2 units in the last place; below -87 it stays at the smallest normal number, above
/// 88 at the largest power. NaN stays NaN. (Cephes expf.)
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-87.0), s.min(s.splat(88.0), x));
    // Adding and taking away 1.5 * 2^23 leaves the nearest whole number.
    let shift = s.splat(12_582_912.0);
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), shift), shift);
    // ln 2 in two parts, the first exact in few bits, so that the rest of x keeps its precision.
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = s.fma(p, r, s.splat(c));
    }
    let e = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    s.mul(e, s.power_of_two(n))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

/// `tanh x = 1 - 2 / (1 + e^2x)`, within 1e-7.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.add(x, x));
    s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(s.splat(1.0), e)))
}

/// The Gaussian distribution function at x within 1e-7, and `e^(-x^2 / 2)`.
/// (Abramowitz and Stegun 7.1.26.)
#[inline(always)]
pub(crate) fn gauss<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let one = s.splat(1.0);
    let z = s.mul(s.max(x, s.sub(s.splat(0.0), x)), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let e = exp(s, s.sub(s.splat(0.0), s.mul(z, z)));
    let t = s.div(one, s.fma(z, s.splat(0.327_591_1), one));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        p = s.fma(p, t, s.splat(c));
    }
    let tail = s.mul(s.mul(s.mul(p, t), e), s.splat(0.5));
    (s.if_negative(x, tail, s.sub(one, tail)), e)
}

/// The sum of `x`.
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut lanes = s.splat(0.0);
    for x in x.chunks(S::LANES) {
        lanes = s.add(lanes, s.load(x));
    }
    s.sum(lanes)
}

/// The inner product of `x` and `y`.
#[inline(always)]
pub(crate) fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = s.splat(0.0);
    for (x, y) in x.chunks(S::LANES).zip(y.chunks(S::LANES)) {
        lanes = s.fma(s.load(x), s.load(y), lanes);
    }
    s.sum(lanes)
}

/// The largest element; of nothing, negative infinity.
#[inline(always)]
pub(crate) fn largest<S: Simd>(s: S, x: &[f32]) -> f32 {
    let whole = x.chunks_exact(S::LANES);
    let tail = whole.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut lanes = s.splat(tail);
    for x in whole {
        lanes = s.max(lanes, s.load(x));
    }
    s.largest(lanes)
}

/// `x = f(x)` on every element.
#[inline(always)]
pub(crate) fn map<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S::V) -> S::V) {
    for x in x.chunks_mut(S::LANES) {
        s.store(x, f(s.load(x)));
    }
}

/// `y = f(x, y)` on every pair.
#[inline(always)]
pub(crate) fn zip<S: Simd>(s: S, x: &[f32], y: &mut [f32], f: impl Fn(S::V, S::V) -> S::V) {
    for (x, y) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)) {
        s.store(y, f(s.load(x), s.load(y)));
    }
}

/// Turns `x` into `e^(scale * (x - largest))` and returns the sum of the results: softmax but for
/// the division.
#[inline(always)]
pub(crate) fn exp_from_largest<S: Simd>(s: S, x: &mut [f32], scale: f32) -> f32 {
    let (scales, shift) = (s.splat(scale), s.splat(-scale * largest(s, x)));
    let mut lanes = s.splat(0.0);
    let mut chunks = x.chunks_exact_mut(S::LANES);
    for x in &mut chunks {
        let e = exp(s, s.fma(s.load(x), scales, shift));
        s.store(x, e);
        lanes = s.add(lanes, e);
    }
    let tail = chunks.into_remainder();
    let e = exp(s, s.fma(s.load(tail), scales, shift));
    s.store(tail, e);
    // A partial load ends in zeros, which add nothing.
    s.sum(s.add(lanes, s.load(tail)))
}
