//! The device's half.

use super::step::{self, Stash, price_of_backward, price_of_forward};
use super::{Activations, Backward, Options, Order, Report};
use crate::train;
use crate::{Lab, Quote};
use base::{Blob, Cost, Meter, Node, SERVER};
use federation::{Cx, Event, Fault, Side};
use model::optim::Optimizer;
use model::{Layout, Model, price};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a device is in its pass over its rows.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pass {
    pub node: Node,
    pub round: u32,
    cut: u32,
    /// What is trained below the cut.
    pub theta: Blob,
    /// None before the first step.
    pub optimizer: Option<Optimizer>,
}

impl Pass {
    pub fn cut(&self) -> usize {
        self.cut as usize
    }

    pub fn of_training(&self) -> train::Pass {
        train::Pass { round: self.round, node: self.node, threads: 1 }
    }
}

#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
    pass: Option<Pass>,
    /// The step under way, how many there are, and how many rows they go over: as the last forward found.
    step: u32,
    steps: u32,
    examples: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    Forward { pass: Pass, step: u32 },
    Backward { pass: Pass, step: u32, gradient: Blob },
}

#[derive(Serialize, Deserialize)]
pub enum Done {
    Forwarded { activations: Activations, examples: u64 },
    Stepped { theta: Blob, optimizer: Optimizer },
}

/// What a device's jobs may touch. The stash dies with the process.
pub struct DeviceBench {
    lab: Arc<Lab>,
    options: Arc<Options>,
    stash: Mutex<Option<Stash>>,
}

impl DeviceBench {
    pub fn new(lab: Arc<Lab>, options: Arc<Options>) -> DeviceBench {
        DeviceBench { lab, options, stash: Mutex::new(None) }
    }

    /// Put something into the stash, and take out what was there.
    fn swap(&self, stash: Option<Stash>) -> Option<Stash> {
        std::mem::replace(&mut *self.stash.lock().unwrap_or_else(PoisonError::into_inner), stash)
    }

    fn keeps(&self, pass: &Pass, step: u32) -> bool {
        let stash = self.stash.lock().unwrap_or_else(PoisonError::into_inner);
        stash.as_ref().is_some_and(|stash| stash.is_of(pass, step))
    }
}

impl Side for Device {
    type In = Order;
    type Out = Report;
    type Job = Job;
    type Done = Done;
    type Bench = DeviceBench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Message { body: Order::Begin { round, cut, theta }, .. } => {
                let pass = Pass { node: self.node, round, cut, theta, optimizer: None };
                (self.step, self.steps) = (0, 0);
                cx.run(Job::Forward { pass: pass.clone(), step: 0 });
                self.pass = Some(pass);
            }
            Event::Done(Done::Forwarded { activations, examples }) => {
                (self.steps, self.examples) = (activations.steps, examples);
                cx.send(SERVER, Report::Activations(activations));
            }
            Event::Message { body: Order::Gradient { step, gradient }, .. } => {
                let Some(pass) = self.pass.clone() else { return };
                if step != self.step {
                    cx.refuse(SERVER, format!("a gradient of step {step} in step {}", self.step));
                } else if gradient.is_empty() {
                    self.go_on(cx);
                } else {
                    cx.run(Job::Backward { pass, step, gradient });
                }
            }
            Event::Done(Done::Stepped { theta, optimizer }) => {
                if let Some(pass) = &mut self.pass {
                    (pass.theta, pass.optimizer) = (theta, Some(optimizer));
                }
                self.go_on(cx);
            }
            Event::Open { .. } | Event::Lost(_) => {}
        }
    }

    fn price(job: &Job, bench: &DeviceBench) -> Cost {
        let (lab, options) = (&*bench.lab, &*bench.options);
        match job {
            Job::Forward { pass, step } => {
                price_of_forward(lab, options, pass.cut(), &step::starts_of(lab, pass, *step))
            }
            Job::Backward { pass, step, .. } => {
                let (starts, kept) = (step::starts_of(lab, pass, *step), bench.keeps(pass, *step));
                price_of_backward(lab, options, pass.cut(), &starts, kept)
            }
        }
    }

    fn label(job: &Job) -> &'static str {
        match job {
            Job::Forward { .. } => "forward",
            Job::Backward { .. } => "backward",
        }
    }

    fn run(job: Job, bench: &DeviceBench, meter: &Meter) -> Result<Done, Fault> {
        let (lab, options) = (&*bench.lab, &*bench.options);
        match job {
            Job::Forward { pass, step } => {
                bench.swap(None);
                let (activations, stash) = step::forward(lab, options, &pass, step, meter)?;
                bench.swap(stash);
                Ok(Done::Forwarded { activations, examples: lab.shard(pass.node).len() as u64 })
            }
            Job::Backward { pass, step, gradient } => {
                let stash = bench.swap(None).filter(|stash| stash.is_of(&pass, step));
                let (theta, optimizer) =
                    step::backward(lab, options, &pass, (step, &gradient), stash, meter)?;
                Ok(Done::Stepped { theta, optimizer })
            }
        }
    }
}

impl Device {
    pub fn new(node: Node) -> Device {
        Device { node, pass: None, step: 0, steps: 0, examples: 0 }
    }

    /// The next batch, or the end of the pass.
    fn go_on(&mut self, cx: &mut Cx<Self>) {
        let Some(pass) = &self.pass else { return };
        self.step += 1;
        if self.step < self.steps {
            cx.run(Job::Forward { pass: pass.clone(), step: self.step });
        } else {
            cx.send(SERVER, Report::Tuned { theta: pass.theta.clone(), examples: self.examples });
        }
    }
}

/// Bytes that a device of this cut holds between jobs: its blocks, and what it trains.
pub fn resident_bytes(lab: &Lab, cut: usize) -> u64 {
    let Model { spec, task, peft, layout, .. } = &*lab.work.model;
    let part = Layout::of_part(spec, task, peft, 0..cut);
    price::weights(spec, task, &part) + 4 * layout.cut(cut) as u64
}

/// What a round asks of a device at this cut.
pub fn quote(lab: &Lab, options: &Options, node: Node, cut: usize) -> Quote {
    let at = lab.work.model.layout.cut(cut);
    let pass = Pass { node, round: 1, cut: cut as u32, theta: Blob::default(), optimizer: None };
    let all = train::steps(lab, lab.shard(node), &pass.of_training());
    let mut quote = Quote {
        resident_bytes: resident_bytes(lab, cut),
        down_bytes: 4 * at as u64,
        up_bytes: 4 * at as u64,
        ..Quote::default()
    };
    for rows in all {
        let starts = crate::lab::starts(&lab.work.train, rows.concat().into_iter().map(|row| row as usize));
        let crossing = options.traffic.bytes(starts[starts.len() - 1] as usize, lab.work.model.spec.width);
        quote.cost = quote.cost + price_of_forward(lab, options, cut, &starts);
        quote.up_bytes += crossing as u64;
        if options.backward == Backward::Backward {
            let kept = options.between == super::Between::Keep;
            quote.cost = quote.cost + price_of_backward(lab, options, cut, &starts, kept);
            quote.down_bytes += crossing as u64;
        }
    }
    quote
}
