//! The machines of every method, on both ends: they hear what a hostile peer may say at any moment of a round,
//! run the jobs that come of it, and hear then what they should have heard.

use crate::form::{FRAME, SNAPSHOT};
use crate::target::{Decoder, Room, Said, Target, target};
use base::{Blob, Node, Packet, SERVER, Seed, Time};
use data::{Encoded, Target as Label};
use federation::{CohortConfig, Effects, Fact, Federation, Input, Machine, Member, Memory, Plan, Task};
use methods::{Assembly, Entry, Keep, METHODS, Setup, TrainConfig, Workload};
use model::{Model, PeftConfig, Pooling, Source};
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DEVICES: u32 = 3;

/// A message is a few kilobytes, and a job holds what its price says; the model is tiny.
const ROOM: Room = Room { bytes: 4 << 20, factor: 64 };
const SNAPSHOT_ROOM: Room = Room { bytes: 1 << 20, factor: 64 };

/// Jobs that are priced above this are not run.
const JOB_FLOPS: u64 = 100_000_000;
const JOB_BYTES: u64 = 2 << 20;

/// Messages of one method that are kept as seeds.
const MOMENTS: usize = 48;
/// After so many inputs a federation is built anew: what jobs keep beside the machines grows.
const REFRESH: u32 = 200;

pub fn targets() -> Vec<Target> {
    let method = |entry: &'static Entry| target(&format!("nodes of {}", entry.name), move || nodes(entry));
    METHODS.iter().map(method).chain([target("snapshots", snapshots)]).collect()
}

/// A federation of the method without tensors.
pub fn dummy() -> Assembly {
    assemble(methods::find("dummy").expect("it is in the list"))
}

pub fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(family)
}

fn member(node: u32) -> Member {
    Member {
        node: Node(node),
        class: "phone".into(),
        flops_per_s: 1e9 * f64::from(node + 1),
        memory_bytes: 1 << 30,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 4e6,
        examples: 2,
    }
}

/// Two rows a device on a tiny BERT.
fn workload() -> Workload {
    let task = model::Task::Classification { classes: 3, pooling: Pooling::Mean, squash: Some(3.0) };
    let peft = PeftConfig::lora(2, 4.0, &["query", "value"]);
    let source = Source::Directory(golden("bert"));
    let (model, theta) = Model::load(&source, &task, &peft, Seed(1)).expect("a sound model");
    let mut draw = Seed(2).stream();
    let mut rows = |count: u32| -> Arc<[Encoded]> {
        let row = |_| {
            let ids = (0..3 + draw.below(4)).map(|_| draw.below(60) as u32).collect();
            Encoded::whole(ids, Label::Class(draw.below(3) as u32))
        };
        (0..count).map(row).collect()
    };
    Workload {
        model: Arc::new(model),
        initial: Blob::from_f32(&theta),
        train: rows(2 * DEVICES),
        shards: (0..DEVICES).map(|device| vec![2 * device, 2 * device + 1]).collect(),
        test: rows(2),
        owners: Arc::default(),
        recipe: TrainConfig {
            per_device_train_batch_size: 2.try_into().expect("not 0"),
            ..TrainConfig::default()
        },
        threads: 1,
        others: Arc::default(),
    }
}

fn assemble(entry: &Entry) -> Assembly {
    let cohort = CohortConfig { min_available_nodes: DEVICES, ..CohortConfig::default() };
    let setup = Setup {
        server: member(0),
        devices: (1..=DEVICES).map(member).collect(),
        plan: Plan { rounds: 2, cohort, devices_expected: DEVICES, replay: None },
        seed: Seed(11),
        options: toml::Table::new(),
        work: entry.trains.then(workload),
        keep: Keep::default(),
    };
    (entry.assemble)(setup).expect("the tiny federation suits every method")
}

/// A node about to hear a message.
struct Moment {
    node: Node,
    before: Packet,
    from: Node,
    packet: Packet,
}

