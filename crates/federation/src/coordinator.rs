//! The host of a method's server half: membership, cohorts, deadlines and rounds, for every method alike.
//!
//! A round opens when those it may draw from are there, closes when the server half says so, and loses
//! devices on the way: gone, late, at fault, short of memory, not needed any more. Each loss is recorded
//! by name and told to the half once.
//!
//! A half is expected to close a round whose last device is counted or lost, and may ask for work first.
//! Where it does neither, the coordinator closes a round that counted nobody, and fails the run
//! of a method that leaves a counted round open, instead of waiting for ever.

use crate::alarm::Alarm;
use crate::cohort::{self, Cohort, Progress};
use crate::frame::{Content, Excuse, Frame, FrameError, Letter, printable};
use crate::jobs::{self, Jobs};
use crate::link::Breach;
use crate::pace::{CohortConfig, Pace};
use crate::roster::{self, Hello, Roster};
use crate::{
    Acceptance, Cx, Effects, Event, Fact, Fault, Input, JobId, Machine, Member, Record, Side, Status,
    Summary,
};
use base::{CodecError, Node, Packet, SERVER, Seed, Time, decode, encode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A run fails after this many rounds in a row that lost every device.
pub const EMPTY_ROUNDS: u32 = 3;

/// What the server is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub rounds: u32,
    pub cohort: CohortConfig,
    /// Devices are `Node(1)` to `Node(devices_expected)`; no other is admitted.
    pub devices_expected: u32,
    /// Repeat the decisions of a recorded run instead of making new ones.
    pub replay: Option<Acceptance>,
}

/// The server: its half of a method, its members, and the round that is open.
pub struct Coordinator<S: Side> {
    plan: Plan,
    seed: Seed,
    method: String,
    bench: Arc<S::Bench>,
    state: State<S>,
    alarm: Alarm,
}

/// What a snapshot holds.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct State<S: Side> {
    side: S,
    roster: Roster,
    phase: Phase,
    /// The newest round that was opened; rounds count from 1.
    round: u32,
    cohort: Cohort,
    jobs: Jobs<S>,
    empty_rounds: u32,
    /// The last device lost, and why: for the message of a run that fails.
    last_loss: String,
    /// Devices that refused a job for want of memory and were never counted since: need and budget.
    short: BTreeMap<Node, (u64, u64)>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Phase {
    Gathering,
    Open { deadline: Option<Time> },
    Stopped(Status),
}

/// Events for the server half that wait for their turn. Not recursion: a half may close a thousand rounds
/// without waiting for anything.
type Queue<S> = VecDeque<Event<S>>;

/// Read the server half back out of a coordinator's snapshot.
pub fn side_of<S: Side>(snapshot: &Packet) -> Result<S, CodecError> {
    decode::<State<S>>(snapshot).map(|state| state.side)
}

impl<S: Side> Coordinator<S> {
    pub fn new(side: S, bench: Arc<S::Bench>, plan: Plan, seed: Seed) -> Coordinator<S> {
        let state = State {
            side,
            roster: Roster::default(),
            phase: Phase::Gathering,
            round: 0,
            cohort: Cohort::default(),
            jobs: Jobs::new(),
            empty_rounds: 0,
            last_loss: String::new(),
            short: BTreeMap::new(),
        };
        Coordinator { plan, seed, method: String::new(), bench, state, alarm: Alarm::default() }
    }

    /// Name the method, so that a device that speaks another one is told so.
    #[must_use]
    pub fn speaking(mut self, method: &str) -> Coordinator<S> {
        self.method = method.to_owned();
        self
    }

    fn record(now: Time, fact: Fact, fx: &mut Effects) {
        fx.records.push(Record { t: now, node: SERVER, fact });
    }

    fn malformed(now: Time, from: Node, reason: impl Into<String>, fx: &mut Effects) {
        Self::record(now, Fact::Malformed { from, reason: reason.into() }, fx);
    }

    // ---- Messages

