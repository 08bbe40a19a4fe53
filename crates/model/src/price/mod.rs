//! What a computation will cost, from shapes alone.
//!
//! Nothing is run and nothing is loaded: the walk over a model in [`walk`] takes and frees what
//! forward and backward will, in their order, so the peak is known beforehand. Tests hold it against
//! the meter of real runs.
//!
//! [`Cost::bytes`] is the peak of the job's workspace: activations, what the backward reads, and the
//! scratch of one thread (how many there are is the machine's choice, on which no price depends). The
//! gradient, `theta` and the optimiser's state belong to whoever calls, and are parts of the
//! [`Footprint`]. [`Cost::flops`] counts matrix products and attention, a multiply-add as two;
//! element-wise work is left out.

mod sites;
mod walk;

use crate::layout::{Layout, SiteKind};
use crate::optim::{Optimizer, OptimizerConfig};
use crate::pass::Below;
use crate::spec::{Role, Shape, Spec, Task};
use crate::tokens::Activations;
use base::Cost;
use serde::Serialize;
use std::ops::Range;
use walk::{Fan, Walk};

/// One `loss_and_gradient` on a batch of these sequences.
pub fn training(
    spec: &Spec,
    task: &Task,
    layout: &Layout,
    starts: &[u32],
    activations: Activations,
) -> Cost {
    let mut walk = Walk::new(spec, task, layout, starts);
    walk.loss_and_gradient(activations);
    walk.cost()
}

/// One `loss` or `logits` on a batch of these sequences.
pub fn inference(spec: &Spec, task: &Task, layout: &Layout, starts: &[u32]) -> Cost {
    let mut walk = Walk::new(spec, task, layout, starts);
    walk.loss();
    walk.cost()
}

/// One step of a model that is cut below block `at`, on a batch of these sequences: each half's part.
/// `theta` is that of the whole model.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    pub spec: &'a Spec,
    pub task: &'a Task,
    pub layout: &'a Layout,
    pub at: usize,
    pub starts: &'a [u32],
    pub activations: Activations,
}

impl Split<'_> {
    /// The lower half's forward pass, when no backward will follow.
    pub fn lower_inference(self) -> Cost {
        let mut walk = self.walk();
        walk.lower_inference(self.at);
        walk.cost()
    }

    /// The lower half's forward pass, leaving behind what its backward reads.
    pub fn lower_forward(self) -> Cost {
        let mut walk = self.walk();
        walk.lower_forward(self.at, self.activations);
        walk.cost()
    }

    /// The lower half's backward pass, with what its forward has left behind.
    pub fn lower_backward(self) -> Cost {
        let mut walk = self.walk();
        let trail = walk.lower_forward(self.at, self.activations);
        walk.begin_anew();
        walk.lower_backward(trail);
        walk.cost()
    }

    /// The upper half's forward and backward pass; `below` says whether the gradient of the activations
    /// that crossed is wanted.
    pub fn upper(self, below: Below) -> Cost {
        let mut walk = self.walk();
        walk.upper(self.at, self.activations, below == Below::Trained);
        walk.cost()
    }

    /// The upper half's blocks, forward only: what a server does for a device that holds the labels.
    pub fn upper_inference(self) -> Cost {
        let mut walk = self.walk();
        walk.upper_inference(self.at);
        walk.cost()
    }

    /// The upper half's forward pass and the loss, with the gradient of the head, for which nothing comes
    /// down.
    pub fn upper_loss(self) -> Cost {
        let mut walk = self.walk();
        walk.upper_loss(self.at);
        walk.cost()
    }

    /// The upper half's blocks, forward and backward from a gradient of the last hidden states.
    pub fn upper_blocks(self, below: Below) -> Cost {
        let mut walk = self.walk();
        walk.upper_blocks(self.at, self.activations, below == Below::Trained);
        walk.cost()
    }

    /// The head alone: loss and gradient from the last hidden states, whose gradient is wanted.
    pub fn head(self) -> Cost {
        let mut walk = self.walk();
        walk.head();
        walk.cost()
    }

    fn walk(&self) -> Walk<'_> {
        Walk::new(self.spec, self.task, self.layout, self.starts)
    }
}

