//! The device's half.

use super::parts::Part;
use super::step::{self, Stash, price_of_forward, price_of_judging, price_of_learning};
use super::{Activations, Between, Half, Judged, Labels, Options, Order, Report, Steps, Terms};
use crate::train;
use crate::{Lab, Quote};
use base::{Blob, Cost, Meter, Node, SERVER, Time};
use federation::{Cx, Event, Fault, Memory, Side};
use model::optim::Optimizer;
use model::{Layout, Model, Place, price};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a device is in its pass over its rows.
#[derive(Clone, Serialize, Deserialize)]
pub struct Pass {
    pub node: Node,
    pub round: u32,
    pub terms: Terms,
    /// What the device trains: the sites below its cut, and those of the head where it holds the labels.
    pub theta: Blob,
    /// None before the first step.
    pub optimizer: Option<Optimizer>,
    /// Of the head.
    pub head_optimizer: Option<Optimizer>,
}

impl Pass {
    pub fn cut(&self) -> usize {
        self.terms.cut()
    }

    pub fn of_training(&self) -> train::Pass {
        train::Pass { round: self.round, node: self.node, threads: 1 }
    }
}

#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
    pass: Option<Pass>,
    /// The step under way, and how many there are, as the last forward found or the server said.
    step: u32,
    steps: u32,
    /// Rows that the steps so far went over, those of the step under way, and all that the device has.
    seen: u64,
    batch: u64,
    shard: u64,
    /// When the server last said something to go on from.
    told: Time,
    /// The step whose forward pass this process has run.
    forwarded: Option<u32>,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Job {
    Forward { pass: Pass, step: u32 },
    Judge { pass: Pass, step: u32, hidden: Blob },
    Learn { pass: Pass, step: u32, gradient: Blob },
}

#[derive(Serialize, Deserialize)]
pub enum Done {
    Forwarded { activations: Activations, shard: u64 },
    Judged { judged: Judged, theta: Blob, optimizer: Optimizer },
    Stepped { theta: Blob, optimizer: Optimizer },
}

/// What a device's jobs may touch. The stash dies with the process.
pub struct DeviceBench {
    lab: Arc<Lab>,
    options: Arc<Options>,
    left: Mutex<Left>,
}

/// What the last forward pass left for its backward.
enum Left {
    Nothing,
    Stash(Stash),
    /// A stash of this round and step, which the program did not keep when it came to rest in between: it is
    /// made again, at the price of one that is there.
    Before {
        round: u32,
        step: u32,
    },
}

impl DeviceBench {
    pub fn new(lab: Arc<Lab>, options: Arc<Options>) -> DeviceBench {
        DeviceBench { lab, options, left: Mutex::new(Left::Nothing) }
    }

