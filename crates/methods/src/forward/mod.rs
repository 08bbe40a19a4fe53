//! Federated training by forward passes: `fwdllm`, and `fedsgd` for comparison.
//!
//! ```text
//! device i                                   server
//!             <--- Begin{theta, until} ------  opens the round; candidates are picked by their cosine
//!  [perturb]  ---- Told{wave 1} ----------->   to the last gradient, where that is asked for
//!  [perturb]  ---- Told{wave 2} ----------->  [aggregate] a complete tier: directions again from their
//!             <--- Until(3) ---------------    seeds; not enough, so one more wave, or ...
//!  [perturb]  ---- Told{wave 3} ----------->  [aggregate] enough: steps
//!                                             [evaluate] when due; closes
//! ```
//!
//! A wave is one batch of a device: the derivatives of its loss along K directions, a number each. The
//! directions are drawn from seeds that both ends know by round, device and wave, so nothing but the
//! numbers travels.
//!
//! Source: FwdLLM (arXiv 2308.13894).

mod aggregate;
mod device;
mod directions;
mod estimate;
mod head;
mod options;
mod prefix;
mod server;

pub use options::{Estimator, Options};

use crate::evaluate::Due;
use crate::{Lab, Method, Quote, Setup, SetupError};
use base::{Blob, Node};
use device::{Device, Perturb};
use federation::Side;
use options::{Scope, Uplink};
use prefix::Prefix;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use server::Server;
use std::marker::PhantomData;
use std::sync::Arc;

/// What tells one of these methods from another: its row in the list, and the keys it takes.
pub trait Row: Send + Sync + 'static {
    const NAME: &'static str;
    const SOURCE: &'static str;
    const DEVICE: &'static str;
    const SERVER: &'static str;
    type Options: Serialize + DeserializeOwned + Default;
    /// What these keys mean in terms of all there are.
    fn resolve(options: Self::Options) -> Options;
}

/// What a device is asked to do in a round.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Task {
    round: u32,
    theta: Blob,
    /// For each wave the candidates to take; the first ones where nothing was picked.
    picks: Vec<Vec<u32>>,
    /// Whether anything is perturbed in this round.
    moving: bool,
    /// Whether the class moments are wanted along with the first wave.
    moments: bool,
}

/// Server to device.
#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Begin a round, and go on by yourself until this wave.
    Begin { task: Task, until: u32 },
    /// Go on until this wave; 0 is a halt.
    Until(u32),
}

/// Device to server: one wave.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Told {
    wave: u32,
    examples: u32,
    loss: f32,
    /// For each direction the derivative of the loss of what it moves.
    slopes: Vec<f32>,
    /// The mean forward gradient instead, or a whole gradient.
    dense: Blob,
    /// The head's exact gradient.
    head: Blob,
    /// Class moments, once.
    moments: Blob,
}

/// What the jobs of both halves may touch.
pub struct Bench {
    lab: Arc<Lab>,
    options: Options,
    scope: Scope,
    prefix: Prefix,
}

/// A method of this row.
pub struct Forward<R> {
    bench: Arc<Bench>,
    rounds: u32,
    row: PhantomData<R>,
}

impl<R: Row> Method for Forward<R> {
    const NAME: &'static str = R::NAME;
    const SOURCE: &'static str = R::SOURCE;
    const DEVICE: &'static str = R::DEVICE;
    const SERVER: &'static str = R::SERVER;
    type Options = R::Options;
    type Device = Device;
    type Server = Server;

    fn new(options: R::Options, setup: &Setup) -> Result<Self, SetupError> {
        let (lab, options) = (setup.lab()?, R::resolve(options));
        options::check(&lab, &options, &setup.plan.cohort)?;
        let scope = Scope::of(&lab, &options);
        let prefix = Prefix::new(scope.first, lab.work.train.len());
        let bench = Arc::new(Bench { lab, options, scope, prefix });
        Ok(Forward { bench, rounds: setup.plan.rounds, row: PhantomData })
    }

    fn device(&self, node: Node) -> (Device, Arc<Bench>) {
        (Device::new(node), self.bench.clone())
    }

    fn server(&self) -> (Server, Arc<Bench>) {
        let Bench { lab, options, scope, .. } = &*self.bench;
        let recipe = &lab.work.recipe;
        let due = Due { every: recipe.eval_every, last: self.rounds };
        let batch = recipe.per_device_train_batch_size.get() as u32;
        let perturbs = !scope.moves.is_empty();
        let server = Server::new(lab.work.initial.clone(), options.clone(), batch, perturbs, due);
        (server, self.bench.clone())
    }

    fn quote(&self, node: Node) -> Quote {
        let Bench { lab, options, scope, .. } = &*self.bench;
        let theta = 4 * lab.parameters() as u64;
        let moments = options.head == options::HeadRule::ClosedForm;
        let task = Task { round: 1, moving: true, moments, ..Task::default() };
        let waves = u64::from(options.most_waves);
        let wave = |wave| Device::price(&Perturb { node, task: task.clone(), wave }, &self.bench);
        let cost = (1..=options.most_waves).map(wave).fold(base::Cost::FREE, |sum, cost| sum + cost);
        let batch = lab.work.recipe.per_device_train_batch_size.get();
        let perturbed = match options.uplink {
            _ if options.estimator == Estimator::Backward => theta,
            Uplink::Scalars => 4 * options.directions(batch) as u64,
            Uplink::Dense => 4 * scope.moves.len() as u64,
        };
        let head = if options.head == options::HeadRule::Exact { 4 * scope.head.len() as u64 } else { 0 };
        let once = if moments { 4 * head::Moments::len(lab) as u64 } else { 0 };
        Quote {
            cost,
            resident_bytes: lab.work.model.bytes() + theta,
            up_bytes: waves * (perturbed + head) + once,
            down_bytes: theta,
            lower: None,
        }
    }

    fn notes(&self) -> Vec<String> {
        let disclosed = match self.bench.options.head {
            options::HeadRule::Perturbed => return Vec::new(),
            options::HeadRule::Exact => {
                "devices send exact gradients of the head, which reveal the labels of a batch"
            }
            options::HeadRule::ClosedForm => {
                "devices send class moments once, which disclose how many rows of each class they have and the \
                 mean features of each"
            }
        };
        vec![disclosed.to_owned()]
    }

    fn trained(server: Server) -> Blob {
        server.trained()
    }
}
