//! What training jobs may touch: the frozen model, the rows, the recipe.

use crate::TrainConfig;
use crate::train::hold;
use base::{Blob, Meter, Node, Seed};
use data::{Encoded, Target};
use federation::Fault;
use model::{Model, Targets, Tokens};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A model, its data and how to train it. Cloning shares everything.
#[derive(Clone)]
pub struct Workload {
    /// One frozen backbone for all virtual devices.
    pub model: Arc<Model>,
    /// The trainable parameters at the start.
    pub initial: Blob,
    pub train: Arc<[Encoded]>,
    /// Rows of `train` that each device holds, in node order from node 1.
    pub shards: Arc<[Vec<u32>]>,
    pub test: Arc<[Encoded]>,
    /// The device class whose data each test row belongs to, where a natural partition says so; empty
    /// otherwise.
    pub owners: Arc<[Option<String>]>,
    pub recipe: TrainConfig,
    /// Threads within a server job; device jobs run beside each other on one each.
    pub threads: usize,
    /// The backbones of devices that have another than `model`; empty where all share it.
    pub others: Arc<[OtherBackbone]>,
}

/// A frozen model that some devices have in place of the workload's own. Their training rows are in its
/// tokens.
pub struct OtherBackbone {
    pub model: Arc<Model>,
    pub initial: Blob,
    /// The test rows in its tokens.
    pub test: Arc<[Encoded]>,
    /// The devices that have it.
    pub nodes: BTreeSet<Node>,
}

/// The bench of training methods.
pub struct Lab {
    pub work: Workload,
    /// The root of every draw below.
    pub seed: Seed,
    /// Rounds of the whole run, for schedules.
    pub rounds: u32,
}

impl Lab {
    /// The rows a device holds; none for a node that is no device of this fleet, of which a damaged snapshot may speak.
    pub fn shard(&self, node: Node) -> &[u32] {
        let shard = (node.0 as usize).checked_sub(1).and_then(|index| self.work.shards.get(index));
        shard.map_or(&[], |rows| rows)
    }

    /// How many parameters are trained.
    pub fn parameters(&self) -> usize {
        self.work.model.layout.total()
    }

    /// Parameters received from elsewhere: the right number of finite values, or a fault that says so.
    pub fn parameters_from(&self, blob: &Blob) -> Result<Vec<f32>, Fault> {
        parameters_of(&self.work.model, blob)
    }

    /// What is wrong with the parameters a device gave, if anything. Takes the memory of reading them.
    pub fn objection(&self, theta: &Blob, meter: &Meter) -> Option<String> {
        hold(meter, 4 * self.parameters() as u64)
            .and_then(|_held| self.parameters_from(theta))
            .err()
            .map(|fault| fault.0)
    }
}

/// The trainable parameters of a model: the right number of finite values, or a fault that says so.
pub fn parameters_of(model: &Model, blob: &Blob) -> Result<Vec<f32>, Fault> {
    let theta = blob.to_f32(model.layout.total()).map_err(|error| Fault(error.to_string()))?;
    if ops::slice::all_finite(&theta) {
        Ok(theta)
    } else {
        Err(Fault("parameters that are not finite".into()))
    }
}

/// Rows of `examples` as one ragged batch, and what they should come to.
pub fn gather(examples: &[Encoded], rows: impl Iterator<Item = usize> + Clone) -> (Tokens, Targets) {
    let sequences: Vec<&[u32]> = rows.clone().map(|row| examples[row].ids.as_slice()).collect();
    let classes: Option<Vec<u32>> = rows.clone().map(|row| class(&examples[row])).collect();
    let second_from = rows.clone().map(|row| examples[row].second_from as u32).collect();
    let targets = classes.map_or_else(
        || Targets::Completion(rows.map(|row| first_learned(&examples[row])).collect()),
        Targets::Classes,
    );
    (Tokens { second_from, ..Tokens::of(&sequences) }, targets)
}

/// Where the sequences of [`gather`] begin: all that a price depends on.
pub fn starts(examples: &[Encoded], rows: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut starts = vec![0];
    for row in rows {
        starts.push(starts[starts.len() - 1] + examples[row].ids.len() as u32);
    }
    starts
}

fn class(example: &Encoded) -> Option<u32> {
    if let Target::Class(class) = example.target { Some(class) } else { None }
}

fn first_learned(example: &Encoded) -> u32 {
    if let Target::Completion { from } = example.target { from as u32 } else { 0 }
}

/// What is wrong with the number of examples a device claims, which is its weight in the average.
pub fn objection_to_examples(examples: u64) -> Option<String> {
    (examples == 0 || examples > u64::from(u32::MAX)).then(|| format!("it claims {examples} examples"))
}
