//! The server's half.

use super::links::{Came, Observed, Sent};
use super::seats::{Seat, Seats};
use super::serve::{Serve, Served, Stage};
use super::work::{self, Done, Job, ServerBench, Tuned};
use super::{
    Activations, Answers, Choose, Half, Judged, Labels, Options, Order, Regime, Report, Steps, Terms,
};
use crate::Lab;
use crate::evaluate::Due;
use crate::lab::objection_to_examples;
use crate::schedule::Policy;
use base::{Blob, Cost, Meter, Node, Time};
use federation::{Cx, Event, Fault, Member, Side, Summary};
use model::optim::Optimizer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How often a server that serves several devices at once turns from one to the next within a step.
/// The drivers give a node one processor, so its speed is shared by taking turns.
pub const SLICES: u32 = 8;

#[derive(Serialize, Deserialize)]
pub struct Server {
    regime: Regime,
    choose: Choose,
    labels: Labels,
    limits: Limits,
    seats: Seats,
    theta: Blob,
    round: u32,
    /// Devices that have not begun: with [`Regime::OneDevice`] they wait.
    ahead: BTreeSet<Node>,
    /// Devices in the middle of their pass.
    tuning: BTreeMap<Node, Tuning>,
    /// Whose activations wait, in the order of arrival.
    queue: Vec<Node>,
    /// Whose activations the server works on.
    busy: Option<Node>,
    /// Devices whose adapters are being looked at: their weight, loss and rank.
    looking: BTreeMap<Node, Tuned>,
    /// Adapters that count, in node order.
    counted: BTreeMap<Node, Tuned>,
    /// How devices and their links do, where terms are chosen anew from it.
    observed: BTreeMap<Node, Observed>,
    /// Steps that are still to be served in this round before it is enough, where it is at some point.
    wanted: Option<u64>,
    /// What the passes that ended in this round were.
    agreed: BTreeMap<Node, Terms>,
    summary: Summary,
    errors: Errors,
    due: Due,
}

/// What a batch at the cut may be: nothing larger is let in.
#[derive(Serialize, Deserialize)]
struct Limits {
    batch: usize,
    positions: usize,
    width: usize,
    blocks: usize,
    order: Policy,
    /// Steps of a device in a round, on average; 0 for all of its rows.
    steps: u32,
}

/// The upper half of one device's model.
#[derive(Serialize, Deserialize)]
struct Tuning {
    terms: Terms,
    /// What is trained above the cut; empty until it is dealt.
    theta: Blob,
    /// None before the first step.
    optimizer: Option<Optimizer>,
    step: u32,
    steps: u32,
    waiting: Option<Activations>,
    /// What the device said about the batch's last hidden states, where it holds the labels.
    judged: Option<Judged>,
    /// Where the device is asked to judge: its batch waits, but not for the server.
    asked: bool,
    slices: u32,
    /// Bytes that its step holds while it is served beside others.
    holds: u64,
    loss: f64,
    seen: u64,
}

/// Relative errors of the number format, summed over messages.
#[derive(Default, Serialize, Deserialize)]
struct Errors {
    up: f64,
    down: f64,
    messages: u64,
}

impl Side for Server {
    type In = Report;
    type Out = Order;
    type Job = Job;
    type Done = Done;
    type Bench = ServerBench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { round, cohort } => self.open(round, cohort, cx),
            Event::Message { from, body: Report::Activations(batch) } => self.arrived(from, batch, cx),
            Event::Message { from, body: Report::Judged(judged) } => self.judged(from, judged, cx),
            Event::Message { from, body: Report::Tuned { theta, examples } } => {
                self.tuned(from, theta, examples, cx);
            }
            Event::Lost(node) => self.drop_out(node, cx),
            Event::Done(done) => self.done(done, cx),
        }
    }

    fn price(job: &Job, bench: &ServerBench) -> Cost {
        work::price(job, bench)
    }

    fn label(job: &Job) -> &'static str {
        work::label(job)
    }

    fn run(job: Job, bench: &ServerBench, meter: &Meter) -> Result<Done, Fault> {
        work::run(job, bench, meter)
    }
}

