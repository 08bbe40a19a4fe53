//! One pass over a device's rows, in batches.

use std::num::NonZeroUsize;

use base::{Node, Seed};

/// The order in which a device visits its rows in one local epoch.
///
/// Every row is visited once. The last batch is smaller where the batch size does not divide the
/// number of rows, and a batch size above it gives one batch of all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    order: Vec<u32>,
    size: NonZeroUsize,
}

impl Epoch {
    /// The order of `rows` that belongs to this round, device and epoch.
    pub fn new(
        rows: &[u32],
        size: NonZeroUsize,
        seed: Seed,
        round: u64,
        device: Node,
        epoch: u64,
    ) -> Epoch {
        let place = seed.child("batches", round).child("device", u64::from(device.0)).child("epoch", epoch);
        let mut order = rows.to_vec();
        place.stream().shuffle(&mut order);
        Epoch { order, size }
    }

    /// Number of batches.
    pub fn steps(&self) -> usize {
        self.order.len().div_ceil(self.size.get())
    }

    /// The rows of each batch.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.order.chunks(self.size.get())
    }
}
