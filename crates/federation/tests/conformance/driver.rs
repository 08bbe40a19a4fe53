//! A small driver in virtual time that does everything the contract allows it to do, from one seed:
//! it loses, doubles, delays, reorders and damages messages, and kills any node at any instant.

use crate::basis::{Device, Server};
use base::{Node, Packet, SERVER, Seed, Stream, Time};
use federation::coordinator::side_of;
use federation::{
    CohortConfig, Coordinator, Durable, Effects, Fact, Input, JobId, Journal, Machine, Member, Plan,
    Record, Revived, Status, Worker,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Probabilities per message (the first five) and per input.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    pub lose: f64,
    pub double: f64,
    pub delay: f64,
    pub damage: f64,
    /// A random packet from a random node beside the message.
    pub junk: f64,
    pub kill: f64,
    /// A killed device comes back without its storage.
    pub wipe: f64,
    /// A killed device comes back with a storage of some time ago.
    pub rollback: f64,
    /// The driver gives up on a device.
    pub drop: f64,
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Scene {
    pub seed: u64,
    pub devices: u32,
    pub plan: Plan,
    pub weather: Weather,
    /// Memory each device's jobs ask for, and what a device has.
    pub job_bytes: u64,
    pub memory_bytes: u64,
    pub poisoned: Option<u32>,
}

/// What came of it.
pub struct Outcome {
    pub status: Status,
    pub server: Server,
    pub records: Vec<Record>,
    pub kills: u32,
    pub largest_snapshot: u64,
}

impl Scene {
    pub fn calm(seed: u64, devices: u32, rounds: u32, cohort: CohortConfig) -> Scene {
        let plan = Plan { rounds, cohort, devices_expected: devices, replay: None };
        let weather = Weather::default();
        Scene { seed, devices, plan, weather, job_bytes: 10, memory_bytes: 100, poisoned: None }
    }

    pub fn build(&self, node: Node) -> Box<dyn Machine> {
        if node == SERVER {
            let side = Server::new(self.devices, self.poisoned);
            let seed = Seed(self.seed).child("federation", 0);
            Box::new(Coordinator::new(side, Arc::new(()), self.plan.clone(), seed).speaking("basis"))
        } else {
            let side = Device::new(self.job_bytes);
            Box::new(Worker::new(member(node), side, Arc::new(())).speaking("basis"))
        }
    }

    pub fn run(&self) -> Outcome {
        let _seed = SeedOnPanic(self.seed);
        Driver::new(self).run()
    }
}

/// Says where a failure inside a machine came from.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the run of seed {}", self.0);
        }
    }
}

fn member(node: Node) -> Member {
    Member {
        node,
        class: "phone".into(),
        flops_per_s: 1e3,
        memory_bytes: 100,
        up_bytes_per_s: 1e5,
        down_bytes_per_s: 1e5,
        examples: 1,
    }
}

enum What {
    Input(Input),
    Landed { life: u32, job: JobId, result: Packet },
    Revive,
}

struct Process {
    life: u32,
    alive: Option<Durable>,
    disk: Journal,
    backup: Journal,
}

struct Driver<'a> {
    scene: &'a Scene,
    stream: Stream,
    now: Time,
    agenda: BTreeMap<(Time, u64), (Node, What)>,
    sequence: u64,
    nodes: Vec<Process>,
    records: Vec<Record>,
    kills: u32,
    largest_snapshot: u64,
}

/// Where in the handling of an input a process dies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    BeforeJournal,
    BeforeEffects,
    AfterEffects,
}

