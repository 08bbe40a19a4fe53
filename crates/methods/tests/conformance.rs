//! What every method of the list keeps, whatever it computes: a new method is tested by being listed.

#[path = "support/unequal.rs"]
mod unequal;

use base::{Blob, Node, SERVER, Seed};
use data::{Encoded, Target};
use federation::{Acceptance, CohortConfig, Fact, Member, Pace, Plan, Record, Status};
use model::{Model, PeftConfig, Pooling, Source, Task};
use sim::{Ended, FaultsConfig, Output, SimConfig};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use undertone_methods::{Assembly, Entry, Keep, METHODS, Setup, TrainConfig, Workload};
use unequal::unequal;

const DEVICES: u32 = 5;
const ROUNDS: u32 = 3;

fn member(node: Node, class: &str) -> Member {
    Member {
        node,
        class: class.into(),
        flops_per_s: 1e9 * f64::from(node.0 + 1),
        memory_bytes: 1 << 30,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 4e6,
        examples: 8 * u64::from(node.0),
    }
}

/// Five unequal devices and random rows on a tiny BERT.
fn workload() -> Workload {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/bert");
    let task = Task::Classification { classes: 3, pooling: Pooling::Mean, squash: Some(3.0) };
    let peft = PeftConfig::lora(2, 4.0, &["query", "value"]);
    let loaded = Model::load(&Source::Directory(directory), &task, &peft, Seed(1)).unwrap();
    let mut draw = Seed(2).stream();
    let work = unequal(loaded, DEVICES, 8, 20, || {
        let ids = (0..3 + draw.below(9)).map(|_| draw.below(60) as u32).collect();
        Encoded::whole(ids, Target::Class(draw.below(3) as u32))
    });
    let recipe =
        TrainConfig { per_device_train_batch_size: 7.try_into().unwrap(), ..TrainConfig::default() };
    Workload { recipe, ..work }
}

fn assemble(entry: &Entry, cohort: CohortConfig, replay: Option<Acceptance>) -> Assembly {
    let setup = Setup {
        server: member(SERVER, "edge-server"),
        devices: (1..=DEVICES).map(|i| member(Node(i), if i % 2 == 0 { "even" } else { "odd" })).collect(),
        plan: Plan { rounds: ROUNDS, cohort, devices_expected: DEVICES, replay },
        seed: Seed(11),
        options: toml::Table::new(),
        work: entry.trains.then(workload),
        keep: Keep::default(),
    };
    (entry.assemble)(setup).unwrap()
}

fn synchronous() -> CohortConfig {
    CohortConfig { fraction_train: 0.6, min_available_nodes: DEVICES, ..CohortConfig::default() }
}

struct Run {
    ended: Ended,
    records: Vec<Record>,
    weights: Blob,
}

type Driver = fn(
    &federation::Federation,
    &SimConfig,
    &mut dyn FnMut(Output),
    &AtomicBool,
    Option<sim::Checkpoint>,
) -> Result<Ended, sim::SimError>;

fn drive(assembly: &Assembly, driver: Driver, config: &SimConfig) -> Run {
    let mut records = Vec::new();
    let mut sink = |output: Output| {
        if let Output::Record(record) = output {
            records.push(record.clone());
        }
    };
    let ended = driver(&assembly.federation, config, &mut sink, &AtomicBool::new(false), None).unwrap();
    let weights = (assembly.trained)(&ended.server).unwrap();
    Run { ended, records, weights }
}

fn simulate(entry: &Entry, threads: usize, faults: FaultsConfig) -> Run {
    let config = SimConfig { faults, ..SimConfig::new(Seed(3), threads) };
    drive(&assemble(entry, synchronous(), None), sim::run, &config)
}

#[test]
fn the_same_trace_and_weights_on_any_number_of_threads() {
    for entry in METHODS {
        let one = simulate(entry, 1, FaultsConfig::default());
        assert_eq!(one.ended.status, Status::Completed, "{}", entry.name);
        for threads in [2, 7] {
            let many = simulate(entry, threads, FaultsConfig::default());
            assert_eq!(one.ended.trace_hash, many.ended.trace_hash, "{} on {threads} threads", entry.name);
            assert_eq!(one.weights, many.weights, "{} on {threads} threads", entry.name);
        }
    }
}