    /// Leave something, and take what was left.
    fn leave(&self, left: Left) -> Left {
        std::mem::replace(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner), left)
    }

    fn keeps(&self, pass: &Pass, step: u32) -> bool {
        match &*self.left.lock().unwrap_or_else(PoisonError::into_inner) {
            Left::Nothing => false,
            Left::Stash(stash) => stash.is_of(pass, step),
            Left::Before { round, step: before } => (*round, *before) == (pass.round, step),
        }
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
            Event::Message { body: Order::Begin { round, terms, theta }, .. } => {
                let node = self.node;
                let pass = Pass { node, round, terms, theta, optimizer: None, head_optimizer: None };
                *self = Device::new(node);
                cx.run(Job::Forward { pass: pass.clone(), step: 0 });
                self.pass = Some(pass);
                self.told = cx.now();
            }
            // Of a step that was not wanted any more.
            Event::Done(Done::Forwarded { .. } | Done::Judged { .. }) if self.pass.is_none() => {}
            Event::Done(Done::Forwarded { mut activations, shard }) => {
                activations.seconds = cx.now().seconds() - self.told.seconds();
                (self.steps, self.shard) = (activations.steps, shard);
                self.batch = activations.starts.len() as u64 - 1;
                self.forwarded = Some(activations.step);
                cx.send(SERVER, Report::Activations(activations));
            }
            Event::Message { body: Order::Hidden { step, hidden }, .. } => {
                if let Some(pass) = self.pass_at(step, cx) {
                    cx.run(Job::Judge { pass, step, hidden });
                }
            }
            Event::Done(Done::Judged { judged, theta, optimizer }) => {
                if let Some(pass) = &mut self.pass {
                    (pass.theta, pass.head_optimizer) = (theta, Some(optimizer));
                }
                cx.send(SERVER, Report::Judged(judged));
            }
            Event::Message { body: Order::Gradient { step, gradient }, .. } => {
                self.told = cx.now();
                let Some(pass) = self.pass_at(step, cx) else { return };
                if gradient.is_empty() {
                    self.go_on(cx);
                } else {
                    cx.run(Job::Learn { pass, step, gradient });
                }
            }
            Event::Done(Done::Stepped { theta, optimizer }) => {
                if let Some(pass) = &mut self.pass {
                    (pass.theta, pass.optimizer) = (theta, Some(optimizer));
                }
                self.go_on(cx);
            }
            Event::Message { body: Order::Enough { steps }, .. } => {
                self.steps = self.steps.min(steps);
                if self.step >= self.steps {
                    self.end(cx);
                }
            }
            Event::Open { .. } | Event::Lost(_) => {}
        }
    }

    fn restored(&mut self, memory: Memory, bench: &DeviceBench) {
        self.forwarded = self.forwarded.filter(|_| memory == Memory::Kept);
        if let (Some(pass), Some(step)) = (&self.pass, self.forwarded)
            && step::keeps(&bench.options, &pass.terms)
        {
            bench.leave(Left::Before { round: pass.round, step });
        }
    }

    fn price(job: &Job, bench: &DeviceBench) -> Cost {
        let (lab, options) = (&*bench.lab, &*bench.options);
        match job {
            Job::Forward { pass, step } => {
                price_of_forward(lab, options, &pass.terms, &step::starts_of(lab, pass, *step))
            }
            Job::Judge { pass, step, .. } => {
                price_of_judging(lab, options, &pass.terms, &step::starts_of(lab, pass, *step))
            }
            Job::Learn { pass, step, .. } => {
                let (starts, kept) = (step::starts_of(lab, pass, *step), bench.keeps(pass, *step));
                price_of_learning(lab, options, &pass.terms, &starts, kept)
            }
        }
    }

    fn label(job: &Job) -> &'static str {
        match job {
            Job::Forward { .. } => "forward",
            Job::Judge { .. } => "judge",
            Job::Learn { pass, .. } if pass.terms.half == Half::ForwardGradient => "tangents",
            Job::Learn { .. } => "backward",
        }
    }

    fn run(job: Job, bench: &DeviceBench, meter: &Meter) -> Result<Done, Fault> {
        let (lab, options) = (&*bench.lab, &*bench.options);
        match job {
            Job::Forward { pass, step } => {
                bench.leave(Left::Nothing);
                let (activations, stash) = step::forward(lab, options, &pass, step, meter)?;
                bench.leave(stash.map_or(Left::Nothing, Left::Stash));
                Ok(Done::Forwarded { activations, shard: lab.shard(pass.node).len() as u64 })
            }
            Job::Judge { pass, step, hidden } => {
                let (judged, theta, optimizer) = step::judge(lab, options, &pass, (step, &hidden), meter)?;
                Ok(Done::Judged { judged, theta, optimizer })
            }
            Job::Learn { pass, step, gradient } => {
                let stash = match bench.leave(Left::Nothing) {
                    Left::Stash(stash) if stash.is_of(&pass, step) => Some(stash),
                    _ => None,
                };
                let (theta, optimizer) = step::learn(lab, options, &pass, (step, &gradient), stash, meter)?;
                Ok(Done::Stepped { theta, optimizer })
            }
        }
    }
}