    fn message(&mut self, now: Time, from: Node, packet: &Packet, queue: &mut Queue<S>, fx: &mut Effects) {
        let frame = match Frame::open(packet) {
            Ok(frame) => frame,
            Err(error) => {
                if let FrameError::Version { .. } = error {
                    fx.sends.push((from, Frame::Unwelcome { reason: error.to_string() }.seal()));
                }
                return Self::malformed(now, from, error.to_string(), fx);
            }
        };
        if let Phase::Stopped(status) = &self.state.phase {
            return fx.sends.push((from, Frame::Bye { status: status.clone() }.seal()));
        }
        match frame {
            Frame::Hello { life, method, member } => {
                self.hello(now, from, life, &method, member, queue, fx)
            }
            Frame::Data { life, floor, seq, ack, letter } => {
                let Some(link) = self.state.roster.link(from, life) else {
                    return self.stranger(now, from, fx);
                };
                let letters = link.acknowledge(now, ack).and_then(|()| link.receive(floor, seq, letter));
                match letters {
                    Ok(letters) => {
                        letters.into_iter().for_each(|letter| self.letter(now, from, letter, queue, fx));
                    }
                    Err(Breach(reason)) => Self::malformed(now, from, reason, fx),
                }
            }
            Frame::Ack { life, ack } => {
                let Some(link) = self.state.roster.link(from, life) else {
                    return self.stranger(now, from, fx);
                };
                if let Err(Breach(reason)) = link.acknowledge(now, ack) {
                    Self::malformed(now, from, reason, fx);
                }
            }
            Frame::Welcome { .. } | Frame::Unwelcome { .. } | Frame::Bye { .. } => {
                Self::malformed(now, from, "a device speaks as a server", fx);
            }
        }
    }

    /// A letter of an unknown node is recorded; one from a member's former life is only late.
    fn stranger(&self, now: Time, from: Node, fx: &mut Effects) {
        if self.state.roster.member(from).is_none() {
            Self::malformed(now, from, "it never said hello", fx);
        }
    }

    fn hello(
        &mut self,
        now: Time,
        from: Node,
        life: u64,
        method: &str,
        member: Member,
        queue: &mut Queue<S>,
        fx: &mut Effects,
    ) {
        let wrong_method = || {
            let (theirs, ours) = (printable(method), &self.method);
            Err(format!("it runs the method {theirs:?}, this server runs {ours:?}"))
        };
        let vetted = roster::vet(from, &member, self.plan.devices_expected);
        let vetted = vetted.and_then(|()| if method == self.method { Ok(()) } else { wrong_method() });
        if let Err(reason) = vetted {
            fx.sends.push((from, Frame::Unwelcome { reason: reason.clone() }.seal()));
            return Self::malformed(now, from, reason, fx);
        }
        let (class, examples) = (member.class.clone(), member.examples);
        match self.state.roster.hello(life, member, fx) {
            Hello::Joined => Self::record(now, Fact::Joined { device: from, class, examples }, fx),
            Hello::Reborn => self.lose(now, from, "it lost its storage and began anew", queue, fx),
            Hello::Known => {}
        }
    }

    fn letter(&mut self, now: Time, from: Node, letter: Letter, queue: &mut Queue<S>, fx: &mut Effects) {
        let awaited = letter.round == self.state.round
            && matches!(self.state.phase, Phase::Open { .. })
            && self.state.cohort.progress(from) == Some(Progress::Waiting);
        if !awaited {
            return;
        }
        match letter.content {
            Content::Said { body, blobs } => match decode(&Packet { body, blobs }) {
                Ok(body) => {
                    queue.push_back(Event::Message { from, body });
                    self.run_queue(now, queue, fx);
                }
                Err(CodecError(reason)) => {
                    Self::malformed(now, from, reason, fx);
                    self.lose(now, from, "its message cannot be read", queue, fx);
                }
            },
            Content::Sorry(excuse) => {
                if let Excuse::Memory { need, budget } = excuse {
                    self.state.short.insert(from, (need, budget));
                }
                self.lose(now, from, &printable(&excuse.to_string()), queue, fx);
            }
        }
    }

    // ---- Rounds

