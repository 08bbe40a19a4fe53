//! What went wrong, counted by kind and reason.

use base::{Node, Time};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The ways in which work is lost or repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TroubleKind {
    /// A device gave nothing (more) to a round.
    Lost,
    /// A job's price did not fit its node.
    Refused,
    /// A job ended badly.
    Fault,
    /// Bytes that are no message.
    Malformed,
    /// A node's process was killed.
    Killed,
    /// A node left.
    Offline,
}

impl TroubleKind {
    /// The word for tables.
    pub fn name(self) -> &'static str {
        match self {
            TroubleKind::Lost => "lost to a round",
            TroubleKind::Refused => "job refused",
            TroubleKind::Fault => "job failed",
            TroubleKind::Malformed => "malformed message",
            TroubleKind::Killed => "process killed",
            TroubleKind::Offline => "went offline",
        }
    }
}

/// One row of "what was lost and why".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    pub kind: TroubleKind,
    pub reason: String,
    pub count: u64,
    /// When it happened first, in seconds, and to whom.
    pub first_s: f64,
    pub first_node: Node,
}

/// Reasons come from peers, so their number is bounded; what is over it is counted together.
const DISTINCT: usize = 64;
const OTHER: &str = "other reasons";

/// Counts by kind and reason, in that order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Troubles(BTreeMap<(TroubleKind, String), Tally>);

#[derive(Clone, Debug, PartialEq)]
struct Tally {
    count: u64,
    time: Time,
    node: Node,
}

impl Troubles {
    pub(crate) fn add(&mut self, kind: TroubleKind, reason: &str, time: Time, node: Node) {
        let key = (kind, reason.to_owned());
        let full = self.0.len() >= DISTINCT && !self.0.contains_key(&key);
        let key = if full { (kind, OTHER.to_owned()) } else { key };
        self.0.entry(key).or_insert(Tally { count: 0, time, node }).count += 1;
    }

    /// By kind, the most frequent reason first.
    pub(crate) fn rows(&self) -> Vec<Trouble> {
        let row = |((kind, reason), tally): (&(TroubleKind, String), &Tally)| Trouble {
            kind: *kind,
            reason: reason.clone(),
            count: tally.count,
            first_s: tally.time.seconds(),
            first_node: tally.node,
        };
        let mut rows: Vec<Trouble> = self.0.iter().map(row).collect();
        rows.sort_by_key(|row| (row.kind, Reverse(row.count)));
        rows
    }
}
