//! `mobillm`: every token's activations go to the server, and the labels with them, in every epoch.
//!
//! ```text
//! device i                                        server
//!             <--- Send(step) ------------------  one batch ahead of what it trains on
//!  [forward]  --- Batch{taps, labels} --------->  waits for the batches of this step
//!                                                 [train] one optimiser step a batch, in node order
//!             ... local_epochs over its rows ...  [evaluate] when due; closes
//! ```
//!
//! The side network runs on every token, its outputs are pooled as the model pools states, and the loss
//! is cross-entropy against the labels. Nothing is cached: each epoch the device runs forward again and
//! sends everything again, which is what [`side-tuning`](crate::side_tuning) does without.
//!
//! Source: MobiLLM (arXiv 2502.20421), Algorithm 1, with the side network of PAE MobiLLM.

use crate::evaluate::Due;
use crate::side::every_token::{Batch, EveryToken, Options};
use crate::train::{Pass, hold, steps};
use crate::{Lab, Method, Quote, Saver, Setup, SetupError};
use base::{Blob, Cost, Meter, Node, SERVER};
use federation::{Cx, Eval, Event, Fault, Side, Summary};
use model::optim::Optimizer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Server to device: send this batch of your rows.
#[derive(Serialize, Deserialize)]
pub struct Send {
    round: u32,
    step: u32,
}

/// The device's half keeps nothing between batches.
#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Forward {
    node: Node,
    round: u32,
    step: u32,
}

impl Side for Device {
    type In = Send;
    type Out = Batch;
    type Job = Forward;
    type Done = Batch;
    type Bench = EveryToken;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Message { body: Send { round, step }, .. } => {
                cx.run(Forward { node: self.node, round, step });
            }
            Event::Done(batch) => cx.send(SERVER, batch),
            Event::Open { .. } | Event::Lost(_) => {}
        }
    }

    fn price(job: &Forward, bench: &EveryToken) -> Cost {
        bench.price_of_forward(&rows(&bench.lab, job).1)
    }

    fn label(_: &Forward) -> &'static str {
        "forward"
    }

    fn run(job: Forward, bench: &EveryToken, meter: &Meter) -> Result<Batch, Fault> {
        let (count, rows) = rows(&bench.lab, &job);
        bench.forward(&rows, (job.step, count), meter)
    }
}

/// How many batches there are in a device's round, and the rows of one of them.
fn rows(lab: &Lab, job: &Forward) -> (u32, Vec<u32>) {
    let pass = Pass { round: job.round, node: job.node, threads: 1 };
    let batches: Vec<Vec<u32>> = steps(lab, lab.shard(job.node), &pass).into_iter().flatten().collect();
    let rows = batches.get(job.step as usize).cloned().unwrap_or_default();
    (batches.len() as u32, rows)
}

/// The server's half.
#[derive(Serialize, Deserialize)]
pub struct Server {
    theta: Blob,
    optimizer: Optimizer,
    rounds: u32,
    round: u32,
    /// The step whose batches are waited for or trained on.
    step: u32,
    /// Optimiser steps of this round that are done, and how many there will be at most.
    steps: (u32, u32),
    /// Devices that still have batches to send.
    live: BTreeSet<Node>,
    arrived: BTreeMap<Node, Batch>,
    training: bool,
    /// Sum of the losses of this round, and how many rows they are of.
    loss: (f64, u64),
    summary: Summary,
    due: Due,
    /// Batches of a device with this many rows are `rows / batch`, rounded up, times the epochs.
    batch: u32,
    epochs: u32,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    Train {
        theta: Blob,
        optimizer: Optimizer,
        round: u32,
        steps: (u32, u32),
        batches: BTreeMap<Node, Batch>,
    },
    /// `trained` tells the network of a round's end from the one before the first round.
    Evaluate { theta: Blob, trained: bool },
}

#[derive(Serialize, Deserialize)]
pub enum Done {
    /// `refused` sent what is no batch.
    Trained {
        theta: Blob,
        optimizer: Optimizer,
        steps: u32,
        loss: (f64, u64),
        refused: Vec<(Node, String)>,
    },
    Evaluated {
        eval: Eval,
        trained: bool,
    },
}

