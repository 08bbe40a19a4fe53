//! Elementary functions and reductions over vectors.

use super::Simd;

/// `e^x` within 1e-7 of itself; below -87 it stays at the smallest normal number, above
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
    let p = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5];
    let p = polynomial(s, r, p);
    let e = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    s.mul(e, s.power_of_two(n))
}

/// `1 / (1 + e^-x)` within 2e-7 of itself.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.sub(s.splat(0.0), x));
    s.div(s.splat(1.0), s.add(s.splat(1.0), e))
}

/// `tanh x` within 5e-7 of itself: a rational function between -7.9 and 7.9, where tanh reaches 1. (Eigen's ptanh.)
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-7.905_311), s.min(s.splat(7.905_311), x));
    let over = [
        -2.760_768_5e-16,
        2.000_188e-13,
        -8.604_672e-11,
        5.122_297e-8,
        1.485_722_4e-5,
        6.372_619_3e-4,
        4.893_524_6e-3,
    ];
    let under = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];
    let square = s.mul(x, x);
    s.div(s.mul(x, polynomial(s, square, over)), polynomial(s, square, under))
}

/// The Gaussian distribution function at x, `(1 + erf(x / sqrt 2)) / 2`, within 2.5e-7: erf is a
/// rational function between -4 and 4, where it reaches 1. (Eigen's perf.)
#[inline(always)]
pub(crate) fn gauss<S: Simd>(s: S, x: S::V) -> S::V {
    let z = s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let z = s.max(s.splat(-4.0), s.min(s.splat(4.0), z));
    let over = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    let under = [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let square = s.mul(z, z);
    let erf = s.div(s.mul(z, polynomial(s, square, over)), polynomial(s, square, under));
    s.fma(erf, s.splat(0.5), s.splat(0.5))
}

/// `c[0] x^(n - 1) + ... + c[n - 1]`.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut p = s.splat(c[0]);
    for c in &c[1..] {
        p = s.fma(p, x, s.splat(*c));
    }
    p
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::simd::Kernel;

    struct Apply<'a>(usize, &'a mut [f32]);

    impl Kernel for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Apply(function, x) = self;
            match function {
                0 => map(s, x, |x| exp(s, x)),
                1 => map(s, x, |x| sigmoid(s, x)),
                2 => map(s, x, |x| tanh(s, x)),
                _ => map(s, x, |x| gauss(s, x)),
            }
        }
    }

    type Function = fn(f64) -> f64;

    /// What the doc comments promise, in relative error but for `gauss`.
    const EXACT: [(Function, f64, f64); 4] = [
        (f64::exp, 1e-7, 0.0),
        (|x| 1.0 / (1.0 + (-x).exp()), 2e-7, 0.0),
        (f64::tanh, 5e-7, 0.0),
        (|x| 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2), 0.0, 2.5e-7),
    ];

    #[test]
    fn functions_are_as_exact_as_they_say() {
        let x: Vec<f32> = (-80_000..80_001).map(|i| i as f32 / 4000.0).collect();
        for level in Level::available() {
            for (index, (exact, relative, absolute)) in EXACT.into_iter().enumerate() {
                let mut y = x.clone();
                level.run(Apply(index, &mut y));
                for (&x, &y) in x.iter().zip(&y) {
                    let exact = exact(f64::from(x));
                    let error = (f64::from(y) - exact).abs();
                    let bound = relative * exact.abs() + absolute;
                    assert!(error <= bound, "{} of {x} on {}: {y}", index, level.name());
                }
                let mut extremes = [f32::NEG_INFINITY, -1e30, 1e30, f32::INFINITY, f32::NAN];
                level.run(Apply(index, &mut extremes));
                assert!(extremes[..4].iter().all(|y| y.is_finite()), "{extremes:?}");
                assert!(extremes[4].is_nan(), "NaN has to be seen");
            }
        }
    }
}
