//! The simulator: one loop, one virtual clock, any number of nodes.
//!
//! Events are handled one at a time in virtual order; only jobs run on other threads, and their
//! results are taken when the clock reaches their end. So the trace is a function of the federation,
//! the configuration and the seed, bit for bit, whatever the number of threads.
//!
//! What takes time: a job takes `flops / flops_per_s` and waits until its node's one processor is free
//! (a job of no flops takes none and waits for nothing); a message occupies both ends' links for
//! `bytes / rate` and takes the weather's latency. Handling an input takes none.

use crate::agenda::{Agenda, Event, What};
use crate::checkpoint::{Checkpoint, Driver, Saved};
use crate::faults::{Kill, Moment};
use crate::host::{Host, Process, Running, Tally};
use crate::link::{self, End};
use crate::output::{Ended, Output, SimError, Tracer};
use crate::pool::{Pool, Ticket};
use crate::{ServerLink, SimConfig};
use base::{Node, Packet, SERVER, Time};
use federation::{Effects, Fact, Federation, Input, JobId, Record, Status, Task};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Run a federation in virtual time until its server stops it or `interrupt` is set, which is looked
/// at between events. With `from`, go on where an interrupted run left off: the records that follow
/// are those that the uninterrupted run would have given.
pub fn run(
    federation: &Federation,
    config: &SimConfig,
    sink: &mut dyn FnMut(Output),
    interrupt: &AtomicBool,
    from: Option<Checkpoint>,
) -> Result<Ended, SimError> {
    config.check()?;
    let mut world = World::new(federation, config, sink);
    match from {
        None => world.begin(),
        Some(checkpoint) => world.resume(checkpoint)?,
    }
    loop {
        if interrupt.load(Ordering::Relaxed) {
            return Ok(world.end(Status::Interrupted));
        }
        if world.memory_changes() {
            continue;
        }
        let Some((ticket, event)) = world.agenda.pop() else {
            return Err(SimError::Standstill { at: world.now });
        };
        world.now = ticket.0;
        if let Some(status) = world.happen(ticket, event, interrupt) {
            return Ok(world.end(status));
        }
    }
}

/// Everything there is between two events.
struct World<'a> {
    federation: &'a Federation,
    config: &'a SimConfig,
    tracer: Tracer<'a>,
    pool: Pool,
    agenda: Agenda,
    /// By node number.
    hosts: Vec<Host>,
    now: Time,
}

