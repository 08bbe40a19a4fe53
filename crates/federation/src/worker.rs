//! The host of a method's device half.
//!
//! ```text
//!   device                                  server
//!     | Hello{life, method, member} ->        |   repeated until answered, less and less often; again when the
//!     |                                       |   device's memory has changed
//!     |                     <- Welcome{life}  |
//!     |              <- Data{round, message}  |   a message of a new round ends the last one here
//!     |  (a job runs: minutes)                |
//!     | Data{round, message | Sorry} ->       |   Sorry: a fault, or more memory than there is
//!     |                      <- Bye{status}   |
//! ```

use crate::alarm::Alarm;
use crate::frame::{Content, Excuse, Frame, FrameError, Letter, printable};
use crate::jobs::{self, Jobs};
use crate::link::{Breach, Link};
use crate::{Cx, Effects, Event, Fact, Fault, Input, JobId, Machine, Member, Memory, Record, Side, Status};
use base::{CodecError, Node, Packet, SERVER, Seed, Time, decode, encode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Seconds until the first hello is repeated; doubled each time, up to a limit.
const HELLO_EVERY_S: f64 = 2.0;
const HELLO_LIMIT_S: f64 = 60.0;

/// A device: its half of a method, its link to the server, and its outstanding jobs.
pub struct Worker<S: Side> {
    member: Member,
    method: String,
    bench: Arc<S::Bench>,
    state: State<S>,
}

/// What a snapshot holds.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct State<S: Side> {
    side: S,
    phase: Phase,
    link: Link,
    /// The newest round the server spoke of.
    round: u32,
    /// This device gives nothing more to this round: it told the server so, or began a new life in it.
    excused: bool,
    /// Bytes of its memory that other programs take.
    taken: u64,
    jobs: Jobs<S>,
    alarm: Alarm,
}

#[derive(Debug, Serialize, Deserialize)]
enum Phase {
    Knocking { attempts: u32, again: Time },
    Welcomed,
    Over(Status),
}

impl<S: Side> Worker<S> {
    pub fn new(member: Member, side: S, bench: Arc<S::Bench>) -> Worker<S> {
        let link = Link::new(0, member.up_bytes_per_s);
        let phase = Phase::Knocking { attempts: 0, again: Time::ZERO };
        let state = State {
            side,
            phase,
            link,
            round: 0,
            excused: true,
            taken: 0,
            jobs: Jobs::new(),
            alarm: Alarm::default(),
        };
        Worker { member, method: String::new(), bench, state }
    }

    /// Name the method, so that a server that runs another one says so.
    #[must_use]
    pub fn speaking(mut self, method: &str) -> Worker<S> {
        self.method = method.to_owned();
        self
    }

    fn record(&self, now: Time, fact: Fact, fx: &mut Effects) {
        fx.records.push(Record { t: now, node: self.member.node, fact });
    }

    fn malformed(&self, now: Time, from: Node, reason: impl Into<String>, fx: &mut Effects) {
        self.record(now, Fact::Malformed { from, reason: reason.into() }, fx);
    }

    /// Say hello if it is time to. The pause grows, and differs between devices, so that ten thousand
    /// of them do not knock in step.
    fn knock(&mut self, now: Time, fx: &mut Effects) {
        let Phase::Knocking { attempts, again } = &mut self.state.phase else { return };
        if now < *again {
            return;
        }
        let pause = (HELLO_EVERY_S * 2f64.powi((*attempts).min(16) as i32)).min(HELLO_LIMIT_S);
        let spread =
            Seed(u64::from(self.member.node.0)).child("hello", u64::from(*attempts)).stream().unit();
        *again = now.after(pause * (1.0 + spread / 4.0));
        *attempts += 1;
        let memory_bytes = self.member.memory_bytes.saturating_sub(self.state.taken);
        let member = Member { memory_bytes, ..self.member.clone() };
        let (life, method) = (self.state.link.life, self.method.clone());
        fx.sends.push((SERVER, Frame::Hello { life, method, member }.seal()));
    }

