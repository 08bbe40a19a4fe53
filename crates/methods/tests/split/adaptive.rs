//! Terms that are chosen anew from what devices took: by what they react, and that a replay repeats them.

use crate::support::{Conditions, Learn, Run, classifier, run_under, workload};
use federation::{Acceptance, CohortConfig, Fact, Pace, Record};
use model::PeftConfig;
use serde_json::Value;
use sim::{FaultsConfig, ServerLink, WeatherConfig};
use undertone_methods::Workload;

const EACH_ROUND: &str = "choose = \"each-round\"\nmin_rank = 1";

/// Links swing, messages get lost, devices leave, and the round does not wait for the last.
fn rough() -> Conditions {
    Conditions {
        rounds: 3,
        cohort: CohortConfig {
            fraction_train: 0.7,
            over_selection: 1.4,
            pace: Pace::Deadline,
            deadline_seconds: Some(20.0),
            ..CohortConfig::default()
        },
        weather: WeatherConfig {
            rate_swing: 10.0,
            swing_seconds: 0.2,
            loss: 0.05,
            ..WeatherConfig::default()
        },
        faults: FaultsConfig { dropout: 0.2, dropout_seconds: 0.3, ..FaultsConfig::default() },
        ..Conditions::default()
    }
}

/// At most three steps a device and round, on average.
fn few_steps(devices: u32) -> Workload {
    let mut work = classifier(devices);
    (work.recipe.max_steps, work.recipe.local_epochs) = (3, 3);
    work
}

/// What was decided in each round: the terms of each device that was through.
fn decisions(run: &Run) -> Vec<Value> {
    let of = |record: &Record| match &record.fact {
        Fact::Decided { decision, .. } => Some(serde_json::from_str(decision).unwrap()),
        _ => None,
    };
    run.records.iter().filter_map(of).collect()
}

fn steps(decision: &Value) -> Vec<u64> {
    let of = |terms: &Value| terms["steps"]["exactly"].as_u64().unwrap();
    decision.as_object().unwrap().values().map(of).collect()
}

#[test]
fn a_replay_repeats_what_was_decided_to_the_bit_in_any_weather() {
    let work = few_steps(5);
    for options in ["", "labels = \"device\"", "traffic = \"int8\"\norder = \"fifo\""] {
        for method in ["split-lora", "sfl", "sl"] {
            let options = format!("{EACH_ROUND}\n{options}");
            let recorded = run_under(method, &options, &work, &rough()).unwrap();
            let replay = Some(Acceptance::from_records(&recorded.records));
            let calm = Conditions { replay, ..Conditions { rounds: 3, ..Conditions::default() } };
            let again = run_under(method, &options, &work, &calm).unwrap();
            assert_eq!(again.theta, recorded.theta, "{method} {options}");
            if method != "sl" {
                let all: Vec<Vec<u64>> = decisions(&recorded).iter().map(steps).collect();
                assert!(all.iter().any(|steps| steps.iter().any(|n| *n != steps[0])), "{all:?}");
            }
        }
    }
}

/// With `max_steps`, all devices together do so many steps on average, and the fast ones most of them.
#[test]
fn steps_go_to_who_is_fast_until_it_is_enough() {
    let mut work = few_steps(4);
    (work.recipe.max_steps, work.recipe.local_epochs) = (6, 30);
    let weather =
        WeatherConfig { latency: 0.0, rate_swing: 5.0, swing_seconds: 1e6, ..WeatherConfig::default() };
    let weather = WeatherConfig { server_link: ServerLink::Unlimited, ..weather };
    let conditions = Conditions { weather, server_flops_per_s: 1e12, ..Conditions::default() };
    let run = run_under("split-lora", "choose = \"each-round\"\ncut = 1", &work, &conditions).unwrap();
    for steps in decisions(&run).iter().map(steps) {
        let (sum, fewest) = (steps.iter().sum::<u64>(), steps.iter().min().unwrap());
        assert!((24..=27).contains(&sum), "six a device, and those under way: {steps:?}");
        assert!(2 * steps.iter().max().unwrap() >= 3 * fewest, "{steps:?}");
    }
}