impl Side for Server {
    type In = Batch;
    type Out = Send;
    type Job = Job;
    type Done = Done;
    type Bench = EveryToken;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { round, cohort } => {
                let sizes = cohort.iter().map(|member| (member.node, member.examples)).collect();
                self.open(round, &sizes, cx);
            }
            Event::Message { from, body } => {
                if body.step() != self.step + u32::from(self.training) || !self.live.contains(&from) {
                    cx.refuse(from, "it sent a batch that it was not asked for");
                    self.lose(from);
                } else {
                    self.arrived.insert(from, body);
                }
                self.go_on(cx);
            }
            Event::Lost(node) => {
                self.lose(node);
                self.go_on(cx);
            }
            Event::Done(Done::Trained { theta, optimizer, steps, loss, refused }) => {
                (self.theta, self.optimizer) = (theta, optimizer);
                self.loss = (self.loss.0 + loss.0, self.loss.1 + loss.1);
                (self.training, self.step, self.steps.0) = (false, self.step + 1, self.steps.0 + steps);
                for (node, reason) in refused {
                    cx.refuse(node, reason);
                    self.lose(node);
                }
                self.go_on(cx);
            }
            Event::Done(Done::Evaluated { eval, trained: false }) => self.summary.before = Some(eval),
            Event::Done(Done::Evaluated { eval, trained: true }) => {
                self.summary.eval = Some(eval);
                cx.close(std::mem::take(&mut self.summary));
            }
        }
    }

    fn price(job: &Job, bench: &EveryToken) -> Cost {
        match job {
            Job::Train { batches, .. } => {
                let state =
                    Optimizer::state_bytes(&bench.lab.work.recipe.optimizer(), bench.network.total());
                bench.price_of_training(batches.values(), state)
            }
            Job::Evaluate { .. } => bench.price_of_evaluation(),
        }
    }

    fn label(job: &Job) -> &'static str {
        match job {
            Job::Train { .. } => "train",
            Job::Evaluate { .. } => "evaluate",
        }
    }

    fn run(job: Job, bench: &EveryToken, meter: &Meter) -> Result<Done, Fault> {
        match job {
            Job::Train { theta, mut optimizer, round, steps: (done, of), batches } => {
                let recipe = &bench.lab.work.recipe;
                let state = Optimizer::state_bytes(&recipe.optimizer(), bench.network.total());
                let _held = hold(meter, 2 * theta.len() as u64 + state)?;
                let mut theta = bench.theta(&theta)?;
                let (mut steps, mut loss, mut refused) = (0, (0.0, 0), Vec::new());
                for (node, batch) in &batches {
                    let rate = recipe.rate(bench.lab.rounds, round, done + steps, of);
                    match bench.step(&mut theta, &mut optimizer, batch, rate, meter)? {
                        Ok(sum) => {
                            loss = (loss.0 + sum, loss.1 + batch.sequences());
                            steps += 1;
                        }
                        Err(objection) => refused.push((*node, objection)),
                    }
                }
                Ok(Done::Trained { theta: Blob::from_f32(&theta), optimizer, steps, loss, refused })
            }
            Job::Evaluate { theta, trained } => {
                let eval = bench.evaluate(&theta, meter)?;
                Ok(Done::Evaluated { eval, trained })
            }
        }
    }
}

impl Server {
    fn open(&mut self, round: u32, sizes: &BTreeMap<Node, u64>, cx: &mut Cx<Self>) {
        (self.round, self.step, self.training, self.loss) = (round, 0, false, (0.0, 0));
        self.arrived.clear();
        let batches = |rows: &u64| rows.div_ceil(u64::from(self.batch)) * u64::from(self.epochs);
        self.steps = (0, sizes.values().map(batches).sum::<u64>().min(u64::from(u32::MAX)) as u32);
        self.live = sizes.iter().filter(|(_, rows)| **rows > 0).map(|(node, _)| *node).collect();
        for &node in sizes.keys() {
            if self.live.contains(&node) {
                cx.send(node, Send { round, step: 0 });
            } else {
                cx.finished(node);
            }
        }
        if round == 1 {
            cx.run(Job::Evaluate { theta: self.theta.clone(), trained: false });
        }
        self.go_on(cx);
    }

