//! A tiny frozen model with rows that can be learned, and runs of side-tuning on it.

use base::{Blob, Node, SERVER, Seed};
use data::{Encoded, Target};
use federation::{CohortConfig, Fact, Member, Plan, Record, Status};
use model::{Model, PeftConfig, PeftKind, Pooling, Source, Task};
use sim::{FaultsConfig, Output, SimConfig};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use undertone_methods::{Keep, Quote, Setup, SetupError, TrainConfig, Workload, find};

pub const CLASSES: usize = 3;

pub fn member(node: Node) -> Member {
    Member {
        node,
        class: "phone".into(),
        flops_per_s: 1e8 * f64::from(node.0 + 1),
        memory_bytes: 1 << 32,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 4e6,
        examples: 0,
    }
}

/// Devices with as many rows as said, of a model that is wholly frozen.
pub fn workload(source: &Source, vocabulary: u64, shards: &[u32]) -> Workload {
    let task = Task::Classification { classes: CLASSES, pooling: Pooling::Mean, squash: None };
    let (model, theta) = Model::load(source, &task, &PeftConfig::new(PeftKind::None), Seed(1)).unwrap();
    let mut draw = Seed(2).stream();
    let mut rows = |count: u32| -> Arc<[Encoded]> {
        let row = |_| {
            let class = draw.below(CLASSES as u64) as u32;
            // Texts of a class share half of their tokens, so that there is something to learn.
            let token = |i: u64, draw: &mut base::Stream| {
                let any = draw.below(vocabulary) as u32;
                if i.is_multiple_of(2) { 7 * (class + 1) } else { any }
            };
            let length = 6 + draw.below(9);
            let ids = (0..length).map(|i| token(i, &mut draw)).collect();
            Encoded::whole(ids, Target::Class(class))
        };
        (0..count).map(row).collect()
    };
    let (mut dealt, mut next) = (Vec::new(), 0);
    for &count in shards {
        dealt.push((next..next + count).collect());
        next += count;
    }
    let recipe = TrainConfig {
        per_device_train_batch_size: 7.try_into().unwrap(),
        learning_rate: 5e-3,
        ..TrainConfig::default()
    };
    Workload {
        model: Arc::new(model),
        initial: Blob::from_f32(&theta),
        train: rows(next),
        shards: dealt.into(),
        test: rows(20),
        owners: Arc::default(),
        recipe,
        threads: 1,
        others: Arc::default(),
    }
}

pub fn golden(family: &str) -> Source {
    Source::Directory(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(family))
}

pub fn tiny(shards: &[u32]) -> Workload {
    workload(&golden("bert"), 60, shards)
}

pub fn setup(options: &str, work: &Workload, rounds: u32, keep: &Keep) -> Setup {
    let devices = work.shards.len() as u32;
    let has_another = |node: Node| work.others.iter().any(|other| other.nodes.contains(&node));
    let member = |i: u32| Member {
        examples: work.shards[i as usize - 1].len() as u64,
        class: if has_another(Node(i)) { "tablet".into() } else { "phone".into() },
        ..member(Node(i))
    };
    Setup {
        server: self::member(SERVER),
        devices: (1..=devices).map(member).collect(),
        plan: Plan { rounds, cohort: CohortConfig::default(), devices_expected: devices, replay: None },
        seed: Seed(11),
        options: options.parse().unwrap(),
        work: Some(work.clone()),
        keep: keep.clone(),
    }
}

pub struct Run {
    pub theta: Vec<f32>,
    pub records: Vec<Record>,
    pub quotes: Vec<Quote>,
}

impl Run {
    /// What devices sent.
    pub fn sent_up(&self) -> u64 {
        let sent = self.records.iter().filter(|record| record.node != SERVER);
        sent.map(|record| if let Fact::Sent { bytes, .. } = record.fact { bytes } else { 0 }).sum()
    }

    /// The kinds of a device's jobs, in order, and the operations of all of them.
    pub fn device_jobs(&self) -> (Vec<&str>, u64) {
        let mut all = (Vec::new(), 0);
        for record in self.records.iter().filter(|record| record.node != SERVER) {
            if let Fact::Ran { label, flops, .. } = &record.fact {
                all.0.push(label.as_str());
                all.1 += flops;
            }
        }
        all
    }

    pub fn summaries(&self) -> Vec<&federation::Summary> {
        let closed = |record: &'_ Record| matches!(record.fact, Fact::RoundClosed { .. });
        let summary = |record| match record {
            &Record { fact: Fact::RoundClosed { ref summary, .. }, .. } => summary,
            _ => unreachable!("only closed rounds are asked for"),
        };
        self.records.iter().filter(|record| closed(record)).map(summary).collect()
    }

