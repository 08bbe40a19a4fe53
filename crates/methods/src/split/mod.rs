//! One model in two parts: a device runs the blocks below its cut, the server those above.
//!
//! `split-lora`, `sl` and `sfl` share the vocabulary, both halves and all of the arithmetic here; a
//! [`Regime`] says in which order and with which weights the server works, and what becomes of the
//! adapters when a device is through.
//!
//! ```text
//! device i                                         server
//!             <--- Begin{cut, theta[0..cut]} ------
//!  [forward]  ---- Activations{batch, labels} ---->  keeps them until it is this device's turn
//!             <--- Gradient -----------------------  [serve] blocks cut..n, loss, backward, step
//!  [backward] step                                   ... for every batch of the pass ...
//!             ---- Tuned{theta[0..cut]} ---------->  [inspect] joins both halves
//! ```
//!
//! Source: memory-efficient split federated learning (arXiv 2506.02940), whose equations are not all
//! public: gradients are those of the whole model, so where a model is cut cannot matter.

pub mod device;
pub mod seats;
pub mod server;
mod step;
mod traffic;

pub use traffic::Traffic;

use crate::schedule::Policy;
use crate::{Lab, Method, Quote, Setup, SetupError};
use base::{Blob, Node};
use device::{Device, DeviceBench};
use model::{PeftKind, Task};
use seats::Seats;
use serde::{Deserialize, Serialize};
use server::{Server, ServerBench};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

/// The keys of `[method]` that all three methods have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Blocks on every device; chosen for each device where neither this nor `cuts` says anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<usize>,
    /// Blocks on the devices of a class.
    pub cuts: BTreeMap<String, usize>,
    /// No chosen cut is lower: privacy or a busy server may ask for it.
    pub min_device_layers: usize,
    /// How activations and their gradients travel.
    pub traffic: Traffic,
    /// In which order `split-lora`'s server takes the devices that have arrived.
    pub order: Policy,
    /// What a device holds while it waits for the gradient.
    pub between: Between,
    /// How the device's own blocks learn.
    pub backward: Backward,
}

/// Between a device's forward and backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Between {
    /// What the backward reads is kept.
    #[default]
    Keep,
    /// Nothing is kept: the forward runs again.
    Recompute,
}

/// How the blocks of a device learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backward {
    #[default]
    Backward,
    /// Not at all: the device runs forward only and the server's blocks learn (SplitFrozen).
    Frozen,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cut: None,
            cuts: BTreeMap::new(),
            min_device_layers: 1,
            traffic: Traffic::default(),
            order: Policy::Default,
            between: Between::default(),
            backward: Backward::default(),
        }
    }
}

/// What tells one split method from another: its row in the list, and its regime. The three differ in
/// nothing else, so they share one [`Method`].
pub trait Row: Send + Sync + 'static {
    const NAME: &'static str;
    const SOURCE: &'static str;
    const DEVICE: &'static str;
    const SERVER: &'static str;
    const REGIME: Regime;
}

/// In which order and with which weights the server works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Regime {
    /// All devices at once, one model for all of them, one device after another in a scheduled order;
    /// adapters are averaged.
    OneModel,
    /// One device at a time; the adapters are handed on.
    OneDevice,
    /// All devices at once, a copy of the upper blocks for each, and the server's speed is shared;
    /// adapters are averaged.
    ModelPerDevice,
}

/// Server to device.
#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Begin a pass with these lower adapters.
    Begin { round: u32, cut: u32, theta: Blob },
    /// The gradient of a step's activations; empty for a device whose blocks are frozen.
    Gradient { step: u32, gradient: Blob },
}

/// Device to server.
#[derive(Clone, Serialize, Deserialize)]
pub enum Report {
    Activations(Activations),
    /// The pass is over.
    Tuned {
        theta: Blob,
        examples: u64,
    },
}

/// A batch at the cut.
#[derive(Clone, Serialize, Deserialize)]
pub struct Activations {
    step: u32,
    /// Steps in this pass.
    steps: u32,
    /// Where the sequences begin, and the end.
    starts: Vec<u32>,
    answers: Answers,
    hidden: Blob,
    /// What the number format cost: see [`traffic::Packed`].
    error: f64,
}

/// The labels, which travel with the activations.
#[derive(Clone, Serialize, Deserialize)]
enum Answers {
    Classes(Vec<u32>),
    /// Of a language model: the tokens themselves, and from where in each sequence they are learned.
    Tokens {
        ids: Vec<u32>,
        from: Vec<u32>,
    },
}

/// A split method of this row.
pub struct Split<R> {
    lab: Arc<Lab>,
    options: Arc<Options>,
    bench: Arc<ServerBench>,
    seats: Seats,
    rounds: u32,
    row: PhantomData<R>,
}

impl<R: Row> Method for Split<R> {
    const NAME: &'static str = R::NAME;
    const SOURCE: &'static str = R::SOURCE;
    const DEVICE: &'static str = R::DEVICE;
    const SERVER: &'static str = R::SERVER;
    type Options = Options;
    type Device = Device;
    type Server = Server;

    fn new(options: Options, setup: &Setup) -> Result<Self, SetupError> {
        let lab = setup.lab()?;
        check(&lab, &options)?;
        let seats = Seats::assign(&lab, &options, setup)?;
        let options = Arc::new(options);
        let bench = ServerBench::new(lab.clone(), options.clone(), R::REGIME, &seats);
        let bench = Arc::new(bench.map_err(|error| SetupError(error.to_string()))?);
        Ok(Split { lab, options, bench, seats, rounds: setup.plan.rounds, row: PhantomData })
    }

    fn device(&self, node: Node) -> (Device, Arc<DeviceBench>) {
        (Device::new(node), Arc::new(DeviceBench::new(self.lab.clone(), self.options.clone())))
    }

    fn server(&self) -> (Server, Arc<ServerBench>) {
        let server = Server::new(&self.lab, &self.options, R::REGIME, self.seats.clone(), self.rounds);
        (server, self.bench.clone())
    }

    fn quote(&self, node: Node) -> Quote {
        device::quote(&self.lab, &self.options, node, self.seats.cut(node))
    }

    fn trained(server: Server) -> Blob {
        server.trained()
    }
}

/// Refuse what cannot be cut.
fn check(lab: &Lab, options: &Options) -> Result<(), SetupError> {
    let work = &lab.work;
    let (spec, recipe) = (&work.model.spec, &work.recipe);
    let fails = |what: String| Err(SetupError(what));
    if lab.parameters() == 0 {
        return fails("nothing is trainable: [peft] kind = \"none\" leaves no adapter".into());
    }
    if spec.tied && work.model.task == Task::CausalLm && work.model.peft.kind == PeftKind::Full {
        return fails(
            "this model's embeddings are its output head too, and a cut would train two copies of them; \
             use [peft] kind = \"lora\""
                .into(),
        );
    }
    if recipe.gradient_accumulation_steps.get() > 1 {
        return fails("gradient_accumulation_steps must be 1: every batch crosses the cut once".into());
    }
    let most = spec.layers - 1;
    let asked = options.cut.iter().chain(options.cuts.values()).chain([&options.min_device_layers]);
    for &cut in asked {
        if cut == 0 || cut > most {
            return fails(format!(
                "a cut of {cut}: the model has {} blocks, so 1 to {most} are possible",
                spec.layers
            ));
        }
    }
    Ok(())
}