    /// Begin a life: a storage with this number, and no memory of another. What the half is in the
    /// middle of belongs to the former one.
    fn begin(&mut self, now: Time, life: u64, fx: &mut Effects) {
        self.state.link = Link::new(life, self.member.up_bytes_per_s);
        self.state.excused = true;
        self.state.jobs.clear();
        self.state.phase = Phase::Knocking { attempts: 0, again: now };
        self.knock(now, fx);
    }

    /// The server remembers more of this life than we do: our storage was put back to an earlier state.
    fn begin_anew(&mut self, now: Time, Breach(reason): Breach, fx: &mut Effects) {
        self.malformed(now, SERVER, format!("{reason}: this device begins anew"), fx);
        self.begin(now, self.state.link.life.saturating_add(1), fx);
    }

    fn message(&mut self, now: Time, from: Node, packet: &Packet, fx: &mut Effects) {
        if from != SERVER {
            return self.malformed(now, from, "a device listens to the server alone", fx);
        }
        match Frame::open(packet) {
            Ok(Frame::Welcome { life }) => self.welcome(now, life, fx),
            Ok(Frame::Data { life, floor, seq, chain, ack, letter }) if life == self.state.link.life => {
                self.state.phase = Phase::Welcomed;
                let link = &mut self.state.link;
                let letters =
                    link.acknowledge(now, ack).and_then(|()| link.receive(floor, seq, chain, letter));
                match letters {
                    Ok(letters) => letters.into_iter().for_each(|letter| self.letter(now, letter, fx)),
                    Err(breach) => self.begin_anew(now, breach, fx),
                }
            }
            Ok(Frame::Ack { life, ack }) if life == self.state.link.life => {
                if let Err(breach) = self.state.link.acknowledge(now, ack) {
                    self.begin_anew(now, breach, fx);
                }
            }
            Ok(Frame::Data { .. } | Frame::Ack { .. }) => {} // of another life
            Ok(Frame::Unwelcome { reason }) => {
                self.end(Status::Failed(format!("the server refuses this device: {}", printable(&reason))));
            }
            Ok(Frame::Bye { status }) => self.end(status),
            Ok(Frame::Hello { .. }) => self.malformed(now, from, "a server says no hello", fx),
            Err(error @ (FrameError::Version { .. } | FrameError::Malformed(_))) => {
                self.malformed(now, from, error.to_string(), fx);
            }
        }
    }

    /// The server knows us, or knows a later life than ours.
    fn welcome(&mut self, now: Time, life: u64, fx: &mut Effects) {
        if life > self.state.link.life {
            return self.begin(now, life.saturating_add(1), fx);
        }
        if life == self.state.link.life {
            self.state.phase = Phase::Welcomed;
        }
    }

    fn end(&mut self, status: Status) {
        self.state.phase = Phase::Over(status);
        self.state.jobs.clear();
        self.state.link.abandon();
    }

    fn letter(&mut self, now: Time, letter: Letter, fx: &mut Effects) {
        if letter.round > self.state.round {
            self.state.round = letter.round;
            self.state.excused = false;
            self.state.jobs.clear();
            self.state.link.abandon();
        }
        if letter.round < self.state.round || self.state.excused {
            return;
        }
        match letter.content {
            Content::Said { body, blobs } => self.said(now, body, blobs, fx),
            Content::Sorry(_) => self.malformed(now, SERVER, "a server makes no excuses", fx),
        }
    }

    fn said(&mut self, now: Time, body: Bytes, blobs: Vec<base::Blob>, fx: &mut Effects) {
        match decode(&Packet { body, blobs }) {
            Ok(body) => self.deliver(now, Event::Message { from: SERVER, body }, fx),
            Err(CodecError(reason)) => {
                self.malformed(now, SERVER, reason.clone(), fx);
                self.excuse(Excuse::Fault(format!("cannot read the server's message: {reason}")));
            }
        }
    }

    /// Tell the server that nothing more comes from here in this round.
    fn excuse(&mut self, excuse: Excuse) {
        self.state.excused = true;
        self.state.jobs.clear();
        self.state.link.post(Letter::sorry(self.state.round, excuse));
    }

