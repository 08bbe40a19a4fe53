//! Sameness under virtual time: on any number of threads, through kills, and across interruptions.

use crate::average::{Price, Run, drive, federation, finish, plan, price};
use base::{Packet, Seed};
use federation::{CohortConfig, Fact, Federation, Pace, Status};
use sim::{Availability, Checkpoint, FaultsConfig, SimConfig, SimError, WeatherConfig};
use undertone_sim as sim;

fn synchronous() -> CohortConfig {
    CohortConfig { fraction_train: 0.5, ..CohortConfig::default() }
}

fn hurried() -> CohortConfig {
    CohortConfig {
        fraction_train: 0.5,
        pace: Pace::Deadline,
        deadline_seconds: Some(6.0),
        over_selection: 1.3,
        ..CohortConfig::default()
    }
}

fn calm(seed: u64) -> SimConfig {
    SimConfig::new(Seed(seed), 2)
}

/// Everything at once that can go wrong.
fn stormy(seed: u64) -> SimConfig {
    let weather = WeatherConfig {
        latency_jitter: 0.1,
        rate_jitter: 0.5,
        rate_swing: 3.0,
        swing_seconds: 4.0,
        loss: 0.1,
        ..WeatherConfig::default()
    };
    let faults = FaultsConfig {
        kill: 0.08,
        kill_server: 0.05,
        down_seconds: 2.0,
        dropout: 0.1,
        dropout_seconds: 20.0,
    };
    let availability = vec![Availability { share: 0.8, period_s: 30.0 }; 12];
    SimConfig { weather, faults, availability, ..calm(seed) }
}

fn run(federation: &Federation, config: &SimConfig) -> Run {
    let run = finish(sim::run, federation, config);
    assert_eq!(run.ended.status, Status::Completed, "seed {}", config.seed.0);
    run
}

#[test]
fn the_trace_is_the_same_on_any_number_of_threads() {
    let federation = federation(plan(12, 6, hurried()), price());
    for seed in 0..8 {
        let runs = [1, 2, 7].map(|threads| run(&federation, &SimConfig { threads, ..stormy(seed) }));
        for other in &runs[1..] {
            Run::same_trace(&other.records, &runs[0].records, &format!("seed {seed}"));
            assert_eq!(other.ended.trace_hash, runs[0].ended.trace_hash);
            assert_eq!(other.weights(), runs[0].weights());
        }
    }
}

