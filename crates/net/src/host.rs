//! One node in life: the loop around `Machine::handle` that server and devices have in common.
//!
//! ```text
//! wait for mail or a due timer
//! handle everything that has come          the machine is ahead of the disk, and nobody knows
//! commit inputs, records, sequences        once for all of them
//! carry out effects, hand out receipts     only now
//! ```
//!
//! A process that is killed before the commit has done nothing; one that is killed after it finds the
//! inputs in its journal, and its machine repeats what may not have left.

use crate::bench::{Bench, Leave, Ran};
use crate::clock::Clock;
use crate::store::{Batch, Store, StoreError};
use base::{Node, Packet, SERVER, Time};
use federation::journal::{Entry, Kept};
use federation::{Durable, Effects, Fact, Input, Machine, Record, Revived, Status, Task};
use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tokio::sync::oneshot;

/// Told when what it came with has been committed; dropped when it never will be.
pub type Receipt = oneshot::Sender<()>;

/// What lies in a node's inbox.
pub enum Mail {
    /// A message; the sequence number of its request is committed with it.
    Message { from: Node, packet: Packet, sequence: Option<u64>, receipt: Receipt },
    /// What a device recorded of itself.
    Records { from: Node, records: Vec<Record>, sequence: u64, receipt: Receipt },
    /// A request that changed something elsewhere.
    Sequence { from: Node, sequence: u64, receipt: Receipt },
    /// This device is gone for good.
    Lost(Node),
    /// A job has run.
    Ran(Ran),
    /// A job has panicked, which is a fault of this program.
    Panicked(String),
    /// Come to rest.
    Close,
}

/// Where effects go. Two implementations: a server's queues for devices that poll, and a device's courier.
pub trait Outlet: Send {
    /// These messages leave now, in this order.
    fn send(&mut self, packets: Vec<(Node, Packet)>);
    /// These records are committed.
    fn publish(&mut self, records: &[Record]);
    /// The node's part is over.
    fn stopped(&mut self, status: &Status);
}

/// How a node is to live.
pub struct Living {
    pub node: Node,
    /// Memory that jobs may take.
    pub budget: u64,
    pub clock: Clock,
    pub leave: Leave,
}

/// A node at rest.
pub struct Rested {
    /// How its part ended, if it did.
    pub status: Option<Status>,
    pub time: Time,
    pub snapshot: Packet,
}

/// A node that cannot go on. What was acknowledged is in its store.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Panicked(String),
    #[error("no thread could be started: {0}")]
    Threads(#[from] std::io::Error),
}

/// Inputs handled before a commit, at most.
const BATCH: usize = 512;

/// A node with its store and its work.
pub struct Host {
    living: Living,
    durable: Durable,
    store: Box<dyn Store>,
    outlet: Box<dyn Outlet>,
    inbox: Receiver<Mail>,
    bench: Bench,
    /// Tasks that the bench has not been given.
    tasks: VecDeque<Task>,
    /// A task is on the bench.
    busy: bool,
    timers: BTreeSet<Time>,
    batch: Batch,
    sends: Vec<(Node, Packet)>,
    receipts: Vec<Receipt>,
    stop: Option<Status>,
    /// The outlet knows that the node's part is over.
    told: bool,
}

/// What a host is made from.
pub struct Parts {
    pub living: Living,
    pub past: federation::Journal,
    pub store: Box<dyn Store>,
    pub outlet: Box<dyn Outlet>,
}

impl Host {
    /// A node ready to live, and the way to its inbox.
    pub fn new(
        parts: Parts,
        build: impl Fn() -> Box<dyn Machine>,
    ) -> Result<(Host, Sender<Mail>), HostError> {
        let Parts { mut living, past, store, outlet } = parts;
        let (mail, inbox) = channel();
        let leave = std::mem::replace(&mut living.leave, Box::new(|| {}));
        let bench = Bench::start(living.clock, leave, mail.clone())?;
        let fresh = past.is_empty();
        let (durable, tasks, replayed) = if fresh {
            (Durable::new(build()), Vec::new(), 0)
        } else {
            let Revived { durable, tasks, replayed } = Durable::revive(past, build);
            (durable, tasks, replayed)
        };
        let mut host = Host {
            living,
            durable,
            store,
            outlet,
            inbox,
            bench,
            tasks: tasks.into(),
            busy: false,
            timers: BTreeSet::new(),
            batch: Batch::default(),
            sends: Vec::new(),
            receipts: Vec::new(),
            stop: None,
            told: false,
        };
        if fresh {
            host.handle(Input::Start);
        } else {
            host.record(host.living.node, Fact::Restored { replayed });
            host.handle(Input::Timer);
        }
        Ok((host, mail))
    }

    /// Live until told to come to rest.
    pub fn live(mut self) -> Result<Rested, HostError> {
        self.settle()?;
        while let Some(first) = self.wait()? {
            let mut next = Some(first);
            for _ in 0..BATCH {
                match next {
                    Some(Mail::Close) => {
                        self.settle()?;
                        return Ok(self.rest());
                    }
                    Some(mail) => self.take(mail)?,
                    None => break,
                }
                next = self.inbox.try_recv().ok();
            }
            if let Some(mail) = next {
                self.take(mail)?;
            }
            self.settle()?;
        }
        Ok(self.rest())
    }