impl<'a> World<'a> {
    fn new(
        federation: &'a Federation,
        config: &'a SimConfig,
        sink: &'a mut dyn FnMut(Output),
    ) -> World<'a> {
        World {
            federation,
            config,
            tracer: Tracer::new(sink),
            pool: Pool::new(config.threads),
            agenda: Agenda::default(),
            hosts: (0..=federation.devices.len()).map(|_| Host::new()).collect(),
            now: Time::ZERO,
        }
    }

    /// Every node starts when it is first within reach.
    fn begin(&mut self) {
        for node in (0..self.hosts.len() as u32).map(Node) {
            let absent = Tally::default().unreachable_until(self.config, node, Time::ZERO);
            let at = absent.unwrap_or(Time::ZERO);
            self.agenda.schedule(at, node, What::Input(Input::Start));
        }
    }

    /// Whether what happens next is that devices have more memory or less, and they were told.
    fn memory_changes(&mut self) -> bool {
        let next = self.agenda.iter().next().map(|((at, _), _)| *at);
        let change = self.config.weather.memory_changes_after(self.now);
        let Some(change) = change.filter(|change| next.is_some_and(|next| *change <= next)) else {
            return false;
        };
        self.now = change;
        (1..self.hosts.len() as u32).for_each(|node| self.tell_memory(Node(node)));
        true
    }

    /// Tell a device that lives what others leave of its memory, if that has changed.
    fn tell_memory(&mut self, node: Node) {
        let host = &mut self.hosts[node.0 as usize];
        if host.process.alive().is_none() {
            return;
        }
        if let Some(input) = host.tally.memory(self.config, self.federation.member(node), self.now) {
            self.feed(node, input);
        }
    }

    /// One event, from the agenda to its effects. A status ends the run.
    fn happen(&mut self, ticket: Ticket, event: Event, interrupt: &AtomicBool) -> Option<Status> {
        let node = event.node;
        let input = match event.what {
            What::Kill { down_s } => {
                self.kill(node, down_s);
                return None;
            }
            What::Restart => return self.restart(node),
            What::Ends { job, .. } => {
                let Some(outcome) = self.pool.take(ticket, interrupt) else {
                    self.agenda.put_back(ticket, event);
                    return None;
                };
                self.ran(node, job, outcome.peak_bytes);
                Input::Done { job, result: outcome.result }
            }
            What::Input(Input::Message { .. }) if self.is_unreachable(node) => return None,
            What::Input(Input::Start) => {
                self.hosts[node.0 as usize].process.start(self.federation, node);
                Input::Start
            }
            What::Input(input) => input,
        };
        let ended = self.feed(node, input);
        self.tell_memory(node);
        ended
    }

    /// Tell a node something and carry out what it wants done about it. The dead hear nothing.
    fn feed(&mut self, node: Node, input: Input) -> Option<Status> {
        let host = &mut self.hosts[node.0 as usize];
        let durable = host.process.alive()?;
        let is_timer = matches!(input, Input::Timer);
        if is_timer {
            host.tally.timers.remove(&self.now);
        } else {
            host.tally.inputs += 1;
        }
        let count = host.tally.inputs;
        let mut fx = Effects::default();
        durable.handle(self.now, input, &mut fx);

        let closed = self.publish(&fx.records);
        let stop = fx.stop.take().filter(|_| node == SERVER);
        let mortal = !is_timer && stop.is_none();
        let kill = mortal.then(|| self.config.faults.kill(self.config.seed, node, count)).flatten();
        if let Some(Kill { moment: Moment::BeforeEffects, down_s }) = kill {
            self.kill(node, down_s);
        } else {
            self.carry_out(node, fx);
        }
        if let Some(Kill { moment: Moment::DuringWork(share), down_s }) = kill {
            let left = self.hosts[node.0 as usize].tally.idle.0.saturating_sub(self.now.0);
            let at = Time(self.now.0 + (left as f64 * share) as u64);
            self.agenda.schedule(at, node, What::Kill { down_s });
        }
        let due = closed.and_then(|round| round.checked_rem(self.config.checkpoint_rounds)) == Some(0);
        if due && stop.is_none() {
            let checkpoint = self.checkpoint();
            self.tracer.offer(checkpoint);
        }
        stop
    }
}