impl Device {
    pub fn new(node: Node) -> Device {
        let (pass, told, forwarded) = (None, Time::ZERO, None);
        Device { node, pass, step: 0, steps: 0, seen: 0, batch: 0, shard: 0, told, forwarded }
    }

    /// The pass, if the server speaks of its current step.
    fn pass_at(&self, step: u32, cx: &mut Cx<Self>) -> Option<Pass> {
        let pass = self.pass.clone()?;
        if step == self.step {
            return Some(pass);
        }
        cx.refuse(SERVER, format!("the server speaks of step {step} in step {}", self.step));
        None
    }

    /// The next batch, or the end of the pass.
    fn go_on(&mut self, cx: &mut Cx<Self>) {
        let Some(pass) = &self.pass else { return };
        self.step += 1;
        self.seen += self.batch;
        if self.step < self.steps {
            cx.run(Job::Forward { pass: pass.clone(), step: self.step });
        } else {
            self.end(cx);
        }
    }

    /// A row counts once in the average, however many epochs go over it.
    fn end(&mut self, cx: &mut Cx<Self>) {
        let Some(Pass { terms, theta, .. }) = self.pass.take() else { return };
        let examples = match terms.steps {
            Steps::Recipe => self.shard,
            Steps::Open | Steps::Exactly(_) => self.shard.min(self.seen),
        };
        cx.send(SERVER, Report::Tuned { theta, examples });
    }
}

/// Bytes that a device on these terms holds between jobs: its blocks, what it trains, and the head where
/// it holds the labels.
pub fn resident_bytes(lab: &Lab, options: &Options, terms: &Terms) -> u64 {
    let Model { spec, task, peft, layout, .. } = &*lab.work.model;
    let frozen = |layers| price::weights(spec, task, &Layout::of_part(spec, task, peft, layers));
    let head = match options.labels {
        Labels::Server => 0,
        Labels::Device => {
            let nothing = Layout::of_part(spec, task, peft, spec.layers..spec.layers);
            debug_assert!(nothing.sites.iter().all(|site| site.place == Place::Last));
            price::weights(spec, task, &nothing)
        }
    };
    let trained = Part::of_device(layout, options.labels, terms).len() as u64;
    frozen(0..terms.cut()) + head + 4 * trained
}

/// What a round asks of a device on these terms.
pub fn quote(lab: &Lab, options: &Options, node: Node, terms: Terms) -> Quote {
    let theta = 4 * Part::of_device(&lab.work.model.layout, options.labels, &terms).len() as u64;
    let (optimizer, head_optimizer) = (None, None);
    let pass = Pass { node, round: 1, terms, theta: Blob::default(), optimizer, head_optimizer };
    let mut quote = Quote {
        resident_bytes: resident_bytes(lab, options, &terms),
        down_bytes: theta,
        up_bytes: theta,
        ..Quote::default()
    };
    let width = lab.work.model.spec.width;
    for rows in step::batches(lab, &pass) {
        let starts = crate::lab::starts(&lab.work.train, rows.into_iter().map(|row| row as usize));
        let crossing = terms.traffic.bytes(starts[starts.len() - 1] as usize, width) as u64;
        quote.cost = quote.cost + price_of_forward(lab, options, &terms, &starts);
        quote.up_bytes += crossing;
        if options.labels == Labels::Device {
            quote.cost = quote.cost + price_of_judging(lab, options, &terms, &starts);
            (quote.up_bytes, quote.down_bytes) = (quote.up_bytes + crossing, quote.down_bytes + crossing);
        }
        let kept = options.between == Between::Keep;
        quote.cost = quote.cost + price_of_learning(lab, options, &terms, &starts, kept);
        quote.down_bytes += if terms.half == Half::Frozen { 0 } else { crossing };
    }
    quote
}
