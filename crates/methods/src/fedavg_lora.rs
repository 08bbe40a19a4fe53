//! `fedavg-lora`: every device trains the adapters by full backward passes, the server averages them.
//!
//! ```text
//! device i                                server
//!             <--- Begin{round, theta} --  opens the round to the cohort
//!  [train]    --- Update{theta_i} ------>  [inspect] counts it, or refuses it by name
//!                                          [aggregate] the counted, in node order
//!                                          [evaluate] when due; closes
//! ```
//!
//! Sources: FedAvg, McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, weighted by examples; FedAdam,
//! Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2.

use crate::evaluate::{Due, evaluate, price_of_evaluation};
use crate::lab::objection_to_examples;
use crate::train::{Learner, Pass, hold, price_of_pass};
use crate::{Lab, Method, Quote, Setup, SetupError};
use base::{Blob, Cost, Meter, Node, SERVER};
use federation::{Cx, Eval, Event, Fault, Side, Summary};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    pub server_optimizer: ServerOptimizer,
    /// 1 makes FedAvg the plain average.
    pub server_learning_rate: f64,
    pub beta_1: f64,
    pub beta_2: f64,
    /// FedAdam's degree of adaptivity.
    pub tau: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerOptimizer {
    Fedavg,
    Fedadam,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            server_optimizer: ServerOptimizer::Fedavg,
            server_learning_rate: 1.0,
            beta_1: 0.9,
            beta_2: 0.99,
            tau: 1e-3,
        }
    }
}

/// Server to device.
#[derive(Serialize, Deserialize)]
pub struct Begin {
    round: u32,
    theta: Blob,
}

/// Device to server.
#[derive(Clone, Serialize, Deserialize)]
pub struct Update {
    theta: Blob,
    examples: u64,
    loss: f64,
}

// ---------------------------------------------------------------------------------- the device's half

#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Train {
    node: Node,
    round: u32,
    theta: Blob,
}

impl Side for Device {
    type In = Begin;
    type Out = Update;
    type Job = Train;
    type Done = Update;
    type Bench = Lab;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Message { body: Begin { round, theta }, .. } => {
                cx.run(Train { node: self.node, round, theta });
            }
            Event::Done(update) => cx.send(SERVER, update),
            Event::Open { .. } | Event::Lost(_) => {}
        }
    }

    fn price(job: &Train, lab: &Lab) -> Cost {
        price_of_pass(lab, lab.shard(job.node), &pass(job))
    }

    fn label(_: &Train) -> &'static str {
        "train"
    }

    fn run(job: Train, lab: &Lab, meter: &Meter) -> Result<Update, Fault> {
        let learner = Learner::fresh(lab, &job.theta, meter)?;
        let trained = learner.train(lab, lab.shard(job.node), &pass(&job), meter)?;
        Ok(Update {
            theta: Blob::from_f32(&trained.learner.theta),
            examples: trained.examples,
            loss: trained.loss,
        })
    }
}

fn pass(job: &Train) -> Pass {
    Pass { round: job.round, node: job.node, threads: 1 }
}

// ---------------------------------------------------------------------------------- the server's half

