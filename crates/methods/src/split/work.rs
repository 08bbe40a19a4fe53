//! The server's jobs, and what they may touch.

use super::aggregate::{aggregate, price_of_aggregation};
use super::links::{Observed, seen};
use super::parts::Part;
use super::seats::{Planner, Seats, at_least};
use super::serve::{Serve, Served, Stage, price_of_serving, serve};
use super::{Choose, Options, Regime, Terms};
use crate::evaluate::{evaluate, price_of_evaluation};
use crate::train::hold;
use crate::{Lab, ServerQuote};
use base::{Blob, Cost, Meter, Node};
use federation::{Eval, Fault, Member};
use model::Model;
use model::optim::Optimizer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A device's adapters at full depth.
#[derive(Clone, Serialize, Deserialize)]
pub struct Tuned {
    pub theta: Blob,
    pub examples: u64,
    pub loss: f64,
    /// Its LoRA rank, where lower than that of `[peft]`.
    pub rank: Option<u32>,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    /// Choose the terms of these devices from what they took in the last round.
    Seat {
        cohort: Vec<Member>,
        observed: BTreeMap<Node, Observed>,
    },
    /// A device's part of the parameters, and the server's.
    Deal {
        node: Node,
        terms: Terms,
        theta: Blob,
    },
    Serve(Serve),
    /// A slice of a step's time, before the job itself.
    Slice {
        node: Node,
        terms: Terms,
        stage: Stage,
        starts: Vec<u32>,
    },
    /// Join both parts of a device's adapters.
    Inspect {
        node: Node,
        terms: Terms,
        lower: Blob,
        upper: Blob,
    },
    Aggregate {
        theta: Blob,
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
    Seated {
        seats: Seats,
    },
    Dealt {
        node: Node,
        lower: Blob,
        upper: Blob,
    },
    Served {
        node: Node,
        outcome: Result<Box<Served>, Fault>,
    },
    /// `bytes` are what the step holds while it lasts.
    Sliced {
        node: Node,
        bytes: u64,
    },
    Inspected {
        node: Node,
        joined: Result<Blob, Fault>,
    },
    /// `lost` is the share of the average update's energy that each rank could not hold, where there are
    /// several.
    Aggregated {
        theta: Blob,
        lost: BTreeMap<u32, f64>,
    },
    Evaluated {
        eval: Eval,
        trained: bool,
    },
}

/// What the server's jobs may touch.
pub struct ServerBench {
    pub lab: Arc<Lab>,
    pub options: Arc<Options>,
    server: Member,
    upper: Upper,
}

/// The blocks that the server holds: no embeddings among them, and nothing that devices share.
enum Upper {
    /// Above the lowest cut there may be, for all devices.
    One(Model),
    /// Above each device's cut, for that device.
    PerDevice(BTreeMap<Node, Model>),
    /// This is the process of a device, which has loaded none of them.
    Elsewhere,
}

impl ServerBench {
    pub fn new(
        lab: Arc<Lab>,
        options: Arc<Options>,
        regime: Regime,
        seats: &Seats,
        server: &Member,
    ) -> Result<ServerBench, model::Error> {
        let lowest = at_least(&options, &lab).cut();
        let cut = |terms: &Terms| match options.choose {
            Choose::Once => terms.cut(),
            Choose::EachRound => lowest,
        };
        let model = &lab.work.model;
        let upper = match regime {
            _ if model.layers().end < model.spec.layers => Upper::Elsewhere,
            Regime::OneModel | Regime::OneDevice => {
                let first = seats.terms_of_all().map(|(_, terms)| cut(&terms)).min();
                Upper::One(model.upper_copy(first.unwrap_or(lowest))?)
            }
            Regime::ModelPerDevice => {
                let copies =
                    seats.terms_of_all().map(|(node, terms)| Ok((node, model.upper_copy(cut(&terms))?)));
                Upper::PerDevice(copies.collect::<Result<_, model::Error>>()?)
            }
        };
        Ok(ServerBench { lab, options, server: server.clone(), upper })
    }

    /// The blocks that serve this device.
    pub fn model(&self, node: Node) -> &Model {
        match &self.upper {
            Upper::One(model) => model,
            Upper::PerDevice(copies) => copies.get(&node).unwrap_or(&self.lab.work.model),
            Upper::Elsewhere => &self.lab.work.model,
        }
    }