    fn lose(&mut self, node: Node) {
        self.live.remove(&node);
        self.arrived.remove(&node);
    }

    /// Train on this step once all of it is there, and have the next one computed meanwhile.
    fn go_on(&mut self, cx: &mut Cx<Self>) {
        if self.training || self.live.iter().any(|node| !self.arrived.contains_key(node)) {
            return;
        }
        if self.arrived.is_empty() {
            return self.end(cx);
        }
        let batches = std::mem::take(&mut self.arrived);
        for (&node, batch) in &batches {
            if self.step + 1 < batch.steps() {
                cx.send(node, Send { round: self.round, step: self.step + 1 });
            } else {
                self.live.remove(&node);
                cx.finished(node);
            }
        }
        self.training = true;
        let (theta, optimizer) = (self.theta.clone(), self.optimizer.clone());
        cx.run(Job::Train { theta, optimizer, round: self.round, steps: self.steps, batches });
    }

    fn end(&mut self, cx: &mut Cx<Self>) {
        let (sum, rows) = self.loss;
        self.summary.loss = sum / rows.max(1) as f64;
        self.summary.examples = rows;
        self.training = true;
        if self.due.at(self.round) {
            cx.run(Job::Evaluate { theta: self.theta.clone(), trained: true });
        } else {
            cx.close(std::mem::take(&mut self.summary));
        }
    }
}

pub struct MobiLlm {
    bench: Arc<EveryToken>,
    rounds: u32,
}

impl Method for MobiLlm {
    const NAME: &'static str = "mobillm";
    const SOURCE: &'static str = "baseline (MobiLLM, arXiv 2502.20421)";
    const DEVICE: &'static str =
        "frozen forward in every epoch; sends every token's activations, and labels";
    const SERVER: &'static str = "trains the side network on what has just come";
    type Options = Options;
    type Device = Device;
    type Server = Server;

    fn new(options: Options, setup: &Setup) -> Result<MobiLlm, SetupError> {
        Ok(MobiLlm { bench: Arc::new(EveryToken::new(&options, setup)?), rounds: setup.plan.rounds })
    }

    fn device(&self, node: Node) -> (Device, Arc<EveryToken>) {
        (Device { node }, self.bench.clone())
    }

    fn server(&self) -> (Server, Arc<EveryToken>) {
        let (bench, recipe) = (&self.bench, &self.bench.lab.work.recipe);
        let server = Server {
            theta: Blob::from_f32(&bench.network.initial(bench.lab.seed.child("side network", 0))),
            optimizer: Optimizer::new(&recipe.optimizer(), bench.network.total()),
            rounds: self.rounds,
            round: 0,
            step: 0,
            steps: (0, 0),
            live: BTreeSet::new(),
            arrived: BTreeMap::new(),
            training: false,
            loss: (0.0, 0),
            summary: Summary::default(),
            due: Due { every: recipe.eval_every, last: self.rounds },
            batch: recipe.per_device_train_batch_size.get() as u32,
            epochs: recipe.local_epochs,
        };
        (server, self.bench.clone())
    }

    fn quote(&self, node: Node) -> Quote {
        let (lab, mut quote) = (&self.bench.lab, Quote::default());
        let pass = Pass { round: 1, node, threads: 1 };
        for rows in steps(lab, lab.shard(node), &pass).iter().flatten() {
            quote.cost = quote.cost + self.bench.price_of_forward(rows);
            quote.up_bytes += self.bench.batch_bytes(rows);
            quote.down_bytes += size_of::<Send>() as u64;
        }
        quote.resident_bytes = lab.work.model.bytes();
        quote
    }

    fn trained(server: Server) -> Blob {
        server.theta
    }

    fn saver(&self) -> Option<Saver> {
        Some(self.bench.saver())
    }
}
