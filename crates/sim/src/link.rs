//! A link carries one message after another: the second waits until the first has left.

use base::Time;
use serde::{Deserialize, Serialize};

/// When the two directions of a node's link are free again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    pub up: Time,
    pub down: Time,
}

/// The sender's or receiver's end of one message: when that direction is free, and how fast it is.
#[derive(Debug)]
pub struct End<'a> {
    pub free: &'a mut Time,
    pub bytes_per_s: f64,
}

/// Put a message on the sender's uplink. Returns when its first byte and when its last byte left.
pub fn depart(now: Time, bytes: u64, up: End) -> (Time, Time) {
    let first = now.max(*up.free);
    let last = first.after(bytes as f64 / up.bytes_per_s);
    *up.free = last;
    (first, last)
}

/// Take a message off the receiver's downlink. It occupies that link for as long as its bytes take there, from
/// its first one on, and no longer where the sender is slow: the rest of the link carries others meanwhile.
/// Returns when its last byte is there.
pub fn arrive((first, last): (Time, Time), latency_s: f64, bytes: u64, down: End) -> Time {
    let begins = first.after(latency_s).max(*down.free);
    *down.free = begins.after(bytes as f64 / down.bytes_per_s);
    last.after(latency_s).max(*down.free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO.after(seconds)
    }

    #[test]
    fn uploads_queue_and_the_slower_end_decides() {
        let (mut sender, mut receiver) = (Link::default(), Link::default());
        let mut send = |up: f64, down: f64| {
            let left = depart(at(0.0), 100, End { free: &mut sender.up, bytes_per_s: up });
            arrive(left, 0.5, 100, End { free: &mut receiver.down, bytes_per_s: down })
        };
        assert_eq!(send(100.0, f64::INFINITY), at(1.5));
        assert_eq!(send(100.0, 1000.0), at(2.5), "the second upload waits for the first");
        assert_eq!(send(1000.0, 10.0), at(12.5), "a slow receiver holds what a fast sender sent");
    }

    #[test]
    fn a_slow_sender_holds_nobody_else_up() {
        let mut receiver = Link::default();
        let mut from = |up: f64| {
            let left = depart(at(0.0), 100, End { free: &mut Time::default(), bytes_per_s: up });
            arrive(left, 0.5, 100, End { free: &mut receiver.down, bytes_per_s: 1000.0 })
        };
        assert_eq!(from(10.0), at(10.5));
        assert_eq!(
            from(1000.0),
            at(0.7),
            "after the receiver's share of the first, not after its sender's"
        );
        assert_eq!(from(1000.0), at(0.8));
    }
}
