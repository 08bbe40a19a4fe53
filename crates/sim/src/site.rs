//! One node with its thread: the loop that every driver in real time has at its heart.

use crate::SimConfig;
use crate::faults::{Kill, Moment};
use crate::host::{Process, Tally};
use base::{Node, Packet, SERVER, Time};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use federation::{Effects, Fact, Federation, Input, Record, Status, Task};
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// What lies in a node's inbox.
pub(crate) enum Mail {
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
pub(crate) enum News {
    Record(Record),
    /// The server has stopped the run.
    Stopped(Status),
    /// A node's thread has ended.
    Rested,
}

/// Real time since the run began, interruptions left out.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    epoch: Instant,
    begun: Time,
}

impl Clock {
    /// A run that has gone on until `begun` goes on now.
    pub fn starting_at(begun: Time) -> Clock {
        Clock { epoch: Instant::now(), begun }
    }

    pub fn now(&self) -> Time {
        Time(self.begun.0 + self.epoch.elapsed().as_nanos() as u64)
    }

    fn instant(&self, at: Time) -> Instant {
        self.epoch + Duration::from_nanos(at.0.saturating_sub(self.begun.0).min(1 << 60))
    }
}

/// What all nodes share.
pub(crate) struct Shared<'a> {
    pub federation: &'a Federation,
    pub config: &'a SimConfig,
    pub clock: Clock,
    /// By node number.
    pub inboxes: Vec<Sender<Mail>>,
    /// Where a permit to compute is given back, and taken.
    pub permits: (Sender<()>, Receiver<()>),
}

/// One node.
pub(crate) struct Site<'a> {
    node: Node,
    shared: &'a Shared<'a>,
    process: Process,
    dead_until: Time,
    tally: Tally,
    inbox: Receiver<Mail>,
    news: Sender<News>,
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

impl<'a> Site<'a> {
    pub fn new(
        node: Node,
        shared: &'a Shared<'a>,
        (process, tally): (Process, Tally),
        inbox: Receiver<Mail>,
        news: Sender<News>,
    ) -> Site<'a> {
        let (timers, tasks) = (BTreeSet::new(), VecDeque::new());
        Site { node, shared, process, dead_until: Time::ZERO, tally, inbox, news, timers, tasks }
    }

    /// One thing happens, its effects are carried out; until it is time to rest.
    pub fn live(mut self) -> (Process, Tally) {
        let mut next = Some(Input::Start);
        match self.process {
            Process::Unborn => self.process.start(self.shared.federation, self.node),
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
            let is_due = due.is_some_and(|at| at <= self.shared.clock.now());
            let letter = if is_due || !self.tasks.is_empty() {
                self.inbox.try_recv().ok()
            } else {
                self.receive_until(due)
            };
            match letter {
                Some(Mail::Close) => return None,
                Some(Mail::Away(until)) => self.tally.away = until,
                Some(Mail::Bytes { from, bytes }) => {
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
    fn receive_until(&self, at: Option<Time>) -> Option<Mail> {
        match at {
            Some(at) => self.inbox.recv_deadline(self.shared.clock.instant(at)).ok(),
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

    /// Tell the machine something, and before it what others leave of its memory if that has changed.
    fn feed(&mut self, input: Input) -> Option<Status> {
        let Shared { federation, config, clock, .. } = self.shared;
        let memory = self.tally.memory(config, federation.member(self.node), clock.now());
        let ended = memory.and_then(|memory| self.handle(memory));
        ended.or(self.handle(input))
    }

    /// Let the machine take an input, and carry out what it wants done about it.
    fn handle(&mut self, input: Input) -> Option<Status> {
        let is_timer = matches!(input, Input::Timer);
        self.tally.inputs += u64::from(!is_timer);
        let now = self.shared.clock.now();
        let mut fx = Effects::default();
        self.process.alive()?.handle(now, input, &mut fx);
        self.publish(fx.records);
        let mortal = !is_timer && fx.stop.is_none();
        let config = self.shared.config;
        let draw = || config.faults.kill(config.seed, self.node, self.tally.inputs);
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
        let SimConfig { seed, faults, .. } = self.shared.config;
        for record in records {
            if let Fact::RoundOpened { round, cohort, .. } = &record.fact {
                let until = record.t.after(faults.dropout_seconds);
                for device in cohort {
                    if faults.drops_out(*seed, *device, *round) {
                        let _ = self.shared.inboxes[device.0 as usize].send(Mail::Away(until));
                    }
                }
            }
            let _ = self.news.send(News::Record(record));
        }
    }

    fn send(&mut self, to: Node, packet: &Packet) {
        let Shared { config, clock, .. } = self.shared;
        let count = self.tally.sent;
        self.tally.sent += 1;
        let device = if self.node == SERVER { to } else { self.node };
        let passage = config.weather.passage(config.seed, self.node, count, device, clock.now());
        self.record(Fact::Sent { to, bytes: packet.wire_len(), arrives: None });
        if !passage.lost && !self.is_unreachable() {
            let bytes = packet.to_bytes().into();
            let _ = self.shared.inboxes[to.0 as usize].send(Mail::Bytes { from: self.node, bytes });
        }
    }

    /// Run a task on this thread as soon as there is a permit, or refuse it.
    fn compute(&mut self, task: Task) -> Input {
        let Task { id: job, label, cost, work } = task;
        let Shared { federation, config, clock, .. } = self.shared;
        let budget = config.weather.memory(config.seed, federation.member(self.node), clock.now());
        if cost.bytes > budget {
            let need = cost.bytes;
            self.record(Fact::Refused { job, label: label.to_owned(), need, budget });
            return Input::Refused { job, need, budget };
        }
        let permit = self.shared.permits.1.recv().map(|()| Permit(&self.shared.permits.0));
        let begin = self.shared.clock.now();
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
        self.dead_until = self.shared.clock.now().after(down_s);
        self.record(Fact::Killed { until: Some(self.dead_until) });
    }

    /// When it has been dead for long enough, a new process goes on from storage, runs again what was
    /// under way, and looks around. `None` when it is time to rest.
    fn restart(&mut self) -> Option<Input> {
        while let Some(letter) = self.receive_until(Some(self.dead_until)) {
            match letter {
                Mail::Close => return None,
                Mail::Away(until) => self.tally.away = until,
                Mail::Bytes { .. } => {} // nobody is there to hear it
            }
        }
        let (replayed, tasks) = self.process.restart(self.shared.federation, self.node)?;
        self.record(Fact::Restored { replayed });
        self.tasks.extend(tasks);
        Some(Input::Timer)
    }

    fn is_unreachable(&mut self) -> bool {
        let (absent, record) = self.tally.absence(self.shared.config, self.node, self.shared.clock.now());
        record.into_iter().for_each(|record| self.record(record.fact));
        absent
    }

    fn record(&self, fact: Fact) {
        let _ = self.news.send(News::Record(Record { t: self.shared.clock.now(), node: self.node, fact }));
    }
}
