//! What happened, as data. Reports, replays and tests read these; nothing else is logged.

use crate::{JobId, Status, Summary};
use base::{Node, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of `trace.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Nanoseconds since the run began: virtual in simulation, real otherwise.
    pub t: Time,
    pub node: Node,
    #[serde(flatten)]
    pub fact: Fact,
}

/// Everything that is ever recorded. Machines record the protocol, drivers what they carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Fact {
    /// Server: a device said hello.
    Joined { device: Node, class: String, examples: u64 },
    /// Server: a round was opened to these devices.
    RoundOpened { round: u32, cohort: Vec<Node>, deadline: Option<Time> },
    /// Server: this device's contribution is counted. These, `Lost` and `Decided` are the acceptance log.
    Counted { round: u32, device: Node },
    /// Server: this device gives nothing (more) to this round.
    Lost { round: u32, device: Node, reason: String },
    /// Server: what the method made of measurements in this round, in its own words. With the seed and who was
    /// counted it settles the round's weights; a replay is given it back.
    Decided { round: u32, decision: String },
    /// Server: the round is over.
    RoundClosed { round: u32, counted: u32, summary: Summary },
    /// Bytes that are no message of this protocol.
    Malformed { from: Node, reason: String },
    /// A job ended badly: named, refused, and not counted.
    Fault { round: u32, job: JobId, label: String, reason: String },
    /// Server: the run ended.
    Stopped { status: Status },

    /// Driver: a job ran from `begin` to this record's time. One that was stopped half way because its
    /// result was not wanted any more counts the operations until then, and its peak is not known: 0.
    Ran { job: JobId, label: String, begin: Time, flops: u64, priced_bytes: u64, peak_bytes: u64 },
    /// Driver: a job's price does not fit this node.
    Refused { job: JobId, label: String, need: u64, budget: u64 },
    /// Driver: a message left; `arrives` is unknown on a real network and `None` when it was lost.
    Sent { to: Node, bytes: u64, arrives: Option<Time> },
    /// Driver: the node's process was killed; it comes back at `until`.
    Killed { until: Option<Time> },
    /// Driver: the node went on from its snapshot and this many journalled inputs.
    Restored { replayed: u64 },
    /// Driver: the node left, or came back.
    Offline { until: Option<Time> },
}

/// A measurement of the global model on held-out data. (No field is ever skipped: this also travels in
/// jobs' results, in a format that does not name its fields.)
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Mean loss: per example for classification and regression, per token for language models.
    pub loss: f64,
    pub examples: u64,
    #[serde(default)]
    pub accuracy: Option<f64>,
    #[serde(default)]
    pub macro_f1: Option<f64>,
    /// `exp(loss)`, for causal language models.
    #[serde(default)]
    pub perplexity: Option<f64>,
    /// The correlation of said and true numbers, for regression; the loss is the mean squared error.
    #[serde(default)]
    pub pearson: Option<f64>,
    /// The same on the held-out rows of each device class, where rows have owners (a natural
    /// partition).
    #[serde(default)]
    pub by_class: BTreeMap<String, Eval>,
}
