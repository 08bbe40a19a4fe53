//! The device's half.

use super::{Bench, Order, Task, Told, estimate};
use base::{Cost, Meter, Node, SERVER};
use federation::{Cx, Event, Fault, Side};
use serde::{Deserialize, Serialize};

/// What a device is at: it runs wave after wave as far as it may.
#[derive(Serialize, Deserialize)]
pub struct Device {
    node: Node,
    task: Option<Task>,
    /// Waves told, and how far it may go on by itself.
    told: u32,
    until: u32,
    /// A wave is being computed.
    busy: bool,
}

/// One wave.
#[derive(Clone, Serialize, Deserialize)]
pub struct Perturb {
    pub node: Node,
    pub task: Task,
    pub wave: u32,
}

impl Device {
    pub fn new(node: Node) -> Device {
        Device { node, task: None, told: 0, until: 0, busy: false }
    }

    fn go_on(&mut self, cx: &mut Cx<Self>) {
        if let (Some(task), false, true) = (&self.task, self.busy, self.told < self.until) {
            self.busy = true;
            cx.run(Perturb { node: self.node, task: task.clone(), wave: self.told + 1 });
        }
    }
}

impl Side for Device {
    type In = Order;
    type Out = Told;
    type Job = Perturb;
    type Done = Told;
    type Bench = Bench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Message { body: Order::Begin { task, until }, .. } => {
                *self = Device { task: Some(task), until, ..Device::new(self.node) };
            }
            Event::Message { body: Order::Until(until), .. } => self.until = until,
            Event::Done(told) => {
                (self.told, self.busy) = (told.wave, false);
                cx.send(SERVER, told);
            }
            Event::Open { .. } | Event::Lost(_) => {}
        }
        self.go_on(cx);
    }

    fn price(job: &Perturb, bench: &Bench) -> Cost {
        estimate::price(bench, job.node, &job.task, job.wave)
    }

    fn label(_: &Perturb) -> &'static str {
        "perturb"
    }

    fn run(job: Perturb, bench: &Bench, meter: &Meter) -> Result<Told, Fault> {
        let Perturb { node, task, wave } = job;
        estimate::run(bench, node, &task, wave, meter)
            .map_err(|Fault(reason)| Fault(format!("wave {wave} of round {}: {reason}", task.round)))
    }
}
