//! A method whose result shows at once whether a contribution was lost or counted twice: in each round
//! device i adds the basis vector e_i, in parts, so every coordinate must end as 0 or 1.

use base::{Blob, Cost, Meter, Node, SERVER};
use federation::{Cx, Event, Fault, Member, Side, Summary};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Letters each contribution is split into; their order is checked.
pub const PARTS: u32 = 3;

#[derive(Serialize, Deserialize)]
pub enum Down {
    Begin { round: u32, ballast: Blob },
}

#[derive(Serialize, Deserialize)]
pub struct Part {
    round: u32,
    index: u32,
    ones: Blob,
}

/// Device half: one job per part, one after another.
#[derive(Serialize, Deserialize)]
pub struct Device {
    bytes: u64,
    round: u32,
    sent: u32,
}

impl Device {
    /// Its jobs say that they take this much memory.
    pub fn new(bytes: u64) -> Device {
        Device { bytes, round: 0, sent: 0 }
    }
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Work {
    index: u32,
    bytes: u64,
}

impl Side for Device {
    type In = Down;
    type Out = Part;
    type Job = Work;
    type Done = u32;
    type Bench = ();

    fn handle(&mut self, event: Event<Device>, cx: &mut Cx<Device>) {
        match event {
            Event::Message { body: Down::Begin { round, ballast }, .. } => {
                assert_eq!(ballast.to_f32(4).expect("the ballast arrives whole"), [round as f32; 4]);
                (self.round, self.sent) = (round, 0);
                cx.run(Work { index: 0, bytes: self.bytes });
            }
            Event::Done(index) => {
                assert_eq!(index, self.sent, "jobs are answered once");
                self.sent += 1;
                cx.send(SERVER, Part { round: self.round, index, ones: Blob::from_f32(&[1.0]) });
                if self.sent < PARTS {
                    cx.run(Work { index: self.sent, bytes: self.bytes });
                }
            }
            Event::Open { .. } | Event::Lost(_) => unreachable!("a device half never sees these"),
        }
    }

    fn price(job: &Work, (): &()) -> Cost {
        Cost { flops: 1000, bytes: job.bytes }
    }

    fn label(_: &Work) -> &'static str {
        "part"
    }

    fn run(job: Work, (): &(), meter: &Meter) -> Result<u32, Fault> {
        let _held = meter.charge(job.bytes).map_err(|over| Fault(over.to_string()))?;
        Ok(job.index)
    }
}

/// Server half. `rounds[r][i]` is coordinate i of round r + 1.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Server {
    devices: u32,
    pub rounds: Vec<Vec<u32>>,
    /// The round whose sum ends in no number.
    poisoned: Option<u32>,
    open: BTreeMap<Node, u32>,
    sum: Vec<u32>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Sum {
    coordinates: Vec<u32>,
    poisoned: bool,
}

impl Server {
    pub fn new(devices: u32, poisoned: Option<u32>) -> Server {
        Server { devices, poisoned, ..Server::default() }
    }

    fn close_if_complete(&mut self, cx: &mut Cx<Server>) {
        if self.open.is_empty() && self.sum.iter().any(|coordinate| *coordinate > 0) {
            let poisoned = self.poisoned == Some(self.rounds.len() as u32 + 1);
            cx.run(Sum { coordinates: std::mem::take(&mut self.sum), poisoned });
        }
    }
}

impl Side for Server {
    type In = Part;
    type Out = Down;
    type Job = Sum;
    type Done = Vec<u32>;
    type Bench = ();

    fn handle(&mut self, event: Event<Server>, cx: &mut Cx<Server>) {
        match event {
            Event::Open { round, cohort } => {
                self.rounds.resize(round as usize - 1, Vec::new());
                self.open = cohort.iter().map(|member: &Member| (member.node, 0)).collect();
                self.sum = vec![0; self.devices as usize + 1];
                for member in cohort {
                    let ballast = Blob::from_f32(&[round as f32; 4]);
                    cx.send(member.node, Down::Begin { round, ballast });
                }
            }
            Event::Message { from, body: Part { round, index, ones } } => {
                let parts = self.open.get_mut(&from).expect("only devices waited for are heard");
                assert_eq!(round as usize, self.rounds.len() + 1, "messages are of the current round");
                assert_eq!(index, *parts, "messages arrive once and in order");
                *parts += ones.to_f32(1).expect("the blob arrives whole")[0] as u32;
                if *parts == PARTS {
                    self.open.remove(&from);
                    self.sum[from.0 as usize] += 1;
                    cx.finished(from);
                    self.close_if_complete(cx);
                }
            }
            Event::Done(sum) => {
                self.rounds.push(sum);
                cx.close(Summary { loss: 0.5, examples: 1, ..Summary::default() });
            }
            Event::Lost(node) => {
                self.open.remove(&node).expect("each device is lost once");
                self.close_if_complete(cx);
            }
        }
    }

    fn price(job: &Sum, (): &()) -> Cost {
        Cost { flops: job.coordinates.len() as u64, bytes: 0 }
    }

    fn label(_: &Sum) -> &'static str {
        "sum"
    }

    fn run(job: Sum, (): &(), _: &Meter) -> Result<Vec<u32>, Fault> {
        if job.poisoned { Err(Fault("the loss is NaN".into())) } else { Ok(job.coordinates) }
    }
}
