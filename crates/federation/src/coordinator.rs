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
use crate::losses::Losses;
use crate::pace::{CohortConfig, Pace};
use crate::roster::{self, Hello, Roster};
use crate::{
    Acceptance, Cx, Effects, Event, Fact, Fault, Input, JobId, Machine, Member, Memory, Record, Side,
    Status, Summary,
};
use base::{CodecError, Node, Packet, SERVER, Seed, Time, decode, encode};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

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
    losses: Losses,
    alarm: Alarm,
}

#[derive(Debug, Serialize, Deserialize)]
enum Phase {
    /// A round has closed in this turn. The next one opens with the next input (a timer, at the latest),
    /// so that the snapshot at a round's end does not hold what the next one has yet to send.
    Closed,
    Gathering,
    Open {
        deadline: Option<Time>,
    },
    Stopped(Status),
}

/// The handling of one input: what time it is, what is to be done about it, and the events that the
/// server half is still to see. (A queue and no recursion: a half may close a thousand rounds without
/// waiting for anything.)
struct Turn<'a, S: Side> {
    now: Time,
    fx: &'a mut Effects,
    queue: VecDeque<Event<S>>,
}

impl<S: Side> Turn<'_, S> {
    fn record(&mut self, fact: Fact) {
        self.fx.records.push(Record { t: self.now, node: SERVER, fact });
    }

    fn malformed(&mut self, from: Node, reason: impl Into<String>) {
        self.record(Fact::Malformed { from, reason: reason.into() });
    }
}

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
            losses: Losses::default(),
            alarm: Alarm::default(),
        };
        Coordinator { plan, seed, method: String::new(), bench, state }
    }

    /// Name the method, so that a device that speaks another one is told so.
    #[must_use]
    pub fn speaking(mut self, method: &str) -> Coordinator<S> {
        self.method = method.to_owned();
        self
    }

    // ---- Messages

    fn message(&mut self, from: Node, packet: &Packet, turn: &mut Turn<'_, S>) {
        if from == SERVER {
            return turn.malformed(from, "somebody speaks in the server's name");
        }
        let frame = match Frame::open(packet) {
            Ok(frame) => frame,
            Err(error) => {
                if let FrameError::Version { .. } = error {
                    turn.fx.sends.push((from, Frame::Unwelcome { reason: error.to_string() }.seal()));
                }
                return turn.malformed(from, error.to_string());
            }
        };
        if let Phase::Stopped(status) = &self.state.phase {
            return turn.fx.sends.push((from, Frame::Bye { status: status.clone() }.seal()));
        }
        match frame {
            Frame::Hello { life, method, member } => self.hello(from, life, &method, member, turn),
            Frame::Data { life, floor, seq, chain, ack, letter } => {
                let Some(link) = self.state.roster.link(from, life) else {
                    return self.stranger(from, turn);
                };
                let letters =
                    link.acknowledge(turn.now, ack).and_then(|()| link.receive(floor, seq, chain, letter));
                match letters {
                    Ok(letters) => {
                        letters.into_iter().for_each(|letter| self.letter(from, letter, turn));
                    }
                    Err(breach) => self.breach(from, life, breach, turn),
                }
            }
            Frame::Ack { life, ack } => {
                let Some(link) = self.state.roster.link(from, life) else {
                    return self.stranger(from, turn);
                };
                if let Err(breach) = link.acknowledge(turn.now, ack) {
                    self.breach(from, life, breach, turn);
                }
            }
            Frame::Welcome { .. } | Frame::Unwelcome { .. } | Frame::Bye { .. } => {
                turn.malformed(from, "a device speaks as a server");
            }
        }
    }

    /// The device's end of the link does not fit ours: its storage was put back, or it is hostile. It is to
    /// begin a new life.
    fn breach(&mut self, from: Node, life: u64, Breach(reason): Breach, turn: &mut Turn<'_, S>) {
        turn.malformed(from, reason);
        self.lose(from, reason, turn);
        turn.fx.sends.push((from, Frame::Welcome { life: life.saturating_add(1) }.seal()));
    }

    /// A letter of an unknown node is recorded; one from a member's former life is only late.
    fn stranger(&self, from: Node, turn: &mut Turn<'_, S>) {
        if self.state.roster.member(from).is_none() {
            turn.malformed(from, "it never said hello");
        }
    }

    fn hello(&mut self, from: Node, life: u64, method: &str, member: Member, turn: &mut Turn<'_, S>) {
        let wrong_method = || {
            let (theirs, ours) = (printable(method), &self.method);
            Err(format!("it runs the method {theirs:?}, this server runs {ours:?}"))
        };
        let vetted = roster::vet(from, &member, self.plan.devices_expected);
        let vetted = vetted.and_then(|()| if method == self.method { Ok(()) } else { wrong_method() });
        if let Err(reason) = vetted {
            turn.fx.sends.push((from, Frame::Unwelcome { reason: reason.clone() }.seal()));
            return turn.malformed(from, reason);
        }
        let (class, examples) = (member.class.clone(), member.examples);
        match self.state.roster.hello(life, member, turn.fx) {
            Hello::Joined => turn.record(Fact::Joined { device: from, class, examples }),
            Hello::Reborn => self.lose(from, "it lost its storage and began anew", turn),
            Hello::Known => {}
        }
    }

    fn letter(&mut self, from: Node, letter: Letter, turn: &mut Turn<'_, S>) {
        let awaited = letter.round == self.state.round
            && matches!(self.state.phase, Phase::Open { .. })
            && self.state.cohort.progress(from) == Some(Progress::Waiting);
        if !awaited {
            return;
        }
        match letter.content {
            Content::Said { body, blobs } => match decode(&Packet { body, blobs }) {
                Ok(body) => {
                    turn.queue.push_back(Event::Message { from, body });
                    self.run_queue(turn);
                }
                Err(CodecError(reason)) => {
                    turn.malformed(from, reason);
                    self.lose(from, "its message cannot be read", turn);
                }
            },
            Content::Sorry(excuse) => {
                if let Excuse::Memory { need, budget } = excuse {
                    self.state.losses.note_short(from, need, budget);
                }
                self.lose(from, &printable(&excuse.to_string()), turn);
            }
        }
    }

    // ---- Rounds

    /// Open the next round if those it may draw from are there.
    fn try_open(&mut self, turn: &mut Turn<'_, S>) {
        if !matches!(self.state.phase, Phase::Gathering) {
            return;
        }
        let round = self.state.round + 1;
        if round > self.plan.rounds {
            return self.stop(Status::Completed, turn);
        }
        let (expected, present) = (self.plan.devices_expected as usize, self.state.roster.present().len());
        let enough = (self.plan.cohort.min_available_nodes as usize).min(expected);
        let all_known = self.state.roster.known() >= expected;
        let waits_for_all = self.plan.replay.is_some() || self.plan.cohort.pace == Pace::Synchronous;
        if present < enough && all_known {
            let reason =
                format!("{present} devices are left of {expected}, and min-available-nodes is {enough}");
            return self.stop(Status::Failed(reason), turn);
        }
        if present < enough || (waits_for_all && !all_known) {
            return;
        }
        match &self.plan.replay {
            None => self.open_drawn(round, turn),
            Some(_) => self.open_replayed(round, turn),
        }
    }

    fn open_drawn(&mut self, round: u32, turn: &mut Turn<'_, S>) {
        let present = self.state.roster.present();
        let (needed, invited) = self.plan.cohort.size(present.len());
        let nodes = cohort::draw(self.seed, round, present.iter().copied(), invited);
        let deadline = self.plan.cohort.deadline_seconds.map(|seconds| turn.now.after(seconds));
        self.open(round, &nodes, needed, deadline, turn);
    }

    /// Open a round with the recorded cohort, and lose at once who was lost then.
    fn open_replayed(&mut self, round: u32, turn: &mut Turn<'_, S>) {
        let log = self.plan.replay.as_ref().and_then(|log| log.rounds.get(&round));
        let Some(accepted) = log.cloned() else {
            let reason = format!("the acceptance log ends before round {round}");
            return self.stop(Status::Failed(reason), turn);
        };
        let nodes: Vec<Node> = accepted.cohort.iter().copied().collect();
        if let Some(absent) = nodes.iter().find(|node| self.state.roster.member(**node).is_none()) {
            let reason = format!("the acceptance log names {absent}, which is not part of this run");
            return self.stop(Status::Failed(reason), turn);
        }
        self.open(round, &nodes, nodes.len(), None, turn);
        for node in accepted.cohort.difference(&accepted.counted) {
            self.mark_lost(*node, "lost in the recorded run", turn);
        }
    }

    fn open(
        &mut self,
        round: u32,
        nodes: &[Node],
        needed: usize,
        deadline: Option<Time>,
        turn: &mut Turn<'_, S>,
    ) {
        self.state.round = round;
        self.state.cohort = Cohort::new(nodes, needed);
        self.state.phase = Phase::Open { deadline };
        turn.record(Fact::RoundOpened { round, cohort: nodes.to_vec(), deadline });
        let member = |node: &Node| self.state.roster.member(*node).cloned();
        turn.queue.push_back(Event::Open { round, cohort: nodes.iter().filter_map(member).collect() });
    }

    /// Hand the queued events to the half, one after another, and carry out what it asks for.
    fn run_queue(&mut self, turn: &mut Turn<'_, S>) {
        while let Some(event) = turn.queue.pop_front() {
            let repeated = self.plan.replay.as_ref().and_then(|log| log.rounds.get(&self.state.round));
            let decided = repeated.and_then(|accepted| accepted.decision.clone());
            let mut cx = Cx::new(turn.now).repeating(decided);
            self.state.side.handle(event, &mut cx);
            self.carry_out(cx, turn);
            if turn.queue.is_empty() {
                self.close_if_stuck(turn);
            }
        }
    }

    fn carry_out(&mut self, cx: Cx<S>, turn: &mut Turn<'_, S>) {
        let round = self.state.round;
        for (to, body) in cx.sends {
            if matches!(self.state.cohort.progress(to), Some(Progress::Waiting | Progress::Counted)) {
                self.state.roster.post(to, Letter::said(round, &body));
            }
        }
        for job in cx.jobs {
            self.state.jobs.start(job, &self.bench, turn.fx);
        }
        for (device, reason) in cx.refused {
            if self.state.cohort.refuse(device) {
                self.note_loss(device, &reason, turn);
            }
        }
        for device in cx.finished {
            if self.state.cohort.count(device) {
                self.state.losses.clear_short(device);
                turn.record(Fact::Counted { round, device });
            }
        }
        if let Some(decision) = cx.decision {
            turn.record(Fact::Decided { round, decision });
        }
        if let Some(summary) = cx.closed {
            return self.close(summary, turn);
        }
        if self.state.cohort.is_full() {
            for node in self.state.cohort.still_waiting() {
                self.mark_lost(node, "not needed: enough others had finished", turn);
            }
        }
    }

    /// Nobody is waited for, nothing runs, and the half did not close.
    fn close_if_stuck(&mut self, turn: &mut Turn<'_, S>) {
        let open = matches!(self.state.phase, Phase::Open { .. });
        if !open || self.state.cohort.waiting() > 0 || !self.state.jobs.is_empty() {
            return;
        }
        if self.state.cohort.counted() == 0 {
            return self.close(Summary::default(), turn);
        }
        let reason = format!(
            "a fault of the method: in round {} every device has finished, and it neither closes nor works",
            self.state.round
        );
        self.stop(Status::Failed(reason), turn);
    }

    fn close(&mut self, summary: Summary, turn: &mut Turn<'_, S>) {
        turn.queue.clear();
        let (round, counted) = (self.state.round, self.state.cohort.counted() as u32);
        let lost_all = self.state.cohort.is_lost();
        for node in self.state.cohort.still_waiting() {
            self.state.cohort.lose(node);
            self.note_loss(node, "not needed: the method closed the round", turn);
        }
        turn.record(Fact::RoundClosed { round, counted, summary });
        self.state.jobs.clear();
        self.state.phase = Phase::Closed;
        turn.fx.checkpoint = true;
        if !lost_all {
            self.state.losses.survived();
        } else if let Some(reason) = self.state.losses.lost_everybody(self.state.roster.present()) {
            return self.stop(Status::Failed(reason), turn);
        }
        if round == self.plan.rounds {
            self.stop(Status::Completed, turn);
        }
    }

    fn stop(&mut self, status: Status, turn: &mut Turn<'_, S>) {
        turn.record(Fact::Stopped { status: status.clone() });
        let bye = Frame::Bye { status: status.clone() }.seal();
        let nodes: Vec<Node> = self.state.roster.nodes().collect();
        for node in nodes {
            self.state.roster.abandon(node);
            turn.fx.sends.push((node, bye.clone()));
        }
        self.state.jobs.clear();
        self.state.phase = Phase::Stopped(status);
        turn.fx.checkpoint = true;
    }

    // ---- Losses

    /// `node` gives nothing (more) to this round: tell the half, and let it act.
    fn lose(&mut self, node: Node, reason: &str, turn: &mut Turn<'_, S>) {
        self.mark_lost(node, reason, turn);
        self.run_queue(turn);
    }

    fn mark_lost(&mut self, node: Node, reason: &str, turn: &mut Turn<'_, S>) {
        if self.state.cohort.lose(node) {
            self.note_loss(node, reason, turn);
            turn.queue.push_back(Event::Lost(node));
        }
    }

    fn note_loss(&mut self, device: Node, reason: &str, turn: &mut Turn<'_, S>) {
        let round = self.state.round;
        self.state.roster.abandon(device);
        self.state.losses.note(device, reason);
        turn.record(Fact::Lost { round, device, reason: reason.to_owned() });
    }

    fn deadline(&mut self, turn: &mut Turn<'_, S>) {
        let Phase::Open { deadline: Some(deadline) } = self.state.phase else { return };
        if turn.now >= deadline {
            for node in self.state.cohort.still_waiting() {
                self.mark_lost(node, "it missed the deadline", turn);
            }
            self.run_queue(turn);
        }
    }

    // ---- The server's own work

    fn done(&mut self, job: JobId, result: &Packet, turn: &mut Turn<'_, S>) {
        let Some(label) = self.state.jobs.end(job) else { return };
        match jobs::result::<S>(result) {
            Ok(done) => {
                turn.queue.push_back(Event::Done(done));
                self.run_queue(turn);
            }
            Err(Fault(reason)) => self.fail(job, label, reason, turn),
        }
    }

    /// Without its server a run cannot go on.
    fn fail(&mut self, job: JobId, label: &str, reason: String, turn: &mut Turn<'_, S>) {
        let (round, label) = (self.state.round, label.to_owned());
        let status = Status::Failed(format!("round {round}, the server's job {label:?}: {reason}"));
        turn.record(Fact::Fault { round, job, label, reason });
        self.stop(status, turn);
    }

    fn restore(&mut self, snapshot: &Packet, memory: Memory, turn: &mut Turn<'_, S>) {
        match decode(snapshot) {
            Ok(state) => {
                self.state = state;
                if memory == Memory::Lost {
                    self.state.roster.begin_anew(turn.now);
                }
                self.state.roster.rebuild();
                self.state.side.restored(memory, &self.bench);
                self.state.jobs.restart(&self.bench, turn.fx);
            }
            Err(error) => {
                self.stop(Status::Failed(format!("the server's snapshot is lost: {error}")), turn)
            }
        }
    }
}

