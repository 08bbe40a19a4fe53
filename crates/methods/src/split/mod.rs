//! One model in two parts: a device runs the blocks below its cut, the server those above.
//!
//! `split-lora`, `sl` and `sfl` share the vocabulary, both halves and all of the arithmetic here; a
//! [`Regime`] says in which order and with which weights the server works, and what becomes of the
//! adapters when a device is through.
//!
//! ```text
//! device i                                         server
//!                                                  [seat] cuts anew, where each round chooses
//!             <--- Begin{terms, theta[0..cut]} ----  [deal] its part of the parameters
//!  [forward]  ---- Activations{batch, labels} ---->  keeps them until it is this device's turn
//!             <--- Gradient -----------------------  [serve] blocks cut..n, loss, backward, step
//!  [backward] step                                   ... for every batch of the pass, or until
//!             <--- Enough -------------------------  all together have done enough steps ...
//!             ---- Tuned{theta[0..cut]} ---------->  [inspect] joins both halves
//!
//! with labels = "device", in the middle of a step:
//!             <--- Hidden -------------------------  [lift] blocks cut..n, forward only
//!  [judge]    ---- Judged{gradient, loss} -------->  [serve] forward again, then backward
//! ```
//!
//! Source: memory-efficient split federated learning (arXiv 2506.02940), whose equations are not all
//! public: gradients are those of the whole model, so where a model is cut cannot matter.

mod aggregate;
mod device;
mod links;
mod parts;
mod seats;
mod serve;
mod server;
mod step;
mod tangents;
mod traffic;
mod work;

pub use traffic::Traffic;

use crate::schedule::Policy;
use crate::{Lab, Method, Quote, ServerQuote, Setup, SetupError};
use base::{Blob, Node};
use device::{Device, DeviceBench};
use model::{Lower, PeftKind, Task};
use seats::{Planner, Seats};
use serde::{Deserialize, Serialize};
use server::Server;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use tangents::ForwardGradient;
use work::ServerBench;

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
    /// LoRA rank on the devices of a class, where lower than that of `[peft]`.
    pub ranks: BTreeMap<String, u32>,
    /// When cut, order and the rest are chosen.
    pub choose: Choose,
    /// With `choose = "each-round"`: no rank is chosen below this; 0 leaves ranks alone.
    pub min_rank: u32,
    /// How activations and their gradients travel; with `choose = "each-round"`, over a link that is
    /// slow enough to ask for it.
    pub traffic: Traffic,
    /// Who holds the labels, and with them the head and the loss.
    pub labels: Labels,
    /// In which order `split-lora`'s server takes the devices that have arrived.
    pub order: Policy,
    /// What a device holds while it waits for the gradient.
    pub between: Between,
    /// How the device's own blocks learn.
    pub backward: Learning,
    pub forward_gradient: ForwardGradient,
}

/// When terms are agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// Before the run, from the rates that devices have by their profiles.
    #[default]
    Once,
    /// As each round opens, from what devices took in the last one. With `[train] max_steps` each device
    /// steps until all together have done so many on average. What was agreed on depends on times then, and
    /// the weights on that; it is recorded, and a replay repeats it.
    EachRound,
}

/// Who computes the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// Labels travel with the activations, as in the paper.
    #[default]
    Server,
    /// The last hidden state comes down; head and labels stay on the device.
    Device,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Half {
    #[default]
    Backward,
    /// By derivatives along seeded directions: forward passes only (HO-SFL).
    ForwardGradient,
    /// Not at all: the device runs forward only and the server's blocks learn (SplitFrozen).
    Frozen,
}

impl Half {
    /// What learns most first.
    const ALL: [Half; 3] = [Half::Backward, Half::ForwardGradient, Half::Frozen];
}

/// The same as a scenario asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", untagged)]
pub enum Learning {
    All(Half),
    /// Each device does the most that its memory holds.
    Mixed(Mixed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mixed {
    ByMemory,
}

/// What server and device agree on for a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Blocks on the device.
    cut: u32,
    /// LoRA rank, where lower than that of `[peft]`.
    rank: Option<u32>,
    traffic: Traffic,
    half: Half,
    steps: Steps,
}

/// How many steps a pass has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Steps {
    /// As `[train]` says.
    #[default]
    Recipe,
    /// As many as there are, until the server says that it is enough.
    Open,
    /// So many: what a recorded pass came to.
    Exactly(u32),
}

impl Steps {
    /// The same, once a pass is over.
    fn came_to(self, steps: u32) -> Steps {
        match self {
            Steps::Recipe => Steps::Recipe,
            Steps::Open | Steps::Exactly(_) => Steps::Exactly(steps),
        }
    }

    fn exact(self) -> Option<u32> {
        if let Steps::Exactly(steps) = self { Some(steps) } else { None }
    }
}

impl Terms {
    fn cut(&self) -> usize {
        self.cut as usize
    }

    /// The learning rate of a step of a pass of so many. Where devices do unequally many, the schedule goes by
    /// what they do on average.
    fn rate(&self, lab: &Lab, round: u32, step: u32, steps: u32) -> f32 {
        let recipe = &lab.work.recipe;
        match self.steps {
            Steps::Recipe => recipe.rate(lab.rounds, round, step, steps),
            Steps::Open | Steps::Exactly(_) => {
                let mean = recipe.max_steps.max(1);
                recipe.rate(lab.rounds, round, step.min(mean - 1), mean)
            }
        }
    }
}

