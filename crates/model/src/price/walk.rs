//! A walk over a model that takes and frees what a real pass would, in its order, and computes
//! nothing. Every function here mirrors the one of the same name where the work is done.

use super::THREADS;
use super::sites::{Block, Linear};
use crate::families::NormOrder;
use crate::layout::Layout;
use crate::spec::{Place, Spec, Task};
use crate::tokens::Activations;
use base::Cost;

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
}

/// Floats a block's forward leaves behind.
#[derive(Clone, Copy, Default)]
struct Saved {
    attention: u64,
    attention_in: u64,
    middle: u64,
    mlp: u64,
    mlp_in: u64,
    last: u64,
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
        }
    }

    pub fn cost(&self) -> Cost {
        Cost { flops: self.flops, bytes: 4 * (self.peak + self.kernel_scratch()) }
    }

    pub fn loss_and_gradient(&mut self, activations: Activations) {
        let layers = self.layout.layers.clone();
        let below = self.layout.trains_below(Place::Block(layers.start));
        let reached = |walk: &Walk<'_>, layer: usize| below || walk.layout.trains(layers.start..layer + 1);
        let width = self.width();
        if layers.start == 0 {
            self.embed();
        } else {
            self.take(width);
        }
        let mut trail = Vec::new();
        for layer in layers.clone() {
            let block = Block::of(self.spec, self.task, self.layout, layer);
            let reached = reached(self, layer);
            let keep = reached && activations == Activations::Keep;
            let saved = self.block_forward(&block, keep);
            if reached {
                trail.push((layer, block, keep.then_some(saved)));
            } else {
                self.free(width);
            }
        }
        if !self.head_loss_and_gradient(self.layout.trains_below(Place::Last)) {
            return;
        }
        let first = trail.first().map_or(0, |(layer, _, _)| *layer);
        for (layer, block, saved) in trail.into_iter().rev() {
            let saved = match saved {
                Some(saved) => saved,
                None => {
                    let saved = self.block_forward(&block, true);
                    self.free(width);
                    saved
                }
            };
            let below = below || self.layout.trains(first..layer);
            self.block_backward(&block, saved, below);
            // The block's input.
            self.free(width);
        }
        if below && layers.start == 0 {
            self.embed_backward();
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
            self.block_forward(&block, false);
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

    /// Floats the kernels of [`THREADS`] threads take beside the matrices: attention packs keys,
    /// values and queries of a head, and scores 64 queries at a time.
    fn kernel_scratch(&self) -> u64 {
        let (dim, length) = (self.spec.head_dim as u64, self.longest.next_multiple_of(16));
        let attention = 3 * dim.next_multiple_of(16) * length + 2 * 64 * length + 64 * dim;
        let product = 48 * 192;
        let tasks = (self.sequences * self.spec.kv_heads as u64).clamp(1, THREADS as u64);
        (attention * tasks).max(product * THREADS as u64)
    }

    fn embed(&mut self) {
        let width = self.width();
        let sum = self.take(width);
        if self.spec.family.norm_order == NormOrder::Post {
            self.take(width);
            self.free(sum);
        }
    }

    /// Frees the gradient it is given.
    fn embed_backward(&mut self) {
        let width = self.width();
        if self.spec.family.norm_order == NormOrder::Post {
            self.pass_through(2 * width);
        }
        self.free(width);
    }

    /// Takes the output, and what the sites save; returns the latter.
    fn linear_forward(&mut self, linear: &Linear) -> u64 {
        let rows = self.rows;
        self.take(rows * linear.out);
        self.product(rows, linear.out, linear.width_in);
        self.product(rows, linear.rank, linear.width_in + linear.out);
        let mut saved = self.take(rows * linear.rank);
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
        let output = rows * (block.output.rank + block.output.bottleneck)
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

    /// Takes the output and what is saved.
    fn block_forward(&mut self, block: &Block, save: bool) -> Saved {
        let width = self.width();
        let mut saved = Saved::default();
        let post = self.spec.family.norm_order == NormOrder::Post;
        if post {
            saved.attention = self.attention_forward(block, save);
            saved.middle = width;
            saved.mlp_in = self.take(width);
            if !save {
                self.free(width);
            }
            saved.mlp = self.mlp_forward(block, save);
            saved.last = width;
        } else {
            saved.attention_in = self.take(width);
            saved.attention = self.attention_forward(block, save);
            if !block.attention_needs_input() || !save {
                self.free(std::mem::take(&mut saved.attention_in));
            }
            saved.middle = width;
            saved.mlp_in = self.take(width);
            saved.mlp = self.mlp_forward(block, save);
        }
        if !block.mlp_needs_input() {
            self.free(std::mem::take(&mut saved.mlp_in));
        }
        if post {
            self.take(width);
        }
        if !save {
            self.free(saved.mlp_in + if post { saved.last } else { saved.middle });
            return Saved::default();
        }
        saved
    }

    /// Frees the gradient of the output and what was saved; takes that of the input if `below`.
    fn block_backward(&mut self, block: &Block, saved: Saved, below: bool) {
        let width = self.width();
        let post = self.spec.family.norm_order == NormOrder::Post;
        let enters =
            below || block.attention_is_trained() || block.attention_norm || (!post && block.mlp_norm);
        if post {
            // The gradient of the last sum takes the place of that of the output.
            self.pass_through(width);
            self.free(saved.last);
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

    /// Frees the hidden states it is given.
    fn head_loss(&mut self) {
        let (width, sequences) = (self.spec.width as u64, self.sequences);
        let normed = if self.has_final_norm() { self.take(self.rows * width) } else { 0 };
        match self.task {
            Task::Classification { classes, .. } => {
                let classes = *classes as u64;
                self.product(sequences, classes, width);
                self.pass_through(sequences * (width + 2 * classes + 2));
            }
            Task::CausalLm => {
                let (rows, vocab) = (self.chunk(), self.spec.vocab as u64);
                self.product(self.rows, vocab, width);
                self.pass_through(rows * (width + vocab + 2));
            }
        }
        self.free(normed + self.rows * width);
    }

    /// Frees the hidden states it is given, and takes their gradient if `below`; returns `below`.
    fn head_loss_and_gradient(&mut self, below: bool) -> bool {
        let (width, sequences, rows) = (self.spec.width as u64, self.sequences, self.rows);
        let has_norm = self.has_final_norm();
        let trained_norm =
            self.layout.sites.iter().any(|site| site.place == Place::Last && !site.is_head());
        let normed = if has_norm { self.take(rows * width) } else { 0 };
        let mut gradient = 0;
        match self.task {
            Task::Classification { classes, .. } => {
                let classes = *classes as u64;
                let inside = self.take(sequences * (width + 2 * classes));
                self.product(sequences, classes, 3 * width);
                if below || (has_norm && trained_norm) {
                    let pooled = self.take(sequences * width);
                    gradient = self.take(rows * width);
                    self.free(pooled);
                }
                self.free(inside);
            }
            Task::CausalLm => {
                let (chunk, vocab) = (self.chunk(), self.spec.vocab as u64);
                gradient = self.take(rows * width);
                self.product(2 * rows, vocab, width);
                self.pass_through(chunk * (2 * width + vocab));
            }
        }
        self.free(normed);
        if has_norm && gradient > 0 {
            self.pass_through(rows * width);
        }
        self.free(rows * width);
        if !below {
            self.free(gradient);
        }
        below
    }

    fn has_final_norm(&self) -> bool {
        self.spec.family.norm_order == NormOrder::Pre
    }

    /// Rows of a chunk of the vocabulary loss; no more than have a next token.
    fn chunk(&self) -> u64 {
        let most = ops::loss::chunk_rows(self.spec.vocab) as u64;
        most.min(self.rows.saturating_sub(self.sequences))
    }
}

/// What happens to the gradient of a linear's input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradient {
    Fresh,
    Added,
    Unwanted,
}