    pub fn accuracy(&self) -> f64 {
        let last = self.summaries().pop().and_then(|summary| summary.eval.as_ref());
        last.and_then(|eval| eval.accuracy).expect("the last round is evaluated")
    }
}

pub fn simulate(setup: Setup, threads: usize, faults: FaultsConfig) -> Result<Run, SetupError> {
    watch("side-tuning", setup, threads, faults, |_| {})
}

/// Simulate, and show every record as it comes.
pub fn watch(
    method: &str,
    setup: Setup,
    threads: usize,
    faults: FaultsConfig,
    mut seen: impl FnMut(&Record),
) -> Result<Run, SetupError> {
    let assembly = (find(method).unwrap().assemble)(setup)?;
    let mut records = Vec::new();
    let mut sink = |output: Output| {
        if let Output::Record(record) = output {
            seen(record);
            records.push(record.clone());
        }
    };
    let config = SimConfig { faults, ..SimConfig::new(Seed(3), threads) };
    let ended = sim::run(&assembly.federation, &config, &mut sink, &AtomicBool::new(false), None).unwrap();
    assert_eq!(ended.status, Status::Completed);
    let trained = (assembly.trained)(&ended.server).unwrap();
    let theta = trained.to_f32(trained.len() / 4).unwrap();
    Ok(Run { theta, records, quotes: assembly.quotes })
}

pub fn run(options: &str, work: &Workload, rounds: u32) -> Result<Run, SetupError> {
    simulate(setup(options, work, rounds, &Keep::default()), 1, FaultsConfig::default())
}

/// The baseline that sends every token.
pub fn mobillm(options: &str, work: &Workload, rounds: u32) -> Run {
    let setup = setup(options, work, rounds, &Keep::default());
    watch("mobillm", setup, 1, FaultsConfig::default(), |_| {}).unwrap()
}

/// The same rows, each cut or repeated to this many tokens.
pub fn of_length(work: &Workload, length: usize) -> Workload {
    let resize =
        |row: &Encoded| Encoded::whole(row.ids.iter().copied().cycle().take(length).collect(), row.target);
    Workload { train: work.train.iter().map(resize).collect(), ..work.clone() }
}

/// Run it calm, on many threads and with kills; hold prices against peaks.
pub fn same_in_every_weather(options: &str, work: &Workload) -> Run {
    let calm = run(options, work, 2).unwrap();
    let many = simulate(setup(options, work, 2, &Keep::default()), 7, FaultsConfig::default()).unwrap();
    assert_eq!(calm.theta, many.theta, "{options}: threads");
    let faults = FaultsConfig { kill: 0.1, kill_server: 0.1, ..FaultsConfig::default() };
    let stormy = simulate(setup(options, work, 2, &Keep::default()), 2, faults).unwrap();
    let killed = |record: &Record| matches!(record.fact, Fact::Killed { .. });
    assert!(stormy.records.iter().any(killed), "{options}: nothing was killed");
    assert_eq!(calm.theta, stormy.theta, "{options}: kills");
    for record in &calm.records {
        if let Fact::Ran { label, priced_bytes, peak_bytes, .. } = &record.fact {
            assert!(peak_bytes <= priced_bytes, "{options}: {label} over its price");
            let slack = priced_bytes / 20 + (1 << 20);
            assert!(*priced_bytes <= peak_bytes + slack, "{options}: {label} {priced_bytes} {peak_bytes}");
        }
    }
    calm
}

/// Texts in which a token tells the next one nine times of ten; every other row has a prompt of three.
pub fn language(shards: &[u32]) -> Workload {
    let mut work = tiny(shards);
    let frozen = PeftConfig::new(PeftKind::None);
    let (model, theta) = Model::load(&golden("llama"), &Task::CausalLm, &frozen, Seed(1)).unwrap();
    let mut draw = Seed(5).stream();
    let mut row = |at: usize| {
        let mut ids = vec![1 + draw.below(30) as u32];
        while ids.len() < 12 {
            let next = (7 * ids[ids.len() - 1] + 3) % 30 + 1;
            ids.push(if draw.unit() < 0.9 { next } else { 1 + draw.below(30) as u32 });
        }
        Encoded::whole(
            ids,
            if at.is_multiple_of(2) { Target::None } else { Target::Completion { from: 3 } },
        )
    };
    work.train = (0..work.train.len()).map(&mut row).collect();
    work.test = (0..20).map(&mut row).collect();
    (work.model, work.initial) = (Arc::new(model), Blob::from_f32(&theta));
    work
}
