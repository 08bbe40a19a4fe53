//! One node as a driver keeps it: its process, dead or alive, and what the driver counts about it.

use crate::SimConfig;
use crate::link::Link;
use crate::pool::Ticket;
use base::{Cost, Node, Packet, SERVER, Time};
use federation::{Durable, Fact, Federation, Input, JobId, Journal, Member, Record, Revived, Task};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A process: what a kill takes away, and what it cannot.
pub enum Process {
    /// Not started yet: costs nothing.
    Unborn,
    Alive(Durable),
    /// What its storage holds.
    Dead(Journal),
}

impl Process {
    /// Build the node's machine for the first time.
    pub fn start(&mut self, federation: &Federation, node: Node) {
        *self = Process::Alive(Durable::new((federation.build)(node)));
    }

    /// Everything but the storage is gone. Nothing happens to a process that does not live.
    pub fn kill(&mut self) {
        *self = match std::mem::replace(self, Process::Unborn) {
            Process::Alive(durable) => Process::Dead(durable.kill()),
            other => other,
        };
    }

    /// Build the node's machine anew and go on from its storage: the number of inputs replayed and the
    /// tasks to run again. Nothing happens to a process that is not dead.
    pub fn restart(&mut self, federation: &Federation, node: Node) -> Option<(u64, Vec<Task>)> {
        match std::mem::replace(self, Process::Unborn) {
            Process::Dead(journal) => {
                let build = || (federation.build)(node);
                let Revived { durable, tasks, replayed } = Durable::revive(journal, build);
                *self = Process::Alive(durable);
                Some((replayed, tasks))
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// A process that lived when the driver came to rest lives again, and does not know that it did not:
    /// the tasks that are under way.
    pub fn resume(&mut self, journal: Journal, federation: &Federation, node: Node) -> Vec<Task> {
        let Revived { durable, tasks, .. } = Durable::resume(journal, || (federation.build)(node));
        *self = Process::Alive(durable);
        tasks
    }

    pub fn alive(&mut self) -> Option<&mut Durable> {
        match self {
            Process::Alive(durable) => Some(durable),
            Process::Unborn | Process::Dead(_) => None,
        }
    }

    /// The machine's snapshot, wherever the process stands.
    pub fn snapshot(mut self, federation: &Federation, node: Node) -> Packet {
        self.restart(federation, node);
        match self {
            Process::Alive(durable) => durable.snapshot(),
            Process::Unborn | Process::Dead(_) => (federation.build)(node).snapshot(),
        }
    }

    /// What its storage holds, if it ever lived.
    pub fn journal(&self) -> Option<&Journal> {
        match self {
            Process::Unborn => None,
            Process::Alive(durable) => Some(durable.journal()),
            Process::Dead(journal) => Some(journal),
        }
    }
}

/// A job that a node has under way.
#[derive(Debug)]
pub struct Running {
    /// Its end on the agenda.
    pub ticket: Ticket,
    pub label: &'static str,
    pub cost: Cost,
    pub begin: Time,
}

/// A node in virtual time.
pub struct Host {
    pub process: Process,
    pub running: BTreeMap<JobId, Running>,
    pub tally: Tally,
}

/// What a driver counts about a node. Draws are made by these counters, so they survive an interrupt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Inputs taken, timers apart: how many of those there are is the machine's private matter.
    pub inputs: u64,
    /// Messages sent.
    pub sent: u64,
    /// When its one processor is free.
    pub idle: Time,
    pub link: Link,
    /// Requested timers that are on the agenda.
    pub timers: BTreeSet<Time>,
    /// It dropped out and is back then.
    pub away: Time,
    /// Bytes of its memory that it was told others take.
    pub taken: u64,
    /// Its absence up to here is in the trace.
    pub noted: Time,
}

impl Host {
    pub fn new() -> Host {
        Host { process: Process::Unborn, running: BTreeMap::new(), tally: Tally::default() }
    }
}

impl Tally {
    /// What a device is to be told about its memory, if that has changed since it was told.
    pub fn memory(&mut self, config: &SimConfig, member: &Member, now: Time) -> Option<Input> {
        let taken = member.memory_bytes - config.weather.memory(config.seed, member, now);
        let told = std::mem::replace(&mut self.taken, taken);
        (told != taken).then_some(Input::Taken(taken))
    }

    /// Until when `node` is out of reach, if it is at `now`.
    pub fn unreachable_until(&self, config: &SimConfig, node: Node, now: Time) -> Option<Time> {
        let dropped = (now < self.away).then_some(self.away);
        let windows = (node != SERVER).then(|| config.availability.get(node.0 as usize - 1)).flatten();
        dropped.max(windows.and_then(|windows| windows.unreachable_until(config.seed, node, now)))
    }

    /// Whether the node's link is down, and the record to write when this absence is first noticed.
    pub fn absence(&mut self, config: &SimConfig, node: Node, now: Time) -> (bool, Option<Record>) {
        let Some(until) = self.unreachable_until(config, node, now) else { return (false, None) };
        let fact = Fact::Offline { until: Some(until) };
        let first = std::mem::replace(&mut self.noted, until) < until;
        (true, first.then_some(Record { t: now, node, fact }))
    }
}
