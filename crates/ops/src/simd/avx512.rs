//! AVX-512F: sixteen lanes, 32 registers.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the machine has AVX-512F and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Avx512> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma");
        found.then_some(Avx512(()))
    }
}

/// An instruction of AVX-512F.
macro_rules! op {
    ($instruction:expr) => {
        // SAFETY: a value of `Avx512` exists only where `detect` found the instructions.
        unsafe { $instruction }
    };
}

/// The first `len` lanes, for `len` below 16.
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    (1 << len) - 1
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const COLUMNS: usize = 3;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx2,fma")]
        #[inline(never)]
        fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        op!(compiled(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load_raw(self, from: *const f32) -> __m512 {
        op!(_mm512_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn store_raw(self, to: *mut f32, v: __m512) {
        op!(_mm512_storeu_ps(to, v))
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m512 {
        op!(_mm512_maskz_loadu_ps(first(from.len()), from.as_ptr()))
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: __m512) {
        op!(_mm512_mask_storeu_ps(to.as_mut_ptr(), first(to.len()), v))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn power_of_two(self, n: __m512) -> __m512 {
        op!(_mm512_scalef_ps(_mm512_set1_ps(1.0), n))
    }

    #[inline(always)]
    fn if_negative(self, x: __m512, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps()), b, a))
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        op!(_mm512_reduce_add_ps(v))
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(v))
    }

    /// Four rounds of interleaving, each doubling the run that stands in its place.
    #[inline(always)]
    unsafe fn transpose_16(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        let zero = self.splat(0.0);
        let (mut t, mut r) = ([zero; 16], [zero; 16]);
        for (i, r) in r.iter_mut().enumerate() {
            *r = op!(_mm512_loadu_ps(from.add(i * from_stride)));
        }
        for i in (0..16).step_by(2) {
            t[i] = op!(_mm512_unpacklo_ps(r[i], r[i + 1]));
            t[i + 1] = op!(_mm512_unpackhi_ps(r[i], r[i + 1]));
        }
        for i in (0..16).step_by(4) {
            for (j, half) in [(i, 0), (i + 1, 2)] {
                let (a, b) = op!((_mm512_castps_pd(t[j]), _mm512_castps_pd(t[j + 2])));
                r[i + half] = op!(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)));
                r[i + half + 1] = op!(_mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
            }
        }
        for i in 0..4 {
            for base in [0, 8] {
                t[base + i] = op!(_mm512_shuffle_f32x4::<0x88>(r[base + i], r[base + 4 + i]));
                t[base + 4 + i] = op!(_mm512_shuffle_f32x4::<0xdd>(r[base + i], r[base + 4 + i]));
            }
        }
        for i in 0..4 {
            for (at, j) in [(i, i), (i + 4, i + 4)] {
                let even = op!(_mm512_shuffle_f32x4::<0x88>(t[j], t[8 + j]));
                let odd = op!(_mm512_shuffle_f32x4::<0xdd>(t[j], t[8 + j]));
                op!(_mm512_storeu_ps(to.add(at * to_stride), even));
                op!(_mm512_storeu_ps(to.add((at + 8) * to_stride), odd));
            }
        }
    }
}