impl Server {
    pub fn new(lab: &Lab, options: &Options, regime: Regime, seats: Seats, rounds: u32) -> Server {
        let (work, recipe) = (&lab.work, &lab.work.recipe);
        Server {
            regime,
            choose: options.choose,
            labels: options.labels,
            limits: Limits {
                batch: recipe.per_device_train_batch_size.get(),
                positions: work.model.spec.max_positions,
                width: work.model.spec.width,
                blocks: work.model.spec.layers,
                order: options.order,
                steps: recipe.max_steps,
            },
            seats,
            theta: work.initial.clone(),
            round: 0,
            ahead: BTreeSet::new(),
            tuning: BTreeMap::new(),
            queue: Vec::new(),
            busy: None,
            looking: BTreeMap::new(),
            counted: BTreeMap::new(),
            observed: BTreeMap::new(),
            wanted: None,
            agreed: BTreeMap::new(),
            summary: Summary::default(),
            errors: Errors::default(),
            due: Due { every: recipe.eval_every, last: rounds },
        }
    }

    /// The parameters that everybody's next round begins with.
    pub fn trained(self) -> Blob {
        self.theta
    }

    fn open(&mut self, round: u32, cohort: Vec<Member>, cx: &mut Cx<Self>) {
        self.round = round;
        self.ahead = cohort.iter().map(|member| member.node).collect();
        self.tuning.clear();
        self.queue.clear();
        self.busy = None;
        self.looking.clear();
        self.counted.clear();
        self.agreed.clear();
        self.wanted = None;
        self.errors = Errors::default();
        self.observed.values_mut().for_each(Observed::forget);
        if round == 1 {
            cx.run(Job::Evaluate { theta: self.theta.clone(), trained: false });
        }
        if self.choose == Choose::Once || cohort.is_empty() {
            return self.go_on(cx);
        }
        if let Some(decision) = cx.decided() {
            self.seats = Seats::recorded(self.limits.read(decision));
            return self.go_on(cx);
        }
        if self.limits.steps > 0 && self.regime != Regime::OneDevice {
            self.wanted = Some(u64::from(self.limits.steps) * cohort.len() as u64);
        }
        cx.run(Job::Seat { cohort, observed: self.observed.clone() });
    }

    fn done(&mut self, done: Done, cx: &mut Cx<Self>) {
        match done {
            Done::Seated { seats } => {
                self.seats = seats;
                self.go_on(cx);
            }
            Done::Dealt { node, lower, upper } => {
                let Some(tuning) = self.tuning.get_mut(&node) else { return };
                tuning.theta = upper;
                let terms = tuning.terms;
                let bytes = lower.len() as u64;
                cx.send(node, Order::Begin { round: self.round, terms, theta: lower });
                self.told(node, Sent { terms, bytes, in_the_middle: false }, cx.now());
            }
            Done::Sliced { node, bytes } => {
                self.busy = None;
                if let Some(tuning) = self.tuning.get_mut(&node) {
                    (tuning.slices, tuning.holds) = (tuning.slices + 1, bytes);
                    self.queue.push(node);
                }
                self.serve_next(cx);
            }
            Done::Served { node, outcome } => self.served(node, outcome, cx),
            Done::Inspected { node, joined } => self.inspected(node, joined, cx),
            Done::Aggregated { theta, lost } => {
                self.theta = theta;
                let figure = |(rank, share)| (format!("energy_lost_at_rank_{rank}"), share);
                self.summary.figures.extend(lost.into_iter().map(figure));
                self.evaluate_or_close(cx);
            }
            Done::Evaluated { eval, trained: false } => self.summary.before = Some(eval),
            Done::Evaluated { eval, trained: true } => {
                self.summary.eval = Some(eval);
                cx.close(std::mem::take(&mut self.summary));
            }
        }
    }

    /// Let those begin whose time it is: everybody, or the next one when nobody is under way.
    fn begin_more(&mut self, cx: &mut Cx<Self>) {
        let one_by_one = self.regime == Regime::OneDevice;
        while !(one_by_one && !(self.tuning.is_empty() && self.looking.is_empty())) {
            let Some(node) = self.ahead.pop_first() else { return };
            match self.seats.of(node) {
                Ok(&Seat { mut terms, .. }) => {
                    if self.wanted.is_some() {
                        terms.steps = Steps::Open;
                    }
                    self.tuning.insert(node, Tuning::fresh(terms));
                    cx.run(Job::Deal { node, terms, theta: self.theta.clone() });
                }
                Err(reason) => cx.refuse(node, reason),
            }
        }
    }

    fn told(&mut self, node: Node, sent: Sent, now: Time) {
        if self.choose == Choose::EachRound {
            self.observed.entry(node).or_default().told(now, sent);
        }
    }

