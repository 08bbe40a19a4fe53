//! The attention part of a block: project, rotate, attend, project back.

use crate::adapted::{self, AdaptedLinear};
use crate::pass::{Pass, Save};
use crate::tangent::TangentPass;
use ops::attention::{self, Heads, Mask};
use ops::{Dual, Mat, Result, Workspace, rope};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub query: AdaptedLinear,
    pub key: AdaptedLinear,
    pub value: AdaptedLinear,
    pub output: AdaptedLinear,
    pub heads: Heads,
    pub mask: Mask,
    /// Rotary positions, shared by all blocks.
    pub rope: Option<Arc<rope::Table>>,
}

/// What the backward reads, besides the input. Queries and keys are rotated.
#[derive(Debug)]
pub(crate) struct Saved {
    q: Mat,
    k: Mat,
    v: Mat,
    /// The output of attention before its projection, where that reads its input.
    context: Option<Mat>,
    sites: [adapted::Saved; 4],
}

/// Keys and values of the earlier positions of one sequence.
#[derive(Debug)]
pub(crate) struct Cache {
    keys: Mat,
    values: Mat,
    /// Rows that are filled.
    positions: usize,
}

impl Cache {
    /// Room for this many positions.
    pub fn new(ws: &Workspace, positions: usize, width: usize) -> Result<Cache> {
        Ok(Cache { keys: ws.zeros(positions, width)?, values: ws.zeros(positions, width)?, positions: 0 })
    }

    fn push(&mut self, k: &Mat, v: &Mat) {
        for row in 0..k.rows() {
            self.keys.row_mut(self.positions).copy_from_slice(k.row(row));
            self.values.row_mut(self.positions).copy_from_slice(v.row(row));
            self.positions += 1;
        }
    }

    fn filled(&self) -> (&[f32], &[f32]) {
        let len = self.positions * self.keys.width();
        (&self.keys[..len], &self.values[..len])
    }
}

impl Attention {
    /// rows x width becomes rows x width.
    pub fn forward(&self, pass: Pass<'_>, x: &Mat, save: Save) -> Result<(Mat, Option<Saved>)> {
        let ([q, k, v], [query, key, value]) = self.project(pass, x, 0)?;
        let context = attention::forward(pass.ws, &q, &k, &v, self.heads, pass.starts, self.mask)?;
        let (y, output) = self.output.forward(pass, &context)?;
        let saved = save.keep(|| {
            let context = self.output.needs_input().then_some(context);
            Saved { q, k, v, context, sites: [query, key, value, output] }
        });
        Ok((y, saved))
    }

    /// The next positions of a single sequence, of which `first` are in the cache already.
    pub fn decode(&self, pass: Pass<'_>, x: &Mat, first: usize, cache: &mut Cache) -> Result<Mat> {
        let ([q, k, v], _) = self.project(pass, x, first)?;
        cache.push(&k, &v);
        let (keys, values) = cache.filled();
        let context = attention::cached(pass.ws, &q, keys, values, self.heads)?;
        Ok(self.output.forward(pass, &context)?.0)
    }

    /// Queries, keys and values of rows whose sequences begin at position `first`, rotated.
    fn project(&self, pass: Pass<'_>, x: &Mat, first: usize) -> Result<([Mat; 3], [adapted::Saved; 3])> {
        let (mut q, query) = self.query.forward(pass, x)?;
        let (mut k, key) = self.key.forward(pass, x)?;
        let (v, value) = self.value.forward(pass, x)?;
        if let Some(table) = &self.rope {
            table.apply(pass.ws, &mut q, self.heads.heads, pass.starts, first)?;
            table.apply(pass.ws, &mut k, self.heads.kv_heads, pass.starts, first)?;
        }
        Ok(([q, k, v], [query, key, value]))
    }

    /// [`Attention::forward`] with tangents.
    pub fn tangent(&self, pass: TangentPass<'_>, x: &Dual) -> Result<Dual> {
        let ws = pass.ws();
        let mut q = self.query.tangent(pass, x)?;
        let mut k = self.key.tangent(pass, x)?;
        let v = self.value.tangent(pass, x)?;
        if let Some(table) = &self.rope {
            let (starts_of_q, starts_of_k) = (pass.repeated(&q), pass.repeated(&k));
            table.apply(ws, q.stack_mut(), self.heads.heads, &starts_of_q, 0)?;
            table.apply(ws, k.stack_mut(), self.heads.kv_heads, &starts_of_k, 0)?;
        }
        let directions = q.directions().max(k.directions()).max(v.directions());
        let (q, k, v) = (q.widen(ws, directions)?, k.widen(ws, directions)?, v.widen(ws, directions)?);
        let context = attention::tangent(ws, &q, &k, &v, self.heads, pass.starts(), self.mask)?;
        drop((q, k, v));
        self.output.tangent_last(pass, context)
    }

    /// Adds the gradient of the input to `dx`, if one is wanted. `x` is the input where a projection
    /// needs it.
    pub fn backward(
        &self,
        pass: Pass<'_>,
        x: Option<&Mat>,
        saved: Saved,
        dy: &Mat,
        mut dx: Option<&mut Mat>,
        grad: &mut [f32],
    ) -> Result<()> {
        let Saved { q, k, v, context, sites: [query, key, value, output] } = saved;
        if dx.is_none() && !self.projections().iter().any(|linear| linear.is_trained()) {
            return self.output.backward_add(pass, context.as_ref(), &output, dy, None, grad);
        }
        let dcontext = self.output.backward(pass, context.as_ref(), &output, dy, grad)?;
        drop((context, output));
        let (mut dq, mut dk, dv) =
            attention::backward(pass.ws, &q, &k, &v, &dcontext, self.heads, pass.starts, self.mask)?;
        drop((q, k, v, dcontext));
        if let Some(table) = &self.rope {
            table.apply_backward(pass.ws, &mut dq, self.heads.heads, pass.starts)?;
            table.apply_backward(pass.ws, &mut dk, self.heads.kv_heads, pass.starts)?;
        }
        self.query.backward_add(pass, x, &query, &dq, dx.as_deref_mut(), grad)?;
        drop((dq, query));
        self.key.backward_add(pass, x, &key, &dk, dx.as_deref_mut(), grad)?;
        drop((dk, key));
        self.value.backward_add(pass, x, &value, &dv, dx, grad)
    }

    fn projections(&self) -> [&AdaptedLinear; 3] {
        [&self.query, &self.key, &self.value]
    }

    /// Whether the backward reads the input.
    pub fn needs_input(&self) -> bool {
        self.projections().iter().any(|linear| linear.needs_input())
    }

    pub fn is_trained(&self) -> bool {
        self.output.is_trained() || self.projections().iter().any(|linear| linear.is_trained())
    }

    pub fn bytes(&self) -> u64 {
        self.output.bytes() + self.projections().iter().map(|linear| linear.bytes()).sum::<u64>()
    }
}
