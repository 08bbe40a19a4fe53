//! Trying again for ever, with growing pauses that differ between devices.

use crate::device::channel::ChannelError;
use base::{Node, Seed};
use std::time::Duration;

/// How long a device waits before it tries again.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// After the first failure; doubled after each.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
    /// A request fails when no byte has moved for this long.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(60),
            stall: Duration::from_secs(30),
        }
    }
}

/// Failures in a row.
pub struct Persistence {
    patience: Patience,
    node: Node,
    failures: u32,
    draws: u64,
}

impl Persistence {
    pub fn new(patience: Patience, node: Node) -> Persistence {
        Persistence { patience, node, failures: 0, draws: 0 }
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It failed again: how long to wait, so that a thousand devices do not come back in step.
    pub fn failed(&mut self, error: &ChannelError) -> Duration {
        let Patience { first, longest, .. } = self.patience;
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        (self.failures, self.draws) = (self.failures.saturating_add(1), self.draws + 1);
        let share = Seed(u64::from(self.node.0)).child("pause", self.draws).stream().unit();
        pause.mul_f64(0.5 + share).max(error.retry_after().unwrap_or_default())
    }
}
