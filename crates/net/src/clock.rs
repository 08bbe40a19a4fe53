//! The run's time on this machine.

use base::Time;
use std::time::{Duration, Instant};

/// Real time since the run began, without the time that no process lived.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Instant,
    begun: Time,
}

impl Clock {
    /// A run that has gone on until `begun` goes on now.
    pub fn starting_at(begun: Time) -> Clock {
        Clock { epoch: Instant::now(), begun }
    }

    pub fn now(&self) -> Time {
        Time(self.begun.0.saturating_add(self.epoch.elapsed().as_nanos() as u64))
    }

    /// From now until then.
    pub fn until(&self, at: Time) -> Duration {
        Duration::from_nanos(at.0.saturating_sub(self.now().0))
    }
}