/// Carrying out effects.
impl World<'_> {
    fn carry_out(&mut self, node: Node, fx: Effects) {
        fx.abandoned.iter().for_each(|job| self.abandon(node, *job));
        fx.sends.into_iter().for_each(|(to, packet)| self.send(node, to, packet));
        let wanted = fx.tasks.into_iter().filter(|task| !fx.abandoned.contains(&task.id));
        wanted.for_each(|task| self.compute(node, task));
        fx.timers.into_iter().for_each(|at| self.wake(node, at));
    }

    /// Put a message on its way, if the weather and both links let it through.
    fn send(&mut self, from: Node, to: Node, packet: Packet) {
        let device = if from == SERVER { to } else { from };
        let tally = &mut self.hosts[from.0 as usize].tally;
        let count = tally.sent;
        tally.sent += 1;
        let weather = &self.config.weather;
        let passage = weather.passage(self.config.seed, from, count, device, self.now);
        let bytes = packet.wire_len();
        let limit = |node: Node, bytes_per_s: f64| match (node, weather.server_link) {
            (SERVER, ServerLink::Unlimited) => f64::INFINITY,
            _ => bytes_per_s * passage.rate,
        };
        let arrives = if self.is_unreachable(from) {
            None
        } else {
            let rate = limit(from, self.federation.member(from).up_bytes_per_s);
            let free = &mut self.hosts[from.0 as usize].tally.link.up;
            let left = link::depart(self.now, bytes, End { free, bytes_per_s: rate });
            (!passage.lost).then(|| {
                let rate = limit(to, self.federation.member(to).down_bytes_per_s);
                let free = &mut self.hosts[to.0 as usize].tally.link.down;
                link::arrive(left, passage.latency_s, bytes, End { free, bytes_per_s: rate })
            })
        };
        self.record(from, Fact::Sent { to, bytes, arrives });
        if let Some(at) = arrives {
            self.agenda.schedule(at, to, What::Input(Input::Message { from, packet }));
        }
    }

    /// Give a task to the pool and its end to the agenda, or refuse it.
    fn compute(&mut self, node: Node, task: Task) {
        let member = self.federation.member(node);
        let Task { id: job, label, cost, work } = task;
        let (seed, weather) = (self.config.seed, &self.config.weather);
        let budget = weather.memory(seed, member, self.now);
        if cost.bytes > budget {
            let need = cost.bytes;
            self.record(node, Fact::Refused { job, label: label.to_owned(), need, budget });
            self.agenda.schedule(self.now, node, What::Input(Input::Refused { job, need, budget }));
            return;
        }
        let host = &mut self.hosts[node.0 as usize];
        let (mut begin, mut end) = (self.now, self.now);
        if cost.flops > 0 {
            begin = host.tally.idle.max(self.now);
            let flops_per_s = member.flops_per_s * weather.speed(seed, node, self.now);
            end = begin.after(cost.flops as f64 / flops_per_s);
            host.tally.idle = end;
        }
        let ticket = self.agenda.schedule(end, node, What::Ends { job, begin, cost });
        host.running.insert(job, Running { ticket, label, cost, begin });
        self.pool.submit(ticket, work);
    }

    /// Tell the node when that time has come.
    fn wake(&mut self, node: Node, at: Time) {
        let at = at.max(self.now);
        if self.hosts[node.0 as usize].tally.timers.insert(at) {
            self.agenda.schedule(at, node, What::Input(Input::Timer));
        }
    }

    /// A job is over.
    fn ran(&mut self, node: Node, job: JobId, peak_bytes: u64) {
        if let Some(Running { label, cost, begin, .. }) = self.hosts[node.0 as usize].running.remove(&job) {
            let (label, flops, priced_bytes) = (label.to_owned(), cost.flops, cost.bytes);
            self.record(node, Fact::Ran { job, label, begin, flops, priced_bytes, peak_bytes });
        }
    }

    /// Nobody wants that job's result any more: the processor is free for what was not queued yet.
    fn abandon(&mut self, node: Node, job: JobId) {
        let host = &mut self.hosts[node.0 as usize];
        let Some(Running { ticket, label, cost, begin }) = host.running.remove(&job) else { return };
        self.agenda.cancel(ticket);
        self.pool.forget(ticket);
        let queued = host.running.values().filter(|running| running.cost.flops > 0);
        host.tally.idle = queued.map(|running| running.ticket.0).max().unwrap_or(self.now);
        if begin < self.now {
            let done = (self.now.0 - begin.0) as f64 / (ticket.0.0 - begin.0) as f64;
            let (label, flops, priced_bytes) =
                (label.to_owned(), (cost.flops as f64 * done) as u64, cost.bytes);
            self.record(node, Fact::Ran { job, label, begin, flops, priced_bytes, peak_bytes: 0 });
        }
    }

    /// Records go out; a round that opens takes its dropouts away. The last round that closed, if any.
    fn publish(&mut self, records: &[Record]) -> Option<u32> {
        let mut closed = None;
        for record in records {
            self.tracer.record(record);
            match &record.fact {
                Fact::RoundOpened { round, cohort, .. } => {
                    let faults = &self.config.faults;
                    let until = self.now.after(faults.dropout_seconds);
                    let drops_out = |device: &&Node| faults.drops_out(self.config.seed, **device, *round);
                    for device in cohort.iter().filter(drops_out) {
                        self.hosts[device.0 as usize].tally.away = until;
                    }
                }
                Fact::RoundClosed { round, .. } => closed = Some(*round),
                _ => {}
            }
        }
        closed
    }

    fn record(&mut self, node: Node, fact: Fact) {
        self.tracer.record(&Record { t: self.now, node, fact });
    }
}