    fn arrived(&mut self, node: Node, batch: Activations, cx: &mut Cx<Self>) {
        let Some(tuning) = self.tuning.get_mut(&node) else { return };
        if self.wanted == Some(0) && tuning.step == tuning.steps {
            return; // It did not know yet that it is enough.
        }
        let objection = tuning.objection(&batch);
        let objection = objection.or_else(|| self.limits.objection(&batch, &tuning.terms, self.labels));
        if let Some(reason) = objection {
            cx.refuse(node, reason);
            return self.drop_out(node, cx);
        }
        if let Some(observed) = self.observed.get_mut(&node) {
            let rows = u64::from(batch.starts.last().copied().unwrap_or(0));
            let came = Came { bytes: batch.hidden.len() as u64, rows, own: batch.seconds };
            observed.answered(cx.now(), came);
        }
        tuning.steps = batch.steps;
        tuning.waiting = Some(batch);
        tuning.slices = 1;
        self.queue.push(node);
        self.serve_next(cx);
    }

    fn judged(&mut self, node: Node, judged: Judged, cx: &mut Cx<Self>) {
        let Some(tuning) = self.tuning.get_mut(&node) else { return };
        if let Some(reason) = tuning.objection_to_judgement(&judged, self.limits.width) {
            cx.refuse(node, reason);
            return self.drop_out(node, cx);
        }
        (tuning.judged, tuning.asked, tuning.slices) = (Some(judged), false, 1);
        self.queue.push(node);
        self.serve_next(cx);
    }

    /// When the server is free, take the next of those that have arrived.
    fn serve_next(&mut self, cx: &mut Cx<Self>) {
        if self.busy.is_some() || self.queue.is_empty() {
            return;
        }
        let sorted = self.regime == Regime::OneModel && self.limits.order != Policy::Fifo;
        let rank = |node: &Node| self.seats.of(*node).map_or(u32::MAX, |seat| seat.rank);
        // Where passes are open, whoever has done the fewest steps first: a busy server would serve the others only.
        let open = |node: &Node| self.tuning.get(node).filter(|_| self.wanted.is_some());
        let turn = |node: &Node| (open(node).map_or(0, |tuning| tuning.step), rank(node));
        let place = (0..self.queue.len()).filter(|_| sorted).min_by_key(|&place| turn(&self.queue[place]));
        let node = self.queue.remove(place.unwrap_or(0));
        let shared = self.regime == Regime::ModelPerDevice;
        let of = if shared { SLICES } else { 1 };
        let others = self.tuning.iter().filter(|(other, _)| **other != node);
        let beside = others.map(|(_, tuning)| tuning.holds).sum();
        let Some(tuning) = self.tuning.get_mut(&node) else { return };
        let Some(activations) = tuning.waiting.clone() else { return };
        let (terms, stage) = (tuning.terms, tuning.stage(self.labels));
        self.busy = Some(node);
        if tuning.slices < of {
            return cx.run(Job::Slice { node, terms, stage, starts: activations.starts });
        }
        tuning.holds = 0;
        let (theta, optimizer) = (tuning.theta.clone(), tuning.optimizer.take());
        let round = self.round;
        cx.run(Job::Serve(Serve { node, round, terms, stage, theta, optimizer, activations, of, beside }));
    }

    fn served(&mut self, node: Node, outcome: Result<Box<Served>, Fault>, cx: &mut Cx<Self>) {
        self.busy = None;
        match (self.tuning.get_mut(&node), outcome) {
            (Some(tuning), Ok(served)) => {
                let Served { theta, optimizer, loss, count, down, errors } = *served;
                (tuning.theta, tuning.optimizer) = (theta, optimizer);
                self.errors.add(errors);
                if self.labels == Labels::Device && tuning.judged.take().is_none() {
                    tuning.asked = true;
                    cx.send(node, Order::Hidden { step: tuning.step, hidden: down });
                } else {
                    tuning.waiting = None;
                    tuning.loss += loss;
                    tuning.seen += count;
                    let terms = tuning.terms;
                    let in_the_middle = terms.half != Half::Frozen;
                    let sent = Sent { terms, bytes: down.len() as u64, in_the_middle };
                    cx.send(node, Order::Gradient { step: tuning.step, gradient: down });
                    (tuning.step, tuning.slices) = (tuning.step + 1, 0);
                    self.told(node, sent, cx.now());
                    self.count_step(cx);
                }
            }
            (Some(_), Err(Fault(reason))) => {
                cx.refuse(node, reason);
                self.drop_out(node, cx);
            }
            (None, _) => {}
        }
        self.serve_next(cx);
    }