    /// Open the next round if those it may draw from are there.
    fn try_open(&mut self, now: Time, queue: &mut Queue<S>, fx: &mut Effects) {
        if !matches!(self.state.phase, Phase::Gathering) {
            return;
        }
        let round = self.state.round + 1;
        if round > self.plan.rounds {
            return self.stop(now, Status::Completed, fx);
        }
        let (expected, present) = (self.plan.devices_expected as usize, self.state.roster.present().len());
        let enough = (self.plan.cohort.min_available_nodes as usize).min(expected);
        let all_known = self.state.roster.known() >= expected;
        let waits_for_all = self.plan.replay.is_some() || self.plan.cohort.pace == Pace::Synchronous;
        if present < enough && all_known {
            let reason =
                format!("{present} devices are left of {expected}, and min-available-nodes is {enough}");
            return self.stop(now, Status::Failed(reason), fx);
        }
        if present < enough || (waits_for_all && !all_known) {
            return;
        }
        match &self.plan.replay {
            None => self.open_drawn(now, round, queue, fx),
            Some(_) => self.open_replayed(now, round, queue, fx),
        }
    }

    fn open_drawn(&mut self, now: Time, round: u32, queue: &mut Queue<S>, fx: &mut Effects) {
        let present = self.state.roster.present();
        let (needed, invited) = self.plan.cohort.size(present.len());
        let nodes = cohort::draw(self.seed, round, present.iter().copied(), invited);
        let deadline = self.plan.cohort.deadline_seconds.map(|seconds| now.after(seconds));
        self.open(now, round, &nodes, needed, deadline, queue, fx);
    }

    /// Open a round with the recorded cohort, and lose at once who was lost then.
    fn open_replayed(&mut self, now: Time, round: u32, queue: &mut Queue<S>, fx: &mut Effects) {
        let log = self.plan.replay.as_ref().and_then(|log| log.rounds.get(&round));
        let Some(accepted) = log.cloned() else {
            let reason = format!("the acceptance log ends before round {round}");
            return self.stop(now, Status::Failed(reason), fx);
        };
        let nodes: Vec<Node> = accepted.cohort.iter().copied().collect();
        if let Some(absent) = nodes.iter().find(|node| self.state.roster.member(**node).is_none()) {
            let reason = format!("the acceptance log names {absent}, which is not part of this run");
            return self.stop(now, Status::Failed(reason), fx);
        }
        self.open(now, round, &nodes, nodes.len(), None, queue, fx);
        for node in accepted.cohort.difference(&accepted.counted) {
            self.mark_lost(now, *node, "lost in the recorded run", queue, fx);
        }
    }

    fn open(
        &mut self,
        now: Time,
        round: u32,
        nodes: &[Node],
        needed: usize,
        deadline: Option<Time>,
        queue: &mut Queue<S>,
        fx: &mut Effects,
    ) {
        self.state.round = round;
        self.state.cohort = Cohort::new(nodes, needed);
        self.state.phase = Phase::Open { deadline };
        Self::record(now, Fact::RoundOpened { round, cohort: nodes.to_vec(), deadline }, fx);
        let member = |node: &Node| self.state.roster.member(*node).cloned();
        queue.push_back(Event::Open { round, cohort: nodes.iter().filter_map(member).collect() });
    }

    /// Hand the queued events to the half, one after another, and carry out what it asks for.
    fn run_queue(&mut self, now: Time, queue: &mut Queue<S>, fx: &mut Effects) {
        while let Some(event) = queue.pop_front() {
            let mut cx = Cx::new();
            self.state.side.handle(event, &mut cx);
            self.carry_out(now, cx, queue, fx);
            if queue.is_empty() {
                self.close_if_stuck(now, queue, fx);
            }
            self.try_open(now, queue, fx);
        }
    }

