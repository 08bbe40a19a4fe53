use super::print;
use crate::errors::{Exit, Failure, Outcome, context};
use base::Seed;
use clap::Args;
use methods::schedule::{Policy, Turn, instance, makespan, order};
use report::Table;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The sweep's instances have between 2 devices and this many, so that the exact order is found at once.
const MOST_DEVICES: u64 = 10;

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct What {
    /// A JSON list of turns, in seconds: [{"arrival": 1, "service": 0.5, "tail": 2, "load": 1}, ...]
    turns: Option<PathBuf>,
    /// Compare the orders on this many generated instances, the server's load swept from 0.1 to 2
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    sweep: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Schedule {
    #[command(flatten)]
    what: What,
    /// Of the random order and the generated instances
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Write each instance's makespans here, as CSV
    #[arg(long, value_name = "FILE", requires = "sweep")]
    out: Option<PathBuf>,
}

impl Schedule {
    pub fn run(self) -> Outcome {
        let seed = Seed(self.seed);
        match (&self.what.turns, self.what.sweep) {
            (Some(path), _) => one(&read(path)?, seed),
            (None, count) => {
                let lengths = sweep(count.unwrap_or(1), seed);
                if let Some(path) = &self.out {
                    std::fs::write(path, csv(&lengths))
                        .map_err(context(Exit::Files, format!("cannot write {}", path.display())))?;
                }
                print(compared(&lengths));
            }
        }
        Ok(Exit::Completed)
    }
}

fn read(path: &Path) -> Result<Vec<Turn>, Failure> {
    let text =
        std::fs::read(path).map_err(context(Exit::Files, format!("cannot read {}", path.display())))?;
    let turns: Vec<Turn> = serde_json::from_slice(&text)
        .map_err(context(Exit::Data, format!("{} is no list of turns", path.display())))?;
    let wrong = |turn: &Turn| {
        [turn.arrival, turn.service, turn.tail, turn.load].iter().any(|s| !(s.is_finite() && *s >= 0.0))
    };
    match turns.iter().position(wrong) {
        Some(index) => {
            let what = format!("turn {index} of {}: times must be numbers of at least 0", path.display());
            Err(Failure::new(Exit::Data, what))
        }
        None => Ok(turns),
    }
}

/// Every policy's order of these turns, and how long it takes.
fn one(turns: &[Turn], seed: Seed) {
    let mut table = Table::new(2, ["policy", "order (turns count from 0)", "seconds"]);
    for policy in Policy::ALL {
        let order = order(policy, turns, seed);
        let names: Vec<String> = order.iter().map(usize::to_string).collect();
        table.row(vec![name(policy), names.join(" "), format!("{:.4}", makespan(turns, &order))]);
    }
    print(table);
}

/// One generated instance: how long each policy of [`Policy::ALL`] takes.
struct Lengths {
    devices: u64,
    load: f64,
    makespans: Vec<f64>,
}

fn sweep(count: u64, seed: Seed) -> Vec<Lengths> {
    let one = |index: u64| {
        let seed = seed.child("instance", index);
        let devices = 2 + index % (MOST_DEVICES - 1);
        let load = 0.1 + 1.9 * (index as f64 / count as f64);
        let turns = instance(devices as usize, load, seed);
        let length = |policy| makespan(&turns, &order(policy, &turns, seed));
        Lengths { devices, load, makespans: Policy::ALL.into_iter().map(length).collect() }
    };
    (0..count).map(one).collect()
}

fn csv(lengths: &[Lengths]) -> String {
    let names: Vec<String> = Policy::ALL.into_iter().map(name).collect();
    let mut text = format!("instance,devices,load,{}\n", names.join(","));
    for (index, Lengths { devices, load, makespans }) in lengths.iter().enumerate() {
        let columns: Vec<String> = makespans.iter().map(|seconds| format!("{seconds:.9}")).collect();
        let _ = writeln!(text, "{index},{devices},{load:.4},{}", columns.join(","));
    }
    text
}

/// Each policy over the optimum, and the default against each policy, on average.
fn compared(lengths: &[Lengths]) -> String {
    let at =
        |wanted: Policy| Policy::ALL.iter().position(|policy| *policy == wanted).expect("all there are");
    let (optimal, default) = (at(Policy::Optimal), at(Policy::Default));
    let mean = |ratio: &dyn Fn(&[f64]) -> f64| {
        lengths.iter().map(|one| ratio(&one.makespans)).sum::<f64>() / lengths.len() as f64
    };
    let mut table = Table::new(
        1,
        ["policy", "over optimal, mean", "at most", "default is shorter by", "worse than fifo"],
    );
    for (index, policy) in Policy::ALL.into_iter().enumerate() {
        let over = |spans: &[f64]| spans[index] / spans[optimal] - 1.0;
        let most = lengths.iter().map(|one| over(&one.makespans)).fold(0.0, f64::max);
        let gain = mean(&|spans| 1.0 - spans[default] / spans[index]);
        let worse = lengths.iter().filter(|one| one.makespans[index] > one.makespans[0] + 1e-9).count();
        table.row(vec![
            name(policy),
            format!("{:.3} %", 100.0 * mean(&over)),
            format!("{:.2} %", 100.0 * most),
            format!("{:.2} %", 100.0 * gain),
            format!("{worse} of {}", lengths.len()),
        ]);
    }
    table.to_string()
}

/// As scenarios spell it.
fn name(policy: Policy) -> String {
    let spelt = serde_json::to_value(policy).expect("a name");
    spelt.as_str().unwrap_or_default().to_owned()
}
