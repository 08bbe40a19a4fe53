//! Writes pages made of synthetic traces, to look at: `cargo run --release -p undertone-report
//! --example synthetic_report -- DIR`.

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

use federation::Status;
use std::path::PathBuf;
use synthetic::{EMOTION, Shape};
use undertone_report::html::{Run, comparison, report};
use undertone_report::{Ending, Fold, Summary, write_atomically};

fn main() -> std::io::Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).unwrap_or("target/synthetic".to_owned()));
    std::fs::create_dir_all(&dir)?;
    let many = Shape { devices: 1000, rounds: 40, ..EMOTION };
    let causal = Shape { causal: true, devices: 8, ..EMOTION };
    for (name, shape) in [("one", EMOTION), ("many", many), ("causal", causal)] {
        let (fold, summary) = run(&shape);
        let scenario = Some("[run]\nname = \"synthetic\"\nseed = 7\n");
        let page = report(&Run { summary: &summary, fold: Some(&fold), scenario, partition_svg: None });
        write_atomically(&dir.join(format!("{name}.html")), page.as_bytes())?;
    }
    let shapes = [
        EMOTION,
        Shape { method: "centralized", ceiling: 0.915, update: 0, seed: 8, ..EMOTION },
        Shape { method: "fwdllm", ceiling: 0.84, update: 2_000, seed: 9, ..EMOTION },
        Shape { method: "split-lora", ceiling: 0.88, update: 4_400_000, seed: 10, ..EMOTION },
    ];
    let runs: Vec<(Fold, Summary)> = shapes.iter().map(run).collect();
    let pages: Vec<Run> = runs
        .iter()
        .map(|(fold, summary)| Run { summary, fold: Some(fold), scenario: None, partition_svg: None })
        .collect();
    write_atomically(&dir.join("comparison.html"), comparison("Every method, synthetic", &pages).as_bytes())
}

fn run(shape: &Shape) -> (Fold, Summary) {
    let fold = Fold::of(&synthetic::trace(shape));
    let ending = Ending {
        status: Status::Completed,
        time: fold.now,
        wall_s: 58.1,
        trace_hash: "synthetic".to_owned(),
        weights_hash: Some("synthetic".to_owned()),
    };
    let summary = Summary::of(&synthetic::info(shape), &fold, &ending);
    (fold, summary)
}
