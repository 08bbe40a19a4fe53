//! The walk over either half of a model that is cut between two blocks.

use super::super::sites::Block;
use super::{Step, Walk};
use crate::pass::Save;
use crate::spec::Place;
use crate::tokens::Activations;

impl Walk<'_> {
    /// Embeddings and the blocks below `cut`, and nothing left behind.
    pub fn lower_inference(&mut self, cut: usize) {
        self.embed();
        for layer in 0..cut {
            let block = Block::of(self.spec, self.task, self.layout, layer);
            self.block_forward(&block, Save::Nothing);
            self.free(self.width());
        }
        self.free(self.width());
    }

    /// The same, leaving behind what the backward reads.
    pub fn lower_forward(&mut self, cut: usize, activations: Activations) -> Vec<Step> {
        let below = self.layout.trains_below(Place::Block(0));
        self.embed();
        let trail = self.blocks_forward(0..cut, activations, below);
        self.free(self.width());
        trail
    }

    /// From the gradient of the activations at the cut downwards.
    pub fn lower_backward(&mut self, trail: Vec<Step>) {
        let below = self.layout.trains_below(Place::Block(0));
        self.take(self.width());
        self.blocks_backward(trail, below);
        if below {
            self.embed_backward();
        }
    }

    /// The blocks from `cut` on and the head, forward and backward; with `below` down to the
    /// activations at the cut.
    pub fn upper(&mut self, cut: usize, activations: Activations, below: bool) {
        let layers = cut..self.spec.layers;
        self.take(self.width());
        let trail = self.blocks_forward(layers.clone(), activations, below);
        if self.head_loss_and_gradient(below || self.layout.trains(layers)) {
            self.blocks_backward(trail, below);
        }
    }

    /// The blocks from `cut` on, and nothing left behind.
    pub fn upper_inference(&mut self, cut: usize) {
        self.take(self.width());
        for layer in cut..self.spec.layers {
            let block = Block::of(self.spec, self.task, self.layout, layer);
            self.block_forward(&block, Save::Nothing);
            self.free(self.width());
        }
    }

    /// The same, and the loss with the head's gradient alone.
    pub fn upper_loss(&mut self, cut: usize) {
        self.upper_inference(cut);
        self.head_loss_and_gradient(false);
    }

    /// The blocks from `cut` on, forward, and backward from a gradient of their output; with `below`
    /// down to the activations at the cut.
    pub fn upper_blocks(&mut self, cut: usize, activations: Activations, below: bool) {
        self.take(self.width());
        let trail = self.blocks_forward(cut..self.spec.layers, activations, below);
        // The output gives way to the gradient.
        self.blocks_backward(trail, below);
    }

    /// The head and its loss, forward and backward.
    pub fn head(&mut self) {
        self.take(self.width());
        self.head_loss_and_gradient(true);
    }

    /// Count operations and the peak from here on; what is held stays held.
    pub fn begin_anew(&mut self) {
        (self.flops, self.peak) = (0, self.live);
    }
}
