//! When a device is reachable: a share of each period, starting at a phase of its own.

use base::{Node, Seed, Time};
use serde::{Deserialize, Serialize};

/// Charging, idle and on Wi-Fi for part of every period (a day, say), each device at its own hours.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Availability {
    /// The share of each period it is reachable, in `0..=1`, more than 0.
    pub share: f64,
    /// Seconds from one window's start to the next.
    pub period_s: f64,
}

impl Availability {
    pub const ALWAYS: Availability = Availability { share: 1.0, period_s: 86_400.0 };

    /// When the device is reachable again, if it is not at `now`.
    pub fn unreachable_until(&self, seed: Seed, node: Node, now: Time) -> Option<Time> {
        if self.share >= 1.0 {
            return None;
        }
        let period = Time::ZERO.after(self.period_s).0.max(1);
        let phase = seed.child("availability", u64::from(node.0)).stream().below(period);
        let into = (now.0 + phase) % period;
        let window = (period as f64 * self.share) as u64;
        (into >= window).then(|| Time(now.0 + (period - into)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_reachable_for_its_share_and_back_when_it_says() {
        let windows = Availability { share: 0.25, period_s: 100.0 };
        let (seed, node) = (Seed(3), Node(9));
        let at = |second: u32| windows.unreachable_until(seed, node, Time::ZERO.after(f64::from(second)));
        let online = (0..10_000).filter(|&second| at(second).is_none()).count();
        assert!((2_400..=2_600).contains(&online), "{online} of 10,000 seconds");
        for until in (0..300).filter_map(at) {
            assert_eq!(windows.unreachable_until(seed, node, until), None);
            assert!(windows.unreachable_until(seed, node, Time(until.0 - 1)).is_some());
        }
        assert_eq!(Availability::ALWAYS.unreachable_until(seed, node, Time(5)), None);
    }
}
