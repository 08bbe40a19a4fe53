//! What this program makes of a base model with an adapter, for `bench/peft_check.py` to hold PyTorch
//! and PEFT against:
//!
//! `cargo run --release -p undertone-model --example expected -- BASE ADAPTER > expected.json`
//!
//! The sequences are random ids of the base's vocabulary, the same on every machine.

use base::{Meter, Seed};
use ops::Workspace;
use std::error::Error;
use std::path::PathBuf;
use undertone_model::peft::Adapter;
use undertone_model::{Model, Source, Tokens, hidden, logits};

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(base), Some(adapter)) = (paths.next(), paths.next()) else {
        return Err("usage: expected BASE ADAPTER".into());
    };
    let adapter = Adapter::open(&adapter)?;
    let (model, _) = Model::load(&Source::Directory(base), &adapter.task(), &adapter.peft, Seed(0))?;
    let theta = adapter.theta(&model)?;
    let mut draw = Seed(1).stream();
    let mut sequences = Vec::new();
    for length in [1, 7, 19, 48] {
        let vocabulary = model.spec.vocab as u64;
        let ids: Vec<u32> = (0..length).map(|_| draw.below(vocabulary) as u32).collect();
        let workspace = Workspace::new(&Meter::unlimited(), 1);
        let tokens = Tokens::of(&[&ids]);
        sequences.push(serde_json::json!({
            "hidden": hidden(&workspace, &model, &theta, &tokens)?.to_vec(),
            "logits": logits(&workspace, &model, &theta, &tokens)?.to_vec(),
            "input_ids": ids,
        }));
    }
    println!("{}", serde_json::json!({ "sequences": sequences }));
    Ok(())
}
