//! A walk over a model that takes and frees what a real pass would, in its order, and computes
//! nothing. Every function here mirrors the one of the same name where the work is done.

mod ends;
mod halves;
mod tangents;

use super::sites::{Block, Linear};
use crate::families::NormOrder;
use crate::layout::Layout;
use crate::pass::Save;
use crate::spec::{Place, Spec, Task};
use crate::tokens::Activations;
use base::Cost;
use ops::attention::{self, Heads};
use std::ops::Range;
pub(super) use tangents::Fan;

pub(super) struct Walk<'a> {
    spec: &'a Spec,
    task: &'a Task,
    layout: &'a Layout,
    rows: u64,
    sequences: u64,
    /// Sum over sequences of the keys that their queries see.
    pairs: u64,
    longest: u64,
    /// Floats held now, and at most.
    live: u64,
    peak: u64,
    flops: u64,
    /// Whether attention runs with tangents.
    tangents: bool,
}

/// Floats a block's forward leaves behind.
#[derive(Clone, Copy, Default)]
struct Saved {
    attention: u64,
    attention_in: u64,
    middle: u64,
    mlp: u64,
    mlp_in: u64,
}

/// A block that a gradient comes to.
pub(super) struct Step {
    layer: usize,
    block: Block,
    input: bool,
    saved: Option<Saved>,
}

impl<'a> Walk<'a> {
    pub fn new(spec: &'a Spec, task: &'a Task, layout: &'a Layout, starts: &[u32]) -> Walk<'a> {
        let lengths = || starts.windows(2).map(|pair| u64::from(pair[1].saturating_sub(pair[0])));
        let pairs = lengths().map(|n| if spec.family.causal { n * (n + 1) / 2 } else { n * n });
        Walk {
            spec,
            task,
            layout,
            rows: lengths().sum(),
            sequences: lengths().count() as u64,
            pairs: pairs.sum(),
            longest: lengths().max().unwrap_or(0),
            live: 0,
            peak: 0,
            flops: 0,
            tangents: false,
        }
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: self.flops, bytes: 4 * (self.peak + self.kernel_scratch()) }
    }

    pub fn loss_and_gradient(&mut self, activations: Activations) {
        let layers = self.layout.layers.clone();
        let below = self.layout.trains_below(Place::Block(layers.start));
        self.enter(layers.start);
        let trail = self.blocks_forward(layers.clone(), activations, below);
        if !self.head_loss_and_gradient(self.layout.trains_below(Place::Last)) {
            return;
        }
        self.blocks_backward(trail, below);
        if below && layers.start == 0 {
            self.embed_backward();
        }
    }

    /// Takes the input of the first block of a range.
    fn enter(&mut self, first: usize) {
        if first == 0 {
            self.embed();
        } else {
            self.take(self.width());
        }
    }

    /// Takes the output and what `forward_for_backward` leaves for the backward.
    fn blocks_forward(&mut self, layers: Range<usize>, activations: Activations, below: bool) -> Vec<Step> {
        let mut trail: Vec<Step> = Vec::new();
        for layer in layers.clone() {
            let block = Block::of(self.spec, self.task, self.layout, layer);
            let save = match activations {
                _ if !(below || self.layout.trains(layers.start..layer + 1)) => Save::Nothing,
                Activations::Recompute if layer + 1 < layers.end => Save::Sum,
                Activations::Keep | Activations::Recompute => Save::ForBackward,
            };
            let saved = self.block_forward(&block, save);
            let input = save != Save::Nothing && (self.is_pre() || trail.is_empty());
            if !input {
                self.free(self.width());
            }
            if save != Save::Nothing {
                trail.push(Step { layer, block, input, saved });
            }
        }
        trail
    }

