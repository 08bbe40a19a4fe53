//! The device's half: one frozen forward pass a sample, and then nothing but the last word.

use super::arrivals::Taps;
use super::bench::SideBench;
use super::exact::Ask;
use super::weigh::{self, Validation};
use super::{Down, Up, Word};
use base::{Blob, Cost, Meter, Node, SERVER};
use federation::{Cx, Event, Fault, Side};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What outlives a job on a device.
#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
    /// The states of each chunk that its head is trained on.
    features: BTreeMap<u32, Blob>,
    head: Option<Blob>,
    validation: Validation,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum DeviceJob {
    Forward { node: Node, index: u32 },
    Head { node: Node, features: Vec<Blob> },
    Answer { node: Node, step: u32, ask: Ask, head: Option<Blob>, features: Vec<Blob> },
    Weigh { node: Node, theta: Blob, head: Blob, validation: Validation },
}

#[derive(Serialize, Deserialize)]
pub enum DeviceDone {
    Forwarded { taps: Taps, features: Blob },
    Head { head: Blob, validation: Validation, differences: Vec<Blob> },
    Answered { step: u32, gradient: Blob, loss: f64 },
    Weighed(Word),
}

impl Device {
    pub fn new(node: Node) -> Device {
        Device { node, features: BTreeMap::new(), head: None, validation: Validation::default() }
    }
}

impl Side for Device {
    type In = Down;
    type Out = Up;
    type Job = DeviceJob;
    type Done = DeviceDone;
    type Bench = SideBench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        let node = self.node;
        match event {
            Event::Message { body: Down::Chunk(index), .. } => {
                if index == 0 {
                    // The server holds nothing of it that counts: its head is trained anew.
                    self.features.clear();
                }
                cx.run(DeviceJob::Forward { node, index });
            }
            Event::Message { body: Down::Logits { step, ask }, .. } => {
                let (head, features) = (self.head.clone(), self.features.values().cloned().collect());
                cx.run(DeviceJob::Answer { node, step, ask, head, features });
            }
            Event::Message { body: Down::Side(theta), .. } => {
                let head = self.head.clone().unwrap_or_default();
                cx.run(DeviceJob::Weigh { node, theta, head, validation: self.validation.clone() });
            }
            Event::Done(DeviceDone::Forwarded { taps, features }) => {
                if taps.differences.is_none() {
                    self.features.insert(taps.index, features);
                    if self.features.len() as u32 == taps.chunks {
                        cx.run(DeviceJob::Head {
                            node,
                            features: self.features.values().cloned().collect(),
                        });
                    }
                }
                cx.send(SERVER, Up::Taps(taps));
            }
            Event::Done(DeviceDone::Head { head, validation, differences }) => {
                (self.head, self.validation) = (Some(head), validation);
                cx.send(SERVER, Up::Differences(differences));
            }
            Event::Done(DeviceDone::Answered { step, gradient, loss }) => {
                cx.send(SERVER, Up::Gradient { step, gradient, loss });
            }
            Event::Done(DeviceDone::Weighed(word)) => cx.send(SERVER, Up::Weighed(word)),
            Event::Open { .. } | Event::Lost(_) => {}
        }
    }

    fn price(job: &DeviceJob, bench: &SideBench) -> Cost {
        match job {
            DeviceJob::Forward { node, index } => {
                bench.price_of_forward(*node, &bench.chunk(*node, *index))
            }
            DeviceJob::Head { node, .. } => weigh::price_of_head(bench, *node),
            DeviceJob::Answer { ask, .. } => bench.price_of_answer(ask),
            DeviceJob::Weigh { node, .. } => weigh::price(bench, *node),
        }
    }

    fn label(job: &DeviceJob) -> &'static str {
        match job {
            DeviceJob::Forward { .. } => "forward",
            DeviceJob::Head { .. } => "head",
            DeviceJob::Answer { .. } => "answer",
            DeviceJob::Weigh { .. } => "weigh",
        }
    }

    fn run(job: DeviceJob, bench: &SideBench, meter: &Meter) -> Result<DeviceDone, Fault> {
        match job {
            DeviceJob::Forward { node, index } => forward(bench, node, index, meter),
            DeviceJob::Head { node, features } => {
                let (head, validation, differences) = weigh::train_head(bench, node, &features, meter)?;
                Ok(DeviceDone::Head { head, validation, differences })
            }
            DeviceJob::Answer { node, step, ask, head, features } => {
                let (gradient, loss) = bench.answer(node, &ask, head.as_ref(), &features, meter)?;
                Ok(DeviceDone::Answered { step, gradient, loss })
            }
            DeviceJob::Weigh { node, theta, head, validation } => {
                weigh::weigh(bench, node, (&theta, &head), &validation, meter).map(DeviceDone::Weighed)
            }
        }
    }
}

fn forward(bench: &SideBench, node: Node, index: u32, meter: &Meter) -> Result<DeviceDone, Fault> {
    let positions = bench.chunk(node, index);
    let out = bench.forward(node, &positions, meter)?;
    let differences = out.differences.map(|differences| Blob(differences.into()));
    let (taps, features) = (Blob(out.taps.into()), Blob(out.features.into()));
    let (chunks, rows) = (bench.chunks(node), out.rows);
    Ok(DeviceDone::Forwarded { taps: Taps { index, chunks, rows, taps, differences }, features })
}
