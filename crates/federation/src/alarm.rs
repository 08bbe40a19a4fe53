//! The one timer a host has outstanding.

use crate::Effects;
use base::Time;
use serde::{Deserialize, Serialize};

/// Asks the driver for the earliest time something is due, and for no second one before it rings.
///
/// It is part of a snapshot, so that a node restored for a driver that still holds its timer does what it
/// would have done; after a kill the timer that follows the restore rings it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Alarm(Option<Time>);

impl Alarm {
    /// A timer came. It may be spurious (one is, after every restore): what is due is asked for again.
    pub fn ring(&mut self) {
        self.0 = None;
    }

    /// Something is due at `at`.
    pub fn set(&mut self, at: Option<Time>, fx: &mut Effects) {
        if let Some(at) = at.filter(|at| self.0.is_none_or(|armed| *at < armed)) {
            self.0 = Some(at);
            fx.timers.push(at);
        }
    }
}
