//! A small federated average with real arithmetic: sensitive to the order of sums, to a lost update,
//! to one counted twice, and to a restore that forgets something.

use base::{Blob, Cost, Meter, Node, SERVER, Seed};
use federation::coordinator::side_of;
use federation::{
    CohortConfig, Coordinator, Cx, Event, Fault, Federation, Machine, Member, Plan, Record, Side, Summary,
    Worker,
};
use serde::{Deserialize, Serialize};
use sim::{Checkpoint, Ended, Output, SimConfig, SimError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use undertone_sim as sim;

pub const WIDTH: usize = 64;

/// What jobs cost.
#[derive(Clone, Copy)]
pub struct Price {
    pub flops: u64,
    pub bytes: u64,
}

/// Trains in steps, one job each. What it keeps between them is private, so a kill must not lose it; it
/// keeps nothing from round to round, since a log of who was counted does not tell who heard what.
#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
    /// Steps still to do in this round.
    left: u32,
}

const STEPS: u32 = 2;

#[derive(Serialize, Deserialize, Clone)]
pub struct Step {
    node: Node,
    left: u32,
    weights: Blob,
}

fn floats(blob: &Blob) -> Result<Vec<f32>, Fault> {
    blob.to_f32(WIDTH).map_err(|error| Fault(error.to_string()))
}

impl Side for Device {
    type In = Blob;
    type Out = Blob;
    type Job = Step;
    type Done = Blob;
    type Bench = Price;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Message { body, .. } => {
                self.left = STEPS;
                cx.run(Step { node: self.node, left: self.left, weights: body });
            }
            Event::Done(weights) => {
                self.left -= 1;
                if self.left == 0 {
                    cx.send(SERVER, weights);
                } else {
                    cx.run(Step { node: self.node, left: self.left, weights });
                }
            }
            Event::Open { .. } | Event::Lost(_) => {}
        }
    }

    fn price(_: &Step, bench: &Price) -> Cost {
        Cost { flops: bench.flops, bytes: bench.bytes }
    }

    fn label(_: &Step) -> &'static str {
        "train"
    }

    fn run(job: Step, bench: &Price, meter: &Meter) -> Result<Blob, Fault> {
        let _held = meter.charge(bench.bytes / 2).map_err(|error| Fault(error.to_string()))?;
        let scale = (1.0 + job.node.0 as f32 / 7.0) / job.left as f32;
        let moved = floats(&job.weights)?.into_iter().enumerate();
        let moved: Vec<f32> = moved.map(|(at, w)| w * 0.7 + scale / (1.0 + at as f32)).collect();
        Ok(Blob::from_f32(&moved))
    }
}

#[derive(Serialize, Deserialize)]
pub struct Server {
    weights: Blob,
    waiting: u32,
    updates: BTreeMap<Node, Blob>,
}

impl Side for Server {
    type In = Blob;
    type Out = Blob;
    type Job = Vec<Blob>;
    type Done = Blob;
    type Bench = Price;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { cohort, .. } => {
                self.waiting = cohort.len() as u32;
                self.updates.clear();
                cohort.iter().for_each(|member| cx.send(member.node, self.weights.clone()));
            }
            Event::Message { from, body } => {
                self.updates.insert(from, body);
                self.waiting -= 1;
                cx.finished(from);
            }
            Event::Lost(_) => self.waiting -= 1,
            Event::Done(weights) => {
                self.weights = weights;
                return cx.close(Summary { examples: self.updates.len() as u64, ..Summary::default() });
            }
        }
        if self.waiting == 0 && self.updates.is_empty() {
            cx.close(Summary::default());
        } else if self.waiting == 0 {
            cx.run(self.updates.values().cloned().collect());
        }
    }

    fn price(job: &Vec<Blob>, _: &Price) -> Cost {
        Cost { flops: (job.len() * WIDTH) as u64, bytes: 4 * WIDTH as u64 }
    }

    fn label(_: &Vec<Blob>) -> &'static str {
        "aggregate"
    }

    fn run(job: Vec<Blob>, _: &Price, _: &Meter) -> Result<Blob, Fault> {
        let mut sum = vec![0f32; WIDTH];
        for update in &job {
            sum.iter_mut().zip(floats(update)?).for_each(|(sum, value)| *sum += value);
        }
        sum.iter_mut().for_each(|value| *value /= job.len() as f32);
        Ok(Blob::from_f32(&sum))
    }
}

