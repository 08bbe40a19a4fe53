//! Products of matrices: `c = a b` and its variations, at the speed of the machine.
//!
//! The loops are those of Goto and van de Geijn (2008), without a packed left operand: a tile reads
//! A by broadcasts, which need no order. For each panel of B and each [`DEPTH`] of k, the slice of
//! the panel stays in cache while the rows of A pass by.
//!
//! Every element of C is a sum over k in order, in partial sums of [`DEPTH`], whatever the tile it
//! falls into: neither threads nor the number of rows change a bit of it.

use crate::panels::{BLOCK, PANEL, Panels, View, pack, pack_transposed, width};
use crate::parallel::{Parts, block, share_out};
use crate::simd::{Kernel, Simd};
use crate::{Result, Workspace};
use std::ops::Range;

/// `c = scale * left right + bias`, or `c += scale * left right`.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// m x k.
    pub left: View<'a>,
    /// k x n.
    pub right: Right<'a>,
    pub scale: f32,
    pub write: Write<'a>,
    /// Only this many rows get the bias; those below are tangents.
    pub biased: usize,
}

/// Where the right operand comes from.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Packed before. The product may use fewer of its rows, or only some of its first panels.
    Packed(Panels<'a>),
    /// The transpose of what was packed before.
    Transposed(Panels<'a>),
    Strided(View<'a>),
}

/// What becomes of the result.
#[derive(Clone, Copy)]
pub(crate) enum Write<'a> {
    /// It replaces c.
    Set,
    /// It replaces c, with this row of length n added to every row.
    SetWithBias(&'a [f32]),
    /// It is added to c.
    Add,
}

/// Terms of a partial sum: a slice of a panel (48 x 384 floats, 72 KiB) streams from the second cache
/// while C is seldom touched. A multiple of [`PANEL`], as [`pack_transposed`] wants.
const DEPTH: usize = 384;
/// Floats that a product takes at most for each thread: one slice of a panel.
pub const SCRATCH: usize = PANEL * DEPTH;
/// A multiple of the rows of every instruction set's tile.
const TILES: usize = 24;
/// Rows that share a packed slice before the next one is packed.
const PACKED_ROWS: usize = 240;
const STRIDED_ROWS: usize = 1200;

impl<'a> Product<'a> {
    /// `c = left right`.
    pub(crate) fn new(m: usize, n: usize, k: usize, left: View<'a>, right: Right<'a>) -> Product<'a> {
        Product { m, n, k, left, right, scale: 1.0, write: Write::Set, biased: m }
    }

    pub(crate) fn scaled(self, scale: f32) -> Product<'a> {
        Product { scale, ..self }
    }

    pub(crate) fn write(self, write: Write<'a>) -> Product<'a> {
        Product { write, ..self }
    }

    pub(crate) fn biased(self, biased: usize) -> Product<'a> {
        Product { biased, ..self }
    }

    /// Computes it into `c`, m x n row-major, on the workspace's threads.
    ///
    /// # Panics
    /// If an operand is smaller than m, n and k say.
    pub(crate) fn run(self, ws: &Workspace, c: &mut [f32]) -> Result<()> {
        self.check();
        assert!(c.len() == self.m * self.n, "a product into another shape");
        if c.is_empty() {
            return Ok(());
        }
        let (rows, panels) = self.share(ws.threads());
        let (down, across) = (self.m.div_ceil(rows), self.n.div_ceil(panels * PANEL));
        let size = self.scratch();
        let workers = ws.threads().min(down * across);
        let mut scratch = ws.buffers(workers, size)?;
        let (scratch, c) = (Parts::new(&mut scratch), Parts::new(c));
        share_out(ws.threads(), down * across, |worker, index| {
            // SAFETY: each worker has its own part.
            let scratch = unsafe { scratch.part(worker * size..(worker + 1) * size) };
            let rows = block(self.m, rows, index % down);
            let panels = block(self.n.div_ceil(PANEL), panels, index / down);
            let (c, c_stride) = (c.at(0), self.n);
            ws.level().run(Block { product: self, rows, panels, c, c_stride, scratch });
        });
        Ok(())
    }

    /// Rows and panels of a task: few enough rows that they stay in the second cache, but all of
    /// them where a slice has to be packed first; some tasks for every thread.
    fn share(&self, threads: usize) -> (usize, usize) {
        let most = match self.right {
            Right::Packed(_) => PACKED_ROWS,
            Right::Transposed(_) | Right::Strided(_) => STRIDED_ROWS,
        };
        let rows = self.m.div_ceil(self.m.div_ceil(most)).next_multiple_of(TILES);
        let panels = self.n.div_ceil(PANEL);
        if threads == 1 {
            return (rows, panels);
        }
        let across = (4 * threads).div_ceil(self.m.div_ceil(rows));
        (rows, panels.div_ceil(across))
    }

    /// Floats a task needs.
    fn scratch(&self) -> usize {
        match self.right {
            Right::Packed(_) => 0,
            Right::Transposed(_) | Right::Strided(_) => {
                PANEL.min(self.n.next_multiple_of(BLOCK)) * DEPTH.min(self.k)
            }
        }
    }

    fn check(&self) {
        self.left.check(self.m, self.k);
        match self.right {
            Right::Packed(panels) => {
                panels.check();
                let whole = self.n == panels.n || self.n < panels.n && self.n.is_multiple_of(PANEL);
                assert!(self.k <= panels.k && whole, "a product with another shape");
            }
            Right::Transposed(panels) => {
                panels.check();
                assert!(panels.n == self.k && panels.k == self.n, "a product with another shape");
            }
            Right::Strided(view) => view.check(self.k, self.n),
        }
        if let Write::SetWithBias(bias) = self.write {
            assert!(bias.len() == self.n, "a bias of another length");
        }
    }

    /// Computes it on this thread into the m x n elements at `c`, whose rows begin `c_stride`
    /// apart. `scratch` has to hold a slice of a panel unless the right operand is packed.
    ///
    /// # Safety
    /// The elements are writable, and nobody else reads or writes them meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn run_here<S: Simd>(self, s: S, c: *mut f32, c_stride: usize, scratch: &mut [f32]) {
        self.check();
        assert!(scratch.len() >= self.scratch(), "scratch smaller than a slice");
        let (rows, panels) = (0..self.m, 0..self.n.div_ceil(PANEL));
        Block { product: self, rows, panels, c, c_stride, scratch }.run(s);
    }
}

