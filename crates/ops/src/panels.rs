//! The right-hand operand of a product as its kernel reads it.
//!
//! A k x n matrix is cut into panels of [`PANEL`] columns. A panel holds its rows one after another,
//! so a kernel streams through it. The last panel is as wide as its columns need, rounded up to
//! [`BLOCK`], and ends in zeros.

use crate::simd::Simd;

/// Columns of a panel: a multiple of every instruction set's tile (3 x 16, 2 x 8, 3 x 4, 2 x 4).
pub(crate) const PANEL: usize = 48;
/// Panels are as wide as a multiple of this, the longest vector.
pub(crate) const BLOCK: usize = 16;

/// `data[i * row + j * column]` is element (i, j). One of the two strides is 1.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> View<'a> {
    /// Row-major rows that begin `width` apart.
    pub(crate) fn rows(data: &'a [f32], width: usize) -> View<'a> {
        View { data, row: width, column: 1 }
    }

    pub(crate) fn transposed(self) -> View<'a> {
        View { data: self.data, row: self.column, column: self.row }
    }

    /// # Panics
    /// If `rows x columns` elements do not fit.
    pub(crate) fn check(self, rows: usize, columns: usize) {
        let reach = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        let last = reach(rows, self.row) + reach(columns, self.column);
        assert!(rows * columns == 0 || last < self.data.len(), "a view beyond its data");
        assert!(self.row == 1 || self.column == 1, "a view without a contiguous direction");
    }
}

/// A packed k x n matrix.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub data: &'a [f32],
    pub k: usize,
    pub n: usize,
}

impl Panels<'_> {
    /// # Panics
    /// If the data are not of that shape.
    pub(crate) fn check(self) {
        assert!(self.data.len() == Panels::size(self.k, self.n), "panels of another shape");
    }

    /// Elements of a packed k x n matrix.
    pub(crate) fn size(k: usize, n: usize) -> usize {
        n.next_multiple_of(BLOCK) * k
    }

    /// Where element (p, j) stands, and the distance from there to element (p + 1, j).
    pub(crate) fn place(k: usize, n: usize, p: usize, j: usize) -> (usize, usize) {
        let first = j - j % PANEL;
        let wide = width(n, j / PANEL);
        (first * k + p * wide + j - first, wide)
    }
}

/// Columns of panel `index` of n columns, with its padding.
pub(crate) fn width(n: usize, index: usize) -> usize {
    (n - index * PANEL).next_multiple_of(BLOCK).min(PANEL)
}

/// Packs the whole k x n matrix `right` into the beginning of `to`.
#[inline(always)]
pub(crate) fn pack_all<'a, S: Simd>(
    s: S,
    right: View<'_>,
    k: usize,
    n: usize,
    to: &'a mut [f32],
) -> Panels<'a> {
    let data = &mut to[..Panels::size(k, n)];
    for (index, panel) in data.chunks_mut(PANEL * k.max(1)).enumerate() {
        pack(s, right, n, 0, index * PANEL, panel);
    }
    Panels { data, k, n }
}

/// Packs rows `k0..k0 + rows` of the panel of `right` that begins at column `first` into `to`, which
/// has `rows` rows of the panel's width. `n` is the number of columns of `right`.
#[inline(always)]
pub(crate) fn pack<S: Simd>(s: S, right: View<'_>, n: usize, k0: usize, first: usize, to: &mut [f32]) {
    let wide = width(n, first / PANEL);
    let columns = (n - first).min(PANEL);
    let rows = to.len() / wide;
    if right.column == 1 {
        for (p, to) in to.chunks_exact_mut(wide).enumerate() {
            to[..columns].copy_from_slice(&right.data[(k0 + p) * right.row + first..][..columns]);
            to[columns..].fill(0.0);
        }
        return;
    }
    for c in (0..wide).step_by(BLOCK) {
        let valid = (columns - c).min(BLOCK);
        let from = &right.data[(first + c) * right.column + k0..];
        transpose(s, from, right.column, (valid, rows), &mut to[c..], wide);
    }
}

/// Packs the panel, beginning at column `first`, of rows `k0..k0 + rows` of the *transpose* of
/// `panels`: how the backward pass reads a weight that was packed for the forward pass. `k0` begins
/// a panel of `panels`.
#[inline(always)]
pub(crate) fn pack_transposed<S: Simd>(s: S, panels: Panels<'_>, k0: usize, first: usize, to: &mut [f32]) {
    let wide = width(panels.k, first / PANEL);
    let columns = (panels.k - first).min(PANEL);
    let rows = to.len() / wide;
    for c in (0..wide).step_by(BLOCK) {
        let valid = (columns - c).min(BLOCK);
        for o in (0..rows).step_by(PANEL) {
            let (at, stride) = Panels::place(panels.k, panels.n, first + c, k0 + o);
            let size = (valid, (rows - o).min(PANEL));
            transpose(s, &panels.data[at..], stride, size, &mut to[o * wide + c..], wide);
        }
    }
}

/// `to[j * to_stride + i] = from[i * from_stride + j]` for `i < rows <= 16` and `j < columns`; the
/// rest of each 16 becomes zero.
#[inline(always)]
fn transpose<S: Simd>(
    s: S,
    from: &[f32],
    from_stride: usize,
    (rows, columns): (usize, usize),
    to: &mut [f32],
    to_stride: usize,
) {
    let mut done = 0;
    if rows == BLOCK {
        while done + BLOCK <= columns {
            assert!(from.len() >= (BLOCK - 1) * from_stride + done + BLOCK);
            assert!(to.len() >= (done + BLOCK - 1) * to_stride + BLOCK);
            // SAFETY: the last element read and the last one written are inside, as just asserted.
            unsafe {
                let (from, to) = (from.as_ptr().add(done), to.as_mut_ptr().add(done * to_stride));
                s.transpose_16(from, from_stride, to, to_stride);
            }
            done += BLOCK;
        }
    }
    for j in done..columns {
        let to = &mut to[j * to_stride..][..BLOCK];
        for (i, to) in to.iter_mut().enumerate() {
            *to = if i < rows { from[i * from_stride + j] } else { 0.0 };
        }
    }
}
