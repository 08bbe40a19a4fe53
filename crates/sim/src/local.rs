//! Real time in one process: a thread a node, channels between them that carry bytes.
//!
//! The same machines as under virtual time, with real races. In synchronous pace the weights are the
//! simulator's; with deadlines they are reproduced by replaying the trace's acceptance log.
//! The weather's loss, kills, dropouts and availability apply; latency and rates are the channels' own.

use crate::checkpoint::{Checkpoint, Driver, Saved};
use crate::faults::{Kill, Moment};
use crate::host::{Process, Tally};
use crate::output::{Ended, Output, SimError, Tracer};
use crate::{SimConfig, TraceHash};
use base::{Node, Packet, SERVER, Time};
use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use federation::{Effects, Fact, Federation, Input, Record, Status, Task};
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the driver looks whether it was interrupted.
const GLANCE: Duration = Duration::from_millis(20);

/// What lies in a node's inbox.
enum Letter {
    Bytes {
        from: Node,
        bytes: Bytes,
    },
    /// The node has dropped out until then.
    Away(Time),
    /// Come to rest after what is being done.
    Close,
}

/// What nodes tell the driver.
enum News {
    Record(Record),
    /// The server has stopped the run.
    Stopped(Status),
    /// A node's thread has ended.
    Rested,
}

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
    let clock = Clock { epoch: Instant::now(), begun };
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
    let (inboxes, doors): (Vec<Sender<Letter>>, Vec<Receiver<Letter>>) =
        rested.iter().map(|_| unbounded()).unzip();
    let (tell, news) = unbounded();
    let (give, permits) = bounded(config.threads);
    (0..config.threads).for_each(|_| give.send(()).unwrap_or_default());
    thread::scope(|scope| {
        let mut threads = Vec::new();
        let mut failed = None;
        for (index, ((process, tally), inbox)) in rested.into_iter().zip(doors).enumerate() {
            let node = Node(index as u32);
            let site = Site {
                node,
                federation,
                config,
                clock,
                process,
                dead_until: Time::ZERO,
                tally,
                inbox,
                peers: &inboxes,
                news: tell.clone(),
                permits: (&give, &permits),
                timers: BTreeSet::new(),
                tasks: VecDeque::new(),
            };
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
        for inbox in &inboxes {
            let _ = inbox.send(Letter::Close);
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
        rounds: 0,
        agenda: Default::default(),
        hosts: rested.iter().enumerate().filter_map(save).collect(),
    });
    let server = rested.swap_remove(SERVER.0 as usize).0.snapshot(federation, SERVER);
    let hash: &TraceHash = &tracer.hash;
    Ended { status, time, server, trace_hash: hash.to_string(), records: tracer.records, checkpoint }
}

/// Real time since the run began, interruptions left out.
#[derive(Clone, Copy)]
struct Clock {
    epoch: Instant,
    begun: Time,
}

impl Clock {
    fn now(&self) -> Time {
        Time(self.begun.0 + self.epoch.elapsed().as_nanos() as u64)
    }

    fn instant(&self, at: Time) -> Instant {
        self.epoch + Duration::from_nanos(at.0.saturating_sub(self.begun.0).min(1 << 60))
    }
}

/// One node with its thread.
struct Site<'a> {
    node: Node,
    federation: &'a Federation,
    config: &'a SimConfig,
    clock: Clock,
    process: Process,
    dead_until: Time,
    tally: Tally,
    inbox: Receiver<Letter>,
    /// By node number.
    peers: &'a [Sender<Letter>],
    news: Sender<News>,
    /// Where a permit to compute is given back, and taken.
    permits: (&'a Sender<()>, &'a Receiver<()>),
    timers: BTreeSet<Time>,
    tasks: VecDeque<Task>,
}