/// Memory and speed that change over the run change what is chosen, and nobody is asked for more than it has.
#[test]
fn cuts_follow_what_a_device_has_left() {
    let work = workload("bert", 6, Learn::Classes, &PeftConfig::lora(2, 4.0, &["query", "value"]), 3);
    let cuts = |weather: WeatherConfig| -> (Vec<Vec<u64>>, usize) {
        let weather = WeatherConfig { swing_seconds: 3.0, ..weather };
        let (rounds, server_flops_per_s) = (6, 3e7);
        let conditions = Conditions {
            rounds,
            server_flops_per_s,
            memory_bytes: 400 << 10,
            weather,
            ..Conditions::default()
        };
        let run = run_under("split-lora", EACH_ROUND, &work, &conditions).unwrap();
        let of = |decision: &Value| -> Vec<u64> {
            decision.as_object().unwrap().values().map(|terms| terms["cut"].as_u64().unwrap()).collect()
        };
        let refused = |record: &&Record| matches!(record.fact, Fact::Refused { .. });
        (decisions(&run).iter().map(of).collect(), run.records.iter().filter(refused).count())
    };
    let fair = WeatherConfig::default();
    let (steady, _) = cuts(fair.clone());
    assert!(steady.iter().all(|cuts| *cuts == steady[0]), "{steady:?}");
    let (by_memory, refused) = cuts(WeatherConfig { memory_swing: 3.0, ..fair.clone() });
    assert!(
        by_memory.iter().flatten().min() < steady.iter().flatten().min(),
        "{by_memory:?} and {steady:?}"
    );
    assert!(by_memory.iter().any(|cuts| *cuts != by_memory[0]), "{by_memory:?}");
    assert!(refused <= 3, "{refused} jobs were refused in the middle of a round");
    let (by_speed, _) = cuts(WeatherConfig { speed_swing: 8.0, ..fair });
    assert!(by_speed.iter().any(|cuts| *cuts != by_speed[0]), "{by_speed:?}");
}

/// A log that was damaged gives no terms that could not be, and loses the round's devices by name.
#[test]
fn terms_that_cannot_be_are_nobody_s() {
    let work = classifier(2);
    let recorded = run_under("split-lora", EACH_ROUND, &work, &Conditions::default()).unwrap();
    for damage in [
        "",
        "{\"1\": 7}",
        "{\"1\":{\"cut\":99,\"rank\":null,\"traffic\":\"f32\",\"half\":\"backward\",\"steps\":\"recipe\"}}",
    ] {
        let mut log = Acceptance::from_records(&recorded.records);
        for accepted in log.rounds.values_mut() {
            accepted.decision = Some(damage.to_owned());
        }
        let conditions = Conditions { replay: Some(log), ..Conditions::default() };
        let run = run_under("split-lora", EACH_ROUND, &work, &conditions).unwrap();
        let lost = |record: &&Record| matches!(record.fact, Fact::Lost { .. });
        assert_eq!(run.records.iter().filter(lost).count(), 4, "{damage}");
    }
}

/// A slow server leaves more blocks to the devices, a fast one takes all it may.
#[test]
fn cuts_follow_the_server_s_capacity_and_the_least_that_privacy_asks_for() {
    let work = workload("bert", 6, Learn::Classes, &PeftConfig::lora(2, 4.0, &["query", "value"]), 3);
    let cuts = |server_flops_per_s: f64, options: &str| -> Vec<u64> {
        let conditions = Conditions { server_flops_per_s, ..Conditions::default() };
        let options = format!("{EACH_ROUND}\n{options}");
        let run = run_under("split-lora", &options, &work, &conditions).unwrap();
        let last = decisions(&run).pop().unwrap();
        last.as_object().unwrap().values().map(|terms| terms["cut"].as_u64().unwrap()).collect()
    };
    assert_eq!(cuts(1e12, ""), [1, 1, 1]);
    assert_eq!(cuts(1e12, "min_device_layers = 3"), [3, 3, 3]);
    let slow = cuts(3e7, "");
    assert!(slow.iter().sum::<u64>() > 6, "{slow:?}");
    assert!(slow.is_sorted(), "the faster device takes more: {slow:?}");
}