    /// What the server holds between jobs, when every device is in the middle of its pass.
    pub fn quote(&self, seats: &Seats) -> ServerQuote {
        let layout = &self.lab.work.model.layout;
        let config = self.lab.work.recipe.optimizer();
        let adapter = |(_, terms): (Node, Terms)| {
            let trained = Part::of_server(layout, self.options.labels, &terms).len();
            4 * trained as u64 + Optimizer::state_bytes(&config, trained)
        };
        let models = match &self.upper {
            Upper::One(model) => vec![model.bytes()],
            Upper::PerDevice(copies) => copies.values().map(Model::bytes).collect(),
            Upper::Elsewhere => Vec::new(),
        };
        ServerQuote {
            models: models.len() as u32,
            model_bytes: models.iter().sum(),
            adapter_bytes: seats.terms_of_all().map(adapter).sum(),
        }
    }
}

pub fn price(job: &Job, bench: &ServerBench) -> Cost {
    let (lab, options) = (&*bench.lab, &*bench.options);
    let parameters = lab.parameters() as u64;
    let serving = |terms, stage, starts| price_of_serving(lab, options, terms, stage, starts);
    match job {
        Job::Seat { cohort, .. } => Cost { flops: 1000 * cohort.len() as u64, bytes: 0 },
        Job::Deal { .. } => Cost { flops: parameters, bytes: 12 * parameters },
        Job::Serve(job) => {
            let whole = serving(&job.terms, &job.stage, &job.activations.starts);
            Cost { flops: whole.flops / u64::from(job.of), bytes: whole.bytes + job.beside }
        }
        Job::Slice { terms, stage, starts, .. } => {
            let whole = serving(terms, stage, starts);
            Cost { flops: whole.flops / u64::from(super::server::SLICES), bytes: 0 }
        }
        Job::Inspect { .. } => Cost { flops: parameters, bytes: 8 * parameters },
        Job::Aggregate { tuned, .. } => price_of_aggregation(lab, tuned),
        Job::Evaluate { .. } => price_of_evaluation(lab),
    }
}

pub fn label(job: &Job) -> &'static str {
    match job {
        Job::Seat { .. } => "seat",
        Job::Deal { .. } => "deal",
        Job::Serve(Serve { stage: Stage::Lift, .. }) | Job::Slice { stage: Stage::Lift, .. } => "lift",
        Job::Serve(_) | Job::Slice { .. } => "serve",
        Job::Inspect { .. } => "inspect",
        Job::Aggregate { .. } => "aggregate",
        Job::Evaluate { .. } => "evaluate",
    }
}

pub fn run(job: Job, bench: &ServerBench, meter: &Meter) -> Result<Done, Fault> {
    let lab = &*bench.lab;
    match job {
        Job::Seat { cohort, observed } => {
            let planner = Planner::new(lab, &bench.options, &bench.server);
            let cohort: Vec<Member> =
                cohort.iter().map(|member| seen(&planner, member, observed.get(&member.node))).collect();
            Ok(Done::Seated { seats: Seats::assign(&planner, &cohort) })
        }
        Job::Deal { node, terms, theta } => deal(bench, node, &terms, &theta, meter),
        Job::Serve(job) => {
            let outcome = serve(bench, &job, meter).map(Box::new);
            Ok(Done::Served { node: job.node, outcome })
        }
        Job::Slice { node, terms, stage, starts } => {
            let bytes = price_of_serving(lab, &bench.options, &terms, &stage, &starts).bytes;
            Ok(Done::Sliced { node, bytes })
        }
        Job::Inspect { node, terms, lower, upper } => {
            let joined = join(bench, &terms, (&lower, &upper), meter);
            Ok(Done::Inspected { node, joined })
        }
        Job::Aggregate { theta, tuned } => aggregate(lab, &theta, &tuned, meter),
        Job::Evaluate { theta, trained } => {
            evaluate(lab, &theta, meter).map(|eval| Done::Evaluated { eval, trained })
        }
    }
}

fn deal(
    bench: &ServerBench,
    node: Node,
    terms: &Terms,
    theta: &Blob,
    meter: &Meter,
) -> Result<Done, Fault> {
    let lab = &*bench.lab;
    let _held = hold(meter, 12 * lab.parameters() as u64)?;
    let whole = lab.parameters_from(theta)?;
    let (layout, labels) = (&lab.work.model.layout, bench.options.labels);
    let part = |part: Part| Blob::from_f32(&part.gather(&whole));
    let lower = part(Part::of_device(layout, labels, terms));
    let upper = part(Part::of_server(layout, labels, terms));
    Ok(Done::Dealt { node, lower, upper })
}

/// A device's adapters at full depth; zero beyond its rank.
fn join(
    bench: &ServerBench,
    terms: &Terms,
    (lower, upper): (&Blob, &Blob),
    meter: &Meter,
) -> Result<Blob, Fault> {
    let lab = &*bench.lab;
    let _held = hold(meter, 8 * lab.parameters() as u64)?;
    let (layout, labels) = (&lab.work.model.layout, bench.options.labels);
    let mut whole = Part::of_device(layout, labels, terms).spread(lower)?;
    let server = Part::of_server(layout, labels, terms);
    server.scatter(&server.read(upper)?, &mut whole);
    Ok(Blob::from_f32(&whole))
}
