//! A job's price against the process: what the allocator hands out while the job runs, whoever asks for it.
//! One test in a program of its own, because the allocator sees every thread.

use base::{Meter, Seed};
use model::{Activations, Model, PeftConfig, PeftKind, Pooling, Source, Targets, Task, Tokens, price};
use ops::Workspace;
use std::path::{Path, PathBuf};
use undertone_cli::memory::PROCESS;

/// What is outside every price: small vectors of indices, and the thread pool's own.
const SLACK: u64 = 1 << 20;

#[test]
fn a_job_takes_from_the_process_what_its_price_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    hold_prices(&root.join("assets/builtin"), &[64; 16]);
    let minilm: PathBuf = root.join("../shared/models/all-MiniLM-L6-v2");
    if minilm.is_dir() {
        hold_prices(&minilm, &[48; 16]);
    } else {
        eprintln!("SKIPPED: ../shared not found, so MiniLM's prices were not held against the process");
    }
}

fn hold_prices(dir: &Path, lengths: &[usize]) {
    let task = Task::Classification { classes: 6, pooling: Pooling::Mean, squash: Some(3.0) };
    for kind in [PeftKind::Lora, PeftKind::Head, PeftKind::Full] {
        let source = Source::Directory(dir.to_owned());
        let (model, theta) = Model::load(&source, &task, &PeftConfig::new(kind), Seed(7)).unwrap();
        for activations in [Activations::Keep, Activations::Recompute] {
            // The first job starts threads and fills what they keep.
            let _ = step(&model, &theta, lengths, activations);
            let (price, taken) = step(&model, &theta, lengths, activations);
            let what = format!("{} {kind:?} {activations:?}", dir.display());
            assert!(taken <= price + SLACK, "{what}: took {taken} for a price of {price}");
            assert!(taken + price / 20 + SLACK >= price, "{what}: took {taken}, the price is {price}");
        }
    }
}

/// The price of one training step, and the most the process held for it.
fn step(model: &Model, theta: &[f32], lengths: &[usize], activations: Activations) -> (u64, u64) {
    let sequences: Vec<Vec<u32>> = lengths.iter().map(|length| (1..=*length as u32).collect()).collect();
    let (tokens, targets) = (Tokens::of(&sequences), Targets::Classes(vec![1; lengths.len()]));
    let price = price::training(&model.spec, &model.task, &model.layout, &tokens.starts, activations);
    let mut gradient = vec![0.0; theta.len()];
    let meter = Meter::new(price.bytes);
    let before = PROCESS.used();
    PROCESS.reset_peak();
    let ws = Workspace::new(&meter, 1);
    model::loss_and_gradient(&ws, model, theta, &tokens, &targets, activations, &mut gradient).unwrap();
    drop(ws);
    (price.bytes, PROCESS.peak() - before)
}