    fn carry_out(&mut self, now: Time, cx: Cx<S>, queue: &mut Queue<S>, fx: &mut Effects) {
        let round = self.state.round;
        for (to, body) in cx.sends {
            if matches!(self.state.cohort.progress(to), Some(Progress::Waiting | Progress::Counted)) {
                self.state.roster.post(to, Letter::said(round, &body));
            }
        }
        for job in cx.jobs {
            self.state.jobs.start(job, &self.bench, fx);
        }
        for (device, reason) in cx.refused {
            if self.state.cohort.refuse(device) {
                self.note_loss(now, device, &reason, fx);
            }
        }
        for device in cx.finished {
            if self.state.cohort.count(device) {
                self.state.short.remove(&device);
                Self::record(now, Fact::Counted { round, device }, fx);
            }
        }
        if let Some(summary) = cx.closed {
            return self.close(now, summary, queue, fx);
        }
        if self.state.cohort.is_full() {
            for node in self.state.cohort.still_waiting() {
                self.mark_lost(now, node, "not needed: enough others had finished", queue, fx);
            }
        }
    }

    /// Nobody is waited for, nothing runs, and the half did not close.
    fn close_if_stuck(&mut self, now: Time, queue: &mut Queue<S>, fx: &mut Effects) {
        let open = matches!(self.state.phase, Phase::Open { .. });
        if !open || self.state.cohort.waiting() > 0 || !self.state.jobs.is_empty() {
            return;
        }
        if self.state.cohort.counted() == 0 {
            return self.close(now, Summary::default(), queue, fx);
        }
        let reason = format!(
            "a fault of the method: in round {} every device has finished, and it neither closes nor works",
            self.state.round
        );
        self.stop(now, Status::Failed(reason), fx);
    }

    fn close(&mut self, now: Time, summary: Summary, queue: &mut Queue<S>, fx: &mut Effects) {
        queue.clear();
        let (round, counted) = (self.state.round, self.state.cohort.counted() as u32);
        let lost_all = self.state.cohort.is_lost();
        for node in self.state.cohort.still_waiting() {
            self.state.cohort.lose(node);
            self.note_loss(now, node, "not needed: the method closed the round", fx);
        }
        Self::record(now, Fact::RoundClosed { round, counted, summary }, fx);
        self.state.jobs.clear();
        self.state.phase = Phase::Gathering;
        self.state.empty_rounds = if lost_all { self.state.empty_rounds + 1 } else { 0 };
        fx.checkpoint = true;
        if lost_all && let Some(reason) = self.hopeless() {
            self.stop(now, Status::Failed(reason), fx);
        }
    }

    /// Why a round that lost everybody ends the run, if it does.
    fn hopeless(&self) -> Option<String> {
        let present = self.state.roster.present();
        let all_short = present.iter().all(|node| self.state.short.contains_key(node));
        let largest = self.state.short.values().max_by_key(|(_, budget)| *budget);
        if let (true, Some((need, budget))) = (all_short, largest) {
            let (need, budget) = (base::units::bytes(*need), base::units::bytes(*budget));
            return Some(format!(
                "no device can hold this job: it needs {need}, and the largest budget is {budget}"
            ));
        }
        let (rounds, last) = (self.state.empty_rounds, &self.state.last_loss);
        (rounds >= EMPTY_ROUNDS)
            .then(|| format!("{rounds} rounds in a row lost every device; the last: {last}"))
    }

    fn stop(&mut self, now: Time, status: Status, fx: &mut Effects) {
        Self::record(now, Fact::Stopped { status: status.clone() }, fx);
        let bye = Frame::Bye { status: status.clone() }.seal();
        let nodes: Vec<Node> = self.state.roster.nodes().collect();
        for node in nodes {
            self.state.roster.abandon(node);
            fx.sends.push((node, bye.clone()));
        }
        self.state.jobs.clear();
        self.state.phase = Phase::Stopped(status);
        fx.checkpoint = true;
    }

    // ---- Losses

    /// `node` gives nothing (more) to this round: tell the half, and let it act.
    fn lose(&mut self, now: Time, node: Node, reason: &str, queue: &mut Queue<S>, fx: &mut Effects) {
        self.mark_lost(now, node, reason, queue, fx);
        self.run_queue(now, queue, fx);
    }

