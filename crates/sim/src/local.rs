//! Real time in one process: a thread a node, channels between them that carry bytes.
//!
//! The same machines as under virtual time, with real races. In synchronous pace the weights are the
//! simulator's; with deadlines they are reproduced by replaying the trace's acceptance log.
//! Records of different nodes may reach the trace a little out of order.
//! The weather's loss, kills, dropouts and availability apply; latency and rates are the channels' own.

use crate::SimConfig;
use crate::checkpoint::{Checkpoint, Driver, Saved};
use crate::host::{Process, Tally};
use crate::output::{Ended, Output, SimError, Tracer};
use crate::site::{Clock, Mail, News, Shared, Site};
use base::{Node, SERVER, Time};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, unbounded};
use federation::{Federation, Status};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How often the driver looks whether it was interrupted.
const GLANCE: Duration = Duration::from_millis(20);

/// Run a federation in real time until its server stops it or `interrupt` is set. With `from`, go on
/// where an interrupted run of this driver left off: nodes are restored from storage, and what was on
/// its way is sent again by the machines. At most `config.threads` jobs run at once. A checkpoint is
/// taken at an interrupt only.
///
/// # Panics
/// If a job or a machine does.
pub fn run(
    federation: &Federation,
    config: &SimConfig,
    sink: &mut dyn FnMut(Output),
    interrupt: &AtomicBool,
    from: Option<Checkpoint>,
) -> Result<Ended, SimError> {
    config.check()?;
    let nodes = federation.devices.len() as u32 + 1;
    let mut tracer = Tracer::new(sink);
    let mut rested: Vec<(Process, Tally)> =
        (0..nodes).map(|_| (Process::Unborn, Tally::default())).collect();
    let mut begun = Time::ZERO;
    if let Some(checkpoint) = from {
        checkpoint.fits(Driver::Local, config.seed, nodes)?;
        begun = checkpoint.time;
        (tracer.records, tracer.hash) = (checkpoint.records, checkpoint.hash);
        for Saved { node, journal, tally, .. } in checkpoint.hosts {
            rested[node.0 as usize] = (Process::Dead(journal), tally);
        }
    }
    let clock = Clock::starting_at(begun);
    let (status, rested) = live_all(federation, config, clock, &mut tracer, interrupt, rested)?;
    Ok(end(federation, config, clock.now(), &tracer, status, rested))
}

/// Give each node its thread and wait for the end of the run; then every node is at rest.
fn live_all(
    federation: &Federation,
    config: &SimConfig,
    clock: Clock,
    tracer: &mut Tracer,
    interrupt: &AtomicBool,
    rested: Vec<(Process, Tally)>,
) -> Result<(Status, Vec<(Process, Tally)>), SimError> {
    let (inboxes, doors): (Vec<_>, Vec<_>) = rested.iter().map(|_| unbounded()).unzip();
    let (tell, news) = unbounded();
    let permits = bounded(config.threads);
    (0..config.threads).for_each(|_| permits.0.send(()).unwrap_or_default());
    let shared = &Shared { federation, config, clock, inboxes, permits };
    thread::scope(|scope| {
        let mut threads = Vec::new();
        let mut failed = None;
        for (index, (rest, inbox)) in rested.into_iter().zip(doors).enumerate() {
            let node = Node(index as u32);
            let site = Site::new(node, shared, rest, inbox, tell.clone());
            let tell = tell.clone();
            let life = move || {
                let rest = catch_unwind(AssertUnwindSafe(|| site.live()));
                let _ = tell.send(News::Rested);
                rest
            };
            match thread::Builder::new().name(node.to_string()).spawn_scoped(scope, life) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    failed = Some(SimError::Threads { node, source });
                    break;
                }
            }
        }
        drop(tell);
        let status = if failed.is_some() { Status::Interrupted } else { watch(&news, tracer, interrupt) };
        for inbox in &shared.inboxes {
            let _ = inbox.send(Mail::Close);
        }
        let rested = threads
            .into_iter()
            .map(|thread| thread.join().and_then(|rest| rest).unwrap_or_else(|panic| resume_unwind(panic)));
        let rested: Vec<_> = rested.collect();
        news.try_iter().for_each(|news| note(news, tracer));
        failed.map_or(Ok((status, rested)), Err)
    })
}

/// Hand records on until the server stops, a node ends before its time, or someone interrupts.
fn watch(news: &Receiver<News>, tracer: &mut Tracer, interrupt: &AtomicBool) -> Status {
    loop {
        match news.recv_timeout(GLANCE) {
            Ok(News::Stopped(status)) => return status,
            Ok(News::Rested) | Err(RecvTimeoutError::Disconnected) => return Status::Interrupted,
            Ok(record) => note(record, tracer),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupt.load(Ordering::Relaxed) {
            return Status::Interrupted;
        }
    }
}

fn note(news: News, tracer: &mut Tracer) {
    if let News::Record(record) = news {
        tracer.record(&record);
    }
}

fn end(
    federation: &Federation,
    config: &SimConfig,
    time: Time,
    tracer: &Tracer,
    status: Status,
    mut rested: Vec<(Process, Tally)>,
) -> Ended {
    let save = |(index, (process, tally)): (usize, &(Process, Tally))| {
        let journal = process.journal()?.clone();
        Some(Saved { node: Node(index as u32), alive: false, journal, tally: tally.clone() })
    };
    let checkpoint = (status == Status::Interrupted).then(|| Checkpoint {
        driver: Driver::Local,
        seed: config.seed,
        nodes: rested.len() as u32,
        time,
        records: tracer.records,
        hash: tracer.hash.clone(),
        agenda: Default::default(),
        hosts: rested.iter().enumerate().filter_map(save).collect(),
    });
    let server = rested.swap_remove(SERVER.0 as usize).0.snapshot(federation, SERVER);
    let (trace_hash, records) = (tracer.hash.to_string(), tracer.records);
    Ended { status, time, server, trace_hash, records, checkpoint }
}