#[test]
fn kills_and_weather_change_the_clock_only() {
    let federation = federation(plan(12, 5, synchronous()), price());
    let undisturbed = run(&federation, &calm(0));
    let (mut kills, mut server_kills) = (0, 0);
    for seed in 0..150 {
        let stormy = run(&federation, &stormy(seed));
        assert_eq!(stormy.weights(), undisturbed.weights(), "seed {seed}");
        assert!(stormy.seconds() > undisturbed.seconds(), "seed {seed}");
        let killed = stormy.records.iter().filter(|record| matches!(record.fact, Fact::Killed { .. }));
        kills += killed.clone().count();
        server_kills += killed.filter(|record| record.node == base::SERVER).count();
    }
    println!("{kills} kills, {server_kills} of them the server's");
    assert!(kills > 1000 && server_kills > 300);
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_trace() {
    let hurried = federation(plan(12, 4, hurried()), price());
    let steady = federation(plan(12, 4, synchronous()), price());
    for (federation, config) in [(&hurried, stormy(3)), (&steady, stormy(4)), (&hurried, calm(5))] {
        let whole = run(federation, &config);
        let step = (whole.records.len() / 40).max(1);
        for stop in (1..whole.records.len()).step_by(step) {
            let first = drive(sim::run, federation, &config, stop, None).unwrap();
            let Some(checkpoint) = first.ended.checkpoint else { continue };
            assert_eq!(checkpoint.records, first.records.len() as u64);
            let bytes = checkpoint.to_packet().to_bytes();
            let read = Checkpoint::from_packet(&Packet::from_bytes(bytes.into()).unwrap()).unwrap();
            let second = drive(sim::run, federation, &config, usize::MAX, Some(read)).unwrap();
            let joined = [&first.records[..], &second.records[..]].concat();
            Run::same_trace(&joined, &whole.records, &format!("stopped after {stop} records"));
            assert_eq!(second.ended.trace_hash, whole.ended.trace_hash);
            assert_eq!(second.weights(), whole.weights());
        }
    }
}

/// Interrupted after every single record, and at each round's end by the offered checkpoints.
#[test]
fn a_run_survives_one_interruption_after_another() {
    let federation = federation(plan(12, 3, synchronous()), price());
    let config = stormy(9);
    let whole = run(&federation, &config);
    let (mut records, mut from) = (Vec::new(), None);
    let ended = loop {
        let part = drive(sim::run, &federation, &config, 1, from.take()).unwrap();
        records.extend(part.records.clone());
        match part.ended.checkpoint.clone() {
            Some(checkpoint) => from = Some(checkpoint),
            None => break part,
        }
    };
    Run::same_trace(&records, &whole.records, "stopped after every record");
    assert_eq!(ended.weights(), whole.weights());

    let mut offered = Vec::new();
    let config = SimConfig { checkpoint_rounds: 1, ..config };
    let mut sink = |output: sim::Output| {
        if let sim::Output::Checkpoint(checkpoint) = output {
            offered.push(checkpoint);
        }
    };
    sim::run(&federation, &config, &mut sink, &false.into(), None).unwrap();
    assert_eq!(offered.len(), 2, "the last round ends the run");
    for checkpoint in offered {
        let so_far = checkpoint.records as usize;
        let rest = drive(sim::run, &federation, &config, usize::MAX, Some(checkpoint)).unwrap();
        Run::same_trace(&rest.records, &whole.records[so_far..], "from an offered checkpoint");
    }
}

#[test]
fn a_device_refuses_what_it_cannot_hold_and_the_round_goes_on() {
    let hungry = Price { bytes: 2_000, ..price() };
    let federation = federation(plan(12, 2, CohortConfig::default()), hungry);
    let run = run(&federation, &calm(1));
    assert_eq!(run.count(|fact| matches!(fact, Fact::Refused { need: 2_000, budget: 1_000, .. })), 6);
    assert_eq!(run.count(|fact| matches!(fact, Fact::Counted { .. })), 18);
    let counted = |fact: &Fact| matches!(fact, Fact::RoundClosed { counted: 9, .. });
    assert_eq!(run.count(counted), 2);
}

#[test]
fn slower_links_longer_ways_and_slower_devices_take_longer() {
    let normal = federation(plan(12, 3, synchronous()), price());
    let base = run(&normal, &calm(1)).seconds();
    let with = |weather: WeatherConfig| run(&normal, &SimConfig { weather, ..calm(1) }).seconds();
    let far = with(WeatherConfig { latency: 0.5, ..WeatherConfig::default() });
    assert!(far > base + 3.0 * 2.0 * 0.4, "{far} after {base}");
    let alone = with(WeatherConfig { server_link: sim::ServerLink::Unlimited, ..WeatherConfig::default() });
    assert!(alone < base, "{alone} before {base}");
    let mut thin = federation(plan(12, 3, synchronous()), price());
    thin.devices.iter_mut().for_each(|member| member.up_bytes_per_s /= 10.0);
    assert!(run(&thin, &calm(1)).seconds() > base + 0.5);
    let heavy = federation(plan(12, 3, synchronous()), Price { flops: 3_000_000_000, ..price() });
    assert!(run(&heavy, &calm(1)).seconds() > base + 3.0 * 2.9);
}

#[test]
fn a_run_that_cannot_go_on_says_so() {
    let mut federation = federation(plan(12, 3, synchronous()), price());
    federation.devices.pop();
    let error = drive(sim::run, &federation, &calm(1), usize::MAX, None).err().unwrap();
    assert!(matches!(error, SimError::Standstill { .. }), "{error}");
    assert!(error.to_string().contains("is a needed device missing?"), "{error}");
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let federation = federation(plan(12, 3, synchronous()), price());
    let first = drive(sim::run, &federation, &calm(1), 20, None).unwrap();
    let checkpoint = first.ended.checkpoint.unwrap();
    for driver in [sim::run as crate::average::Driver, sim::local::run] {
        let error =
            drive(driver, &federation, &calm(2), usize::MAX, Some(checkpoint.clone())).err().unwrap();
        assert!(matches!(error, SimError::Foreign { .. }), "{error}");
    }
    let mut packet = checkpoint.to_packet();
    packet.body = packet.body.slice(..packet.body.len() - 1);
    assert!(matches!(Checkpoint::from_packet(&packet), Err(SimError::Checkpoint(_))));
}
