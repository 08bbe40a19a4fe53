//! What the hosts promise, held against a driver that does the worst it may. Every failure prints the
//! seed it came from.

extern crate undertone_federation as federation;

mod basis;
mod driver;

use base::{Node, SERVER, Seed, Time};
use driver::{Outcome, Scene, Weather};
use federation::{Acceptance, CohortConfig, Durable, Effects, Fact, Input, Pace, Status};
use std::collections::BTreeSet;

const SEEDS: u64 = 500;

fn storm() -> Weather {
    Weather {
        lose: 0.1,
        double: 0.1,
        delay: 0.1,
        damage: 0.1,
        junk: 0.05,
        kill: 0.05,
        ..Weather::default()
    }
}

/// A scene of random size in synchronous pace.
fn scene(seed: u64) -> Scene {
    let mut stream = Seed(seed).child("scene", 0).stream();
    let devices = 1 + stream.below(9) as u32;
    let fraction_train = 0.2 + 0.8 * stream.unit();
    let cohort = CohortConfig { fraction_train, ..CohortConfig::default() };
    Scene::calm(seed, devices, 1 + stream.below(4) as u32, cohort)
}

fn hasty(seed: u64) -> Scene {
    let mut scene = scene(seed);
    scene.plan.cohort.pace = Pace::Deadline;
    scene.plan.cohort.deadline_seconds = Some(80.0);
    scene.plan.cohort.over_selection = 1.3;
    scene
}

/// Who was counted in each round, by the records.
fn counted(outcome: &Outcome, round: u32) -> Vec<u32> {
    let counted = outcome.records.iter().filter_map(|record| match record.fact {
        Fact::Counted { round: of, device } if of == round => Some(device.0),
        _ => None,
    });
    counted.collect()
}

/// Every coordinate is 0 or 1, and 1 for exactly those that were counted.
fn check_exactly_once(outcome: &Outcome, seed: u64) {
    for (index, sum) in outcome.server.rounds.iter().enumerate() {
        let counted = counted(outcome, index as u32 + 1);
        let distinct: BTreeSet<u32> = counted.iter().copied().collect();
        assert_eq!(distinct.len(), counted.len(), "seed {seed}: counted twice in round {}", index + 1);
        for (node, coordinate) in sum.iter().enumerate() {
            let expected = u32::from(distinct.contains(&(node as u32)));
            assert_eq!(*coordinate, expected, "seed {seed}: coordinate {node} of round {}", index + 1);
        }
    }
}

#[test]
fn a_storm_changes_the_clock_and_nothing_else() {
    let mut kills = 0;
    for seed in 0..SEEDS {
        let calm = scene(seed).run();
        assert_eq!(calm.status, Status::Completed, "seed {seed}");
        let stormy = Scene { weather: storm(), ..scene(seed) }.run();
        assert_eq!(stormy.status, Status::Completed, "seed {seed}");
        assert_eq!(stormy.server, calm.server, "seed {seed}");
        check_exactly_once(&stormy, seed);
        assert!(stormy.largest_snapshot < 64 << 10, "seed {seed}: {} bytes", stormy.largest_snapshot);
        kills += stormy.kills;
    }
    assert!(kills > 5 * SEEDS as u32, "only {kills} kills");
}

#[test]
fn with_deadlines_and_losses_each_counted_update_is_counted_once_and_the_log_replays() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let weather = Weather { wipe: 0.2, rollback: 0.3, drop: 0.002, ..storm() };
        let run = Scene { weather, ..hasty(seed) }.run();
        check_exactly_once(&run, seed);
        lost += run.records.iter().filter(|record| matches!(record.fact, Fact::Lost { .. })).count();
        if run.status != Status::Completed {
            continue; // every device lost, three times in a row: another test
        }
        let log = Acceptance::from_records(&run.records);
        let mut again = scene(seed);
        again.plan.replay = Some(log.clone());
        let replayed = again.run();
        assert_eq!(replayed.status, Status::Completed, "seed {seed}");
        assert_eq!(replayed.server.rounds, run.server.rounds, "seed {seed}");
        assert_eq!(Acceptance::from_records(&replayed.records), log, "seed {seed}");
    }
    assert!(lost > SEEDS as usize, "only {lost} devices were lost");
}

#[test]
fn a_server_that_begins_anew_repeats_at_once_what_was_on_its_way() {
    let scene = Scene::calm(1, 1, 1, CohortConfig::default());
    let (mut server, mut device) = (Durable::new(scene.build(SERVER)), scene.build(Node(1)));
    let (mut said, mut sent) = (Effects::default(), Effects::default());
    device.handle(Time(0), Input::Start, &mut said);
    device.handle(Time(1), Input::Timer, &mut said);
    server.handle(Time(0), Input::Start, &mut sent);
    for (_, packet) in said.sends {
        server.handle(Time(2), Input::Message { from: Node(1), packet }, &mut sent);
    }
    let largest = sent.sends.iter().max_by_key(|(_, packet)| packet.wire_len()).unwrap();
    let mut revived = Durable::revive(server.kill(), || scene.build(SERVER)).durable;
    let mut again = Effects::default();
    revived.handle(Time(3), Input::Timer, &mut again);
    assert!(again.sends.contains(largest), "the round's beginning is told again");
}

#[test]
fn rounds_that_lose_every_device_close_and_end_the_run_by_name() {
    let mut scene = hasty(3);
    scene.plan.rounds = 9;
    scene.plan.cohort.deadline_seconds = Some(0.2);
    let run = scene.run();
    let Status::Failed(reason) = &run.status else { panic!("{:?}", run.status) };
    assert!(reason.contains("3 rounds in a row") && reason.contains("missed the deadline"), "{reason}");
    let closed = |record: &&federation::Record| matches!(record.fact, Fact::RoundClosed { counted: 0, .. });
    assert_eq!(run.records.iter().filter(closed).count(), 3);
}

#[test]
fn a_job_that_fits_no_device_ends_the_run_by_name() {
    let run = Scene { job_bytes: 5_000_000, memory_bytes: 2_000_000, ..scene(4) }.run();
    let Status::Failed(reason) = &run.status else { panic!("{:?}", run.status) };
    let expected = "no device can hold this job: it needs 5.0 MB, and the largest budget is 2.0 MB";
    assert_eq!(reason, expected);
}

#[test]
fn a_fault_of_the_server_ends_the_run_by_name() {
    let mut scene = Scene { poisoned: Some(2), ..scene(5) };
    scene.plan.rounds = 3;
    let run = scene.run();
    assert_eq!(run.status, Status::Failed("round 2, the server's job \"sum\": the loss is NaN".into()));
    assert_eq!(run.server.rounds.len(), 1);
    let named = |record: &federation::Record| matches!(&record.fact, Fact::Fault { round: 2, reason, .. } if reason == "the loss is NaN");
    assert!(run.records.iter().any(named));
}

#[test]
fn the_cohort_is_what_the_seed_says_whoever_joins_first() {
    let cohorts = |outcome: &Outcome| {
        let opened = outcome.records.iter().filter_map(|record| match &record.fact {
            Fact::RoundOpened { cohort, .. } => Some(cohort.clone()),
            _ => None,
        });
        opened.collect::<Vec<Vec<Node>>>()
    };
    for seed in 0..20 {
        let late = Weather { delay: 0.5, lose: 0.3, ..Weather::default() };
        let scene = scene(seed);
        assert_eq!(cohorts(&scene.run()), cohorts(&Scene { weather: late, ..scene.clone() }.run()));
    }
}