    fn rest(self) -> Rested {
        Rested { status: self.stop, time: self.living.clock.now(), snapshot: self.durable.snapshot() }
    }

    /// The next mail, with timers that come due on the way. `None` when no mail can ever come.
    fn wait(&mut self) -> Result<Option<Mail>, HostError> {
        loop {
            let timeout = self.timers.first().map_or(Duration::MAX, |due| self.living.clock.until(*due));
            match self.inbox.recv_timeout(timeout.min(Duration::from_hours(1))) {
                Ok(mail) => return Ok(Some(mail)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    self.ring();
                    self.settle()?;
                }
            }
        }
    }

    /// Feed a timer if one is due.
    fn ring(&mut self) {
        let now = self.living.clock.now();
        let later = self.timers.split_off(&Time(now.0.saturating_add(1)));
        if !std::mem::replace(&mut self.timers, later).is_empty() {
            self.handle(Input::Timer);
        }
    }

    fn take(&mut self, mail: Mail) -> Result<(), HostError> {
        self.ring();
        match mail {
            Mail::Message { from, packet, sequence, receipt } => {
                if let Some(sequence) = sequence {
                    self.raise(from, sequence);
                    let bytes = packet.wire_len();
                    self.record(from, Fact::Sent { to: SERVER, bytes, arrives: None });
                }
                self.receipts.push(receipt);
                self.handle(Input::Message { from, packet });
            }
            Mail::Records { from, records, sequence, receipt } => {
                self.raise(from, sequence);
                self.receipts.push(receipt);
                self.batch.records.extend(records);
            }
            Mail::Sequence { from, sequence, receipt } => {
                self.raise(from, sequence);
                self.receipts.push(receipt);
            }
            Mail::Lost(node) => self.handle(Input::Lost(node)),
            Mail::Ran(Ran { job, label, cost, begin, outcome }) => {
                self.busy = false;
                let (flops, priced_bytes, peak_bytes) = (cost.flops, cost.bytes, outcome.peak_bytes);
                let label = label.to_owned();
                let ran = Fact::Ran { job, label, begin, flops, priced_bytes, peak_bytes };
                self.record(self.living.node, ran);
                self.handle(Input::Done { job, result: outcome.result });
            }
            Mail::Panicked(what) => return Err(HostError::Panicked(what)),
            Mail::Close => {}
        }
        Ok(())
    }

    fn raise(&mut self, from: Node, sequence: u64) {
        let highest = self.batch.sequences.entry(from).or_default();
        *highest = sequence.max(*highest);
    }

    fn record(&mut self, node: Node, fact: Fact) {
        self.batch.records.push(Record { t: self.living.clock.now(), node, fact });
    }

    /// Tell the machine something; keep what it wants done until it is committed.
    fn handle(&mut self, input: Input) {
        let (now, mut fx) = (self.living.clock.now(), Effects::default());
        let kept = self.durable.handle(now, input.clone(), &mut fx);
        self.batch.entries.push(match kept {
            Kept::Input => Entry::Input(now, input),
            Kept::Snapshot => Entry::Snapshot(now, self.durable.snapshot()),
        });
        self.batch.records.extend(fx.records);
        if self.living.node == SERVER {
            for (to, packet) in &fx.sends {
                let sent = Fact::Sent { to: *to, bytes: packet.wire_len(), arrives: None };
                self.record(SERVER, sent);
            }
        }
        self.sends.extend(fx.sends);
        self.tasks.extend(fx.tasks);
        self.tasks.retain(|task| !fx.abandoned.contains(&task.id));
        self.timers.extend(fx.timers);
        if fx.stop.is_some() && self.stop.is_none() {
            self.stop = fx.stop;
        }
    }

    /// Give the bench its next task, and refuse those that this node cannot hold.
    fn begin_work(&mut self) {
        while !self.busy
            && let Some(task) = self.tasks.pop_front()
        {
            let (need, budget) = (task.cost.bytes, self.living.budget);
            if need <= budget {
                self.busy = true;
                return self.bench.take(task);
            }
            let (job, label) = (task.id, task.label.to_owned());
            self.record(self.living.node, Fact::Refused { job, label, need, budget });
            self.handle(Input::Refused { job, need, budget });
        }
    }

    /// Make what happened last, then let its effects out.
    fn settle(&mut self) -> Result<(), HostError> {
        loop {
            if !self.batch.is_empty() {
                self.store.commit(&self.batch)?;
            }
            let Batch { records, .. } = std::mem::take(&mut self.batch);
            if !records.is_empty() {
                self.outlet.publish(&records);
            }
            if !self.sends.is_empty() {
                self.outlet.send(std::mem::take(&mut self.sends));
            }
            for receipt in self.receipts.drain(..) {
                // Whoever waited for it may have gone.
                let _ = receipt.send(());
            }
            if let Some(status) = self.stop.as_ref().filter(|_| !self.told) {
                self.told = true;
                self.outlet.stopped(status);
            }
            self.begin_work();
            if self.batch.is_empty() && self.sends.is_empty() {
                return Ok(());
            }
        }
    }
}