    /// One step more is done. With the last that was wanted every pass ends after the step it is in; who has
    /// done none by then gives nothing to this round.
    fn count_step(&mut self, cx: &mut Cx<Self>) {
        let Some(wanted) = self.wanted.filter(|wanted| *wanted > 0) else { return };
        self.wanted = Some(wanted - 1);
        if wanted > 1 {
            return;
        }
        let (busy, mut idle) = (self.busy, Vec::new());
        for (&node, tuning) in &mut self.tuning {
            tuning.steps = tuning.step + u32::from(tuning.is_in_a_step(busy == Some(node)));
            if tuning.steps == 0 {
                idle.push(node);
                continue;
            }
            if tuning.steps == tuning.step {
                tuning.waiting = None;
                self.queue.retain(|queued| *queued != node);
            }
            cx.send(node, Order::Enough { steps: tuning.steps });
        }
        for node in idle {
            cx.refuse(node, "the round had its steps before this device had done one");
            self.drop_out(node, cx);
        }
    }

    fn tuned(&mut self, node: Node, lower: Blob, examples: u64, cx: &mut Cx<Self>) {
        let Some(tuning) = self.tuning.remove(&node) else { return };
        let objection = if tuning.step != tuning.steps || tuning.waiting.is_some() {
            Some("it ends its pass in the middle".to_owned())
        } else {
            objection_to_examples(examples)
        };
        if let Some(reason) = objection {
            cx.refuse(node, reason);
            return self.go_on(cx);
        }
        let Tuning { terms, theta: upper, steps, .. } = tuning;
        self.agreed.insert(node, Terms { steps: terms.steps.came_to(steps), ..terms });
        let loss = tuning.loss / tuning.seen.max(1) as f64;
        self.looking.insert(node, Tuned { theta: Blob::default(), examples, loss, rank: terms.rank });
        cx.run(Job::Inspect { node, terms, lower, upper });
    }

    fn inspected(&mut self, node: Node, joined: Result<Blob, Fault>, cx: &mut Cx<Self>) {
        let Some(tuned) = self.looking.remove(&node) else { return };
        match joined {
            Err(Fault(reason)) => cx.refuse(node, reason),
            Ok(theta) => {
                if self.regime == Regime::OneDevice {
                    self.theta = theta.clone();
                }
                self.counted.insert(node, Tuned { theta, ..tuned });
                cx.finished(node);
            }
        }
        self.go_on(cx);
    }

    fn drop_out(&mut self, node: Node, cx: &mut Cx<Self>) {
        self.ahead.remove(&node);
        self.tuning.remove(&node);
        self.looking.remove(&node);
        self.queue.retain(|queued| *queued != node);
        self.go_on(cx);
    }

    fn go_on(&mut self, cx: &mut Cx<Self>) {
        self.begin_more(cx);
        self.end_when_complete(cx);
    }

    fn end_when_complete(&mut self, cx: &mut Cx<Self>) {
        if !(self.ahead.is_empty() && self.tuning.is_empty() && self.looking.is_empty()) {
            return;
        }
        if self.counted.is_empty() {
            return cx.close(std::mem::take(&mut self.summary));
        }
        let tuned: Vec<Tuned> = std::mem::take(&mut self.counted).into_values().collect();
        let examples = tuned.iter().map(|one| one.examples).sum::<u64>();
        let loss = tuned.iter().map(|one| one.loss * one.examples as f64).sum::<f64>();
        self.summary.loss = loss / examples.max(1) as f64;
        self.summary.examples = examples;
        self.record_terms(cx);
        let messages = self.errors.messages.max(1) as f64;
        let figures = [("activation_error", self.errors.up), ("gradient_error", self.errors.down)];
        self.summary.figures.extend(figures.map(|(name, sum)| (name.to_owned(), sum / messages)));
        match self.regime {
            Regime::OneDevice => self.evaluate_or_close(cx),
            Regime::OneModel | Regime::ModelPerDevice => {
                cx.run(Job::Aggregate { theta: self.theta.clone(), tuned });
            }
        }
    }

    /// What was agreed on: on average in the summary, and in full where it depends on measurements.
    fn record_terms(&mut self, cx: &mut Cx<Self>) {
        if self.choose == Choose::EachRound {
            cx.decide(serde_json::to_string(&self.agreed).expect("terms are plain data"));
        }
        let mean = |get: &dyn Fn(&Terms) -> Option<u32>| {
            let given: Vec<f64> = self.agreed.values().filter_map(get).map(f64::from).collect();
            (!given.is_empty()).then(|| given.iter().sum::<f64>() / given.len() as f64)
        };
        let figures = [
            ("cut_mean", mean(&|terms| Some(terms.cut))),
            ("rank_mean", mean(&|terms| terms.rank)),
            ("steps_mean", mean(&|terms| terms.steps.exact())),
        ];
        let given = figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        self.summary.figures.extend(given);
    }

