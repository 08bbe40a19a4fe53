//! The memory of one job, counted where it is taken and refused where it was not declared.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the bytes a job holds and refuses what goes over its declared price.
///
/// Cloning shares the count. Allocations on shared pool threads cannot be attributed afterwards, so
/// whoever takes memory for a job charges it here first.
#[derive(Clone, Debug)]
pub struct Meter(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

/// The job asked for more than its price declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the job holds {used} bytes and asked for {asked} more, over its declared {limit}: its price is too low"
)]
pub struct OverBudget {
    pub asked: u64,
    pub used: u64,
    pub limit: u64,
}

impl Meter {
    /// A meter that refuses anything over `limit` bytes.
    pub fn new(limit: u64) -> Meter {
        Meter(Arc::new(Counts { limit, used: AtomicU64::new(0), peak: AtomicU64::new(0) }))
    }

    /// A meter that only counts: for tools, tests and benchmarks outside any budget.
    pub fn unlimited() -> Meter {
        Meter::new(u64::MAX)
    }

    /// Take `bytes`; they are given back when the [`Charge`] is dropped.
    pub fn charge(&self, bytes: u64) -> Result<Charge, OverBudget> {
        let counts = &*self.0;
        let used = counts.used.fetch_add(bytes, Ordering::Relaxed);
        if used.saturating_add(bytes) > counts.limit {
            counts.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(OverBudget { asked: bytes, used, limit: counts.limit });
        }
        counts.peak.fetch_max(used + bytes, Ordering::Relaxed);
        Ok(Charge { meter: self.clone(), bytes })
    }

    /// The most bytes ever held at once.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// The bytes held now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most bytes that may be held at once.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }
}

/// Bytes taken from a [`Meter`], given back on drop.
#[derive(Debug)]
pub struct Charge {
    meter: Meter,
    bytes: u64,
}

impl Charge {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.meter.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_the_most_held_at_once_and_the_limit_holds() {
        let meter = Meter::new(100);
        let first = meter.charge(60).unwrap();
        assert_eq!(meter.charge(41).unwrap_err(), OverBudget { asked: 41, used: 60, limit: 100 });
        drop(first);
        let _second = meter.charge(40).unwrap();
        assert_eq!((meter.used(), meter.peak()), (40, 60));
    }
}
