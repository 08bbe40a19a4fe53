//! Where a model is cut, who serves, in which order and on what: none of it may change the weights.

use base::{Blob, Node, SERVER, Seed};
use data::{Encoded, Target};
use federation::{CohortConfig, Fact, Member, Plan, Record, Status};
use model::{Model, PeftConfig, PeftKind, Pooling, Source, Task};
use sim::{Output, SimConfig};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use undertone_methods::{Setup, SetupError, TrainConfig, Workload, find};

fn member(node: Node, memory_bytes: u64) -> Member {
    Member {
        node,
        class: "phone".into(),
        flops_per_s: 1e8 * f64::from(node.0 + 1),
        memory_bytes,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 4e6,
        examples: 0,
    }
}

/// Devices with 9 rows, 18 rows, ... of a tiny model.
fn workload(family: &str, peft: &PeftConfig, devices: u32) -> Workload {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(family);
    let task = Task::Classification { classes: 3, pooling: Pooling::Mean, squash: Some(3.0) };
    let (model, theta) = Model::load(&Source::Directory(directory), &task, peft, Seed(1)).unwrap();
    let mut draw = Seed(2).stream();
    let mut rows = |count: u32| -> Arc<[Encoded]> {
        let row = |_| {
            let ids = (0..3 + draw.below(9)).map(|_| draw.below(60) as u32).collect();
            Encoded::whole(ids, Target::Class(draw.below(3) as u32))
        };
        (0..count).map(row).collect()
    };
    let (mut shards, mut next) = (Vec::new(), 0);
    for device in 1..=devices {
        shards.push((next..next + 9 * device).collect());
        next += 9 * device;
    }
    let recipe = TrainConfig {
        per_device_train_batch_size: 4.try_into().unwrap(),
        max_grad_norm: 0.0,
        learning_rate: 1e-2,
        ..TrainConfig::default()
    };
    Workload {
        model: Arc::new(model),
        initial: Blob::from_f32(&theta),
        train: rows(next),
        shards: shards.into(),
        test: rows(6),
        owners: Arc::default(),
        recipe,
        threads: 1,
    }
}

struct Run {
    theta: Vec<f32>,
    records: Vec<Record>,
}

fn run(method: &str, options: &str, work: &Workload, memory_bytes: u64) -> Result<Run, SetupError> {
    let devices = work.shards.len() as u32;
    let setup = Setup {
        server: member(SERVER, 1 << 32),
        devices: (1..=devices).map(|i| member(Node(i), memory_bytes)).collect(),
        plan: Plan { rounds: 2, cohort: CohortConfig::default(), devices_expected: devices, replay: None },
        seed: Seed(11),
        options: options.parse().unwrap(),
        work: Some(work.clone()),
    };
    let assembly = (find(method).unwrap().assemble)(setup)?;
    let mut records = Vec::new();
    let mut sink = |output: Output| {
        if let Output::Record(record) = output {
            records.push(record.clone());
        }
    };
    let config = SimConfig::new(Seed(3), 1);
    let ended = sim::run(&assembly.federation, &config, &mut sink, &AtomicBool::new(false), None).unwrap();
    assert_eq!(ended.status, Status::Completed, "{method} {options}");
    let trained = (assembly.trained)(&ended.server).unwrap();
    Ok(Run { theta: trained.to_f32(work.model.layout.total()).unwrap(), records })
}

fn weights(method: &str, options: &str, work: &Workload) -> Vec<f32> {
    run(method, options, work, 1 << 30).unwrap().theta
}

/// The distance over the length.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let off = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (off / square(&mut expected.iter().map(|x| f64::from(*x)))).sqrt()
}

#[test]
fn with_one_device_every_cut_and_every_method_gives_the_whole_model_s_weights() {
    for family in ["bert", "llama"] {
        for kind in [PeftKind::Lora, PeftKind::Bottleneck, PeftKind::Bitfit, PeftKind::Full] {
            let work = workload(family, &PeftConfig::new(kind), 1);
            let whole = weights("fedavg-lora", "", &work);
            let moved = difference(&whole, &work.initial.to_f32(whole.len()).unwrap());
            assert!(moved > 1e-3, "{family} {kind:?}: nothing was learned");
            for cut in 1..work.model.spec.layers {
                for method in ["split-lora", "sl", "sfl"] {
                    let found = weights(method, &format!("cut = {cut}"), &work);
                    let off = difference(&found, &whole);
                    assert!(off < 1e-5, "{family} {kind:?} {method} cut at {cut}: off by {off:e}");
                }
            }
        }
    }
}

#[test]
fn neither_copies_nor_order_nor_what_is_kept_changes_a_bit() {
    let work = workload("bert", &PeftConfig::lora(2, 4.0, &["query", "value"]), 4);
    let expected = weights("split-lora", "", &work);
    assert_eq!(weights("sfl", "", &work), expected);
    for options in ["fifo", "random", "paper", "longest-tail", "optimal"] {
        assert_eq!(weights("split-lora", &format!("order = \"{options}\""), &work), expected, "{options}");
    }
    assert_eq!(weights("split-lora", "between = \"recompute\"", &work), expected);
    assert_ne!(weights("sl", "", &work), expected, "adapters are handed on, not averaged");
}

#[test]
fn smaller_traffic_is_smaller_and_close() {
    let work = workload("bert", &PeftConfig::lora(2, 4.0, &["query", "value"]), 2);
    let exact = run("split-lora", "cut = 1", &work, 1 << 30).unwrap();
    let crossing = |run: &Run| -> u64 {
        let sent =
            run.records.iter().map(|r| if let Fact::Sent { bytes, .. } = r.fact { bytes } else { 0 });
        sent.sum()
    };
    for (traffic, close) in [("f16", 1e-2), ("int8", 0.2)] {
        let small =
            run("split-lora", &format!("cut = 1\ntraffic = \"{traffic}\""), &work, 1 << 30).unwrap();
        assert!(crossing(&small) < crossing(&exact), "{traffic}");
        let off = difference(&small.theta, &exact.theta);
        assert!(off > 0.0 && off < close, "{traffic}: {off}");
    }
}

#[test]
fn a_frozen_device_leaves_its_blocks_alone() {
    let work = workload("bert", &PeftConfig::lora(2, 4.0, &["query", "value"]), 2);
    let found = weights("split-lora", "cut = 1\nbackward = \"frozen\"", &work);
    let (initial, at) = (work.initial.to_f32(found.len()).unwrap(), work.model.layout.cut(1));
    assert_eq!(found[..at], initial[..at]);
    assert!(difference(&found[at..], &initial[at..]) > 1e-3);
}

#[test]
fn what_cannot_be_cut_is_refused_in_words() {
    let work = workload("bert", &PeftConfig::lora(2, 4.0, &["query", "value"]), 2);
    let said =
        |options: &str| run("split-lora", options, &work, 1 << 30).map(|_| ()).unwrap_err().to_string();
    assert!(said("cut = 9").contains("has 2 blocks, so 1 to 1 are possible"), "{}", said("cut = 9"));
    // Nobody can hold a block: the run goes on without them, and says why.
    let run = run("split-lora", "", &work, 10_000).unwrap();
    let why = |record: &Record| match &record.fact {
        Fact::Lost { reason, .. } => reason.contains("one block would take"),
        _ => false,
    };
    assert_eq!(run.records.iter().filter(|record| why(record)).count(), 4);
}
