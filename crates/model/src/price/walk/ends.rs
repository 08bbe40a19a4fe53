//! The two ends of a model: embeddings, and the head with its loss.

use super::Walk;
use crate::spec::{Place, Task};

impl Walk<'_> {
    pub(super) fn embed(&mut self) {
        let width = self.width();
        let sum = self.take(width);
        if !self.is_pre() {
            self.take(width);
            self.free(sum);
        }
    }

    /// Frees the gradient it is given.
    pub(super) fn embed_backward(&mut self) {
        let width = self.width();
        if !self.is_pre() {
            self.pass_through(2 * width);
        }
        self.free(width);
    }

    /// Frees the hidden states it is given.
    pub(super) fn head_loss(&mut self) {
        let (width, sequences) = (self.spec.width as u64, self.sequences);
        let normed = if self.is_pre() { self.take(self.rows * width) } else { 0 };
        match self.task {
            Task::Classification { .. } | Task::Regression { .. } => {
                let classes = self.task.classes() as u64;
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
    pub(super) fn head_loss_and_gradient(&mut self, below: bool) -> bool {
        let (width, sequences, rows) = (self.spec.width as u64, self.sequences, self.rows);
        let has_norm = self.is_pre();
        let trained_norm =
            self.layout.sites.iter().any(|site| site.place == Place::Last && !site.is_head());
        let normed = if has_norm { self.take(rows * width) } else { 0 };
        let mut gradient = 0;
        match self.task {
            Task::Classification { .. } | Task::Regression { .. } => {
                let classes = self.task.classes() as u64;
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

    /// Rows of a chunk of the vocabulary loss; no more than have a next token.
    fn chunk(&self) -> u64 {
        let most = ops::loss::chunk_rows(self.spec.vocab) as u64;
        most.min(self.rows.saturating_sub(self.sequences))
    }
}
