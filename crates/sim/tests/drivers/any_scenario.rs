//! Scenario, weather, faults and interruptions drawn from one number, which a failure prints.

use crate::average::{Price, Run, drive, federation, finish, plan, price};
use base::{Seed, Stream};
use federation::{Acceptance, CohortConfig, Pace, Plan, Status};
use sim::{Availability, FaultsConfig, ServerLink, SimConfig, WeatherConfig};
use undertone_sim as sim;

const SCENARIOS: u64 = 120;

/// Mostly nothing, else up to `most`.
fn perhaps(draws: &mut Stream, most: f64) -> f64 {
    if draws.unit() < 0.5 { 0.0 } else { draws.unit() * most }
}

fn cohort(draws: &mut Stream) -> CohortConfig {
    let fraction_train = 0.2 + 0.8 * draws.unit();
    if draws.unit() < 0.5 {
        return CohortConfig { fraction_train, ..CohortConfig::default() };
    }
    CohortConfig {
        fraction_train,
        pace: Pace::Deadline,
        deadline_seconds: Some(2.0 + 10.0 * draws.unit()),
        over_selection: 1.0 + perhaps(draws, 1.0),
        ..CohortConfig::default()
    }
}

fn config(seed: Seed, draws: &mut Stream, devices: u32) -> SimConfig {
    let weather = WeatherConfig {
        latency: perhaps(draws, 1.0),
        latency_jitter: perhaps(draws, 0.5),
        rate_jitter: perhaps(draws, 1.0),
        rate_swing: 1.0 + perhaps(draws, 5.0),
        swing_seconds: 1.0 + 9.0 * draws.unit(),
        loss: perhaps(draws, 0.3),
        loss_swing: 1.0 + perhaps(draws, 2.0),
        speed_swing: 1.0 + perhaps(draws, 5.0),
        memory_swing: 1.0 + perhaps(draws, 1.0),
        server_link: if draws.unit() < 0.5 { ServerLink::Shared } else { ServerLink::Unlimited },
    };
    let faults = FaultsConfig {
        kill: perhaps(draws, 0.15),
        kill_server: perhaps(draws, 0.1),
        down_seconds: perhaps(draws, 10.0),
        dropout: perhaps(draws, 0.4),
        dropout_seconds: 1.0 + 20.0 * draws.unit(),
    };
    let windows = Availability { share: 1.0 - perhaps(draws, 0.6), period_s: 5.0 + 50.0 * draws.unit() };
    let availability = vec![windows; devices as usize];
    SimConfig { weather, faults, availability, ..SimConfig::new(seed, 1) }
}

/// The number of scenarios that completed is returned, so that the test knows it tested something.
fn hold(number: u64) -> u32 {
    let seed = Seed(number);
    let draws = &mut seed.child("scenario", 0).stream();
    let devices = 1 + draws.below(20) as u32;
    let plan = plan(devices, 1 + draws.below(5) as u32, cohort(draws));
    let price = Price { flops: draws.below(2_500_000_000), ..price() };
    let config = config(seed, draws, devices);
    let federation = federation(plan.clone(), price);

    let whole = finish(sim::run, &federation, &config);
    let threads = finish(sim::run, &federation, &SimConfig { threads: 3, ..config.clone() });
    Run::same_trace(&threads.records, &whole.records, "on three threads");

    let stop = 1 + draws.below(whole.records.len() as u64) as usize;
    let first = drive(sim::run, &federation, &config, stop, None).unwrap();
    if let Some(checkpoint) = first.ended.checkpoint {
        let second = drive(sim::run, &federation, &config, usize::MAX, Some(checkpoint)).unwrap();
        Run::same_trace(&[first.records, second.records].concat(), &whole.records, "resumed");
        assert_eq!(second.ended.trace_hash, whole.ended.trace_hash);
    }
    if whole.ended.status != Status::Completed {
        return 0;
    }
    let replay = match plan.cohort.pace {
        Pace::Synchronous if config.weather.memory_swing == 1.0 => None,
        Pace::Synchronous | Pace::Deadline => Some(Acceptance::from_records(&whole.records)),
    };
    let calm = crate::average::federation(Plan { replay, ..plan }, price);
    let calm = finish(sim::run, &calm, &SimConfig::new(Seed(0), 2));
    assert_eq!(calm.weights(), whole.weights(), "the weights follow from the decisions");
    1
}

#[test]
fn any_scenario_keeps_the_promises() {
    let mut completed = 0;
    for number in 0..SCENARIOS {
        let held = std::panic::catch_unwind(|| hold(number));
        completed += held.unwrap_or_else(|_| panic!("scenario number {number} breaks a promise"));
    }
    println!("{completed} of {SCENARIOS} scenarios completed");
    assert!(u64::from(completed) > SCENARIOS / 2);
}