/// A pass with tangents ([`tangent`](crate::tangent)) over a batch of these sequences.
#[derive(Clone, Debug)]
pub struct Tangents<'a> {
    pub spec: &'a Spec,
    pub task: &'a Task,
    pub layout: &'a Layout,
    pub starts: &'a [u32],
    /// K: the tangents of an activation.
    pub lanes: usize,
    /// The range of `theta` that the directions move: it begins and ends where a module does.
    pub moves: Range<usize>,
}

impl Tangents<'_> {
    /// The loss and its derivatives from the input of block `first`, which counts; with 0 from the tokens.
    pub fn loss_from(&self, first: usize) -> Cost {
        let (mut walk, fan) = (Walk::new(self.spec, self.task, self.layout, self.starts), self.fan());
        walk.tangents_of_loss(&fan, first);
        walk.cost()
    }

    /// Embeddings and the blocks below `cut`; their output counts.
    pub fn lower(&self, cut: usize) -> Cost {
        let (mut walk, fan) = (Walk::new(self.spec, self.task, self.layout, self.starts), self.fan());
        walk.tangents_below(&fan, cut);
        walk.cost()
    }

    fn fan(&self) -> Fan {
        Fan { lanes: self.lanes as u64, moved: self.layout.within(&self.moves) }
    }
}

/// The memory a device needs for a model it trains, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Frozen weights as packed. Every device of a simulation shares one copy; a phone has its own.
    pub weights: u64,
    /// `theta`.
    pub adapter: u64,
    /// As long as `theta`.
    pub gradient: u64,
    pub optimizer: u64,
    /// The peak of a training step's workspace.
    pub activations: u64,
}

impl Footprint {
    /// For training on batches of these sequences.
    pub fn of(
        spec: &Spec,
        task: &Task,
        layout: &Layout,
        optimizer: &OptimizerConfig,
        starts: &[u32],
        activations: Activations,
    ) -> Footprint {
        let adapter = 4 * layout.total() as u64;
        Footprint {
            weights: weights(spec, task, layout),
            adapter,
            gradient: adapter,
            optimizer: Optimizer::state_bytes(optimizer, layout.total()),
            activations: training(spec, task, layout, starts, activations).bytes,
        }
    }

    pub fn total(&self) -> u64 {
        self.weights + self.adapter + self.gradient + self.optimizer + self.activations
    }
}

/// The memory of the frozen weights of the part `layout` covers: equal to
/// [`Model::bytes`](crate::Model::bytes).
pub fn weights(spec: &Spec, task: &Task, layout: &Layout) -> u64 {
    let frozen =
        |name: &str, parameter: &str, floats: usize| match layout.site(&format!("{name}.{parameter}")) {
            Some(_) => 0,
            None => floats as u64,
        };
    let tied = spec.tied && *task == Task::CausalLm;
    let mut floats = 0;
    let modules = spec.modules(task, layout.layers.clone());
    for module in &modules {
        let name = &module.name;
        floats += match module.shape {
            Shape::Table { rows, width } if tied && module.role == Role::WordEmbedding => {
                frozen(name, "weight", packed(rows, width))
            }
            Shape::Table { rows, width } => frozen(name, "weight", rows * width),
            Shape::Norm { width, bias } => {
                frozen(name, "weight", width) + if bias { frozen(name, "bias", width) } else { 0 }
            }
            Shape::Linear { out, width_in, bias } => {
                let weight =
                    if module.role == Role::Classifier { out * width_in } else { packed(out, width_in) };
                frozen(name, "weight", weight) + if bias { frozen(name, "bias", out) } else { 0 }
            }
        };
    }
    for core in layout.sites.iter().filter(|site| site.kind == SiteKind::LoraCore) {
        let module = modules.iter().find(|module| core.name == format!("{}.lora_core.weight", module.name));
        if let Some(Shape::Linear { out, width_in, .. }) = module.map(|module| module.shape) {
            floats += (core.rows * (out + width_in)) as u64;
        }
    }
    if spec.rope_theta.is_some() && !layout.layers.is_empty() {
        floats += (spec.max_positions * spec.head_dim) as u64;
    }
    4 * floats
}

/// Floats of a packed `out` x `width_in` weight: panels are a multiple of 16 outputs wide.
fn packed(out: usize, width_in: usize) -> usize {
    out.next_multiple_of(16) * width_in
}
