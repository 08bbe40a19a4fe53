//! What the frozen blocks below everything trained make of a row: the same in every round.
//!
//! A device that keeps it trades memory for time. Here it only spares the simulator the work: price, meter
//! and clock are those of a device that computes it anew for each batch.

use crate::Lab;
use crate::lab::gather;
use crate::train::hold;
use base::{Cost, Meter};
use federation::Fault;
use model::{Targets, Tokens, backbone, price};
use ops::{Mat, Workspace};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Floats that are kept at most, over all rows: 3 GiB.
const MOST: usize = 3 << 28;

/// What the frozen blocks made of each row.
pub struct Prefix {
    /// The first block that is trained.
    first: usize,
    rows: Vec<OnceLock<Box<[f32]>>>,
    kept: AtomicUsize,
}

/// A batch at the first trained block.
pub struct Batch {
    /// Rows of all tokens, or one row a sequence where the head is all that is trained.
    pub x: Mat,
    pub tokens: Tokens,
    pub targets: Targets,
}

impl Prefix {
    pub fn new(first: usize, rows: usize) -> Prefix {
        Prefix { first, rows: (0..rows).map(|_| OnceLock::new()).collect(), kept: AtomicUsize::new(0) }
    }

    /// The rows of a batch at the first trained block. `theta` does not matter below it.
    pub fn batch(&self, lab: &Lab, theta: &[f32], rows: &[u32], ws: &Workspace) -> Result<Batch, Fault> {
        let work = &lab.work;
        let (tokens, targets) = gather(&work.train, rows.iter().map(|&row| row as usize));
        drop(hold(ws.meter(), self.price(lab, &tokens.starts).bytes)?);
        let fault = |error: model::Error| Fault(error.to_string());
        let width = work.model.spec.width;
        let mut values = Vec::new();
        for &row in rows {
            match self.rows[row as usize].get() {
                Some(kept) => values.extend_from_slice(kept),
                None => values.extend(self.compute(lab, theta, row).map_err(fault)?),
            }
        }
        let fault = |error: ops::Error| Fault(error.to_string());
        let x = ws.from_slice(values.len() / width, width, &values).map_err(fault)?;
        let tokens = if x.rows() == tokens.rows() { tokens } else { Tokens::of(&vec![[0u32]; rows.len()]) };
        Ok(Batch { x, tokens, targets })
    }

    /// One row, kept if there is room. A sequence does not see its batch, so alone it is the same.
    fn compute(&self, lab: &Lab, theta: &[f32], row: u32) -> Result<Vec<f32>, model::Error> {
        let work = &lab.work;
        let ws = Workspace::new(&Meter::unlimited(), 1);
        let (tokens, _) = gather(&work.train, std::iter::once(row as usize));
        let x = backbone::embed(&ws, &work.model, theta, &tokens)?;
        let x = backbone::forward(&ws, &work.model, theta, 0..self.first, x, &tokens.starts, |_, _| {})?;
        let head_only = self.first == work.model.spec.layers;
        let condensed = match head_only {
            true => model::condense(&ws, &work.model, theta, &x, &tokens.starts)?,
            false => None,
        };
        let values = condensed.as_ref().unwrap_or(&x).to_vec();
        // Embeddings alone are as quickly looked up again.
        if self.first > 0 && self.kept.fetch_add(values.len(), Ordering::Relaxed) < MOST {
            let _ = self.rows[row as usize].set(values.clone().into());
        }
        Ok(values)
    }

    /// What computing a batch takes.
    pub fn price(&self, lab: &Lab, starts: &[u32]) -> Cost {
        let model::Model { spec, task, layout, .. } = &*lab.work.model;
        let activations = lab.work.recipe.activations;
        price::Split { spec, task, layout, at: self.first, starts, activations }.lower_inference()
    }
}