    /// Frees the gradient of the output and the trail; takes the gradient of the input if `below`.
    fn blocks_backward(&mut self, trail: Vec<Step>, below: bool) {
        let first = trail.first().map_or(0, |step| step.layer);
        for Step { layer, block, input, saved } in trail.into_iter().rev() {
            if !input {
                self.take(self.width());
            }
            let saved = saved.unwrap_or_else(|| self.block_recompute(&block));
            let below = below || self.layout.trains(first..layer);
            self.block_backward(&block, saved, below);
            // The block's input.
            self.free(self.width());
        }
    }

    pub fn loss(&mut self) {
        let width = self.width();
        if self.layout.layers.start == 0 {
            self.embed();
        } else {
            self.take(width);
        }
        for layer in self.layout.layers.clone() {
            let block = Block::of(self.spec, self.task, self.layout, layer);
            self.block_forward(&block, Save::Nothing);
            self.free(width);
        }
        self.head_loss();
    }

    fn take(&mut self, floats: u64) -> u64 {
        self.live += floats;
        self.peak = self.peak.max(self.live);
        floats
    }

    fn free(&mut self, floats: u64) {
        self.live = self.live.saturating_sub(floats);
    }

    /// Take and free at once.
    fn pass_through(&mut self, floats: u64) {
        self.take(floats);
        self.free(floats);
    }

    /// A product of an m x k and a k x n matrix.
    fn product(&mut self, m: u64, n: u64, k: u64) {
        self.flops += 2 * m * n * k;
    }

    /// Floats of a rows x width activation.
    fn width(&self) -> u64 {
        self.rows * self.spec.width as u64
    }

    fn queries(&self) -> u64 {
        self.rows * (self.spec.heads * self.spec.head_dim) as u64
    }

    fn keys(&self) -> u64 {
        self.rows * (self.spec.kv_heads * self.spec.head_dim) as u64
    }

    fn ffn(&self) -> u64 {
        self.rows * self.spec.ffn as u64
    }

    /// Floats a kernel takes beside the matrices.
    fn kernel_scratch(&self) -> u64 {
        let Spec { heads, kv_heads, head_dim, .. } = *self.spec;
        let heads = Heads { heads, kv_heads, head_dim };
        let scratch = if self.tangents { attention::tangent_scratch } else { attention::scratch };
        let attention = scratch(heads, self.longest as usize);
        attention.max(ops::PRODUCT_SCRATCH) as u64
    }

    /// Takes the output, and what the sites save; returns the latter.
    fn linear_forward(&mut self, linear: &Linear) -> u64 {
        let rows = self.rows;
        self.take(rows * linear.out);
        self.product(rows, linear.out, linear.width_in);
        self.product(rows, linear.rank, linear.width_in + linear.out);
        let mut saved = self.take(rows * linear.rank);
        self.product(rows, linear.core, linear.width_in + linear.core + linear.out);
        saved += self.take(rows * linear.core);
        self.pass_through(rows * linear.core);
        if linear.bottleneck > 0 {
            self.product(rows, linear.bottleneck, 2 * linear.out);
            saved += self.take(rows * linear.bottleneck) + self.take(rows * linear.out);
        }
        saved
    }

    /// Takes the gradient of the input, if it is a fresh one.
    fn linear_backward(&mut self, linear: &Linear, input: Gradient) {
        let rows = self.rows;
        let mut bottleneck = 0;
        if linear.bottleneck > 0 {
            let inner = self.take(rows * linear.bottleneck);
            bottleneck = self.take(rows * linear.out);
            self.free(inner);
            self.product(rows, linear.bottleneck, 4 * linear.out);
        }
        if input == Gradient::Fresh {
            self.take(rows * linear.width_in);
        }
        if input != Gradient::Unwanted {
            self.product(rows, linear.out, linear.width_in);
            self.product(rows, linear.rank, linear.width_in);
        }
        if linear.weight {
            self.product(rows, linear.out, linear.width_in);
        }
        self.product(rows, linear.core, linear.out + 2 * linear.core + linear.width_in);
        self.pass_through(2 * rows * linear.core);
        self.product(rows, linear.rank, linear.width_in + 2 * linear.out);
        self.pass_through(rows * linear.rank);
        self.free(bottleneck);
    }