    fn mark_lost(&mut self, now: Time, node: Node, reason: &str, queue: &mut Queue<S>, fx: &mut Effects) {
        if self.state.cohort.lose(node) {
            self.note_loss(now, node, reason, fx);
            queue.push_back(Event::Lost(node));
        }
    }

    fn note_loss(&mut self, now: Time, device: Node, reason: &str, fx: &mut Effects) {
        let round = self.state.round;
        self.state.roster.abandon(device);
        self.state.last_loss = format!("{device}: {reason}");
        Self::record(now, Fact::Lost { round, device, reason: reason.to_owned() }, fx);
    }

    fn deadline(&mut self, now: Time, queue: &mut Queue<S>, fx: &mut Effects) {
        let Phase::Open { deadline: Some(deadline) } = self.state.phase else { return };
        if now >= deadline {
            for node in self.state.cohort.still_waiting() {
                self.mark_lost(now, node, "it missed the deadline", queue, fx);
            }
            self.run_queue(now, queue, fx);
        }
    }

    // ---- The server's own work

    fn done(&mut self, now: Time, job: JobId, result: &Packet, queue: &mut Queue<S>, fx: &mut Effects) {
        let Some(label) = self.state.jobs.end(job) else { return };
        match jobs::result::<S>(result) {
            Ok(done) => {
                queue.push_back(Event::Done(done));
                self.run_queue(now, queue, fx);
            }
            Err(Fault(reason)) => self.fail(now, job, label, reason, fx),
        }
    }

    /// Without its server a run cannot go on.
    fn fail(&mut self, now: Time, job: JobId, label: &str, reason: String, fx: &mut Effects) {
        let (round, label) = (self.state.round, label.to_owned());
        let status = Status::Failed(format!("round {round}, the server's job {label:?}: {reason}"));
        Self::record(now, Fact::Fault { round, job, label, reason }, fx);
        self.stop(now, status, fx);
    }

    fn restore(&mut self, now: Time, snapshot: &Packet, fx: &mut Effects) {
        match decode(snapshot) {
            Ok(state) => {
                self.state = state;
                self.state.roster.rebuild();
                self.state.jobs.restart(&self.bench, fx);
            }
            Err(error) => {
                self.stop(now, Status::Failed(format!("the server's snapshot is lost: {error}")), fx)
            }
        }
    }
}

impl<S: Side> Machine for Coordinator<S> {
    fn handle(&mut self, now: Time, input: Input, fx: &mut Effects) {
        let mut queue = Queue::<S>::new();
        let stopped = matches!(self.state.phase, Phase::Stopped(_));
        match input {
            Input::Restored(snapshot) => self.restore(now, &snapshot, fx),
            Input::Message { from, packet } => self.message(now, from, &packet, &mut queue, fx),
            _ if stopped => {}
            Input::Start => {}
            Input::Timer => {
                self.alarm.ring();
                self.deadline(now, &mut queue, fx);
            }
            Input::Done { job, result } => self.done(now, job, &result, &mut queue, fx),
            Input::Refused { job, need, budget } => {
                if let Some(label) = self.state.jobs.end(job) {
                    self.fail(now, job, label, Excuse::Memory { need, budget }.to_string(), fx);
                }
            }
            Input::Lost(node) => {
                self.state.roster.gone(node);
                self.lose(now, node, "it is gone for good", &mut queue, fx);
            }
        }
        self.try_open(now, &mut queue, fx);
        self.run_queue(now, &mut queue, fx);
        self.state.roster.flush(now, fx);
        match &self.state.phase {
            Phase::Stopped(status) => fx.stop = Some(status.clone()),
            Phase::Gathering => self.alarm.set(self.state.roster.next_due(), fx),
            Phase::Open { deadline } => {
                let deadline = deadline.filter(|_| self.state.cohort.waiting() > 0);
                let due = [deadline, self.state.roster.next_due()].into_iter().flatten().min();
                self.alarm.set(due, fx);
            }
        }
    }

    fn snapshot(&self) -> Packet {
        encode(&self.state)
    }
}
