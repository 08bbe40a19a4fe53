//! The walk of a pass with tangents.

use super::super::sites::{Block, Linear};
use super::Walk;
use crate::layout::Layout;
use crate::spec::{Place, Spec, Task};

/// The directions of a pass.
pub(in super::super) struct Fan {
    /// K.
    pub lanes: u64,
    /// The sites they move.
    pub moved: Layout,
}

/// An activation in memory: floats of one of its copies, and whether its tangents stand below it.
#[derive(Clone, Copy)]
struct Held {
    one: u64,
    wide: bool,
}

impl Fan {
    fn copies(&self, wide: bool) -> u64 {
        if wide { 1 + self.lanes } else { 1 }
    }

    fn floats(&self, held: Held) -> u64 {
        held.one * self.copies(held.wide)
    }
}

/// A block's linears twice: with what is trained there, and with what of that is moved.
struct Pair<'b> {
    all: &'b Linear,
    moved: &'b Linear,
}

impl Walk<'_> {
    /// From the input of block `first`, or from the tokens.
    pub fn tangents_of_loss(&mut self, fan: &Fan, first: usize) {
        let x = if first == 0 { self.embed_tangent(fan) } else { self.hold(fan, self.width(), false) };
        let x = (first..self.spec.layers).fold(x, |x, layer| self.block_tangent(fan, layer, x));
        self.head_tangent(fan, x);
    }

    /// Embeddings and the blocks below `cut`.
    pub fn tangents_below(&mut self, fan: &Fan, cut: usize) {
        let x = self.embed_tangent(fan);
        (0..cut).fold(x, |x, layer| self.block_tangent(fan, layer, x));
    }

    fn hold(&mut self, fan: &Fan, one: u64, wide: bool) -> Held {
        let held = Held { one, wide };
        self.take(fan.floats(held));
        held
    }

    fn drop(&mut self, fan: &Fan, held: Held) {
        self.free(fan.floats(held));
    }

    /// The same with tangents, if `wide` asks for them.
    fn widen(&mut self, fan: &Fan, held: Held, wide: bool) -> Held {
        if held.wide || !wide {
            return held;
        }
        let wider = self.hold(fan, held.one, true);
        self.drop(fan, held);
        wider
    }

    fn embed_tangent(&mut self, fan: &Fan) -> Held {
        let (width, spec) = (self.width(), self.spec);
        let moved = fan.moved.sites.iter().filter(|site| site.place == Place::Embedding);
        let (tables, norm): (Vec<_>, Vec<_>) = moved.partition(|site| site.rows > 1);
        let sum = self.hold(fan, width, false);
        let sum = self.widen(fan, sum, !tables.is_empty());
        self.pass_through(spec.width as u64);
        if self.is_pre() { sum } else { self.norm_tangent(fan, sum, !norm.is_empty()) }
    }

    /// Takes the place of `x`.
    fn norm_tangent(&mut self, fan: &Fan, x: Held, moved: bool) -> Held {
        let y = self.hold(fan, x.one, x.wide);
        let y = self.widen(fan, y, moved);
        if moved {
            // A part, the rows it is applied to, and what comes of them.
            self.pass_through(2 * x.one + 2 * self.spec.width as u64);
        }
        self.drop(fan, x);
        y
    }

    /// As [`Walk::norm_tangent`], and `x` stays.
    fn norm_beside(&mut self, fan: &Fan, x: Held, moved: bool) -> Held {
        let y = self.norm_tangent(fan, x, moved);
        self.take(fan.floats(x));
        y
    }

    /// Takes the output.
    fn linear_tangent(&mut self, fan: &Fan, Pair { all, moved }: Pair<'_>, x: Held) -> Held {
        let (rows, lanes) = (self.rows, fan.lanes);
        let mut y = self.hold(fan, rows * all.out, x.wide);
        self.product(rows * fan.copies(x.wide), all.out, all.width_in);
        y = self.widen(fan, y, moved.weight || moved.bias);
        if moved.weight {
            self.pass_through(all.out * all.width_in);
            self.product(rows * lanes, all.out, all.width_in);
        }
        self.pass_through(if moved.bias { all.out } else { 0 });
        if all.core > 0 {
            y = self.core_tangent(fan, Pair { all, moved }, x, y);
        }
        if all.rank == 0 {
            return y;
        }
        let h = self.hold(fan, rows * all.rank, x.wide);
        self.product(rows * fan.copies(x.wide), all.rank, all.width_in);
        let h = self.widen(fan, h, moved.rank > 0);
        y = self.widen(fan, y, h.wide);
        self.product(rows * fan.copies(h.wide), all.rank, all.out);
        if moved.rank > 0 {
            self.pass_through(all.rank * all.width_in.max(all.out));
            self.product(rows * lanes, all.rank, all.width_in + all.out);
        }
        self.drop(fan, h);
        y
    }

    /// Takes the place of `y` where the core's tangents make it wide.
    fn core_tangent(&mut self, fan: &Fan, Pair { all, moved }: Pair<'_>, x: Held, y: Held) -> Held {
        let (rows, core) = (self.rows, all.core);
        let h = self.hold(fan, rows * core, x.wide);
        let u = self.hold(fan, rows * core, x.wide);
        self.product(rows * fan.copies(x.wide), core, all.width_in + core);
        let u = self.widen(fan, u, moved.core > 0);
        if moved.core > 0 {
            self.pass_through(core * core);
            self.product(rows * fan.lanes, core, core);
        }
        let y = self.widen(fan, y, u.wide);
        self.product(rows * fan.copies(u.wide), core, all.out);
        self.drop(fan, h);
        self.drop(fan, u);
        y
    }

    /// Takes the place of the linear's output, if there is a bottleneck behind it.
    fn bottleneck_tangent(&mut self, fan: &Fan, Pair { all, moved }: Pair<'_>, y: Held) -> Held {
        if all.bottleneck == 0 {
            return y;
        }
        let (rows, size) = (self.rows, all.bottleneck);
        let inner = self.hold(fan, rows * size, y.wide);
        self.product(rows * fan.copies(y.wide), size, all.out);
        let inner = self.widen(fan, inner, moved.bottleneck > 0);
        let out = self.hold(fan, y.one, inner.wide);
        self.product(rows * fan.copies(inner.wide), size, all.out);
        if moved.bottleneck > 0 {
            self.pass_through(size * all.out);
            self.product(rows * fan.lanes, size, 2 * all.out);
        }
        self.drop(fan, inner);
        self.drop(fan, y);
        out
    }

    fn adapted_tangent(&mut self, fan: &Fan, all: &Linear, moved: &Linear, x: Held) -> Held {
        let y = self.linear_tangent(fan, Pair { all, moved }, x);
        self.bottleneck_tangent(fan, Pair { all, moved }, y)
    }

    /// Frees `x`.
    fn adapted_last(&mut self, fan: &Fan, all: &Linear, moved: &Linear, x: Held) -> Held {
        let y = self.linear_tangent(fan, Pair { all, moved }, x);
        self.drop(fan, x);
        self.bottleneck_tangent(fan, Pair { all, moved }, y)
    }

    fn attention_tangent(&mut self, fan: &Fan, all: &Block, moved: &Block, x: Held) -> Held {
        let projections = all.projections().into_iter().zip(moved.projections());
        let held: Vec<Held> =
            projections.map(|(all, moved)| self.adapted_tangent(fan, all, moved, x)).collect();
        let wide = held.iter().any(|held| held.wide);
        let held: Vec<Held> = held.into_iter().map(|held| self.widen(fan, held, wide)).collect();
        let context = self.hold(fan, self.queries(), wide);
        let lanes = if wide { fan.lanes } else { 0 };
        self.tangents |= wide;
        self.flops += (4 + 8 * lanes) * self.pairs * (self.spec.heads * self.spec.head_dim) as u64;
        held.into_iter().for_each(|held| self.drop(fan, held));
        self.adapted_last(fan, &all.output, &moved.output, context)
    }

    fn mlp_tangent(&mut self, fan: &Fan, all: &Block, moved: &Block, x: Held) -> Held {
        let Some((gate, gate_moved)) = all.gate.as_ref().zip(moved.gate.as_ref()) else {
            let inner = self.adapted_tangent(fan, &all.up, &moved.up, x);
            return self.adapted_last(fan, &all.down, &moved.down, inner);
        };
        let gate = self.adapted_tangent(fan, gate, gate_moved, x);
        let up = self.adapted_tangent(fan, &all.up, &moved.up, x);
        let wide = gate.wide || up.wide;
        let (gate, up) = (self.widen(fan, gate, wide), self.widen(fan, up, wide));
        self.drop(fan, gate);
        self.adapted_last(fan, &all.down, &moved.down, up)
    }

    /// Takes the place of `x`.
    fn block_tangent(&mut self, fan: &Fan, layer: usize, x: Held) -> Held {
        let all = Block::of(self.spec, self.task, self.layout, layer);
        let moved = Block::of(self.spec, self.task, &fan.moved, layer);
        if self.is_pre() {
            let attention_in = self.norm_beside(fan, x, moved.attention_norm);
            let attended = self.attention_tangent(fan, &all, &moved, attention_in);
            self.drop(fan, attention_in);
            let middle = self.widen(fan, attended, x.wide);
            self.drop(fan, x);
            let mlp_in = self.norm_beside(fan, middle, moved.mlp_norm);
            let sum = self.mlp_tangent(fan, &all, &moved, mlp_in);
            self.drop(fan, mlp_in);
            let sum = self.widen(fan, sum, middle.wide);
            self.drop(fan, middle);
            return sum;
        }
        let attended = self.attention_tangent(fan, &all, &moved, x);
        let middle = self.widen(fan, attended, x.wide);
        self.drop(fan, x);
        let mlp_in = self.norm_tangent(fan, middle, moved.attention_norm);
        let sum = self.mlp_tangent(fan, &all, &moved, mlp_in);
        let sum = self.widen(fan, sum, mlp_in.wide);
        self.drop(fan, mlp_in);
        self.norm_tangent(fan, sum, moved.mlp_norm)
    }

    /// Frees the hidden states it is given.
    fn head_tangent(&mut self, fan: &Fan, x: Held) {
        let &Spec { width, vocab, .. } = self.spec;
        let (width, vocab, sequences) = (width as u64, vocab as u64, self.sequences);
        let moved = |head: bool| {
            fan.moved.sites.iter().any(|site| site.place == Place::Last && site.is_head() == head)
        };
        let (norm_moved, head_moved) = (moved(false), moved(true));
        let hidden = if self.is_pre() { self.norm_tangent(fan, x, norm_moved) } else { x };
        match self.task {
            Task::Classification { .. } | Task::Regression { .. } => {
                let classes = self.task.classes() as u64;
                let features = self.hold(fan, sequences * width, hidden.wide);
                self.drop(fan, hidden);
                self.product(sequences * fan.copies(hidden.wide), classes, width);
                if head_moved {
                    self.product(sequences * fan.lanes, classes, width);
                }
                self.pass_through(classes * (width + sequences * (3 + 2 * fan.lanes)) + 2 * sequences);
                self.drop(fan, features);
            }
            Task::CausalLm => {
                let most = ops::loss::tangent_chunk_rows(self.spec.vocab, fan.lanes as usize) as u64;
                let rows = most.min(self.rows.saturating_sub(sequences));
                let moved = fan
                    .moved
                    .sites
                    .iter()
                    .find(|site| site.cols as u64 == width && site.rows as u64 == vocab);
                let copies = fan.copies(hidden.wide);
                self.product(self.rows * copies, vocab, width);
                let part = if moved.is_some() { vocab * width } else { 0 };
                if moved.is_some() {
                    self.product(self.rows * fan.lanes, vocab, width);
                }
                // The logits are widened, or their slopes stand beside them: one copy more either way.
                self.pass_through(rows * (copies * width + (2 + fan.lanes) * vocab + 2) + part);
                self.drop(fan, hidden);
            }
        }
    }
}