/// Given back on drop, after a panic too.
struct Permit<'a>(&'a Sender<()>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Site<'_> {
    /// The loop every real driver shares: one thing happens, its effects are carried out.
    fn live(mut self) -> (Process, Tally) {
        let mut next = Some(Input::Start);
        match self.process {
            Process::Unborn => self.process.start(self.federation, self.node),
            Process::Alive(_) | Process::Dead(_) => next = self.restart(),
        }
        while let Some(input) = next {
            next = match self.feed(input) {
                Some(status) if self.node == SERVER => {
                    let _ = self.news.send(News::Stopped(status));
                    None
                }
                _ => self.wait(),
            };
        }
        (self.process, self.tally)
    }

    /// What happens next: letters first, then timers, then work. `None` when it is time to rest.
    fn wait(&mut self) -> Option<Input> {
        if let Process::Dead(_) = self.process {
            return self.restart();
        }
        loop {
            let due = self.timers.first().copied();
            let is_due = due.is_some_and(|at| at <= self.clock.now());
            let letter = if is_due || !self.tasks.is_empty() {
                self.inbox.try_recv().ok()
            } else {
                self.receive_until(due)
            };
            match letter {
                Some(Letter::Close) => return None,
                Some(Letter::Away(until)) => self.tally.away = until,
                Some(Letter::Bytes { from, bytes }) => {
                    if let Some(input) = self.open(from, bytes) {
                        return Some(input);
                    }
                }
                None if is_due => {
                    self.timers.pop_first();
                    return Some(Input::Timer);
                }
                None => {
                    if let Some(task) = self.tasks.pop_front() {
                        return Some(self.compute(task));
                    }
                }
            }
        }
    }

    /// The next letter, or `None` when that time has come before one.
    fn receive_until(&self, at: Option<Time>) -> Option<Letter> {
        match at {
            Some(at) => self.inbox.recv_deadline(self.clock.instant(at)).ok(),
            None => self.inbox.recv().ok(),
        }
    }

    fn open(&mut self, from: Node, bytes: Bytes) -> Option<Input> {
        if self.is_unreachable() {
            return None;
        }
        match Packet::from_bytes(bytes) {
            Ok(packet) => Some(Input::Message { from, packet }),
            Err(error) => {
                self.record(Fact::Malformed { from, reason: error.to_string() });
                None
            }
        }
    }

    /// Tell the machine something and carry out what it wants done about it.
    fn feed(&mut self, input: Input) -> Option<Status> {
        let is_timer = matches!(input, Input::Timer);
        self.tally.inputs += u64::from(!is_timer);
        let now = self.clock.now();
        let mut fx = Effects::default();
        self.process.alive()?.handle(now, input, &mut fx);
        self.publish(fx.records);
        let mortal = !is_timer && fx.stop.is_none();
        let draw = || self.config.faults.kill(self.config.seed, self.node, self.tally.inputs);
        let kill = mortal.then(draw).flatten();
        if let Some(kill) = kill.filter(|kill| kill.moment == Moment::BeforeEffects) {
            self.kill(kill.down_s);
            return None;
        }
        fx.sends.into_iter().for_each(|(to, packet)| self.send(to, &packet));
        self.tasks.extend(fx.tasks);
        self.tasks.retain(|task| !fx.abandoned.contains(&task.id));
        self.timers.extend(fx.timers);
        if let Some(Kill { moment: Moment::DuringWork(share), down_s }) = kill {
            // Half of the time the work is done and only its result is lost.
            let done = self.tasks.pop_front_if(|_| share >= 0.5);
            done.into_iter().for_each(|task| drop(self.compute(task)));
            self.kill(down_s);
        }
        fx.stop
    }

    /// Records go out; a round that opens takes its dropouts away.
    fn publish(&self, records: Vec<Record>) {
        for record in records {
            if let Fact::RoundOpened { round, cohort, .. } = &record.fact {
                let until = record.t.after(self.config.faults.dropout_seconds);
                for device in cohort {
                    if self.config.faults.drops_out(self.config.seed, *device, *round) {
                        let _ = self.peers[device.0 as usize].send(Letter::Away(until));
                    }
                }
            }
            let _ = self.news.send(News::Record(record));
        }
    }

    fn send(&mut self, to: Node, packet: &Packet) {
        let count = self.tally.sent;
        self.tally.sent += 1;
        let device = if self.node == SERVER { to } else { self.node };
        let passage =
            self.config.weather.passage(self.config.seed, self.node, count, device, self.clock.now());
        self.record(Fact::Sent { to, bytes: packet.wire_len(), arrives: None });
        if !passage.lost && !self.is_unreachable() {
            let bytes = packet.to_bytes().into();
            let _ = self.peers[to.0 as usize].send(Letter::Bytes { from: self.node, bytes });
        }
    }

    /// Run a task on this thread as soon as there is a permit, or refuse it.
    fn compute(&mut self, task: Task) -> Input {
        let Task { id: job, label, cost, work } = task;
        let budget = self.federation.member(self.node).memory_bytes;
        if cost.bytes > budget {
            let need = cost.bytes;
            self.record(Fact::Refused { job, label: label.to_owned(), need, budget });
            return Input::Refused { job, need, budget };
        }
        let permit = self.permits.1.recv().map(|()| Permit(self.permits.0));
        let begin = self.clock.now();
        let outcome = work();
        drop(permit);
        let (flops, priced_bytes, peak_bytes) = (cost.flops, cost.bytes, outcome.peak_bytes);
        self.record(Fact::Ran { job, label: label.to_owned(), begin, flops, priced_bytes, peak_bytes });
        Input::Done { job, result: outcome.result }
    }

    /// The process is gone for a while, and what comes meanwhile is lost.
    fn kill(&mut self, down_s: f64) {
        self.process.kill();
        self.tasks.clear();
        self.timers.clear();
        self.dead_until = self.clock.now().after(down_s);
        self.record(Fact::Killed { until: Some(self.dead_until) });
    }

    /// When it has been dead for long enough, a new process goes on from storage, runs again what was
    /// under way, and looks around. `None` when it is time to rest.
    fn restart(&mut self) -> Option<Input> {
        while let Some(letter) = self.receive_until(Some(self.dead_until)) {
            match letter {
                Letter::Close => return None,
                Letter::Away(until) => self.tally.away = until,
                Letter::Bytes { .. } => {} // nobody is there to hear it
            }
        }
        let (replayed, tasks) = self.process.restart(self.federation, self.node)?;
        self.record(Fact::Restored { replayed });
        self.tasks.extend(tasks);
        Some(Input::Timer)
    }

    fn is_unreachable(&mut self) -> bool {
        let (absent, record) = self.tally.absence(self.config, self.node, self.clock.now());
        record.into_iter().for_each(|record| self.record(record.fact));
        absent
    }

    fn record(&self, fact: Fact) {
        let _ = self.news.send(News::Record(Record { t: self.clock.now(), node: self.node, fact }));
    }
}