/// Devices of three speeds and two sizes.
pub fn members(devices: u32) -> Vec<Member> {
    (1..=devices).map(|node| member(Node(node))).collect()
}

fn member(node: Node) -> Member {
    Member {
        node,
        class: ["slow", "middling", "fast"][node.0 as usize % 3].to_owned(),
        flops_per_s: [1e9, 2e9, 5e9][node.0 as usize % 3],
        memory_bytes: if node.0 % 4 == 3 { 1_000 } else { 10_000 },
        up_bytes_per_s: 1e4,
        down_bytes_per_s: 1e5,
        examples: 10,
    }
}

pub fn price() -> Price {
    Price { flops: 1_500_000_000, bytes: 800 }
}

pub fn plan(devices: u32, rounds: u32, cohort: CohortConfig) -> Plan {
    Plan { rounds, cohort, devices_expected: devices, replay: None }
}

pub fn federation(plan: Plan, price: Price) -> Federation {
    let devices = members(plan.devices_expected);
    let bench = Arc::new(price);
    let members = devices.clone();
    let build = move |node: Node| -> Box<dyn Machine> {
        if node == SERVER {
            let weights = Blob::from_f32(&[0.5; WIDTH]);
            let side = Server { weights, waiting: 0, updates: BTreeMap::new() };
            return Box::new(Coordinator::new(side, bench.clone(), plan.clone(), Seed(11)));
        }
        let side = Device { node, left: 0 };
        Box::new(Worker::new(members[node.0 as usize - 1].clone(), side, bench.clone()))
    };
    let server = Member { flops_per_s: 1e10, memory_bytes: 1 << 30, ..member(SERVER) };
    Federation { server, devices, build: Box::new(build) }
}

/// A run with everything it handed out.
pub struct Run {
    pub ended: Ended,
    pub records: Vec<Record>,
}

pub type Driver = fn(
    &Federation,
    &SimConfig,
    &mut dyn FnMut(Output),
    &AtomicBool,
    Option<Checkpoint>,
) -> Result<Ended, SimError>;

/// Run until the end, or until `stop_after` records were handed out.
pub fn drive(
    driver: Driver,
    federation: &Federation,
    config: &SimConfig,
    stop_after: usize,
    from: Option<Checkpoint>,
) -> Result<Run, SimError> {
    let interrupt = AtomicBool::new(false);
    let mut records = Vec::new();
    let mut sink = |output: Output| {
        if let Output::Record(record) = output {
            records.push(record.clone());
            interrupt.fetch_or(records.len() >= stop_after, Ordering::Relaxed);
        }
    };
    let ended = driver(federation, config, &mut sink, &interrupt, from)?;
    Ok(Run { ended, records })
}

pub fn finish(driver: Driver, federation: &Federation, config: &SimConfig) -> Run {
    drive(driver, federation, config, usize::MAX, None).unwrap()
}

impl Run {
    /// What was trained, as bits.
    pub fn weights(&self) -> Vec<u32> {
        let server = side_of::<Server>(&self.ended.server).unwrap();
        server.weights.to_f32(WIDTH).unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// Hold two traces against each other, and name the first difference.
    pub fn same_trace(records: &[Record], whole: &[Record], what: &str) {
        let first = records.iter().zip(whole).position(|(ours, theirs)| ours != theirs);
        if let Some(at) = first {
            panic!("{what}: record {at} differs:\n{:?}\n{:?}", records[at], whole[at]);
        }
        assert_eq!(records.len(), whole.len(), "{what}");
    }

    pub fn seconds(&self) -> f64 {
        self.ended.time.seconds()
    }

    pub fn count(&self, what: fn(&federation::Fact) -> bool) -> usize {
        self.records.iter().filter(|record| what(&record.fact)).count()
    }
}
