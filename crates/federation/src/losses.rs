//! What rounds have lost so far, and when that ends the run.

use base::{Node, units};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A run fails after this many rounds in a row that lost every device.
pub const EMPTY_ROUNDS: u32 = 3;

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Losses {
    /// Rounds in a row that lost every device.
    empty_rounds: u32,
    /// The last device lost, and why.
    last: String,
    /// Devices that refused a job for want of memory and were never counted since: need and budget.
    short: BTreeMap<Node, (u64, u64)>,
}

impl Losses {
    pub fn note(&mut self, device: Node, reason: &str) {
        self.last = format!("{device}: {reason}");
    }

    /// The device's memory cannot hold a job.
    pub fn note_short(&mut self, device: Node, need: u64, budget: u64) {
        self.short.insert(device, (need, budget));
    }

    /// The device was counted, so its memory was enough.
    pub fn clear_short(&mut self, device: Node) {
        self.short.remove(&device);
    }

    /// A round closed, and did not lose everybody.
    pub fn survived(&mut self) {
        self.empty_rounds = 0;
    }

    /// A round lost everybody: why this ends the run, if it does.
    pub fn lost_everybody(&mut self, present: &BTreeSet<Node>) -> Option<String> {
        self.empty_rounds += 1;
        let all_short = present.iter().all(|node| self.short.contains_key(node));
        let largest = self.short.values().max_by_key(|(_, budget)| *budget);
        if let (true, Some((need, budget))) = (all_short, largest) {
            let (need, budget) = (units::bytes(*need), units::bytes(*budget));
            return Some(format!(
                "no device can hold this job: it needs {need}, and the largest budget is {budget}"
            ));
        }
        let (rounds, last) = (self.empty_rounds, &self.last);
        (rounds >= EMPTY_ROUNDS)
            .then(|| format!("{rounds} rounds in a row lost every device; the last: {last}"))
    }
}
