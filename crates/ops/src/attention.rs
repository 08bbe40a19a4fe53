//! Scaled dot-product attention (Vaswani et al. 2017, equation 1) over ragged batches, with grouped
//! key and value heads (Ainslie et al. 2023).
//!
//! Only q, k and v are kept for the backward; the probabilities are computed again.

use crate::error::same;
use crate::gemm::{Product, Right, Write};
use crate::panels::{BLOCK, PANEL, Panels, View, pack_all};
use crate::parallel::{Parts, block};
use crate::ragged::sequences;
use crate::simd::math::{dot, exp_from_largest, map, zip};
use crate::simd::{Kernel, Simd};
use crate::{Error, Mat, Result, Workspace};
use std::ops::Range;

mod tangent;

pub use tangent::{tangent, tangent_scratch};

/// How rows are cut into heads. Query head `h` reads key and value head `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// The width of q and of the output.
    pub fn width(self) -> usize {
        self.heads * self.head_dim
    }

    /// The width of k and of v.
    pub fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn check(self, q: &Mat, k: &Mat, v: &Mat) -> Result<()> {
        self.check_rows(q)?;
        k.expect("the keys", q.rows(), self.kv_width())?;
        v.expect("the values", q.rows(), self.kv_width())
    }

    fn check_rows(self, q: &Mat) -> Result<()> {
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let what = "the remainder of heads by key and value heads";
            return Err(Error::Shape { what, expected: 0, found: self.heads });
        }
        q.expect("the queries", q.rows(), self.width())
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of its sequence.
    Full,
    /// Those at or before its own position.
    Causal,
}

/// `softmax(q k^T / sqrt(head_dim)) v` for every sequence and head. q is rows x width, k and v are
/// rows x kv_width, the output is rows x width.
pub fn forward(
    ws: &Workspace,
    q: &Mat,
    k: &Mat,
    v: &Mat,
    heads: Heads,
    starts: &[u32],
    mask: Mask,
) -> Result<Mat> {
    heads.check(q, k, v)?;
    let ranges: Vec<_> = sequences(starts, q.rows())?.collect();
    let mut y = ws.scratch(q.rows(), heads.width())?;
    let out = Parts::new(&mut y);
    let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
    let size = Forward::scratch(heads, longest, longest);
    by_heads(ws, ranges.len(), heads, size, |sequence, kv, scratch| {
        let range = ranges[sequence].clone();
        let of = Sequence::new(q, k, v, range.clone(), range, heads, mask);
        ws.level().run(Forward { of, kv, y: out, scratch });
    })?;
    Ok(y)
}

/// Attention of one sequence whose earlier keys and values are cached: `q` holds the last positions
/// of `keys` and `values` (positions x kv_width, row-major), and sees those at or before its own.
/// With one row this is a decoding step, with all of them the prompt.
pub fn cached(ws: &Workspace, q: &Mat, keys: &[f32], values: &[f32], heads: Heads) -> Result<Mat> {
    let wide = heads.kv_width();
    same("the number of cached values", keys.len(), values.len())?;
    let positions = keys.len() / wide.max(1);
    same("the number of cached keys", positions * wide, keys.len())?;
    heads.check_rows(q)?;
    if q.rows() > positions {
        return Err(Error::Shape { what: "the number of queries", expected: positions, found: q.rows() });
    }
    let mut y = ws.scratch(q.rows(), heads.width())?;
    if q.rows() == 0 {
        return Ok(y);
    }
    let out = Parts::new(&mut y);
    let size = Forward::scratch(heads, q.rows(), positions);
    by_heads(ws, 1, heads, size, |_, kv, scratch| {
        let of = Sequence::new(q, keys, values, 0..q.rows(), 0..positions, heads, Mask::Causal);
        ws.level().run(Forward { of, kv, y: out, scratch });
    })?;
    Ok(y)
}