impl<S: Side> Machine for Coordinator<S> {
    fn handle(&mut self, now: Time, input: Input, fx: &mut Effects) {
        let mut turn = Turn { now, fx, queue: VecDeque::new() };
        let turn = &mut turn;
        let stopped = matches!(self.state.phase, Phase::Stopped(_));
        if matches!(self.state.phase, Phase::Closed) {
            self.state.phase = Phase::Gathering;
        }
        match input {
            Input::Restored { snapshot, memory } => self.restore(&snapshot, memory, turn),
            Input::Message { from, packet } => self.message(from, &packet, turn),
            _ if stopped => {}
            Input::Start | Input::Taken(_) => {}
            Input::Timer => {
                self.state.alarm.ring();
                self.deadline(turn);
            }
            Input::Done { job, result } => self.done(job, &result, turn),
            Input::Refused { job, need, budget } => {
                if let Some(label) = self.state.jobs.end(job) {
                    self.fail(job, label, Excuse::Memory { need, budget }.to_string(), turn);
                }
            }
            Input::Lost(node) => {
                self.state.roster.gone(node);
                self.lose(node, "it is gone for good", turn);
            }
        }
        self.try_open(turn);
        self.run_queue(turn);
        self.state.roster.flush(now, turn.fx);
        self.state.jobs.flush(turn.fx);
        match &self.state.phase {
            Phase::Stopped(status) => turn.fx.stop = Some(status.clone()),
            Phase::Closed => self.state.alarm.set(Some(now), turn.fx),
            Phase::Gathering => self.state.alarm.set(self.state.roster.next_due(), turn.fx),
            Phase::Open { deadline } => {
                let deadline = deadline.filter(|_| self.state.cohort.waiting() > 0);
                let due = [deadline, self.state.roster.next_due()].into_iter().flatten().min();
                self.state.alarm.set(due, turn.fx);
            }
        }
    }

    fn snapshot(&self) -> Packet {
        encode(&self.state)
    }
}
