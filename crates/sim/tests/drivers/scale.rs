//! Ten thousand devices: figures, not a gate, since a clock on a shared machine proves nothing.
//! `cargo test --release -p undertone-sim --test drivers -- --ignored --nocapture scale`

use crate::average::{federation, finish, plan, price};
use base::{Seed, units};
use federation::{CohortConfig, Status};
use sim::SimConfig;
use std::time::Instant;
use undertone_sim as sim;

#[test]
#[ignore = "prints figures"]
fn ten_thousand_devices_a_thousand_a_round_ten_rounds() {
    let cohort = CohortConfig { fraction_train: 0.1, ..CohortConfig::default() };
    let mut federation = federation(plan(10_000, 10, cohort), price());
    (federation.server.up_bytes_per_s, federation.server.down_bytes_per_s) = (1e9, 1e9);
    for threads in [1, 2] {
        let begun = Instant::now();
        let run = finish(sim::run, &federation, &SimConfig::new(Seed(7), threads));
        assert_eq!(run.ended.status, Status::Completed);
        println!(
            "{threads} threads: {} records, {:.1} virtual s in {:.2} s, process peak {}; {}",
            run.records.len(),
            run.seconds(),
            begun.elapsed().as_secs_f64(),
            units::bytes(peak_bytes()),
            run.ended.trace_hash,
        );
    }
}

/// The most memory this process ever had, as Linux counts it; 0 elsewhere.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}