#[test]
fn kills_of_devices_and_server_change_the_clock_only() {
    for entry in METHODS {
        let calm = simulate(entry, 2, FaultsConfig::default());
        let faults = FaultsConfig { kill: 0.15, kill_server: 0.05, ..FaultsConfig::default() };
        let stormy = simulate(entry, 2, faults);
        let kills = stormy.records.iter().filter(|r| matches!(r.fact, Fact::Killed { .. })).count();
        assert!(kills > 0 || !entry.federated, "{}: nothing was killed", entry.name);
        assert_eq!(calm.weights, stormy.weights, "{} after {kills} kills", entry.name);
    }
}

#[test]
fn real_threads_in_real_time_end_in_the_simulator_s_weights() {
    for entry in METHODS {
        let simulated = simulate(entry, 2, FaultsConfig::default());
        let assembly = assemble(entry, synchronous(), None);
        let real = drive(&assembly, sim::local::run, &SimConfig::new(Seed(3), 2));
        assert_eq!(real.ended.status, Status::Completed, "{}", entry.name);
        assert_eq!(simulated.weights, real.weights, "{}", entry.name);
    }
}

#[test]
fn a_real_run_with_deadlines_and_dropouts_is_replayed_to_the_bit() {
    let cohort = || CohortConfig { pace: Pace::Deadline, deadline_seconds: Some(0.3), ..synchronous() };
    for entry in METHODS.iter().filter(|entry| entry.federated) {
        let faults = FaultsConfig { dropout: 0.3, dropout_seconds: 0.5, ..FaultsConfig::default() };
        let config = SimConfig { faults, ..SimConfig::new(Seed(4), 2) };
        let real = drive(&assemble(entry, cohort(), None), sim::local::run, &config);
        let accepted = Acceptance::from_records(&real.records);
        let replayed =
            drive(&assemble(entry, cohort(), Some(accepted)), sim::run, &SimConfig::new(Seed(4), 1));
        assert_eq!(real.weights, replayed.weights, "{}", entry.name);
    }
}

#[test]
fn no_job_holds_more_than_its_price_and_prices_are_near_the_truth() {
    for entry in METHODS {
        for record in simulate(entry, 1, FaultsConfig::default()).records {
            if let Fact::Ran { label, priced_bytes, peak_bytes, .. } = record.fact {
                let slack = priced_bytes / 20 + (1 << 20);
                assert!(peak_bytes <= priced_bytes, "{}: {label} over its price", entry.name);
                assert!(
                    priced_bytes <= peak_bytes + slack,
                    "{}: {label} priced {priced_bytes}, held {peak_bytes}",
                    entry.name
                );
            }
        }
    }
}

#[test]
fn a_device_too_small_for_its_job_refuses_and_the_others_go_on() {
    for entry in METHODS.iter().filter(|entry| entry.federated) {
        let mut assembly = assemble(entry, CohortConfig { fraction_train: 1.0, ..synchronous() }, None);
        assembly.federation.devices[1].memory_bytes = 1000;
        let run = drive(&assembly, sim::run, &SimConfig::new(Seed(3), 2));
        assert_eq!(run.ended.status, Status::Completed, "{}", entry.name);
        let refused =
            |r: &Record| r.node == Node(2) && matches!(r.fact, Fact::Refused { budget: 1000, .. });
        assert!(run.records.iter().any(refused), "{}", entry.name);
        let counted =
            run.records.iter().filter(|r| matches!(r.fact, Fact::Counted { device: Node(2), .. }));
        assert_eq!(counted.count(), 0, "{}", entry.name);
    }
}

#[test]
fn the_list_is_sound() {
    for (i, entry) in METHODS.iter().enumerate() {
        assert!(
            METHODS[i + 1..].iter().all(|other| other.name != entry.name),
            "{} is there twice",
            entry.name
        );
        assert!(!entry.source.is_empty() && !entry.device.is_empty() && !entry.server.is_empty());
        (entry.check)(&toml::Table::new()).unwrap();
        let wrong = toml::toml! { no_such_option = 1 };
        assert!((entry.check)(&wrong).is_err(), "{} takes any option", entry.name);
    }
}