    fn deliver(&mut self, now: Time, event: Event<S>, fx: &mut Effects) {
        let mut cx = Cx::new(now);
        self.state.side.handle(event, &mut cx);
        if let Some((_, reason)) = cx.refused.into_iter().next() {
            let fault = Fact::Malformed { from: SERVER, reason: reason.clone() };
            self.record(now, fault, fx);
            return self.excuse(Excuse::Fault(reason));
        }
        for (to, body) in cx.sends {
            assert_eq!(to, SERVER, "a device half speaks to the server alone");
            self.state.link.post(Letter::said(self.state.round, &body));
        }
        for job in cx.jobs {
            self.state.jobs.start(job, &self.bench, fx);
        }
    }

    fn done(&mut self, now: Time, job: JobId, result: &Packet, fx: &mut Effects) {
        let Some(label) = self.state.jobs.end(job) else { return };
        match jobs::result::<S>(result) {
            Ok(done) => self.deliver(now, Event::Done(done), fx),
            Err(Fault(reason)) => {
                let (round, label) = (self.state.round, label.to_owned());
                self.excuse(Excuse::Fault(format!("{label}: {reason}")));
                self.record(now, Fact::Fault { round, job, label, reason }, fx);
            }
        }
    }

    fn refused(&mut self, now: Time, job: JobId, need: u64, budget: u64, fx: &mut Effects) {
        let Some(label) = self.state.jobs.end(job) else { return };
        let excuse = Excuse::Memory { need, budget };
        let (round, label, reason) = (self.state.round, label.to_owned(), excuse.to_string());
        self.excuse(excuse);
        self.record(now, Fact::Fault { round, job, label, reason }, fx);
    }

    fn restore(&mut self, now: Time, snapshot: &Packet, memory: Memory, fx: &mut Effects) {
        match decode(snapshot) {
            Ok(state) => {
                self.state = state;
                if memory == Memory::Lost {
                    self.state.link.begin_anew(now);
                }
                self.state.side.restored(memory, &self.bench);
                self.state.jobs.restart(&self.bench, fx);
            }
            Err(error) => {
                self.malformed(now, self.member.node, format!("its snapshot is lost: {error}"), fx);
                self.begin(now, now.0, fx);
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.state.jobs.is_empty() && self.state.link.is_idle()
    }
}

impl<S: Side> Machine for Worker<S> {
    fn handle(&mut self, now: Time, input: Input, fx: &mut Effects) {
        let was_idle = self.is_idle();
        let over = matches!(self.state.phase, Phase::Over(_));
        match input {
            Input::Restored { snapshot, memory } => self.restore(now, &snapshot, memory, fx),
            _ if over => {}
            Input::Start => self.begin(now, now.0, fx),
            Input::Message { from, packet } => self.message(now, from, &packet, fx),
            Input::Timer => {
                self.state.alarm.ring();
                self.knock(now, fx);
                self.state.link.repeat(now, SERVER, fx);
            }
            Input::Done { job, result } => self.done(now, job, &result, fx),
            Input::Refused { job, need, budget } => self.refused(now, job, need, budget, fx),
            Input::Taken(bytes) => {
                self.state.taken = bytes;
                self.state.phase = Phase::Knocking { attempts: 0, again: now };
                self.knock(now, fx);
            }
            Input::Lost(_) => {}
        }
        self.state.link.flush(now, SERVER, fx);
        self.state.jobs.flush(fx);
        fx.checkpoint |= self.is_idle() && !was_idle;
        let again = match &self.state.phase {
            Phase::Knocking { again, .. } => Some(*again),
            Phase::Welcomed => None,
            Phase::Over(status) => {
                fx.stop = Some(status.clone());
                return;
            }
        };
        let due = [again, self.state.link.due()].into_iter().flatten().min();
        self.state.alarm.set(due, fx);
    }

    fn snapshot(&self) -> Packet {
        encode(&self.state)
    }
}