impl<'a> Driver<'a> {
    fn new(scene: &'a Scene) -> Driver<'a> {
        let nodes = (0..=scene.devices).map(|node| {
            let alive = Some(Durable::new(scene.build(Node(node))));
            Process { life: 0, alive, disk: Journal::default(), backup: Journal::default() }
        });
        let mut driver = Driver {
            scene,
            stream: Seed(scene.seed).child("weather", 0).stream(),
            now: Time::ZERO,
            agenda: BTreeMap::new(),
            sequence: 0,
            nodes: nodes.collect(),
            records: Vec::new(),
            kills: 0,
            largest_snapshot: 0,
        };
        for node in 0..=scene.devices {
            driver.schedule(Time::ZERO, Node(node), What::Input(Input::Start));
        }
        driver
    }

    fn run(mut self) -> Outcome {
        let limit = Time::ZERO.after(1e6);
        while let Some(((now, _), (node, what))) = self.agenda.pop_first() {
            assert!(now < limit, "seed {}: not over after {limit:?}", self.scene.seed);
            self.now = now;
            let Some(status) = self.step(node, what) else { continue };
            let server = &self.nodes[0];
            let snapshot = match &server.alive {
                Some(durable) => durable.snapshot(),
                None => self.revived(SERVER, server.disk.clone()).durable.snapshot(),
            };
            return Outcome {
                status,
                server: side_of(&snapshot).expect("its own snapshot"),
                records: self.records,
                kills: self.kills,
                largest_snapshot: self.largest_snapshot,
            };
        }
        panic!("seed {}: nothing left to happen at {:?}", self.scene.seed, self.now);
    }

    fn schedule(&mut self, at: Time, node: Node, what: What) {
        self.sequence += 1;
        self.agenda.insert((at, self.sequence), (node, what));
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.stream.unit() < probability
    }

    fn step(&mut self, node: Node, what: What) -> Option<Status> {
        let input = match what {
            What::Revive => return self.revive(node),
            What::Landed { life, .. } if life != self.nodes[node.0 as usize].life => return None,
            What::Landed { job, result, .. } => Input::Done { job, result },
            What::Input(input) => input,
        };
        let death = self.death(&input);
        let process = &mut self.nodes[node.0 as usize];
        let durable = process.alive.as_mut()?; // what reaches a dead process is lost
        if death == Some(Death::BeforeJournal) {
            self.kill(node);
            return None;
        }
        let mut fx = Effects::default();
        durable.handle(self.now, input, &mut fx);
        self.records.append(&mut fx.records); // the trace is written with the journal
        if death == Some(Death::BeforeEffects) {
            self.kill(node);
            return None;
        }
        let stop = self.carry_out(node, fx);
        if death == Some(Death::AfterEffects) && stop.is_none() {
            self.kill(node);
        }
        stop
    }

    fn death(&mut self, input: &Input) -> Option<Death> {
        let dies = self.chance(self.scene.weather.kill) && !matches!(input, Input::Start | Input::Lost(_));
        let deaths = [Death::BeforeJournal, Death::BeforeEffects, Death::AfterEffects];
        let death = deaths[self.stream.below(3) as usize];
        dies.then_some(death)
    }

    fn carry_out(&mut self, node: Node, fx: Effects) -> Option<Status> {
        for (to, packet) in fx.sends {
            self.send(node, to, packet);
        }
        for at in fx.timers {
            self.schedule(at.max(self.now), node, What::Input(Input::Timer));
        }
        self.start(node, fx.tasks);
        fx.stop.filter(|_| node == SERVER)
    }

    fn start(&mut self, node: Node, tasks: Vec<federation::Task>) {
        for task in tasks {
            let at = self.now.after(0.5 + 20.0 * self.stream.unit());
            if node != SERVER && task.cost.bytes > self.scene.memory_bytes {
                let (need, budget) = (task.cost.bytes, self.scene.memory_bytes);
                self.schedule(at, node, What::Input(Input::Refused { job: task.id, need, budget }));
                continue;
            }
            let outcome = (task.work)();
            assert!(outcome.peak_bytes <= task.cost.bytes);
            let life = self.nodes[node.0 as usize].life;
            self.schedule(at, node, What::Landed { life, job: task.id, result: outcome.result });
        }
    }

    fn send(&mut self, from: Node, to: Node, packet: Packet) {
        let weather = self.scene.weather.clone();
        // As on any wire: one run of bytes, read back at the other end.
        let bytes = packet.to_bytes();
        assert_eq!(bytes.len() as u64, packet.wire_len());
        let packet = Packet::from_bytes(bytes.into()).expect("its own bytes");
        if self.chance(weather.junk) {
            let from = Node(self.stream.below(u64::from(self.scene.devices) + 3) as u32);
            let body = (0..self.stream.below(60)).map(|_| self.stream.bits() as u8).collect::<Vec<u8>>();
            let junk = Packet { body: body.into(), blobs: packet.blobs.clone() };
            self.deliver(from, to, junk);
        }
        let copies = 1 + u32::from(self.chance(weather.double));
        for _ in 0..copies {
            if self.chance(weather.lose) {
                continue;
            }
            let copy = if self.chance(weather.damage) { self.damaged(&packet) } else { packet.clone() };
            self.deliver(from, to, copy);
        }
        if to != SERVER && self.chance(weather.drop) {
            self.schedule(self.now, SERVER, What::Input(Input::Lost(to)));
        }
    }

    fn deliver(&mut self, from: Node, to: Node, packet: Packet) {
        let late = if self.chance(self.scene.weather.delay) { 30.0 * self.stream.unit() } else { 0.0 };
        let at = self.now.after(0.05 + 0.1 * self.stream.unit() + late);
        self.schedule(at, to, What::Input(Input::Message { from, packet }));
    }

    /// A bit of the body flipped, the body cut short, or a blob gone.
    fn damaged(&mut self, packet: &Packet) -> Packet {
        let mut packet = packet.clone();
        let mut body = packet.body.to_vec();
        match self.stream.below(3) {
            0 => body[self.stream.below(packet.body.len() as u64) as usize] ^= 1 << self.stream.below(8),
            1 => body.truncate(self.stream.below(packet.body.len() as u64) as usize),
            _ if packet.blobs.pop().is_none() => body.push(0),
            _ => {}
        }
        packet.body = body.into();
        packet
    }

    fn kill(&mut self, node: Node) {
        let wiped = node != SERVER && self.chance(self.scene.weather.wipe);
        let rolled_back = node != SERVER && self.chance(self.scene.weather.rollback);
        let backs_up = self.chance(0.3);
        let torn = (0..self.stream.below(40)).map(|_| self.stream.bits() as u8).collect::<Vec<u8>>();
        let process = &mut self.nodes[node.0 as usize];
        let Some(durable) = process.alive.take() else { return };
        let mut file = durable.kill().to_bytes();
        let whole = file.len();
        file.extend(torn);
        let disk = Journal::from_bytes(file.into());
        assert!(disk.journal.to_bytes().len() == whole, "what was journalled is read back");
        process.disk = match (wiped, rolled_back) {
            (true, _) => Journal::default(),
            (_, true) => process.backup.clone(),
            _ => disk.journal,
        };
        if backs_up {
            process.backup = process.disk.clone();
        }
        process.life += 1;
        self.kills += 1;
        let at = self.now.after(0.1 + 20.0 * self.stream.unit());
        self.schedule(at, node, What::Revive);
    }

    fn revived(&self, node: Node, disk: Journal) -> Revived {
        Durable::revive(disk, || self.scene.build(node))
    }

    fn revive(&mut self, node: Node) -> Option<Status> {
        let disk = std::mem::take(&mut self.nodes[node.0 as usize].disk);
        if disk.is_empty() {
            self.nodes[node.0 as usize].alive = Some(Durable::new(self.scene.build(node)));
            self.schedule(self.now, node, What::Input(Input::Start));
            return None;
        }
        let Revived { durable, tasks, replayed } = self.revived(node, disk);
        self.largest_snapshot = self.largest_snapshot.max(durable.snapshot().wire_len());
        self.records.push(Record { t: self.now, node, fact: Fact::Restored { replayed } });
        self.nodes[node.0 as usize].alive = Some(durable);
        self.start(node, tasks);
        self.schedule(self.now, node, What::Input(Input::Timer));
        None
    }
}