    fn evaluate_or_close(&mut self, cx: &mut Cx<Self>) {
        if self.due.at(self.round) {
            cx.run(Job::Evaluate { theta: self.theta.clone(), trained: true });
        } else {
            cx.close(std::mem::take(&mut self.summary));
        }
    }
}

impl Tuning {
    fn fresh(terms: Terms) -> Tuning {
        Tuning {
            terms,
            theta: Blob::default(),
            optimizer: None,
            step: 0,
            steps: 0,
            waiting: None,
            judged: None,
            asked: false,
            slices: 0,
            holds: 0,
            loss: 0.0,
            seen: 0,
        }
    }

    /// What the server is to do with the batch that waits.
    fn stage(&self, labels: Labels) -> Stage {
        match (labels, &self.judged) {
            (Labels::Server, _) => Stage::Whole,
            (Labels::Device, None) => Stage::Lift,
            (Labels::Device, Some(Judged { gradient, loss, count, error, .. })) => {
                Stage::Lower { gradient: gradient.clone(), loss: *loss, count: *count, error: *error }
            }
        }
    }

    /// Whether the device's part of a step depends on what the server has begun to do for it.
    fn is_in_a_step(&self, served: bool) -> bool {
        served || self.slices > 1 || self.asked || self.judged.is_some()
    }

    /// What is wrong with the batch's place in the pass.
    fn objection(&self, batch: &Activations) -> Option<String> {
        if self.waiting.is_some() || batch.step != self.step {
            return Some(format!("activations of step {} in step {}", batch.step, self.step));
        }
        let other = self.step > 0 && batch.steps != self.steps;
        (other || batch.step >= batch.steps).then(|| format!("step {} of {}", batch.step, batch.steps))
    }

    /// What is wrong with what the device said about the last hidden states.
    fn objection_to_judgement(&self, judged: &Judged, width: usize) -> Option<String> {
        let Some(batch) = self.waiting.as_ref().filter(|_| self.asked && judged.step == self.step) else {
            return Some(format!("a judgement of step {} in step {}", judged.step, self.step));
        };
        let rows = batch.starts.last().map_or(0, |&end| end as usize);
        let (found, expected) = (judged.gradient.len(), self.terms.traffic.bytes(rows, width));
        if found != expected {
            return Some(format!("{found} bytes of gradient, {expected} expected"));
        }
        let sound = judged.loss.is_finite() && judged.error.is_finite() && judged.count <= rows as u64;
        (!sound).then(|| format!("a loss of {} over {} predictions", judged.loss, judged.count))
    }
}

impl Limits {
    /// The terms that a recorded run decided on; none where they cannot be read, or cannot be.
    fn read(&self, decision: &str) -> BTreeMap<Node, Terms> {
        let mut terms: BTreeMap<Node, Terms> = serde_json::from_str(decision).unwrap_or_default();
        terms.retain(|_, terms| (1..self.blocks).contains(&terms.cut()));
        terms
    }

    /// What is wrong with the batch itself: nothing is allocated by it before this was asked.
    fn objection(&self, batch: &Activations, terms: &Terms, labels: Labels) -> Option<String> {
        let starts = &batch.starts;
        let sequences = starts.len().saturating_sub(1);
        let lengths = || starts.windows(2).map(|pair| pair[1].checked_sub(pair[0]));
        let sound = |length: Option<u32>| length.is_some_and(|n| n > 0 && n as usize <= self.positions);
        if starts.first() != Some(&0) || sequences == 0 || sequences > self.batch || !lengths().all(sound) {
            return Some(format!("a batch that is none: {sequences} sequences"));
        }
        let rows = starts[sequences] as usize;
        let answers = match &batch.answers {
            Answers::Classes(classes) => classes.len() == sequences,
            Answers::Tokens { ids, from } => ids.len() == rows && from.len() == sequences,
            Answers::Kept => true,
        };
        let answers = answers && (labels == Labels::Device) == matches!(batch.answers, Answers::Kept);
        if !answers {
            return Some("its labels do not fit its batch".into());
        }
        if !(batch.error.is_finite() && batch.seconds.is_finite() && batch.seconds >= 0.0) {
            return Some(format!("an error of {} after {} seconds", batch.error, batch.seconds));
        }
        let expected = terms.traffic.bytes(rows, self.width);
        let found = batch.hidden.len();
        (found != expected).then(|| format!("{found} bytes of activations, {expected} expected"))
    }
}

impl Errors {
    fn add(&mut self, (up, down): (f64, f64)) {
        self.up += up;
        self.down += down;
        self.messages += 1;
    }
}
