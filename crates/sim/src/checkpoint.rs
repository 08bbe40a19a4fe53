//! Everything needed to go on after the simulator itself was interrupted or killed.

use crate::agenda::Agenda;
use crate::host::Tally;
use crate::{SimError, TraceHash};
use base::{Node, Packet, Seed, Time, decode, encode};
use federation::Journal;
use serde::{Deserialize, Serialize};

/// A run at rest: what every node's storage holds, what was still to happen, and how far the trace
/// had come. Write its [`packet`](Checkpoint::to_packet) to a new file and rename it into place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    pub(crate) driver: Driver,
    pub(crate) seed: Seed,
    /// Nodes of the federation, the server included.
    pub(crate) nodes: u32,
    /// When it was taken, by the driver's clock.
    pub time: Time,
    /// Records handed out before it was taken. What a trace holds beyond that happened after it and
    /// will happen again: cut it off before resuming.
    pub records: u64,
    pub(crate) hash: TraceHash,
    pub(crate) agenda: Agenda,
    /// The nodes that have ever lived.
    pub(crate) hosts: Vec<Saved>,
}

/// Which driver a checkpoint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Driver {
    Virtual,
    Local,
}

/// One node at rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub node: Node,
    pub alive: bool,
    pub journal: Journal,
    pub tally: Tally,
}

impl Checkpoint {
    pub fn to_packet(&self) -> Packet {
        encode(self)
    }

    /// The inverse of [`Checkpoint::to_packet`].
    pub fn from_packet(packet: &Packet) -> Result<Checkpoint, SimError> {
        Ok(decode(packet)?)
    }

    /// Refuse a checkpoint of another run.
    pub(crate) fn fits(&self, driver: Driver, seed: Seed, nodes: u32) -> Result<(), SimError> {
        let say = |driver: Driver, seed: Seed, nodes: u32| {
            format!("a {driver:?} run of {nodes} nodes with seed {}", seed.0)
        };
        let theirs = say(self.driver, self.seed, self.nodes);
        let ours = say(driver, seed, nodes);
        if theirs != ours || self.hosts.iter().any(|host| host.node.0 >= nodes) {
            return Err(SimError::Foreign { theirs, ours });
        }
        Ok(())
    }
}