/// `(dq, dk, dv)` of [`forward`] from its inputs.
pub fn backward(
    ws: &Workspace,
    q: &Mat,
    k: &Mat,
    v: &Mat,
    dy: &Mat,
    heads: Heads,
    starts: &[u32],
    mask: Mask,
) -> Result<(Mat, Mat, Mat)> {
    heads.check(q, k, v)?;
    dy.expect("the gradient of attention", q.rows(), heads.width())?;
    let ranges: Vec<_> = sequences(starts, q.rows())?.collect();
    let mut dq = ws.scratch(q.rows(), heads.width())?;
    let mut dk = ws.scratch(q.rows(), heads.kv_width())?;
    let mut dv = ws.scratch(q.rows(), heads.kv_width())?;
    let out = [Parts::new(&mut dq), Parts::new(&mut dk), Parts::new(&mut dv)];
    let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
    let size = Backward::scratch(heads, longest);
    by_heads(ws, ranges.len(), heads, size, |sequence, kv, scratch| {
        let range = ranges[sequence].clone();
        let of = Sequence::new(q, k, v, range.clone(), range, heads, mask);
        ws.level().run(Backward { of, dy, kv, out, scratch });
    })?;
    Ok((dq, dk, dv))
}

/// Queries whose scores exist at once: scratch grows with the length of a sequence, not its square.
const QUERIES: usize = 64;

/// Floats that forward and backward take at most for each thread, where the longest sequence has
/// this length.
pub fn scratch(heads: Heads, longest: usize) -> usize {
    Forward::scratch(heads, longest, longest).max(Backward::scratch(heads, longest))
}

/// Shares out `task(sequence, key and value head, scratch)`; `size` is the scratch's.
fn by_heads(
    ws: &Workspace,
    sequences: usize,
    heads: Heads,
    size: usize,
    task: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Result<()> {
    ws.share_scratch(sequences * heads.kv_heads, size, |index, scratch| {
        task(index / heads.kv_heads, index % heads.kv_heads, scratch);
    })
}

/// The queries, keys and values of one sequence, with all heads.
#[derive(Clone, Copy)]
struct Sequence<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// The row where the queries begin in the batch.
    first: usize,
    queries: usize,
    keys: usize,
    heads: Heads,
    mask: Mask,
}

impl<'a> Sequence<'a> {
    fn new(
        q: &'a [f32],
        k: &'a [f32],
        v: &'a [f32],
        queries: Range<usize>,
        keys: Range<usize>,
        heads: Heads,
        mask: Mask,
    ) -> Sequence<'a> {
        let own = queries.start * heads.width()..queries.end * heads.width();
        let kv = keys.start * heads.kv_width()..keys.end * heads.kv_width();
        Sequence {
            q: &q[own],
            k: &k[kv.clone()],
            v: &v[kv],
            first: queries.start,
            queries: queries.len(),
            keys: keys.len(),
            heads,
            mask,
        }
    }

    /// The keys that some query before `end` sees.
    fn seen(&self, end: usize) -> usize {
        match self.mask {
            Mask::Full => self.keys,
            Mask::Causal => self.keys - self.queries + end,
        }
    }

    /// Blocks of queries, the last first: it sees every key.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let queries = self.queries;
        (0..queries.div_ceil(QUERIES)).rev().map(move |index| block(queries, QUERIES, index))
    }

    /// One key and value head of rows as wide as k.
    fn stripe<'b>(&self, rows: &'b [f32], kv: usize) -> View<'b> {
        View::rows(&rows[kv * self.heads.head_dim..], self.heads.kv_width())
    }

    /// One query head of the rows that begin at `row`, of rows as wide as q.
    fn queries<'b>(&self, rows: &'b [f32], row: usize, head: usize) -> View<'b> {
        View::rows(&rows[row * self.heads.width() + head * self.heads.head_dim..], self.heads.width())
    }

    /// The query heads that read this key and value head.
    fn group(&self, kv: usize) -> Range<usize> {
        let size = self.heads.heads / self.heads.kv_heads;
        kv * size..(kv + 1) * size
    }

    /// The distance between rows of scores.
    fn stride(&self) -> usize {
        self.keys.next_multiple_of(BLOCK)
    }

    /// Scores of the queries `rows` against the packed keys, exponentiated, in rows of
    /// [`Sequence::stride`]; `sums` gets what each row has to be divided by.
    #[inline(always)]
    fn exponentials<S: Simd>(
        &self,
        s: S,
        head: usize,
        rows: Range<usize>,
        keys: Panels<'_>,
        scores: &mut [f32],
        sums: &mut [f32],
    ) {
        let dim = self.heads.head_dim;
        let seen = self.seen(rows.end);
        // Whole panels, as far as there are keys.
        let columns = seen.next_multiple_of(PANEL).min(self.keys);
        let left = self.queries(self.q, rows.start, head);
        let product = Product::new(rows.len(), columns, dim, left, Right::Packed(keys));
        assert!(scores.len() >= rows.len() * self.stride(), "scratch smaller than the scores");
        // SAFETY: `columns` is at most the stride, and the scores are this task's own.
        unsafe { product.run_here(s, scores.as_mut_ptr(), self.stride(), &mut []) };
        let scale = 1.0 / (dim as f32).sqrt();
        let scored = scores.chunks_exact_mut(self.stride()).zip(sums);
        for (query, (scores, sum)) in rows.zip(scored) {
            let valid = self.seen(query + 1);
            *sum = exp_from_largest(s, &mut scores[..valid], scale);
            scores[valid..seen].fill(0.0);
        }
    }
}

