//! The server's half.

use super::seats::{Seat, Seats};
use super::step::{price_of_serving, serve};
use super::{Activations, Answers, Options, Order, Regime, Report, Traffic};
use crate::Lab;
use crate::evaluate::{Due, evaluate, price_of_evaluation};
use crate::lab::objection_to_examples;
use crate::schedule::Policy;
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use federation::{Cx, Eval, Event, Fault, Side, Summary};
use model::Model;
use model::optim::Optimizer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How often a server that serves several devices at once turns from one to the next within a step.
/// The drivers give a node one processor, so its speed is shared by taking turns.
const SLICES: u32 = 8;

#[derive(Serialize, Deserialize)]
pub struct Server {
    regime: Regime,
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
    /// Devices whose adapters are being looked at.
    looking: BTreeMap<Node, Tuned>,
    /// Adapters that count, in node order.
    counted: BTreeMap<Node, Tuned>,
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
    traffic: Traffic,
    order: Policy,
}

/// The upper half of one device's model.
#[derive(Serialize, Deserialize)]
struct Tuning {
    theta: Blob,
    /// None before the first step.
    optimizer: Option<Optimizer>,
    step: u32,
    steps: u32,
    waiting: Option<Activations>,
    slices: u32,
    loss: f64,
    seen: u64,
}

/// A device's adapters at full depth.
#[derive(Clone, Serialize, Deserialize)]
pub struct Tuned {
    theta: Blob,
    examples: u64,
    loss: f64,
}

/// Relative errors of the number format, summed over messages.
#[derive(Default, Serialize, Deserialize)]
struct Errors {
    up: f64,
    down: f64,
    messages: u64,
}

/// The upper blocks of one device for one batch.
#[derive(Clone, Serialize, Deserialize)]
pub struct Serve {
    pub node: Node,
    pub round: u32,
    cut: u32,
    /// What is trained above the cut.
    pub theta: Blob,
    pub optimizer: Option<Optimizer>,
    pub activations: Activations,
    /// The share of the step's time this job stands for.
    of: u32,
}

impl Serve {
    pub fn cut(&self) -> usize {
        self.cut as usize
    }
}

/// What serving leaves behind.
#[derive(Serialize, Deserialize)]
pub struct Served {
    pub theta: Blob,
    pub optimizer: Optimizer,
    /// Sum over `count` predictions.
    pub loss: f64,
    pub count: u64,
    /// Empty for a device whose blocks are frozen.
    pub gradient: Blob,
    /// What the number format cost, upwards and downwards.
    pub errors: (f64, f64),
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    Serve(Serve),
    /// A slice of a step's time, before the job itself.
    Slice {
        node: Node,
        cut: u32,
        starts: Vec<u32>,
    },
    Inspect {
        node: Node,
        tuned: Tuned,
    },
    Aggregate {
        tuned: Vec<Tuned>,
    },
    /// `trained` tells the model of a round's end from the one before the first round.
    Evaluate {
        theta: Blob,
        trained: bool,
    },
}

#[derive(Serialize, Deserialize)]
pub enum Done {
    Served { node: Node, outcome: Result<Box<Served>, Fault> },
    Sliced { node: Node },
    Inspected { node: Node, objection: Option<String> },
    Aggregated { theta: Blob },
    Evaluated { eval: Eval, trained: bool },
}

/// What the server's jobs may touch.
pub struct ServerBench {
    pub lab: Arc<Lab>,
    pub options: Arc<Options>,
    /// A model for each device, where the method has one ([`Regime::ModelPerDevice`]).
    copies: BTreeMap<Node, Model>,
}

impl ServerBench {
    pub fn new(
        lab: Arc<Lab>,
        options: Arc<Options>,
        regime: Regime,
        seats: &Seats,
    ) -> Result<ServerBench, model::Error> {
        let mut copies = BTreeMap::new();
        if regime == Regime::ModelPerDevice {
            for (node, cut) in seats.cuts() {
                copies.insert(node, lab.work.model.upper_copy(cut)?);
            }
        }
        Ok(ServerBench { lab, options, copies })
    }