/// Only what is not as usual, beside the cut.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cut {}", self.cut)?;
        match self.half {
            Half::Backward => {}
            Half::ForwardGradient => write!(f, ", forward gradient")?,
            Half::Frozen => write!(f, ", frozen")?,
        }
        match self.traffic {
            Traffic::F32 => {}
            Traffic::F16 => write!(f, ", f16")?,
            Traffic::Int8 => write!(f, ", int8")?,
        }
        if let Some(rank) = self.rank {
            write!(f, ", rank {rank}")?;
        }
        match self.steps {
            Steps::Recipe => {}
            Steps::Open => write!(f, ", steps until it is enough")?,
            Steps::Exactly(steps) => write!(f, ", {steps} steps")?,
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cut: None,
            cuts: BTreeMap::new(),
            min_device_layers: 1,
            ranks: BTreeMap::new(),
            choose: Choose::default(),
            min_rank: 0,
            traffic: Traffic::default(),
            labels: Labels::default(),
            order: Policy::Default,
            between: Between::default(),
            backward: Learning::All(Half::Backward),
            forward_gradient: ForwardGradient::default(),
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
    /// Begin a pass with these parameters of its own.
    Begin { round: u32, terms: Terms, theta: Blob },
    /// The output of the last block, for a device that holds the labels.
    Hidden { step: u32, hidden: Blob },
    /// The gradient of a step's activations; empty for a device whose blocks are frozen.
    Gradient { step: u32, gradient: Blob },
    /// The pass ends after so many steps, of which no further one has begun.
    Enough { steps: u32 },
}

/// Device to server.
#[derive(Clone, Serialize, Deserialize)]
pub enum Report {
    Activations(Activations),
    /// What the labels say about a step's last hidden state.
    Judged(Judged),
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
    /// Seconds that the device computed since it was told to go on.
    seconds: f64,
}

/// The gradient of the loss by the last hidden state.
#[derive(Clone, Serialize, Deserialize)]
pub struct Judged {
    step: u32,
    gradient: Blob,
    /// Sum over `count` predictions.
    loss: f64,
    count: u64,
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
    /// They do not: the device holds them.
    Kept,
}

/// A split method of this row.
pub struct Split<R> {
    lab: Arc<Lab>,
    options: Arc<Options>,
    bench: Arc<ServerBench>,
    seats: Seats,
    /// The most lower blocks that each device may be asked for.
    reach: BTreeMap<Node, usize>,
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
        seats::check(&options, setup.devices.len())?;
        let planner = Planner::new(&lab, &options, &setup.server);
        let seats = Seats::assign(&planner, &setup.devices);
        let reach =
            setup.devices.iter().map(|member| (member.node, planner.reach(&seats, member))).collect();
        let options = Arc::new(options);
        let bench = ServerBench::new(lab.clone(), options.clone(), R::REGIME, &seats, &setup.server);
        let bench = Arc::new(bench.map_err(|error| SetupError(error.to_string()))?);
        Ok(Split { lab, options, bench, seats, reach, rounds: setup.plan.rounds, row: PhantomData })
    }

    fn device(&self, node: Node) -> (Device, Arc<DeviceBench>) {
        (Device::new(node), Arc::new(DeviceBench::new(self.lab.clone(), self.options.clone())))
    }

    fn server(&self) -> (Server, Arc<ServerBench>) {
        let server = Server::new(&self.lab, &self.options, R::REGIME, self.seats.clone(), self.rounds);
        (server, self.bench.clone())
    }

    fn quote(&self, node: Node) -> Quote {
        let at_least = || seats::at_least(&self.options, &self.lab);
        let terms = self.seats.terms(node).unwrap_or_else(at_least);
        let blocks = self.reach.get(&node).copied().unwrap_or(terms.cut());
        let lower = Lower { blocks, head: self.options.labels == Labels::Device };
        Quote { lower: Some(lower), ..device::quote(&self.lab, &self.options, node, terms) }
    }

    fn terms(&self, node: Node) -> Option<String> {
        self.seats.terms(node).map(|terms| terms.to_string())
    }

    fn notes(&self) -> Vec<String> {
        let estimates = |terms: &Terms| terms.half == Half::ForwardGradient;
        let terms = self.seats.terms_of_all().map(|(_, terms)| terms).filter(estimates);
        let most = terms.max_by_key(Terms::cut);
        most.map(|terms| tangents::note(&self.lab, &self.options, &terms)).into_iter().collect()
    }

    fn server_quote(&self) -> Option<ServerQuote> {
        Some(self.bench.quote(&self.seats))
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
    if !options.ranks.is_empty() && work.model.peft.kind != PeftKind::Lora {
        return fails("ranks are those of LoRA: [peft] kind = \"lora\" is needed".into());
    }
    let rate = options.forward_gradient.rate;
    if !(rate.is_finite() && rate >= 0.0) {
        return fails(format!("forward_gradient.rate is {rate}; a number of at least 0 is needed"));
    }
    if let Some((class, _)) = options.ranks.iter().find(|(_, rank)| **rank == 0) {
        return fails(format!(
            "ranks.{class} is 0; use backward = \"frozen\" where nothing is to be learned"
        ));
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
