use super::print;
use crate::errors::{Exit, Failure, Outcome, context};
use crate::run_dir;
use base::{Node, units};
use clap::Args;
use methods::Keep;
use report::Table;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Cache {
    /// The directory of a run of side-tuning
    run: PathBuf,
    /// Forget all that this device sent (may be repeated)
    #[arg(long, value_name = "DEVICE")]
    erase: Vec<u32>,
}

impl Cache {
    pub fn run(self) -> Outcome {
        let dir = run_dir::existing(&self.run)?;
        let keep = Keep::recording();
        keep.settle(dir);
        let known = keep.cache.list().map_err(context(Exit::Files, "the activation cache"))?;
        for &device in &self.erase {
            if !known.contains_key(&Node(device)) {
                return Err(Failure::new(Exit::Usage, format!("nothing is kept of device {device}")));
            }
            keep.erase(Node(device)).map_err(context(Exit::Files, "the activation cache"))?;
        }
        let kept = keep.cache.list().map_err(context(Exit::Files, "the activation cache"))?;
        let mut table = Table::new(1, ["device", "files", "bytes"]);
        for (node, kept) in &kept {
            table.row(vec![node.0.to_string(), kept.chunks.to_string(), units::bytes(kept.bytes)]);
        }
        print(format_args!("{table}"));
        if !self.erase.is_empty() {
            print(format_args!(
                "Erased. Further training does without these rows; what was trained from them before stays as it is.\n"
            ));
        }
        Ok(Exit::Completed)
    }
}
