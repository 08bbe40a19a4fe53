//! NEON: four lanes, 32 registers.

use super::{Kernel, Simd};
use std::arch::aarch64::*;

/// Proof that the machine has NEON, which every 64-bit phone does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

/// An instruction of NEON.
macro_rules! op {
    ($instruction:expr) => {
        // SAFETY: a value of `Neon` exists only where `detect` found the instructions.
        unsafe { $instruction }
    };
}

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const ROWS: usize = 8;
    const COLUMNS: usize = 3;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn compiled<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        op!(compiled(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        op!(vdupq_n_f32(x))
    }

    #[inline(always)]
    unsafe fn load_raw(self, from: *const f32) -> float32x4_t {
        op!(vld1q_f32(from))
    }

    #[inline(always)]
    unsafe fn store_raw(self, to: *mut f32, v: float32x4_t) {
        op!(vst1q_f32(to, v))
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> float32x4_t {
        let mut whole = [0.0; 4];
        whole[..from.len()].copy_from_slice(from);
        op!(vld1q_f32(whole.as_ptr()))
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: float32x4_t) {
        let mut whole = [0.0; 4];
        op!(vst1q_f32(whole.as_mut_ptr(), v));
        to.copy_from_slice(&whole[..to.len()]);
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        op!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vminq_f32(a, b))
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmaxq_f32(a, b))
    }

    #[inline(always)]
    fn power_of_two(self, n: float32x4_t) -> float32x4_t {
        let biased = op!(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)));
        op!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased)))
    }

    #[inline(always)]
    fn if_negative(self, x: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(vcltzq_f32(x), a, b))
    }

    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        op!(vaddvq_f32(v))
    }

    #[inline(always)]
    fn largest(self, v: float32x4_t) -> f32 {
        op!(vmaxvq_f32(v))
    }
}