/// The query heads of one key and value head, forward.
struct Forward<'a, 's> {
    of: Sequence<'a>,
    kv: usize,
    y: Parts<'a>,
    scratch: &'s mut [f32],
}

impl Forward<'_, '_> {
    fn scratch(heads: Heads, queries: usize, keys: usize) -> usize {
        Panels::size(heads.head_dim, keys)
            + Panels::size(keys, heads.head_dim)
            + queries.min(QUERIES) * keys.next_multiple_of(BLOCK)
    }
}

impl Kernel for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Forward { of, kv, y, scratch } = self;
        let (dim, width) = (of.heads.head_dim, of.heads.width());
        let (keys, scratch) = scratch.split_at_mut(Panels::size(dim, of.keys));
        let (values, scores) = scratch.split_at_mut(Panels::size(of.keys, dim));
        let keys = pack_all(s, of.stripe(of.k, kv).transposed(), dim, of.keys, keys);
        let values = pack_all(s, of.stripe(of.v, kv), of.keys, dim, values);
        for head in of.group(kv) {
            for rows in of.blocks() {
                let mut sums = [0.0; QUERIES];
                of.exponentials(s, head, rows.clone(), keys, scores, &mut sums);
                let at = (of.first + rows.start) * width + head * dim;
                let left = View::rows(scores, of.stride());
                let product = Product::new(rows.len(), dim, of.seen(rows.end), left, Right::Packed(values));
                // SAFETY: no other task writes this head of these rows.
                unsafe { product.run_here(s, y.at(at), width, &mut []) };
                for (index, sum) in sums[..rows.len()].iter().enumerate() {
                    let (from, share) = (at + index * width, s.splat(1.0 / sum));
                    // SAFETY: as above.
                    map(s, unsafe { y.part(from..from + dim) }, |y| s.mul(y, share));
                }
            }
        }
    }
}

