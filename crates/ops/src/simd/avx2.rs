//! AVX2 with FMA: eight lanes, 16 registers.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Avx2> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        found.then_some(Avx2(()))
    }
}

/// An instruction of AVX2 or FMA.
macro_rules! op {
    ($instruction:expr) => {
        // SAFETY: a value of `Avx2` exists only where `detect` found the instructions.
        unsafe { $instruction }
    };
}

/// The first `len` lanes, for `len` below 8.
#[inline(always)]
fn first(len: usize) -> __m256i {
    const EDGE: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    op!(_mm256_loadu_si256(EDGE[8 - len..][..8].as_ptr().cast()))
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const ROWS: usize = 6;
    const COLUMNS: usize = 2;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma")]
        #[inline(never)]
        fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        op!(compiled(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load_raw(self, from: *const f32) -> __m256 {
        op!(_mm256_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn store_raw(self, to: *mut f32, v: __m256) {
        op!(_mm256_storeu_ps(to, v))
    }

    #[inline(always)]
    fn load_part(self, from: &[f32]) -> __m256 {
        op!(_mm256_maskload_ps(from.as_ptr(), first(from.len())))
    }

    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: __m256) {
        op!(_mm256_maskstore_ps(to.as_mut_ptr(), first(to.len()), v))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn power_of_two(self, n: __m256) -> __m256 {
        let biased = op!(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
        op!(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
    }

    #[inline(always)]
    fn if_negative(self, x: __m256, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_blendv_ps(b, a, _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_setzero_ps())))
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        let half = op!(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)));
        let pair = op!(_mm_add_ps(half, _mm_movehl_ps(half, half)));
        op!(_mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair))))
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        let half = op!(_mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)));
        let pair = op!(_mm_max_ps(half, _mm_movehl_ps(half, half)));
        op!(_mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair))))
    }

    #[inline(always)]
    unsafe fn transpose_16(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for (i, j) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // SAFETY: a quarter of the block that the caller vouches for.
            unsafe {
                let (from, to) = (from.add(i * from_stride + j), to.add(j * to_stride + i));
                self.transpose_8(from, from_stride, to, to_stride);
            }
        }
    }
}

impl Avx2 {
    /// # Safety
    /// As [`Simd::transpose_16`], for 8 x 8 elements.
    #[inline(always)]
    unsafe fn transpose_8(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        let zero = self.splat(0.0);
        let (mut t, mut r) = ([zero; 8], [zero; 8]);
        for (i, r) in r.iter_mut().enumerate() {
            *r = op!(_mm256_loadu_ps(from.add(i * from_stride)));
        }
        for i in (0..8).step_by(2) {
            t[i] = op!(_mm256_unpacklo_ps(r[i], r[i + 1]));
            t[i + 1] = op!(_mm256_unpackhi_ps(r[i], r[i + 1]));
        }
        for i in (0..8).step_by(4) {
            for (j, half) in [(i, 0), (i + 1, 2)] {
                r[i + half] = op!(_mm256_shuffle_ps::<0x44>(t[j], t[j + 2]));
                r[i + half + 1] = op!(_mm256_shuffle_ps::<0xee>(t[j], t[j + 2]));
            }
        }
        for i in 0..4 {
            let low = op!(_mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]));
            let high = op!(_mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]));
            op!(_mm256_storeu_ps(to.add(i * to_stride), low));
            op!(_mm256_storeu_ps(to.add((i + 4) * to_stride), high));
        }
    }
}