#[derive(Serialize, Deserialize)]
pub struct Server {
    theta: Blob,
    /// FedAdam's two moments; empty until the first step and always with FedAvg.
    moments: Option<(Blob, Blob)>,
    round: u32,
    /// Devices that have not answered.
    waiting: BTreeSet<Node>,
    /// Answers that are being looked at.
    looking: BTreeMap<Node, Update>,
    /// Answers that count, in node order.
    counted: BTreeMap<Node, Update>,
    summary: Summary,
    due: Due,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum ServerJob {
    Inspect {
        node: Node,
        update: Update,
    },
    Aggregate {
        theta: Blob,
        moments: Option<(Blob, Blob)>,
        updates: Vec<Update>,
    },
    /// `trained` tells the model of a round's end from the one before the first round.
    Evaluate {
        theta: Blob,
        trained: bool,
    },
}

#[derive(Serialize, Deserialize)]
pub enum ServerDone {
    Inspected { node: Node, objection: Option<String> },
    Aggregated { theta: Blob, moments: Option<(Blob, Blob)> },
    Evaluated { eval: Eval, trained: bool },
}

/// What the server's jobs may touch.
pub struct ServerBench {
    lab: Arc<Lab>,
    options: Options,
}

impl Side for Server {
    type In = Update;
    type Out = Begin;
    type Job = ServerJob;
    type Done = ServerDone;
    type Bench = ServerBench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { round, cohort } => self.open(round, cohort.iter().map(|m| m.node).collect(), cx),
            Event::Message { from, body } => {
                if self.waiting.remove(&from) {
                    self.looking.insert(from, body.clone());
                    cx.run(ServerJob::Inspect { node: from, update: body });
                }
            }
            Event::Lost(node) => {
                let gone = self.waiting.remove(&node) | self.looking.remove(&node).is_some();
                if gone {
                    self.aggregate_when_complete(cx);
                }
            }
            Event::Done(ServerDone::Inspected { node, objection }) => self.inspected(node, objection, cx),
            Event::Done(ServerDone::Aggregated { theta, moments }) => self.aggregated(theta, moments, cx),
            Event::Done(ServerDone::Evaluated { eval, trained: false }) => self.summary.before = Some(eval),
            Event::Done(ServerDone::Evaluated { eval, trained: true }) => {
                self.summary.eval = Some(eval);
                cx.close(std::mem::take(&mut self.summary));
            }
        }
    }

    fn price(job: &ServerJob, bench: &ServerBench) -> Cost {
        let parameters = bench.lab.parameters() as u64;
        match job {
            ServerJob::Inspect { .. } => Cost { flops: parameters, bytes: 4 * parameters },
            ServerJob::Aggregate { updates, .. } => {
                Cost { flops: 2 * parameters * (updates.len() as u64 + 4), bytes: 28 * parameters }
            }
            ServerJob::Evaluate { .. } => price_of_evaluation(&bench.lab),
        }
    }

    fn label(job: &ServerJob) -> &'static str {
        match job {
            ServerJob::Inspect { .. } => "inspect",
            ServerJob::Aggregate { .. } => "aggregate",
            ServerJob::Evaluate { .. } => "evaluate",
        }
    }

    fn run(job: ServerJob, bench: &ServerBench, meter: &Meter) -> Result<ServerDone, Fault> {
        match job {
            ServerJob::Inspect { node, update } => {
                Ok(ServerDone::Inspected { node, objection: inspect(&bench.lab, &update, meter) })
            }
            ServerJob::Aggregate { theta, moments, updates } => {
                aggregate(bench, &theta, moments.as_ref(), &updates, meter)
            }
            ServerJob::Evaluate { theta, trained } => {
                evaluate(&bench.lab, &theta, meter).map(|eval| ServerDone::Evaluated { eval, trained })
            }
        }
    }
}

impl Server {
    fn open(&mut self, round: u32, cohort: BTreeSet<Node>, cx: &mut Cx<Self>) {
        self.round = round;
        self.waiting = cohort;
        self.looking.clear();
        self.counted.clear();
        for &node in &self.waiting {
            cx.send(node, Begin { round, theta: self.theta.clone() });
        }
        if round == 1 {
            cx.run(ServerJob::Evaluate { theta: self.theta.clone(), trained: false });
        }
        self.aggregate_when_complete(cx);
    }

    fn inspected(&mut self, node: Node, objection: Option<String>, cx: &mut Cx<Self>) {
        let Some(update) = self.looking.remove(&node) else { return };
        match objection {
            Some(reason) => cx.refuse(node, reason),
            None => {
                self.counted.insert(node, update);
                cx.finished(node);
            }
        }
        self.aggregate_when_complete(cx);
    }

    fn aggregate_when_complete(&mut self, cx: &mut Cx<Self>) {
        if !self.waiting.is_empty() || !self.looking.is_empty() {
            return;
        }
        if self.counted.is_empty() {
            return cx.close(std::mem::take(&mut self.summary));
        }
        let updates: Vec<Update> = std::mem::take(&mut self.counted).into_values().collect();
        let examples = updates.iter().map(|update| update.examples).sum::<u64>();
        let loss = updates.iter().map(|update| update.loss * update.examples as f64).sum::<f64>();
        self.summary.loss = loss / examples.max(1) as f64;
        self.summary.examples = examples;
        cx.run(ServerJob::Aggregate { theta: self.theta.clone(), moments: self.moments.clone(), updates });
    }

    fn aggregated(&mut self, theta: Blob, moments: Option<(Blob, Blob)>, cx: &mut Cx<Self>) {
        (self.theta, self.moments) = (theta.clone(), moments);
        if self.due.at(self.round) {
            cx.run(ServerJob::Evaluate { theta, trained: true });
        } else {
            cx.close(std::mem::take(&mut self.summary));
        }
    }
}

/// What is wrong with an update, if anything.
fn inspect(lab: &Lab, update: &Update, meter: &Meter) -> Option<String> {
    let loss = || (!update.loss.is_finite()).then(|| "its loss is not finite".to_owned());
    objection_to_examples(update.examples).or_else(loss).or_else(|| lab.objection(&update.theta, meter))
}

