//! What the author of a method writes, twice per file: the device's half and the server's half.

use crate::{Eval, Memory};
use base::{Cost, Meter, Node, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One half of a method: a pure state machine ([`handle`](Side::handle)) and its kernels
/// ([`run`](Side::run)).
///
/// The half itself is its state: it is written to snapshots and read back, so large or derived
/// things (the frozen model, this node's rows, kept activations) live in the [`Bench`](Side::Bench).
pub trait Side: Serialize + DeserializeOwned + Send + 'static {
    /// What the other half says.
    type In: Serialize + DeserializeOwned;
    /// What this half says.
    type Out: Serialize + DeserializeOwned;
    /// Work to be done. Jobs are data: a node that dies in the middle of one runs it again.
    type Job: Serialize + DeserializeOwned + Clone + Send;
    /// What a job leaves behind.
    type Done: Serialize + DeserializeOwned;
    /// What jobs may touch: the frozen model, this node's data, a stash that a kill may empty.
    type Bench: Send + Sync + 'static;

    /// Take one event and say what to do. Pure and instant: no clock, no shared generator, no
    /// computing; sums in node order.
    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>);

    /// This half was restored, and its bench is empty. A half whose prices depend on what jobs left in the
    /// bench says here what they go by.
    fn restored(&mut self, _memory: Memory, _bench: &Self::Bench) {}

    /// What a job will take, by arithmetic alone.
    fn price(job: &Self::Job, bench: &Self::Bench) -> Cost;

    /// The kind of work, for traces and charts: `"train"`, `"aggregate"`, ...
    fn label(job: &Self::Job) -> &'static str;

    /// Do it: straight-line code, a function of the job and what the bench is filled with. Memory is
    /// taken from `meter`, which refuses what the price did not declare.
    fn run(job: Self::Job, bench: &Self::Bench, meter: &Meter) -> Result<Self::Done, Fault>;
}

/// Everything that can happen to a half. The list is closed on purpose.
pub enum Event<S: Side> {
    /// Server half: a round begins with these devices, in node order.
    Open { round: u32, cohort: Vec<Member> },
    /// The other half said something; in order, exactly once, and of the current round. The server half
    /// hears only devices that it neither finished nor lost. A device half learns that a round has ended
    /// by the first message of a later one, and may have been left in the middle: it begins anew.
    Message { from: Node, body: S::In },
    /// A job of the current round ran.
    Done(S::Done),
    /// Server half: this device will give nothing more in this round (gone, too late, refused, or
    /// not needed any more). Told once, and never of a device that is finished. A round that has lost
    /// everybody is closed by the half, or by its host where the half leaves it open.
    Lost(Node),
}

/// A job could not end well: a loss that is not finite, memory over its price, a message whose tensor
/// has the wrong size. The node reports it by name and the round goes on without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// A device as the server knows it: what a cohort, a cut or a schedule is chosen from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub node: Node,
    /// The device class, such as `"jetson-nano"`.
    pub class: String,
    pub flops_per_s: f64,
    pub memory_bytes: u64,
    pub up_bytes_per_s: f64,
    pub down_bytes_per_s: f64,
    /// Training examples it holds.
    pub examples: u64,
}

/// What a round brought.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean training loss over the examples counted.
    pub loss: f64,
    pub examples: u64,
    pub eval: Option<Eval>,
    /// The first round only: the global model as it was before anything was trained.
    #[serde(default)]
    pub before: Option<Eval>,
    /// Figures of the method's own (perturbations, variance, cache size, ...).
    pub figures: BTreeMap<String, f64>,
    /// What the method says of the round in words, such as why it asked for no more. Reports count how
    /// often each was said, so no figure of one round stands in them.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What a half may ask for, and nothing else.
pub struct Cx<S: Side> {
    now: Time,
    pub(crate) sends: Vec<(Node, S::Out)>,
    pub(crate) jobs: Vec<S::Job>,
    pub(crate) finished: Vec<Node>,
    pub(crate) refused: Vec<(Node, String)>,
    pub(crate) closed: Option<Summary>,
    pub(crate) decision: Option<String>,
    decided: Option<String>,
}

impl<S: Side> Cx<S> {
    pub(crate) fn new(now: Time) -> Self {
        let (sends, jobs, finished, refused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Cx { now, sends, jobs, finished, refused, closed: None, decision: None, decided: None }
    }

    pub(crate) fn repeating(self, decided: Option<String>) -> Self {
        Cx { decided, ..self }
    }

    /// When the event came, as the driver says. What a half does by it depends on how fast devices and
    /// links are, and is the same in two runs only where those are.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Say something to the other half on `to`. It arrives once and in order, or `to` is lost. What is
    /// said to a device outside the cohort, or lost, is dropped.
    pub fn send(&mut self, to: Node, body: S::Out) {
        self.sends.push((to, body));
    }

    /// Have this done; the answer is [`Event::Done`].
    pub fn run(&mut self, job: S::Job) {
        self.jobs.push(job);
    }

    /// Server half: this device has given all it was asked for and is counted; its deadline no
    /// longer matters.
    pub fn finished(&mut self, node: Node) {
        self.finished.push(node);
    }

    /// Server half: what this device gave is not counted, and why (a tensor of the wrong size, a value
    /// that is not finite), even where it was finished before. It is recorded as lost by that name; no
    /// [`Event::Lost`] follows. Device half: what the server said is no good; the device gives nothing to
    /// this round, and the server is told why.
    pub fn refuse(&mut self, node: Node, reason: impl Into<String>) {
        self.refused.push((node, reason.into()));
    }

    /// Server half: this is what was made of measurements in this round, such as of [`Cx::now`]. It is
    /// recorded, so that a replay can repeat it.
    pub fn decide(&mut self, decision: String) {
        self.decision = Some(decision);
    }

    /// Server half: the decision of the recorded run in this round, where this run repeats one.
    pub fn decided(&self) -> Option<&str> {
        self.decided.as_deref()
    }

    /// Server half: the round is over.
    pub fn close(&mut self, summary: Summary) {
        self.closed = Some(summary);
    }
}
