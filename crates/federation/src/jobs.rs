//! The jobs a half asked for and has no answer to: data, so that a node that dies in the middle of one
//! runs it again.

use crate::{Effects, Fault, JobId, Outcome, Side, Task};
use base::{CodecError, Meter, Packet, decode, encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Outstanding jobs of one node, by number.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Jobs<S: Side> {
    next: JobId,
    open: BTreeMap<JobId, S::Job>,
    /// Given up since the driver was last told so.
    #[serde(skip)]
    abandoned: Vec<JobId>,
}

impl<S: Side> Jobs<S> {
    pub fn new() -> Jobs<S> {
        Jobs { next: 0, open: BTreeMap::new(), abandoned: Vec::new() }
    }

    /// Ask for a job.
    pub fn start(&mut self, job: S::Job, bench: &Arc<S::Bench>, fx: &mut Effects) {
        let id = self.next;
        self.next += 1;
        fx.tasks.push(task::<S>(id, job.clone(), bench));
        self.open.insert(id, job);
    }

    /// After a restore: ask again for all that is outstanding.
    pub fn restart(&self, bench: &Arc<S::Bench>, fx: &mut Effects) {
        fx.tasks.extend(self.open.iter().map(|(id, job)| task::<S>(*id, job.clone(), bench)));
    }

    /// The kind of work of an outstanding job, which is outstanding no more; `None` for one that was
    /// given up or answered before.
    pub fn end(&mut self, id: JobId) -> Option<&'static str> {
        self.open.remove(&id).map(|job| S::label(&job))
    }

    /// Give up all jobs: the round they belong to is over.
    pub fn clear(&mut self) {
        self.abandoned.extend(std::mem::take(&mut self.open).into_keys());
    }

    /// Tell the driver what was given up.
    pub fn flush(&mut self, fx: &mut Effects) {
        fx.abandoned.append(&mut self.abandoned);
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

fn task<S: Side>(id: JobId, job: S::Job, bench: &Arc<S::Bench>) -> Task {
    let (cost, label, bench) = (S::price(&job, bench), S::label(&job), bench.clone());
    let work = move || {
        let meter = Meter::new(cost.bytes);
        let result = encode(&S::run(job, &bench, &meter));
        Outcome { result, peak_bytes: meter.peak() }
    };
    Task { id, label, cost, work: Box::new(work) }
}

/// What a job left behind.
pub(crate) fn result<S: Side>(packet: &Packet) -> Result<S::Done, Fault> {
    let read = decode::<Result<S::Done, Fault>>(packet);
    read.unwrap_or_else(|CodecError(reason)| Err(Fault(format!("its result cannot be read: {reason}"))))
}