    /// The blocks that serve this device.
    pub fn model(&self, node: Node) -> &Model {
        self.copies.get(&node).unwrap_or(&self.lab.work.model)
    }
}

impl Side for Server {
    type In = Report;
    type Out = Order;
    type Job = Job;
    type Done = Done;
    type Bench = ServerBench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { round, cohort } => self.open(round, cohort.iter().map(|m| m.node).collect(), cx),
            Event::Message { from, body: Report::Activations(batch) } => self.arrived(from, batch, cx),
            Event::Message { from, body: Report::Tuned { theta, examples } } => {
                self.tuned(from, &theta, examples, cx);
            }
            Event::Lost(node) => self.drop_out(node, cx),
            Event::Done(Done::Sliced { node }) => {
                self.busy = None;
                if let Some(tuning) = self.tuning.get_mut(&node) {
                    tuning.slices += 1;
                    self.queue.push(node);
                }
                self.serve_next(cx);
            }
            Event::Done(Done::Served { node, outcome }) => self.served(node, outcome, cx),
            Event::Done(Done::Inspected { node, objection }) => self.inspected(node, objection, cx),
            Event::Done(Done::Aggregated { theta }) => {
                self.theta = theta;
                self.evaluate_or_close(cx);
            }
            Event::Done(Done::Evaluated { eval, trained: false }) => self.summary.before = Some(eval),
            Event::Done(Done::Evaluated { eval, trained: true }) => {
                self.summary.eval = Some(eval);
                cx.close(std::mem::take(&mut self.summary));
            }
        }
    }

    fn price(job: &Job, bench: &ServerBench) -> Cost {
        let (lab, options) = (&*bench.lab, &*bench.options);
        let parameters = lab.parameters() as u64;
        match job {
            Job::Serve(job) => {
                let whole = price_of_serving(lab, options, job.cut(), &job.activations.starts);
                Cost { flops: whole.flops / u64::from(job.of), ..whole }
            }
            Job::Slice { cut, starts, .. } => {
                let whole = price_of_serving(lab, options, *cut as usize, starts);
                Cost { flops: whole.flops / u64::from(SLICES), bytes: 0 }
            }
            Job::Inspect { .. } => Cost { flops: parameters, bytes: 4 * parameters },
            Job::Aggregate { tuned } => {
                Cost { flops: 2 * parameters * tuned.len() as u64, bytes: 16 * parameters }
            }
            Job::Evaluate { .. } => price_of_evaluation(lab),
        }
    }

    fn label(job: &Job) -> &'static str {
        match job {
            Job::Serve(_) | Job::Slice { .. } => "serve",
            Job::Inspect { .. } => "inspect",
            Job::Aggregate { .. } => "aggregate",
            Job::Evaluate { .. } => "evaluate",
        }
    }

    fn run(job: Job, bench: &ServerBench, meter: &Meter) -> Result<Done, Fault> {
        match job {
            Job::Serve(job) => {
                let outcome = serve(bench, &job, meter).map(Box::new);
                Ok(Done::Served { node: job.node, outcome })
            }
            Job::Slice { node, .. } => Ok(Done::Sliced { node }),
            Job::Inspect { node, tuned } => {
                Ok(Done::Inspected { node, objection: bench.lab.objection(&tuned.theta, meter) })
            }
            Job::Aggregate { tuned } => aggregate(&bench.lab, &tuned, meter),
            Job::Evaluate { theta, trained } => {
                evaluate(&bench.lab, &theta, meter).map(|eval| Done::Evaluated { eval, trained })
            }
        }
    }
}

