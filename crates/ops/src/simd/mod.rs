//! Vector instructions, chosen when the program runs.
//!
//! A kernel is written once over [`Simd`] and compiled once for each instruction set. The pattern is
//! that of the `pulp` crate: everything below [`Simd::vectorize`] is inlined into one function that
//! has the target feature, so every helper of a kernel has to be `#[inline(always)]`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// An instruction set this machine has.
///
/// Results of two levels agree within rounding; results of one level agree bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    Portable(portable::Portable),
}

impl Level {
    /// Those this machine has, fastest first; plain Rust is always the last of them.
    pub fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(avx512::Avx512::detect().map(Kind::Avx512));
            levels.extend(avx2::Avx2::detect().map(Kind::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(neon::Neon::detect().map(Kind::Neon));
        levels.push(Kind::Portable(portable::Portable));
        levels.into_iter().map(Level).collect()
    }

    /// The fastest.
    pub fn best() -> Level {
        Level::available()[0]
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
            Kind::Portable(_) => "portable",
        }
    }

    /// Run a kernel with these instructions.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(simd) => simd.vectorize(kernel),
            Kind::Portable(simd) => simd.vectorize(kernel),
        }
    }
}

/// A computation to be compiled for every instruction set. (A closure cannot be generic over
/// [`Simd`], hence a trait.)
pub(crate) trait Kernel {
    type Output;
    /// Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Vectors of f32 in one instruction set. Values of the implementing types exist only where the
/// machine has the instructions.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    /// Elements of a vector.
    const LANES: usize;
    /// Rows of the tile of a matrix product; its columns are [`Self::COLUMNS`] vectors. The tile, one
    /// row of B and one broadcast of A have to fit into the registers with one to spare: a spilt sum
    /// halves the speed.
    const ROWS: usize;
    const COLUMNS: usize;

    /// Compile `kernel` with these instructions and run it.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::V;

    /// # Safety
    /// `from` has [`Self::LANES`] readable elements.
    unsafe fn load_raw(self, from: *const f32) -> Self::V;

    /// # Safety
    /// `to` has [`Self::LANES`] writable elements.
    unsafe fn store_raw(self, to: *mut f32, v: Self::V);

    /// The elements of `from`, fewer than [`Self::LANES`], then zeros.
    fn load_part(self, from: &[f32]) -> Self::V;

    /// The first elements of `v` into `to`, which has fewer than [`Self::LANES`].
    fn store_part(self, to: &mut [f32], v: Self::V);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the machine can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller; `b` where it is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where it is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `2^n` for whole n between -126 and 127.
    fn power_of_two(self, n: Self::V) -> Self::V;
    /// Where `x < 0`, `a`, elsewhere `b`.
    fn if_negative(self, x: Self::V, a: Self::V, b: Self::V) -> Self::V;
    fn sum(self, v: Self::V) -> f32;
    fn largest(self, v: Self::V) -> f32;

    /// Writes the transpose of 16 x 16 elements.
    ///
    /// # Safety
    /// 16 elements are readable at `from + i * from_stride` and writable at `to + i * to_stride`
    /// for i below 16.
    #[inline(always)]
    unsafe fn transpose_16(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..16 {
            for j in 0..16 {
                // SAFETY: both offsets are among those the caller vouches for.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }

    /// Up to a vector's worth of elements, then zeros.
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            // SAFETY: the slice is long enough.
            unsafe { self.load_raw(from.as_ptr()) }
        } else {
            self.load_part(from)
        }
    }

    /// As many elements as `to` takes.
    #[inline(always)]
    fn store(self, to: &mut [f32], v: Self::V) {
        if to.len() >= Self::LANES {
            // SAFETY: the slice is long enough.
            unsafe { self.store_raw(to.as_mut_ptr(), v) }
        } else {
            self.store_part(to, v);
        }
    }
}
