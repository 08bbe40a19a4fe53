//! Threads and real time end where virtual time does.

use crate::average::{Run, drive, federation, finish, plan, price};
use base::{Packet, Seed};
use federation::{Acceptance, CohortConfig, Fact, Pace, Plan, Status};
use sim::{Checkpoint, FaultsConfig, SimConfig, WeatherConfig, local};
use undertone_sim as sim;

/// In real time nobody wants to wait for the dead.
fn lively(seed: u64) -> SimConfig {
    let faults = FaultsConfig { down_seconds: 0.003, ..FaultsConfig::default() };
    SimConfig { faults, ..SimConfig::new(Seed(seed), 2) }
}

fn run(federation: &federation::Federation, config: &SimConfig) -> Run {
    let run = finish(local::run, federation, config);
    assert_eq!(run.ended.status, Status::Completed);
    run
}

#[test]
fn threads_end_in_the_weights_of_virtual_time() {
    let cohort = CohortConfig { fraction_train: 0.5, ..CohortConfig::default() };
    let federation = federation(plan(12, 5, cohort), price());
    let expected = finish(sim::run, &federation, &SimConfig::new(Seed(0), 2)).weights();
    for seed in 0..3 {
        assert_eq!(run(&federation, &lively(seed)).weights(), expected);
    }
    let mut config = lively(4);
    config.faults = FaultsConfig { kill: 0.04, kill_server: 0.02, ..config.faults };
    config.weather = WeatherConfig { loss: 0.005, ..WeatherConfig::default() };
    let stormy = run(&federation, &config);
    assert!(stormy.count(|fact| matches!(fact, Fact::Restored { .. })) > 0);
    assert_eq!(stormy.weights(), expected);
}

#[test]
fn a_run_with_deadlines_is_reproduced_by_its_acceptance_log() {
    let cohort = CohortConfig {
        pace: Pace::Deadline,
        deadline_seconds: Some(0.15),
        over_selection: 1.5,
        fraction_train: 0.6,
        ..CohortConfig::default()
    };
    let plan = plan(12, 6, cohort);
    let mut config = lively(5);
    config.faults = FaultsConfig { dropout: 0.5, dropout_seconds: 0.3, ..config.faults };
    let hurried = run(&federation(plan.clone(), price()), &config);
    let lost = hurried.count(|fact| matches!(fact, Fact::Lost { .. }));
    let late = |fact: &Fact| matches!(fact, Fact::Lost { reason, .. } if reason.contains("deadline"));
    assert!(lost > 0 && hurried.count(late) > 0, "nobody was late: a run to test nothing by");

    let replay = Some(Acceptance::from_records(&hurried.records));
    let again = federation(Plan { replay, ..plan }, price());
    for driver in [sim::run as crate::average::Driver, local::run] {
        let replayed = finish(driver, &again, &lively(6));
        assert_eq!(replayed.ended.status, Status::Completed);
        assert_eq!(replayed.weights(), hurried.weights());
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_weights() {
    let federation = federation(plan(8, 4, CohortConfig::default()), price());
    let expected = finish(sim::run, &federation, &SimConfig::new(Seed(0), 1)).weights();
    let config = lively(1);
    for stop in [1, 40, 90, 140, 190] {
        let first = drive(local::run, &federation, &config, stop, None).unwrap();
        let Some(checkpoint) = first.ended.checkpoint else { continue };
        assert_eq!(checkpoint.records, first.records.len() as u64);
        let bytes = checkpoint.to_packet().to_bytes();
        let read = Checkpoint::from_packet(&Packet::from_bytes(bytes.into()).unwrap()).unwrap();
        let second = drive(local::run, &federation, &config, usize::MAX, Some(read)).unwrap();
        assert_eq!(second.ended.status, Status::Completed);
        assert_eq!(second.weights(), expected, "stopped after {stop} records");
    }
}