/// Every machine of a federation, driven by hand: messages arrive at once, jobs are run where they are asked
/// for. What was heard in its two rounds, and all states in which something was.
fn conversation(federation: &Federation) -> Vec<Moment> {
    let mut machines: Vec<_> =
        (0..=federation.devices.len() as u32).map(|node| (federation.build)(Node(node))).collect();
    let every = |input: fn() -> Input| (0..machines.len() as u32).map(move |node| (Node(node), input()));
    let mut queue: VecDeque<(Node, Input)> = every(|| Input::Start).collect();
    let timers: Vec<Node> = every(|| Input::Timer).map(|(node, _)| node).collect();
    let (mut moments, mut now) = (Vec::new(), Time(1));
    for _ in 0..20_000 {
        let Some((node, input)) = queue.pop_front() else {
            now = now.after(1.0);
            queue.extend(timers.iter().map(|node| (*node, Input::Timer)));
            continue;
        };
        let machine = &mut machines[node.0 as usize];
        if let Input::Message { from, packet } = &input {
            let (before, packet) = (machine.snapshot(), packet.clone());
            moments.push(Moment { node, before, from: *from, packet });
        }
        let mut fx = Effects::default();
        machine.handle(now, input, &mut fx);
        queue.extend(fx.sends.into_iter().map(|(to, packet)| (to, Input::Message { from: node, packet })));
        queue.extend(fx.tasks.into_iter().map(|task| (node, done(task))));
        if node == SERVER && fx.stop.is_some() {
            break;
        }
    }
    moments
}

fn done(task: Task) -> Input {
    Input::Done { job: task.id, result: (task.work)().result }
}

/// Messages of different kinds, as far as ends and sizes tell.
fn different(moments: Vec<Moment>) -> Vec<Moment> {
    let mut seen = BTreeSet::new();
    let kind = |moment: &Moment| {
        let blobs: Vec<usize> = moment.packet.blobs.iter().map(Blob::len).collect();
        (moment.node == SERVER, moment.packet.body.len() / 2, blobs)
    };
    moments.into_iter().filter(|moment| seen.insert(kind(moment))).take(MOMENTS).collect()
}

fn nodes(entry: &'static Entry) -> Decoder {
    let mut assembly = assemble(entry);
    let moments = different(conversation(&assembly.federation));
    let seed = |(index, moment): (u8, &Moment)| [vec![index], moment.packet.to_bytes()].concat();
    let mut seeds: Vec<Vec<u8>> = (0..).zip(&moments).map(seed).collect();
    if seeds.is_empty() {
        // Of a method without devices the server alone is there to be spoken to.
        seeds.push([vec![0], Packet::default().to_bytes()].concat());
    }
    let mut heard = 0;
    let decode = move |bytes: &[u8]| -> Said {
        heard += 1;
        if heard % REFRESH == 0 {
            assembly = assemble(entry);
            conversation(&assembly.federation);
        }
        let (index, bytes) = bytes.split_first().ok_or("nothing")?;
        let packet = Packet::from_bytes(bytes.to_vec().into()).map_err(|error| error.to_string())?;
        let federation = &assembly.federation;
        match moments.get(*index as usize % moments.len().max(1)) {
            Some(moment) => hear(federation, moment, packet),
            None => listen(&mut *(federation.build)(SERVER), Node(1), packet).0,
        }
    };
    Decoder { seeds, form: FRAME, room: ROOM, decode: Box::new(decode) }
}

