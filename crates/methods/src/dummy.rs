//! `dummy`: a method without tensors, to test drivers and to measure them alone.
//!
//! ```text
//! device i                          server
//!          <----- Begin ------------  opens the round
//!  [work]  ------ Mark{i} --------->  counts a 1 at coordinate i
//!                                     closes when every device answered or is lost
//! ```
//!
//! Source: none. Each device contributes the basis vector e_i once a round, so that after a run every
//! coordinate is the number of rounds in which that device was counted: nothing lost, nothing twice.

use crate::{Method, Quote, Setup, SetupError};
use base::{Blob, Cost, Meter, Node};
use federation::{Cx, Event, Fault, Side, Summary};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// Operations of a device's job.
    pub flops: u64,
    /// Memory of a device's job.
    pub bytes: u64,
    /// Size of the message in each direction.
    pub payload: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { flops: 1_000_000_000, bytes: 1_000_000, payload: 1_000 }
    }
}

pub struct Dummy {
    bench: Arc<Bench>,
    devices: u32,
}

/// The price of the work and the size of a message.
pub struct Bench(Options);

#[derive(Serialize, Deserialize)]
pub struct Begin(Blob);

#[derive(Serialize, Deserialize)]
pub struct Mark {
    device: Node,
    padding: Blob,
}

/// The device's half keeps nothing between rounds.
#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
}

#[derive(Serialize, Deserialize, Clone)]
pub struct Work {
    device: Node,
}

impl Side for Device {
    type In = Begin;
    type Out = Mark;
    type Job = Work;
    type Done = Mark;
    type Bench = Bench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Message { .. } => cx.run(Work { device: self.node }),
            Event::Done(mark) => cx.send(base::SERVER, mark),
            Event::Open { .. } | Event::Lost(_) => {}
        }
    }

    fn price(_: &Work, bench: &Bench) -> Cost {
        Cost { flops: bench.0.flops, bytes: bench.0.bytes }
    }

    fn label(_: &Work) -> &'static str {
        "work"
    }

    fn run(job: Work, bench: &Bench, meter: &Meter) -> Result<Mark, Fault> {
        let _held = meter.charge(bench.0.bytes).map_err(|error| Fault(error.to_string()))?;
        Ok(Mark { device: job.device, padding: padding(bench) })
    }
}

fn padding(bench: &Bench) -> Blob {
    Blob(vec![0; bench.0.payload as usize].into())
}

/// The server's half: how often each device was counted, by node.
#[derive(Serialize, Deserialize)]
pub struct Server {
    counts: Vec<u32>,
    greeting: Blob,
    waiting: BTreeSet<Node>,
    counted: BTreeSet<Node>,
}

impl Side for Server {
    type In = Mark;
    type Out = Begin;
    type Job = ();
    type Done = ();
    type Bench = Bench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { cohort, .. } => {
                self.counted.clear();
                self.waiting = cohort.iter().map(|member| member.node).collect();
                self.waiting.iter().for_each(|&node| cx.send(node, Begin(self.greeting.clone())));
            }
            Event::Message { from, body } if body.device == from => {
                if self.waiting.remove(&from) {
                    self.counted.insert(from);
                    cx.finished(from);
                }
            }
            Event::Message { from, body } => {
                self.waiting.remove(&from);
                cx.refuse(from, format!("it spoke for {}", body.device));
            }
            Event::Lost(node) => {
                self.waiting.remove(&node);
            }
            Event::Done(()) => {}
        }
        if self.waiting.is_empty() {
            for node in &self.counted {
                self.counts[node.0 as usize - 1] += 1;
            }
            let examples = self.counted.len() as u64;
            cx.close(Summary { loss: 0.0, examples, ..Summary::default() });
        }
    }

    fn price((): &(), _: &Bench) -> Cost {
        Cost::FREE
    }

    fn label((): &()) -> &'static str {
        "nothing"
    }

    fn run((): (), _: &Bench, _: &Meter) -> Result<(), Fault> {
        Ok(())
    }
}

impl Method for Dummy {
    const NAME: &'static str = "dummy";
    const SOURCE: &'static str = "for testing drivers";
    const DEVICE: &'static str = "pretends to work";
    const SERVER: &'static str = "counts who answered";
    const TRAINS: bool = false;
    type Options = Options;
    type Device = Device;
    type Server = Server;

    fn new(options: Options, setup: &Setup) -> Result<Dummy, SetupError> {
        Ok(Dummy { bench: Arc::new(Bench(options)), devices: setup.devices.len() as u32 })
    }

    fn device(&self, node: Node) -> (Device, Arc<Bench>) {
        (Device { node }, self.bench.clone())
    }

    fn server(&self) -> (Server, Arc<Bench>) {
        let counts = vec![0; self.devices as usize];
        let server = Server {
            counts,
            greeting: padding(&self.bench),
            waiting: BTreeSet::new(),
            counted: BTreeSet::new(),
        };
        (server, self.bench.clone())
    }

    fn quote(&self, _: Node) -> Quote {
        let Options { flops, bytes, payload } = self.bench.0;
        let each_way = u64::from(payload);
        Quote { cost: Cost { flops, bytes }, up_bytes: each_way, down_bytes: each_way, ..Quote::default() }
    }

    fn trained(server: Server) -> Blob {
        Blob::from_f32(&server.counts.iter().map(|&count| count as f32).collect::<Vec<_>>())
    }
}