/// Absence, death and return.
impl World<'_> {
    /// Whether the node's link is down.
    fn is_unreachable(&mut self, node: Node) -> bool {
        let tally = &mut self.hosts[node.0 as usize].tally;
        let (absent, record) = tally.absence(self.config, node, self.now);
        record.iter().for_each(|record| self.tracer.record(record));
        absent
    }

    /// The process and what it had under way are gone; its storage is not.
    fn kill(&mut self, node: Node, down_s: f64) {
        let host = &mut self.hosts[node.0 as usize];
        if host.process.alive().is_none() {
            return;
        }
        host.process.kill();
        for (_, running) in std::mem::take(&mut host.running) {
            self.pool.forget(running.ticket);
            self.agenda.cancel(running.ticket);
        }
        host.tally.idle = self.now;
        host.tally.timers.clear();
        let until = self.now.after(down_s);
        self.record(node, Fact::Killed { until: Some(until) });
        self.agenda.schedule(until, node, What::Restart);
    }

    /// A new process goes on from storage, runs again what was under way, and looks around.
    fn restart(&mut self, node: Node) -> Option<Status> {
        let (replayed, tasks) = self.hosts[node.0 as usize].process.restart(self.federation, node)?;
        self.record(node, Fact::Restored { replayed });
        tasks.into_iter().for_each(|task| self.compute(node, task));
        let ended = self.feed(node, Input::Timer);
        self.tell_memory(node);
        ended
    }
}

/// Coming to rest, and going on.
impl World<'_> {
    fn end(mut self, status: Status) -> Ended {
        let checkpoint = (status == Status::Interrupted).then(|| self.checkpoint());
        let server = self.hosts.swap_remove(SERVER.0 as usize).process.snapshot(self.federation, SERVER);
        let (trace_hash, records) = (self.tracer.hash.to_string(), self.tracer.records);
        Ended { status, time: self.now, server, trace_hash, records, checkpoint }
    }

    fn checkpoint(&self) -> Checkpoint {
        let save = |(node, host): (usize, &Host)| {
            let journal = host.process.journal()?.clone();
            let alive = matches!(host.process, Process::Alive(_));
            Some(Saved { node: Node(node as u32), alive, journal, tally: host.tally.clone() })
        };
        Checkpoint {
            driver: Driver::Virtual,
            seed: self.config.seed,
            nodes: self.hosts.len() as u32,
            time: self.now,
            records: self.tracer.records,
            hash: self.tracer.hash.clone(),
            agenda: self.agenda.clone(),
            hosts: self.hosts.iter().enumerate().filter_map(save).collect(),
        }
    }

    /// Every node is restored from its storage as after a kill, but hears nothing of it: what it waits
    /// for is still on the agenda, the ends of its jobs among it.
    fn resume(&mut self, from: Checkpoint) -> Result<(), SimError> {
        from.fits(Driver::Virtual, self.config.seed, self.hosts.len() as u32)?;
        self.now = from.time;
        self.agenda = from.agenda;
        self.tracer.records = from.records;
        self.tracer.hash = from.hash;
        let mut ends = BTreeMap::new();
        for (ticket, event) in self.agenda.iter() {
            if let What::Ends { job, begin, cost } = event.what {
                ends.insert((event.node, job), (*ticket, begin, cost));
            }
        }
        for Saved { node, alive, journal, tally } in from.hosts {
            let host = &mut self.hosts[node.0 as usize];
            host.tally = tally;
            if !alive {
                host.process = Process::Dead(journal);
                continue;
            }
            for Task { id, label, work, .. } in host.process.resume(journal, self.federation, node) {
                // A job without an end was refused, and that answer is on the agenda.
                if let Some(&(ticket, begin, cost)) = ends.get(&(node, id)) {
                    host.running.insert(id, Running { ticket, label, cost, begin });
                    self.pool.submit(ticket, work);
                }
            }
        }
        Ok(())
    }
}
