//! What a job will take, known before it runs.

use serde::{Deserialize, Serialize};
use std::ops::Add;

/// The price of a job. Drivers turn `flops` into time, and hold `bytes` against a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Floating-point operations (a multiply-add counts two).
    pub flops: u64,
    /// Peak bytes the job holds beyond what its node keeps between jobs.
    pub bytes: u64,
}

impl Cost {
    /// Nothing: for bookkeeping that takes no measurable time.
    pub const FREE: Cost = Cost { flops: 0, bytes: 0 };
}

/// One job after another: operations add up, memory is the larger of the two.
impl Add for Cost {
    type Output = Cost;
    fn add(self, next: Cost) -> Cost {
        Cost { flops: self.flops.saturating_add(next.flops), bytes: self.bytes.max(next.bytes) }
    }
}
