//! Attention with tangents.

use super::{Forward, Heads, Mask, QUERIES, Sequence, by_heads, forward, score_gradient};
use crate::gemm::{Product, Right, Write};
use crate::panels::{PANEL, Panels, View, pack_all};
use crate::parallel::Parts;
use crate::ragged::sequences;
use crate::simd::math::map;
use crate::simd::{Kernel, Simd};
use crate::{Dual, Result, Workspace};
use std::ops::Range;

/// [`forward`](super::forward) with tangents. q, k and v have the same directions.
///
/// With S the scores and P their softmax: `dS = (dQ K^T + Q dK^T) / sqrt(head_dim)`,
/// `dP = P * (dS - rowsum(P * dS))`, `dY = dP V + P dV`.
pub fn tangent(
    ws: &Workspace,
    q: &Dual,
    k: &Dual,
    v: &Dual,
    heads: Heads,
    starts: &[u32],
    mask: Mask,
) -> Result<Dual> {
    heads.check(q.stack(), k.stack(), v.stack())?;
    if q.is_constant() {
        return forward(ws, q.stack(), k.stack(), v.stack(), heads, starts, mask).map(Dual::constant);
    }
    let rows = q.rows();
    let ranges: Vec<_> = sequences(starts, rows)?.collect();
    let mut y = ws.scratch(q.stack().rows(), heads.width())?;
    let out = Parts::new(&mut y);
    let size = tangent_scratch(heads, ranges.iter().map(Range::len).max().unwrap_or(0));
    by_heads(ws, ranges.len(), heads, size, |sequence, kv, scratch| {
        let range = ranges[sequence].clone();
        let of = Sequence::new(q.primal(), k.primal(), v.primal(), range.clone(), range, heads, mask);
        ws.level().run(Tangent { of, q, k, v, kv, y: out, scratch });
    })?;
    Dual::stacked(y, rows)
}

/// Floats that [`tangent`] takes at most for each thread, where the longest sequence has this length.
pub fn tangent_scratch(heads: Heads, longest: usize) -> usize {
    // The moving keys and values, and the moving scores, beside what stands still.
    2 * Forward::scratch(heads, longest, longest)
}

/// The query heads of one key and value head of one sequence.
struct Tangent<'a, 's> {
    /// The activations that stand still.
    of: Sequence<'a>,
    q: &'a Dual,
    k: &'a Dual,
    v: &'a Dual,
    kv: usize,
    y: Parts<'a>,
    scratch: &'s mut [f32],
}

impl Kernel for Tangent<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tangent { of, q, k, v, kv, y, scratch } = self;
        let Heads { head_dim: dim, .. } = of.heads;
        let (width, kv_width) = (of.heads.width(), of.heads.kv_width());
        let (across, down) = (Panels::size(dim, of.keys), Panels::size(of.keys, dim));
        let most = of.queries.min(QUERIES) * of.stride();
        let (keys, scratch) = scratch.split_at_mut(across);
        let (values, scratch) = scratch.split_at_mut(down);
        let (dkeys, scratch) = scratch.split_at_mut(across);
        let (dvalues, scratch) = scratch.split_at_mut(down);
        let (p, ds) = scratch.split_at_mut(most);
        let keys = pack_all(s, of.stripe(of.k, kv).transposed(), dim, of.keys, keys);
        let values = pack_all(s, of.stripe(of.v, kv), of.keys, dim, values);
        let own = of.first * kv_width..(of.first + of.keys) * kv_width;
        for head in of.group(kv) {
            for rows in of.blocks() {
                let (seen, count) = (of.seen(rows.end), rows.len());
                let columns = seen.next_multiple_of(PANEL).min(of.keys);
                let at = (of.first + rows.start) * width + head * dim;
                let mut sums = [0.0; QUERIES];
                of.exponentials(s, head, rows.clone(), keys, p, &mut sums);
                let left = View::rows(p, of.stride());
                let product = Product::new(count, dim, seen, left, Right::Packed(values));
                // SAFETY: no other task writes this head of these rows.
                unsafe { product.run_here(s, y.at(at), width, &mut []) };
                for (index, sum) in sums[..count].iter().enumerate() {
                    let (from, share) = (at + index * width, s.splat(1.0 / sum));
                    // SAFETY: as above.
                    map(s, unsafe { y.part(from..from + dim) }, |y| s.mul(y, share));
                    map(s, &mut p[index * of.stride()..][..seen], |p| s.mul(p, share));
                }
                for direction in 0..q.directions() {
                    let dk = of.stripe(&k.tangent(direction)[own.clone()], kv).transposed();
                    let dkeys = pack_all(s, dk, dim, of.keys, dkeys);
                    let dv = of.stripe(&v.tangent(direction)[own.clone()], kv);
                    let dvalues = pack_all(s, dv, of.keys, dim, dvalues);
                    let dq = of.queries(q.tangent(direction), of.first + rows.start, head);
                    let moved = Product::new(count, columns, dim, dq, Right::Packed(keys));
                    let queries = of.queries(of.q, rows.start, head);
                    let moving = Product::new(count, columns, dim, queries, Right::Packed(dkeys));
                    // SAFETY: scratch of this task; it holds `most` floats.
                    unsafe {
                        moved.run_here(s, ds.as_mut_ptr(), of.stride(), &mut []);
                        moving.write(Write::Add).run_here(s, ds.as_mut_ptr(), of.stride(), &mut []);
                    }
                    let scale = 1.0 / (dim as f32).sqrt();
                    let both = p.chunks_exact_mut(of.stride()).zip(ds.chunks_exact_mut(of.stride()));
                    for (p, ds) in both.take(count) {
                        score_gradient(s, &mut p[..seen], &mut ds[..seen], 1.0, scale);
                    }
                    let (p, ds) = (View::rows(p, of.stride()), View::rows(ds, of.stride()));
                    let moved = Product::new(count, dim, seen, ds, Right::Packed(values));
                    let moving = Product::new(count, dim, seen, p, Right::Packed(dvalues));
                    let at = (1 + direction) * q.rows() * width + at;
                    // SAFETY: as for the rows that stand still.
                    unsafe {
                        moved.run_here(s, y.at(at), width, &mut []);
                        moving.write(Write::Add).run_here(s, y.at(at), width, &mut []);
                    }
                }
            }
        }
    }
}