impl Server {
    pub fn new(lab: &Lab, options: &Options, regime: Regime, seats: Seats, rounds: u32) -> Server {
        let (work, recipe) = (&lab.work, &lab.work.recipe);
        Server {
            regime,
            limits: Limits {
                batch: recipe.per_device_train_batch_size.get(),
                positions: work.model.spec.max_positions,
                width: work.model.spec.width,
                traffic: options.traffic,
                order: options.order,
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
            summary: Summary::default(),
            errors: Errors::default(),
            due: Due { every: recipe.eval_every, last: rounds },
        }
    }

    /// The parameters that everybody's next round begins with.
    pub fn trained(self) -> Blob {
        self.theta
    }

    fn open(&mut self, round: u32, cohort: BTreeSet<Node>, cx: &mut Cx<Self>) {
        self.round = round;
        self.ahead = cohort;
        self.tuning.clear();
        self.queue.clear();
        self.busy = None;
        self.looking.clear();
        self.counted.clear();
        self.errors = Errors::default();
        if round == 1 {
            cx.run(Job::Evaluate { theta: self.theta.clone(), trained: false });
        }
        self.begin_more(cx);
        self.end_when_complete(cx);
    }

    /// Let those begin whose time it is: everybody, or the next one when nobody is under way.
    fn begin_more(&mut self, cx: &mut Cx<Self>) {
        let one_by_one = self.regime == Regime::OneDevice;
        while !(one_by_one && !(self.tuning.is_empty() && self.looking.is_empty())) {
            let Some(node) = self.ahead.pop_first() else { return };
            match self.seats.of(node) {
                Ok(Seat { cut, at, .. }) => {
                    let (lower, upper) = halves(&self.theta, *at);
                    self.tuning.insert(node, Tuning::fresh(upper));
                    cx.send(node, Order::Begin { round: self.round, cut: *cut, theta: lower });
                }
                Err(reason) => cx.refuse(node, reason),
            }
        }
    }

    fn arrived(&mut self, node: Node, batch: Activations, cx: &mut Cx<Self>) {
        let Some(tuning) = self.tuning.get_mut(&node) else { return };
        let objection = tuning.objection(&batch).or_else(|| self.limits.objection(&batch));
        if let Some(reason) = objection {
            cx.refuse(node, reason);
            return self.drop_out(node, cx);
        }
        tuning.steps = batch.steps;
        tuning.waiting = Some(batch);
        tuning.slices = 1;
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
        let place = (0..self.queue.len()).filter(|_| sorted).min_by_key(|&place| rank(&self.queue[place]));
        let node = self.queue.remove(place.unwrap_or(0));
        let Some(tuning) = self.tuning.get_mut(&node) else { return };
        let Some(batch) = &tuning.waiting else { return };
        let cut = self.seats.of(node).map_or(0, |seat| seat.cut);
        let slices = if self.regime == Regime::ModelPerDevice { SLICES } else { 1 };
        self.busy = Some(node);
        if tuning.slices < slices {
            return cx.run(Job::Slice { node, cut, starts: batch.starts.clone() });
        }
        let (theta, optimizer) = (tuning.theta.clone(), tuning.optimizer.take());
        let (round, activations) = (self.round, batch.clone());
        cx.run(Job::Serve(Serve { node, round, cut, theta, optimizer, activations, of: slices }));
    }

    fn served(&mut self, node: Node, outcome: Result<Box<Served>, Fault>, cx: &mut Cx<Self>) {
        self.busy = None;
        match (self.tuning.get_mut(&node), outcome) {
            (Some(tuning), Ok(served)) => {
                let Served { theta, optimizer, loss, count, gradient, errors } = *served;
                (tuning.theta, tuning.optimizer, tuning.waiting) = (theta, Some(optimizer), None);
                tuning.loss += loss;
                tuning.seen += count;
                cx.send(node, Order::Gradient { step: tuning.step, gradient });
                tuning.step += 1;
                self.errors.up += errors.0;
                self.errors.down += errors.1;
                self.errors.messages += 1;
            }
            (Some(_), Err(Fault(reason))) => {
                cx.refuse(node, reason);
                self.drop_out(node, cx);
            }
            (None, _) => {}
        }
        self.serve_next(cx);
    }

    fn tuned(&mut self, node: Node, lower: &Blob, examples: u64, cx: &mut Cx<Self>) {
        let Some(tuning) = self.tuning.remove(&node) else { return };
        let at = self.seats.of(node).map_or(0, |seat| seat.at);
        let objection = if tuning.step != tuning.steps || tuning.waiting.is_some() {
            Some("it ends its pass in the middle".to_owned())
        } else if let Some(reason) = objection_to_examples(examples) {
            Some(reason)
        } else if lower.len() as u64 != 4 * at {
            Some(format!("{} bytes of adapters below its cut, {} expected", lower.len(), 4 * at))
        } else {
            None
        };
        if let Some(reason) = objection {
            cx.refuse(node, reason);
            return self.go_on(cx);
        }
        let loss = tuning.loss / tuning.seen.max(1) as f64;
        let tuned = Tuned { theta: joined(lower, &tuning.theta), examples, loss };
        self.looking.insert(node, tuned.clone());
        cx.run(Job::Inspect { node, tuned });
    }

    fn inspected(&mut self, node: Node, objection: Option<String>, cx: &mut Cx<Self>) {
        let Some(tuned) = self.looking.remove(&node) else { return };
        match objection {
            Some(reason) => cx.refuse(node, reason),
            None => {
                if self.regime == Regime::OneDevice {
                    self.theta = tuned.theta.clone();
                }
                self.counted.insert(node, tuned);
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
        let messages = self.errors.messages.max(1) as f64;
        let figures = [("activation_error", self.errors.up), ("gradient_error", self.errors.down)];
        self.summary.figures.extend(figures.map(|(name, sum)| (name.to_owned(), sum / messages)));
        match self.regime {
            Regime::OneDevice => self.evaluate_or_close(cx),
            Regime::OneModel | Regime::ModelPerDevice => cx.run(Job::Aggregate { tuned }),
        }
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
    fn fresh(theta: Blob) -> Tuning {
        Tuning { theta, optimizer: None, step: 0, steps: 0, waiting: None, slices: 0, loss: 0.0, seen: 0 }
    }

    /// What is wrong with the batch's place in the pass.
    fn objection(&self, batch: &Activations) -> Option<String> {
        if self.waiting.is_some() || batch.step != self.step {
            return Some(format!("activations of step {} in step {}", batch.step, self.step));
        }
        let other = self.step > 0 && batch.steps != self.steps;
        (other || batch.step >= batch.steps).then(|| format!("step {} of {}", batch.step, batch.steps))
    }
}

impl Limits {
    /// What is wrong with the batch itself: nothing is allocated by it before this was asked.
    fn objection(&self, batch: &Activations) -> Option<String> {
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
        };
        if !answers {
            return Some("its labels do not fit its batch".into());
        }
        let expected = self.traffic.bytes(rows, self.width);
        let found = batch.hidden.len();
        (found != expected).then(|| format!("{found} bytes of activations, {expected} expected"))
    }
}

/// The parameters below and above a cut.
fn halves(theta: &Blob, at: u64) -> (Blob, Blob) {
    let at = (4 * at as usize).min(theta.len());
    (Blob(theta.0.slice(..at)), Blob(theta.0.slice(at..)))
}

fn joined(lower: &Blob, upper: &Blob) -> Blob {
    Blob([&lower.0[..], &upper.0[..]].concat().into())
}

/// The average at full depth, weighted by examples, in node order and f64.
fn aggregate(lab: &Lab, tuned: &[Tuned], meter: &Meter) -> Result<Done, Fault> {
    let parameters = lab.parameters();
    let _held = hold(meter, 16 * parameters as u64)?;
    let total = tuned.iter().map(|one| one.examples).sum::<u64>() as f64;
    let mut sums = vec![0f64; parameters];
    for one in tuned {
        let weight = one.examples as f64 / total;
        let theta = lab.parameters_from(&one.theta)?;
        sums.iter_mut().zip(&theta).for_each(|(sum, value)| *sum += weight * f64::from(*value));
    }
    let theta: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
    Ok(Done::Aggregated { theta: Blob::from_f32(&theta) })
}
