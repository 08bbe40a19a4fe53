//! What a driver sees: a node as a value.

use crate::{Member, Record};
use base::{Cost, Node, Packet, Time};
use serde::{Deserialize, Serialize};

/// A node of the federation. It reads no clock, opens nothing, spawns nothing and computes nothing.
pub trait Machine: Send {
    /// Take one input at `now` and say what is to be done about it.
    fn handle(&mut self, now: Time, input: Input, fx: &mut Effects);

    /// Everything needed to go on after the operating system kills the process, given the inputs
    /// that follow.
    fn snapshot(&self) -> Packet;
}

/// Names a task within its node's life; survives a restore.
pub type JobId = u64;

/// Everything that can happen to a node. All of it is bytes, so a journal is a list of inputs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Input {
    /// The first input of a fresh node.
    Start,
    /// Bytes from another node; they may be malformed, stale or repeated.
    Message { from: Node, packet: Packet },
    /// A requested time has come, or none has: spurious timers are allowed.
    Timer,
    /// A task ran; `result` is what its work returned.
    Done { job: JobId, result: Packet },
    /// The node's memory cannot hold the task's price; it was not run.
    Refused { job: JobId, need: u64, budget: u64 },
    /// The driver gave up on a node: its connection or process is gone for good.
    Lost(Node),
    /// The first input of a node that lived before: its last snapshot.
    Restored { snapshot: Packet, memory: Memory },
    /// Other programs on the node take so many bytes of its memory now. Said as often as it changes; nothing
    /// until it is said.
    Taken(u64),
}

/// What became of a process's memory when its node was restored: of what jobs left behind there, since all
/// else is in the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    /// The process was killed, and its memory went with it.
    Lost,
    /// Nothing happened to the node: its driver came to rest and goes on, and what was there counts as being
    /// there still.
    Kept,
}

/// What a node wants done. Drivers carry it out after the input is journalled.
#[derive(Default)]
pub struct Effects {
    pub sends: Vec<(Node, Packet)>,
    pub tasks: Vec<Task>,
    /// Tasks whose results are not wanted any more: the driver may skip or stop them.
    pub abandoned: Vec<JobId>,
    pub timers: Vec<Time>,
    pub records: Vec<Record>,
    /// A round has ended here: a good moment for a snapshot.
    pub checkpoint: bool,
    /// This node's part is over, and nothing but the question of a late peer will move it again. The run
    /// is over when the server's part is.
    pub stop: Option<Status>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Completed,
    Failed(String),
    Interrupted,
}

/// Compute is an effect: priced before it runs, run wherever the driver likes.
pub struct Task {
    pub id: JobId,
    /// The kind of work, for traces and Gantt charts.
    pub label: &'static str,
    pub cost: Cost,
    pub work: Box<dyn FnOnce() -> Outcome + Send>,
}

/// What a task's work returns: the bytes of its result, and the most memory its meter saw.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub result: Packet,
    pub peak_bytes: u64,
}

/// A whole federation, ready for a driver: who takes part, and how each node is built, at the start
/// and again after a kill.
pub struct Federation {
    /// The server's speed, memory and links.
    pub server: Member,
    /// The devices in node order; `members[i].node` is `Node(i + 1)`.
    pub devices: Vec<Member>,
    pub build: Box<dyn Fn(Node) -> Box<dyn Machine> + Send + Sync>,
}

impl Federation {
    /// The member with that node number.
    ///
    /// # Panics
    /// If there is none.
    pub fn member(&self, node: Node) -> &Member {
        if node == base::SERVER { &self.server } else { &self.devices[node.0 as usize - 1] }
    }
}
