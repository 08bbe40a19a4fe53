//! Arithmetic on flat parameter vectors: adapters, gradients, optimiser state.
//!
//! Sums run in f64 over fixed blocks, so they depend on nothing but the numbers.

/// `y += a * x`.
///
/// # Panics
/// If the lengths differ.
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "axpy over slices of different lengths");
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// `x *= a`.
pub fn scale(a: f32, x: &mut [f32]) {
    for x in x {
        *x *= a;
    }
}

/// The inner product.
///
/// # Panics
/// If the lengths differ.
pub fn dot(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len(), "dot over slices of different lengths");
    let mut lanes = [0.0; LANES];
    for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f64::from(x) * f64::from(y);
        }
    }
    lanes.iter().sum()
}

/// Independent partial sums, enough to hide the latency of an addition.
const LANES: usize = 16;

/// The square of the Euclidean norm.
pub fn norm2(x: &[f32]) -> f64 {
    dot(x, x)
}

/// Whether no element is NaN or infinite.
pub fn all_finite(x: &[f32]) -> bool {
    // Without an early exit per element this vectorises; per block it still stops early.
    x.chunks(1024).all(|block| block.iter().fold(true, |finite, x| finite & x.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_add_up() {
        let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
        let mut y = x.clone();
        axpy(-0.5, &x, &mut y);
        scale(2.0, &mut y);
        assert_eq!(y, x);
        assert_eq!(norm2(&x), 328_350.0);
        assert!(all_finite(&x));
        y[77] = f32::NAN;
        assert!(!all_finite(&y));
    }
}
