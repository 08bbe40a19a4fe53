//! `centralized`: all rows on one machine; the ceiling that federated methods are held against.
//!
//! ```text
//! server    [train] one pass of `local_epochs` over the pooled rows a round, one optimiser throughout
//!           [evaluate] when due; closes
//! ```
//!
//! Source: none; devices do nothing and no cohort is drawn.

use crate::evaluate::{Due, evaluate, price_of_evaluation};
use crate::train::{Learner, Pass, price_of_pass};
use crate::{Lab, Method, Quote, Setup, SetupError};
use base::{Blob, Cost, Meter, Node, SERVER};
use federation::{Cx, Eval, Event, Fault, Side, Summary};
use model::optim::Optimizer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Nothing to choose.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {}

/// A device that takes no part.
#[derive(Serialize, Deserialize)]
pub struct Idle;

impl Side for Idle {
    type In = ();
    type Out = ();
    type Job = ();
    type Done = ();
    type Bench = ();

    fn handle(&mut self, _: Event<Self>, _: &mut Cx<Self>) {}

    fn price((): &(), (): &()) -> Cost {
        Cost::FREE
    }

    fn label((): &()) -> &'static str {
        "nothing"
    }

    fn run((): (), (): &(), _: &Meter) -> Result<(), Fault> {
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
pub struct Server {
    theta: Blob,
    optimizer: Optimizer,
    round: u32,
    summary: Summary,
    due: Due,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    Train {
        round: u32,
        theta: Blob,
        optimizer: Optimizer,
    },
    /// `trained` tells the model of a round's end from the one before the first round.
    Evaluate {
        theta: Blob,
        trained: bool,
    },
}

#[derive(Serialize, Deserialize)]
pub enum Done {
    Trained { theta: Blob, optimizer: Optimizer, loss: f64, examples: u64 },
    Evaluated { eval: Eval, trained: bool },
}

impl Side for Server {
    type In = ();
    type Out = ();
    type Job = Job;
    type Done = Done;
    type Bench = Lab;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { round, .. } => {
                self.round = round;
                if round == 1 {
                    cx.run(Job::Evaluate { theta: self.theta.clone(), trained: false });
                }
                cx.run(Job::Train { round, theta: self.theta.clone(), optimizer: self.optimizer.clone() });
            }
            Event::Done(Done::Trained { theta, optimizer, loss, examples }) => {
                (self.theta, self.optimizer) = (theta, optimizer);
                (self.summary.loss, self.summary.examples) = (loss, examples);
                if self.due.at(self.round) {
                    cx.run(Job::Evaluate { theta: self.theta.clone(), trained: true });
                } else {
                    cx.close(std::mem::take(&mut self.summary));
                }
            }
            Event::Done(Done::Evaluated { eval, trained: false }) => self.summary.before = Some(eval),
            Event::Done(Done::Evaluated { eval, trained: true }) => {
                self.summary.eval = Some(eval);
                cx.close(std::mem::take(&mut self.summary));
            }
            Event::Message { .. } | Event::Lost(_) => {}
        }
    }

    fn price(job: &Job, lab: &Lab) -> Cost {
        match job {
            Job::Train { round, .. } => price_of_pass(lab, &pooled(lab), &pass(lab, *round)),
            Job::Evaluate { .. } => price_of_evaluation(lab),
        }
    }

    fn label(job: &Job) -> &'static str {
        match job {
            Job::Train { .. } => "train",
            Job::Evaluate { .. } => "evaluate",
        }
    }

    fn run(job: Job, lab: &Lab, meter: &Meter) -> Result<Done, Fault> {
        match job {
            Job::Train { round, theta, optimizer } => {
                let learner = Learner::resume(lab, &theta, optimizer, meter)?;
                let trained = learner.train(lab, &pooled(lab), &pass(lab, round), meter)?;
                Ok(Done::Trained {
                    theta: Blob::from_f32(&trained.learner.theta),
                    optimizer: trained.learner.optimizer,
                    loss: trained.loss,
                    examples: trained.examples,
                })
            }
            Job::Evaluate { theta, trained } => {
                evaluate(lab, &theta, meter).map(|eval| Done::Evaluated { eval, trained })
            }
        }
    }
}

/// Every row that any device holds.
fn pooled(lab: &Lab) -> Vec<u32> {
    (0..lab.work.train.len() as u32).collect()
}

fn pass(lab: &Lab, round: u32) -> Pass {
    Pass { round, node: SERVER, threads: lab.work.threads }
}

pub struct Centralized {
    lab: Arc<Lab>,
    rounds: u32,
}

impl Method for Centralized {
    const NAME: &'static str = "centralized";
    const SOURCE: &'static str = "baseline";
    const DEVICE: &'static str = "nothing";
    const SERVER: &'static str = "trains on pooled data; the ceiling";
    const FEDERATED: bool = false;
    type Options = Options;
    type Device = Idle;
    type Server = Server;

    fn new(Options {}: Options, setup: &Setup) -> Result<Centralized, SetupError> {
        Ok(Centralized { lab: setup.lab()?, rounds: setup.plan.rounds })
    }

    fn device(&self, _: Node) -> (Idle, Arc<()>) {
        (Idle, Arc::new(()))
    }

    fn server(&self) -> (Server, Arc<Lab>) {
        let server = Server {
            theta: self.lab.work.initial.clone(),
            optimizer: Optimizer::new(&self.lab.work.recipe.optimizer(), self.lab.parameters()),
            round: 0,
            summary: Summary::default(),
            due: Due { every: self.lab.work.recipe.eval_every, last: self.rounds },
        };
        (server, self.lab.clone())
    }

    fn quote(&self, _: Node) -> Quote {
        Quote::default()
    }

    fn trained(server: Server) -> Blob {
        server.theta
    }
}