/// Some rows of some panels of a product. `c` is the first element of the whole.
struct Block<'a, 's> {
    product: Product<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    c: *mut f32,
    c_stride: usize,
    scratch: &'s mut [f32],
}

impl Kernel for Block<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { n, k, right, write, biased, .. } = self.product;
        for first in self.panels.map(|panel| panel * PANEL) {
            let wide = width(n, first / PANEL);
            // A sum of no terms is written all the same.
            for k0 in (0..k.max(1)).step_by(DEPTH) {
                let depth = DEPTH.min(k - k0);
                let slice = match right {
                    Right::Packed(panels) => &panels.data[first * panels.k + k0 * wide..][..depth * wide],
                    Right::Transposed(panels) => {
                        pack_transposed(s, panels, k0, first, &mut self.scratch[..depth * wide]);
                        &self.scratch[..depth * wide]
                    }
                    Right::Strided(view) => {
                        pack(s, view, n, k0, first, &mut self.scratch[..depth * wide]);
                        &self.scratch[..depth * wide]
                    }
                };
                let columns = (n - first).min(PANEL);
                let write = match write {
                    Write::SetWithBias(bias) if k0 == 0 => Write::SetWithBias(&bias[first..][..columns]),
                    Write::Set if k0 == 0 => Write::Set,
                    _ => Write::Add,
                };
                let scale = self.product.scale;
                let mut strip = Strip { slice, wide, columns, k0, write, scale };
                let mut row = self.rows.start;
                while row < self.rows.end {
                    // No tile lies across the last row with a bias.
                    let end = if row < biased { self.rows.end.min(biased) } else { self.rows.end };
                    if let (true, Write::SetWithBias(_)) = (row >= biased, strip.write) {
                        strip.write = Write::Set;
                    }
                    let rows = (end - row).min(S::ROWS);
                    let c = self.c.wrapping_add(row * self.c_stride + first);
                    strip.rows(s, self.product.left, row, rows, c, self.c_stride);
                    row += rows;
                }
            }
        }
    }
}

