//! Plain Rust, for machines without any of the other instruction sets, and to hold those against.

use super::{Kernel, Simd};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portable;

const LANES: usize = 4;
type V = [f32; LANES];

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> V {
    [f(0), f(1), f(2), f(3)]
}

impl Simd for Portable {
    type V = V;
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const COLUMNS: usize = 2;

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_raw(self, from: *const f32) -> V {
        // SAFETY: the caller vouches for four elements; an array of f32 is aligned as f32 is.
        unsafe { *from.cast::<V>() }
    }

    #[inline(always)]
    unsafe fn store_raw(self, to: *mut f32, v: V) {
        // SAFETY: as above.
        unsafe { *to.cast::<V>() = v }
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> V {
        each(|i| from.get(i).copied().unwrap_or(0.0))
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: V) {
        to.iter_mut().zip(v).for_each(|(to, v)| *to = v);
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        each(|i| a[i] / b[i])
    }

    /// Rounded twice: `f32::mul_add` is a slow library call where the instruction is missing.
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn power_of_two(self, n: V) -> V {
        each(|i| f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    fn if_negative(self, x: V, a: V, b: V) -> V {
        each(|i| if x[i] < 0.0 { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }

    #[inline(always)]
    fn largest(self, v: V) -> f32 {
        v[0].max(v[1]).max(v[2].max(v[3]))
    }
}
