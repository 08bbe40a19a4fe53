//! Jobs run on threads, ahead of virtual time but not far ahead.
//!
//! A job is known by its [`Ticket`]: the place of its end in virtual order. Threads take the job that
//! ends first; results wait until the driver's clock reaches them. At most [`AHEAD`] results a thread
//! are running or waiting, so memory does not grow with the cohort. What the driver waits for is
//! always the first ticket there is, and is taken regardless of that limit, so nothing can block.

use base::Time;
use federation::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// When a job ends, and the number of that event.
pub type Ticket = (Time, u64);
/// What a task is made of.
pub type Work = Box<dyn FnOnce() -> Outcome + Send>;

/// Running and finished jobs for each thread.
const AHEAD: usize = 4;
/// How often a waiting driver looks whether it was interrupted.
const GLANCE: Duration = Duration::from_millis(50);

pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    desk: Mutex<Desk>,
    changed: Condvar,
    limit: usize,
}

#[derive(Default)]
struct Desk {
    waiting: BTreeMap<Ticket, Work>,
    running: BTreeSet<Ticket>,
    done: BTreeMap<Ticket, std::thread::Result<Outcome>>,
    wanted: Option<Ticket>,
    closed: bool,
}

impl Pool {
    pub fn new(threads: usize) -> Pool {
        let shared =
            Arc::new(Shared { desk: Mutex::default(), changed: Condvar::new(), limit: threads * AHEAD });
        let spawn = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.work())
        };
        Pool { threads: (0..threads).map(spawn).collect(), shared }
    }

    /// Have a job done some time before virtual time reaches its ticket.
    pub fn submit(&self, ticket: Ticket, work: Work) {
        self.shared.desk().waiting.insert(ticket, work);
        self.shared.changed.notify_all();
    }

    /// The result of a submitted job, once it is there; `None` when the wait was interrupted.
    ///
    /// # Panics
    /// If the job did.
    pub fn take(&self, ticket: Ticket, interrupt: &AtomicBool) -> Option<Outcome> {
        let mut desk = self.shared.desk();
        desk.wanted = Some(ticket);
        self.shared.changed.notify_all();
        let result = loop {
            if let Some(result) = desk.done.remove(&ticket) {
                break result;
            }
            if interrupt.load(Ordering::Relaxed) {
                return None;
            }
            let waited = self.shared.changed.wait_timeout(desk, GLANCE);
            desk = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        desk.wanted = None;
        drop(desk);
        self.shared.changed.notify_all();
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Nobody will ask for this job any more: its node was killed.
    pub fn forget(&self, ticket: Ticket) {
        let mut desk = self.shared.desk();
        desk.waiting.remove(&ticket);
        desk.running.remove(&ticket);
        desk.done.remove(&ticket);
        drop(desk);
        self.shared.changed.notify_all();
    }
}

impl Drop for Pool {
    /// Waits for running jobs, drops the others.
    fn drop(&mut self) {
        self.shared.desk().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some((ticket, work)) = self.next() {
            let result = catch_unwind(AssertUnwindSafe(work));
            let mut desk = self.desk();
            if desk.running.remove(&ticket) {
                desk.done.insert(ticket, result);
            }
            drop(desk);
            self.changed.notify_all();
        }
    }

    /// The job that ends first, as soon as there is room for its result.
    fn next(&self) -> Option<(Ticket, Work)> {
        let mut desk = self.desk();
        loop {
            if desk.closed {
                return None;
            }
            let room = desk.running.len() + desk.done.len() < self.limit;
            let first = desk.waiting.keys().next().copied();
            if first.is_some()
                && (room || desk.wanted == first)
                && let Some(job) = desk.waiting.pop_first()
            {
                desk.running.insert(job.0);
                return Some(job);
            }
            desk = self.changed.wait(desk).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Packet;
    use std::sync::atomic::AtomicUsize;

    fn outcome(number: u64) -> Outcome {
        Outcome {
            result: Packet { body: number.to_le_bytes().to_vec().into(), blobs: vec![] },
            peak_bytes: number,
        }
    }

    #[test]
    fn results_come_by_ticket_and_never_far_ahead() {
        static ALIVE: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let never = AtomicBool::new(false);
        let pool = Pool::new(2);
        // Submitted latest first, so that the look-ahead is full of late jobs when early ones come.
        for number in (0..200).rev() {
            let work = move || {
                MOST.fetch_max(ALIVE.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                outcome(number)
            };
            pool.submit((Time(number), number), Box::new(work));
        }
        for number in 0..200 {
            assert_eq!(pool.take((Time(number), number), &never).unwrap().peak_bytes, number);
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        }
        assert!(MOST.load(Ordering::SeqCst) <= 2 * AHEAD + 2);
    }

    #[test]
    #[should_panic(expected = "the job's own words")]
    fn a_job_that_panics_does_so_where_its_result_is_taken() {
        let pool = Pool::new(1);
        pool.submit((Time(1), 1), Box::new(|| panic!("the job's own words")));
        pool.take((Time(1), 1), &AtomicBool::new(false));
    }

    #[test]
    fn a_wait_can_be_interrupted_and_a_job_forgotten() {
        let pool = Pool::new(1);
        pool.submit((Time(1), 1), Box::new(|| outcome(1)));
        pool.forget((Time(1), 1));
        assert!(pool.take((Time(1), 1), &AtomicBool::new(true)).is_none());
    }
}
