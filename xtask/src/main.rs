//! Tasks around the repository: `cargo run --release -p xtask -- TASK`.

mod builtin;
mod probe;
mod training;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo run --release -p xtask -- TASK

tasks:
  builtin         make the built-in model again: data, tokenizer, pre-training (minutes), then probe
  builtin-probe   what the built-in model reaches on the built-in data, frozen and tuned";

fn main() -> Result<()> {
    let task: Vec<String> = std::env::args().skip(1).collect();
    match task.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["builtin"] => {
            builtin::make()?;
            probe::run()
        }
        ["builtin-probe"] => probe::run(),
        _ => bail!(USAGE),
    }
}