    /// Takes the output; returns what was saved, which is nothing unless `save`.
    fn attention_forward(&mut self, block: &Block, save: bool) -> u64 {
        let (queries, keys) = (self.queries(), self.keys());
        let sites: u64 = block.projections().iter().map(|linear| self.linear_forward(linear)).sum();
        let context = self.take(queries);
        self.flops += 4 * self.pairs * (self.spec.heads * self.spec.head_dim) as u64;
        let sites = sites + self.linear_forward(&block.output);
        let all = queries + 2 * keys + context + sites;
        let kept = match (save, block.output.needs_input()) {
            (false, _) => 0,
            (true, true) => all,
            (true, false) => all - context,
        };
        self.free(all - kept);
        kept
    }

    /// Frees what was saved.
    fn attention_backward(&mut self, block: &Block, saved: u64, input: bool) {
        let (queries, keys, rows) = (self.queries(), self.keys(), self.rows);
        if !input && !block.projections().iter().any(|linear| linear.is_trained()) {
            self.linear_backward(&block.output, Gradient::Unwanted);
            self.free(saved);
            return;
        }
        self.linear_backward(&block.output, Gradient::Fresh);
        let context = if block.output.needs_input() { queries } else { 0 };
        let output = rows * (block.output.rank + block.output.core + block.output.bottleneck)
            + if block.output.bottleneck > 0 { rows * block.output.out } else { 0 };
        self.free(context + output);
        self.take(queries + 2 * keys);
        self.flops += 10 * self.pairs * (self.spec.heads * self.spec.head_dim) as u64;
        self.free(2 * queries + 2 * keys);
        let input = if input { Gradient::Added } else { Gradient::Unwanted };
        for linear in block.projections() {
            self.linear_backward(linear, input);
            self.free(rows * linear.out);
        }
        self.free(saved - context - output - queries - 2 * keys);
    }

    /// Takes the output; returns what was saved.
    fn mlp_forward(&mut self, block: &Block, save: bool) -> u64 {
        let ffn = self.ffn();
        let mut inner = ffn;
        let mut sites = 0;
        if let Some(gate) = &block.gate {
            sites += self.linear_forward(gate);
            inner += ffn;
        }
        sites += self.linear_forward(&block.up);
        if !save && block.gate.is_none() {
            // In place: the activation is the inner one.
            sites += self.linear_forward(&block.down);
            self.free(inner + sites);
            return 0;
        }
        let active = self.take(ffn);
        if !save {
            self.free(inner);
            sites += self.linear_forward(&block.down);
            self.free(active + sites);
            return 0;
        }
        sites += self.linear_forward(&block.down);
        if block.down.needs_input() {
            return inner + active + sites;
        }
        self.free(active);
        inner + sites
    }

    /// Takes what is saved.
    fn mlp_recompute(&mut self, block: &Block) -> u64 {
        let (ffn, down) = (self.ffn(), &block.down);
        let mut saved = ffn + self.linear_forward(&block.up);
        if let Some(gate) = &block.gate {
            saved += ffn + self.linear_forward(gate);
        }
        if !down.recomputes() {
            return saved;
        }
        let active = self.take(ffn);
        if down.bottleneck > 0 {
            saved += self.linear_forward(down);
            self.free(self.rows * down.out);
        } else {
            self.product(self.rows, down.rank + down.core, down.width_in);
            saved += self.take(self.rows * (down.rank + down.core));
        }
        if down.needs_input() {
            return saved + active;
        }
        self.free(active);
        saved
    }