/// The query heads of one key and value head, backward.
///
/// With P the probabilities and dP = dY V^T: `dV = P^T dY`, `dS = P * (dP - rowsum(P * dP)) /
/// sqrt(head_dim)`, `dQ = dS K`, `dK = dS^T Q` (FlashAttention, Dao et al. 2022, appendix B.2).
struct Backward<'a, 's> {
    of: Sequence<'a>,
    dy: &'a [f32],
    kv: usize,
    /// dq, dk and dv.
    out: [Parts<'a>; 3],
    scratch: &'s mut [f32],
}

impl Backward<'_, '_> {
    fn scratch(heads: Heads, length: usize) -> usize {
        let (dim, rows) = (heads.head_dim, length.min(QUERIES));
        2 * Panels::size(dim, length)
            + Panels::size(length, dim)
            + 2 * rows * length.next_multiple_of(BLOCK)
            + Panels::size(rows, dim)
    }
}

impl Kernel for Backward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Backward { of, dy, kv, out: [dq, dk, dv], scratch } = self;
        let (dim, keys) = (of.heads.head_dim, of.keys);
        let (width, kv_width) = (of.heads.width(), of.heads.kv_width());
        let dy = &dy[of.first * width..];
        let most = of.queries.min(QUERIES);
        let (across, scratch) = scratch.split_at_mut(Panels::size(dim, keys));
        let (values, scratch) = scratch.split_at_mut(Panels::size(dim, keys));
        let (down, scratch) = scratch.split_at_mut(Panels::size(keys, dim));
        let (p, scratch) = scratch.split_at_mut(most * of.stride());
        let (ds, scratch) = scratch.split_at_mut(most * of.stride());
        let across = pack_all(s, of.stripe(of.k, kv).transposed(), dim, keys, across);
        let values = pack_all(s, of.stripe(of.v, kv).transposed(), dim, keys, values);
        let down = pack_all(s, of.stripe(of.k, kv), keys, dim, down);
        let kv_at = of.first * kv_width + kv * dim;
        let mut write = Write::Set;
        for head in of.group(kv) {
            for rows in of.blocks() {
                let (seen, count) = (of.seen(rows.end), rows.len());
                let mut sums = [0.0; QUERIES];
                of.exponentials(s, head, rows.clone(), across, p, &mut sums);
                let dy = of.queries(dy, rows.start, head);
                let columns = seen.next_multiple_of(PANEL).min(keys);
                let dp = Product::new(count, columns, dim, dy, Right::Packed(values));
                // SAFETY: scratch of this task; it holds `most` rows of the stride.
                unsafe { dp.run_here(s, ds.as_mut_ptr(), of.stride(), &mut []) };
                let scale = 1.0 / (dim as f32).sqrt();
                let both = p.chunks_exact_mut(of.stride()).zip(ds.chunks_exact_mut(of.stride()));
                for ((p, ds), sum) in both.zip(&sums[..count]) {
                    score_gradient(s, &mut p[..seen], &mut ds[..seen], 1.0 / sum, scale);
                }
                let (p, ds) = (View::rows(p, of.stride()), View::rows(ds, of.stride()));
                let right = Right::Packed(pack_all(s, dy, count, dim, scratch));
                let product = Product::new(seen, dim, count, p.transposed(), right).write(write);
                // SAFETY: no other task writes this key and value head of this sequence.
                unsafe { product.run_here(s, dv.at(kv_at), kv_width, &mut []) };
                let q = of.queries(of.q, rows.start, head);
                let right = Right::Packed(pack_all(s, q, count, dim, scratch));
                let product = Product::new(seen, dim, count, ds.transposed(), right).write(write);
                // SAFETY: as above.
                unsafe { product.run_here(s, dk.at(kv_at), kv_width, &mut []) };
                let at = (of.first + rows.start) * width + head * dim;
                let product = Product::new(count, dim, seen, ds, Right::Packed(down));
                // SAFETY: no other task writes this head of these rows.
                unsafe { product.run_here(s, dq.at(at), width, &mut []) };
                // The first block saw every key, so every element has been set.
                write = Write::Add;
            }
        }
    }
}

/// Divides `p` by its sum, and turns `ds`, the gradient of p, into that of the scores.
#[inline(always)]
fn score_gradient<S: Simd>(s: S, p: &mut [f32], ds: &mut [f32], share: f32, scale: f32) {
    let shares = s.splat(share);
    map(s, p, |p| s.mul(p, shares));
    let (mean, scale) = (s.splat(dot(s, p, ds)), s.splat(scale));
    zip(s, p, ds, |p, dp| s.mul(s.mul(p, scale), s.sub(dp, mean)));
}