/// The next global parameters from the counted updates, summed in node order in f64.
fn aggregate(
    bench: &ServerBench,
    theta: &Blob,
    moments: Option<&(Blob, Blob)>,
    updates: &[Update],
    meter: &Meter,
) -> Result<ServerDone, Fault> {
    let (lab, options) = (&bench.lab, &bench.options);
    let _held = hold(meter, 7 * theta.len() as u64)?;
    let mut theta = lab.parameters_from(theta)?;
    let total = updates.iter().map(|update| update.examples).sum::<u64>() as f64;
    let mut delta = vec![0f64; theta.len()];
    for update in updates {
        let weight = update.examples as f64 / total;
        let local = lab.parameters_from(&update.theta)?;
        for ((sum, &here), &there) in delta.iter_mut().zip(&theta).zip(&local) {
            *sum += weight * (f64::from(there) - f64::from(here));
        }
    }
    let moments = match options.server_optimizer {
        ServerOptimizer::Fedavg => {
            for (value, step) in theta.iter_mut().zip(&delta) {
                *value = (f64::from(*value) + options.server_learning_rate * step) as f32;
            }
            None
        }
        ServerOptimizer::Fedadam => Some(fedadam(lab, options, &mut theta, &delta, moments)?),
    };
    if !ops::slice::all_finite(&theta) {
        return Err(Fault("the aggregated parameters are not finite".into()));
    }
    Ok(ServerDone::Aggregated { theta: Blob::from_f32(&theta), moments })
}

/// One step of FedAdam (Reddi et al. 2021, Algorithm 2); the new moments.
fn fedadam(
    lab: &Lab,
    options: &Options,
    theta: &mut [f32],
    delta: &[f64],
    moments: Option<&(Blob, Blob)>,
) -> Result<(Blob, Blob), Fault> {
    let (mut first, mut second) = match moments {
        Some((first, second)) => (lab.parameters_from(first)?, lab.parameters_from(second)?),
        None => (vec![0f32; theta.len()], vec![0f32; theta.len()]),
    };
    let Options { server_learning_rate: rate, beta_1, beta_2, tau, .. } = *options;
    for (i, &step) in delta.iter().enumerate() {
        first[i] = (beta_1 * f64::from(first[i]) + (1.0 - beta_1) * step) as f32;
        second[i] = (beta_2 * f64::from(second[i]) + (1.0 - beta_2) * step * step) as f32;
        let move_by = rate * f64::from(first[i]) / (f64::from(second[i]).sqrt() + tau);
        theta[i] = (f64::from(theta[i]) + move_by) as f32;
    }
    Ok((Blob::from_f32(&first), Blob::from_f32(&second)))
}

// ------------------------------------------------------------------------------------------ the method

pub struct FedavgLora {
    lab: Arc<Lab>,
    bench: Arc<ServerBench>,
    rounds: u32,
}

impl Method for FedavgLora {
    const NAME: &'static str = "fedavg-lora";
    const SOURCE: &'static str = "baseline (McMahan et al. 2017, Reddi et al. 2021)";
    const DEVICE: &'static str = "full backward through its adapters";
    const SERVER: &'static str = "averages, or steps by FedAdam";
    type Options = Options;
    type Device = Device;
    type Server = Server;

    fn new(options: Options, setup: &Setup) -> Result<FedavgLora, SetupError> {
        let lab = setup.lab()?;
        if lab.parameters() == 0 {
            return Err(SetupError(
                "nothing is trainable: [peft] kind = \"none\" leaves no adapter".into(),
            ));
        }
        let bench = Arc::new(ServerBench { lab: lab.clone(), options });
        Ok(FedavgLora { lab, bench, rounds: setup.plan.rounds })
    }

    fn device(&self, node: Node) -> (Device, Arc<Lab>) {
        (Device { node }, self.lab.clone())
    }

    fn server(&self) -> (Server, Arc<ServerBench>) {
        let server = Server {
            theta: self.lab.work.initial.clone(),
            moments: None,
            round: 0,
            waiting: BTreeSet::new(),
            looking: BTreeMap::new(),
            counted: BTreeMap::new(),
            summary: Summary::default(),
            due: Due { every: self.lab.work.recipe.eval_every, last: self.rounds },
        };
        (server, self.bench.clone())
    }

    fn quote(&self, node: Node) -> Quote {
        let job = Train { node, round: 1, theta: Blob::default() };
        let theta = 4 * self.lab.parameters() as u64;
        Quote {
            cost: Device::price(&job, &self.lab),
            resident_bytes: self.lab.work.model.bytes() + theta,
            up_bytes: theta,
            down_bytes: theta,
            lower: None,
        }
    }

    fn trained(server: Server) -> Blob {
        server.theta
    }
}