/// The machine of that moment, a message in place of the one that came, and then the one that came.
fn hear(federation: &Federation, moment: &Moment, packet: Packet) -> Said {
    let mut machine = (federation.build)(moment.node);
    restore(&mut *machine, moment.before.clone());
    let (said, tasks) = listen(&mut *machine, moment.from, packet);
    let mut ran = String::new();
    for task in tasks {
        let priced = task.cost.flops <= JOB_FLOPS && task.cost.bytes <= JOB_BYTES;
        ran += if priced { " ran " } else { " not run " };
        ran += task.label;
        if priced {
            let mut fx = Effects::default();
            machine.handle(Time(LATE.0 + 1), done(task), &mut fx);
            ran += &said_of(&fx);
        }
    }
    machine.handle(Time(LATE.0 + 2), Input::Timer, &mut Effects::default());
    let mut again = (federation.build)(moment.node);
    let records = restore(&mut *again, machine.snapshot()).records;
    assert!(records.is_empty(), "a snapshot that does not read back: {records:?}");
    let _ = listen(&mut *again, moment.from, moment.packet.clone());
    match said {
        Ok(said) => Ok(said + &ran),
        Err(said) => Err(said + &ran),
    }
}

const LATE: Time = Time(100_000_000_000);

fn restore(machine: &mut dyn Machine, snapshot: Packet) -> Effects {
    let mut fx = Effects::default();
    machine.handle(LATE, Input::Restored { snapshot, memory: Memory::Kept }, &mut fx);
    fx
}

/// A message is heard: what comes of it, refused where something bad is recorded of the peer.
fn listen(machine: &mut dyn Machine, from: Node, packet: Packet) -> (Said, Vec<Task>) {
    let mut fx = Effects::default();
    machine.handle(LATE, Input::Message { from, packet }, &mut fx);
    let said = said_of(&fx);
    let refused = fx.records.iter().any(|record| matches!(record.fact, Fact::Malformed { .. }));
    (if refused { Err(said) } else { Ok(said) }, fx.tasks)
}

/// Effects by kind, and records by what they say.
fn said_of(fx: &Effects) -> String {
    let mut said = format!("sends {}", fx.sends.len().min(4));
    for record in &fx.records {
        said += &match &record.fact {
            Fact::Malformed { reason, .. } => format!(", malformed: {reason}"),
            Fact::Lost { reason, .. } => format!(", lost: {reason}"),
            Fact::Fault { label, reason, .. } => format!(", {label} failed: {reason}"),
            Fact::Joined { .. } => ", joined".to_owned(),
            Fact::RoundOpened { .. } => ", opened".to_owned(),
            Fact::RoundClosed { .. } => ", closed".to_owned(),
            Fact::Counted { .. } => ", counted".to_owned(),
            _ => ", another record".to_owned(),
        };
    }
    said + if fx.stop.is_some() { ", stops" } else { "" }
}

/// A node's snapshot, of any method.
fn snapshots() -> Decoder {
    let assemblies: Vec<Assembly> = METHODS.iter().map(assemble).collect();
    let (mut builds, mut seeds) = (Vec::new(), Vec::new());
    for (index, assembly) in assemblies.iter().enumerate() {
        let moments = conversation(&assembly.federation);
        for node in [SERVER, Node(1)] {
            let mut of_node = moments.iter().filter(|moment| moment.node == node);
            let count = of_node.clone().count();
            let Some(moment) = of_node.nth(count / 2) else { continue };
            seeds.push([vec![builds.len() as u8], moment.before.to_bytes()].concat());
            builds.push((index, node));
        }
    }
    let decode = move |bytes: &[u8]| -> Said {
        let (which, bytes) = bytes.split_first().ok_or("nothing")?;
        let packet = Packet::from_bytes(bytes.to_vec().into()).map_err(|error| error.to_string())?;
        let (index, node) = builds[*which as usize % builds.len()];
        let mut machine = (assemblies[index].federation.build)(node);
        let fx = restore(&mut *machine, packet);
        let said = format!("{}, tasks {}", said_of(&fx), fx.tasks.len().min(4));
        if fx.records.is_empty() && fx.stop.is_none() { Ok(said) } else { Err(said) }
    };
    Decoder { seeds, form: SNAPSHOT, room: SNAPSHOT_ROOM, decode: Box::new(decode) }
}
