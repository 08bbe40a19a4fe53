//! Time since the run began, and who is who.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Nanoseconds since the run began. Only drivers know where it comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    pub const ZERO: Time = Time(0);

    /// This time plus `seconds`, saturating; a negative or non-finite span counts as nothing.
    #[must_use]
    pub fn after(self, seconds: f64) -> Time {
        let nanos = if seconds.is_nan() { 0.0 } else { (seconds * 1e9).max(0.0) };
        Time(self.0.saturating_add(nanos as u64))
    }

    /// Seconds since the run began.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

/// A member of the federation. [`SERVER`] is 0, devices count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Node(pub u32);

/// The edge server.
pub const SERVER: Node = Node(0);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == SERVER { f.write_str("server") } else { write!(f, "device {}", self.0) }
    }
}