/// A slice of a panel, and what becomes of the products with it.
struct Strip<'a> {
    slice: &'a [f32],
    wide: usize,
    columns: usize,
    k0: usize,
    write: Write<'a>,
    scale: f32,
}

impl Strip<'_> {
    /// Rows `row..row + rows` of the left operand times this slice.
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, left: View<'_>, row: usize, rows: usize, c: *mut f32, c_stride: usize) {
        let a = left.data.as_ptr().wrapping_add(row * left.row + self.k0 * left.column);
        for column in (0..self.columns).step_by(S::COLUMNS * S::LANES) {
            let vectors = ((self.wide - column) / S::LANES).min(S::COLUMNS);
            let columns = (self.columns - column).min(vectors * S::LANES);
            let write = match self.write {
                Write::SetWithBias(bias) => Write::SetWithBias(&bias[column..][..columns]),
                write => write,
            };
            let place = Place {
                a,
                a_row: left.row,
                a_column: left.column,
                b: self.slice.as_ptr().wrapping_add(column),
                b_row: self.wide,
                depth: self.slice.len() / self.wide,
                c: c.wrapping_add(column),
                c_row: c_stride,
                columns,
                scale: self.scale,
                write,
            };
            place.tile(s, rows, vectors);
        }
    }
}

/// The operands of one tile, as addresses.
#[derive(Clone, Copy)]
struct Place<'a> {
    a: *const f32,
    a_row: usize,
    a_column: usize,
    b: *const f32,
    b_row: usize,
    depth: usize,
    c: *mut f32,
    c_row: usize,
    columns: usize,
    scale: f32,
    write: Write<'a>,
}

impl Place<'_> {
    /// Picks the tile that has these many rows and vectors.
    #[inline(always)]
    fn tile<S: Simd>(self, s: S, rows: usize, vectors: usize) {
        macro_rules! pick {
            ($($rows:literal)*) => {
                match (rows, vectors) {
                    $(($rows, 1) => s.vectorize(Tile::<$rows, 1>(self)),
                    ($rows, 2) => s.vectorize(Tile::<$rows, 2>(self)),
                    ($rows, 3) => s.vectorize(Tile::<$rows, 3>(self)),)*
                    _ => unreachable!("a tile of {rows} rows and {vectors} vectors"),
                }
            };
        }
        match S::ROWS {
            8 => pick!(8 7 6 5 4 3 2 1),
            6 => pick!(6 5 4 3 2 1),
            _ => pick!(4 3 2 1),
        }
    }
}

/// `M` rows by `N` vectors of C, held in registers while k passes.
struct Tile<'a, const M: usize, const N: usize>(Place<'a>);

impl<const M: usize, const N: usize> Kernel for Tile<'_, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let place = self.0;
        let mut sums = [[s.splat(0.0); N]; M];
        let (mut a, mut b) = (place.a, place.b);
        for _ in 0..place.depth {
            // SAFETY: `Product::check` holds the views against their shapes, and a slice has
            // `depth` rows of whole vectors.
            unsafe {
                let mut right = [s.splat(0.0); N];
                for (j, right) in right.iter_mut().enumerate() {
                    *right = s.load_raw(b.add(j * S::LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let left = s.splat(*a.add(i * place.a_row));
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum = s.fma(left, right, *sum);
                    }
                }
            }
            a = a.wrapping_add(place.a_column);
            b = b.wrapping_add(place.b_row);
        }
        let scale = s.splat(place.scale);
        for (i, sums) in sums.iter().enumerate() {
            // SAFETY: the caller of `run` or `run_here` has the tile's rows of C to itself.
            let c = unsafe { std::slice::from_raw_parts_mut(place.c.add(i * place.c_row), place.columns) };
            for (j, &sum) in sums.iter().enumerate() {
                let from = (j * S::LANES).min(c.len());
                let c = &mut c[from..];
                let value = s.mul(sum, scale);
                let value = match place.write {
                    Write::Set => value,
                    Write::SetWithBias(bias) => s.add(value, s.load(&bias[from..])),
                    Write::Add => s.add(value, s.load(c)),
                };
                s.store(c, value);
            }
        }
    }
}