    /// Frees what was saved.
    fn mlp_backward(&mut self, block: &Block, saved: u64, input: bool) {
        let ffn = self.ffn();
        if !input && !block.mlp_entry_is_trained() {
            self.linear_backward(&block.down, Gradient::Unwanted);
            self.free(saved);
            return;
        }
        self.linear_backward(&block.down, Gradient::Fresh);
        let active = if block.down.needs_input() { ffn } else { 0 };
        self.free(active);
        let input = if input { Gradient::Added } else { Gradient::Unwanted };
        if let Some(gate) = &block.gate {
            // The gradient of the product becomes that of `up`.
            self.take(ffn);
            self.free(2 * ffn);
            self.linear_backward(gate, input);
            self.free(ffn);
        } else {
            self.free(ffn);
        }
        self.linear_backward(&block.up, input);
        self.free(ffn);
        let inner = if block.gate.is_some() { 2 * ffn } else { ffn };
        self.free(saved - active - inner);
    }

    /// Takes the output, what is saved and the last sum where it stays.
    fn block_forward(&mut self, block: &Block, save: Save) -> Option<Saved> {
        let (width, keep) = (self.width(), save == Save::ForBackward);
        let mut saved = self.half(block, keep);
        if !keep && !self.is_pre() {
            self.free(std::mem::take(&mut saved.middle));
        }
        saved.mlp = self.mlp_forward(block, keep);
        if !keep || !block.mlp_needs_input() {
            self.free(std::mem::take(&mut saved.mlp_in));
        }
        if !self.is_pre() {
            self.take(width);
            if save == Save::Nothing {
                self.free(width);
            }
        }
        if !keep {
            self.free(saved.middle);
        }
        keep.then_some(saved)
    }

    /// Takes what is saved.
    fn block_recompute(&mut self, block: &Block) -> Saved {
        let mut saved = self.half(block, true);
        saved.mlp = self.mlp_recompute(block);
        if !block.mlp_needs_input() {
            self.free(std::mem::take(&mut saved.mlp_in));
        }
        saved
    }

    /// Takes the sum after attention, the input of the MLP, and what is saved.
    fn half(&mut self, block: &Block, keep: bool) -> Saved {
        let width = self.width();
        let mut saved = Saved { middle: width, mlp_in: width, ..Saved::default() };
        if self.is_pre() {
            saved.attention_in = self.take(width);
        }
        saved.attention = self.attention_forward(block, keep);
        if !keep || !block.attention_needs_input() {
            self.free(std::mem::take(&mut saved.attention_in));
        }
        self.take(width);
        saved
    }

    /// Frees the gradient of the output and what was saved; takes that of the input if `below`.
    fn block_backward(&mut self, block: &Block, saved: Saved, below: bool) {
        let width = self.width();
        let post = !self.is_pre();
        let enters =
            below || block.attention_is_trained() || block.attention_norm || (!post && block.mlp_norm);
        if post {
            // The gradient of the last sum takes the place of that of the output.
            self.pass_through(width);
            self.free(width);
        }
        if enters {
            self.take(width);
        }
        self.mlp_backward(block, saved.mlp, enters);
        self.free(saved.mlp_in);
        if !enters {
            self.free(width + saved.attention + saved.attention_in + saved.middle);
            return;
        }
        if post {
            self.free(width);
        }
        // That of the middle sum, in place of that of the MLP's input.
        self.pass_through(width);
        self.free(saved.middle);
        if !post {
            self.free(width);
        }
        let input = below || (!post && block.attention_norm);
        if input {
            self.take(width);
        }
        self.attention_backward(block, saved.attention, input);
        self.free(saved.attention_in);
        if !post && input {
            self.pass_through(width);
        }
        // Either the gradient of the input stays, or nothing does.
        self.free(if below || !input { width } else { 2 * width });
    }

    /// Whether norms stand before their parts, with a last one before the head.
    fn is_pre(&self) -> bool {
        self.spec.family.norm_order == NormOrder::Pre
    }
}

/// What happens to the gradient of a linear's input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradient {
    Fresh,
    Added,
    Unwanted,
}
