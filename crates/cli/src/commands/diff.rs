use super::print;
use crate::errors::{Exit, Failure, Outcome};
use crate::run_dir;
use clap::Args;
use report::{Summary, TraceReader, diff_summaries, diff_traces};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Diff {
    left: PathBuf,
    right: PathBuf,
}

impl Diff {
    /// Exits with [`Exit::Different`] if the traces differ, as diff(1) does.
    pub fn run(self) -> Outcome {
        let figures = diff_summaries(&summary(&self.left)?, &summary(&self.right)?);
        for row in &figures {
            print(format_args!("{}: {} != {}\n", row.field, row.left, row.right));
        }
        let files = |error| Failure::new(Exit::Files, error);
        let compared = diff_traces(trace(&self.left)?, trace(&self.right)?).map_err(files)?;
        match compared {
            Ok(records) if figures.is_empty() => {
                print(format_args!("the same: {records} records and every figure agree\n"));
                Ok(Exit::Completed)
            }
            Ok(records) => {
                print(format_args!("all {records} records agree\n"));
                Ok(Exit::Different)
            }
            Err(divergence) => {
                print(divergence);
                Ok(Exit::Different)
            }
        }
    }
}

fn summary(run: &Path) -> Result<Summary, Failure> {
    let path = run_dir::existing(run)?.join(run_dir::SUMMARY);
    Summary::read(&path).map_err(|error| Failure::new(Exit::Files, error))
}

fn trace(run: &Path) -> Result<TraceReader, Failure> {
    TraceReader::open(&run.join(run_dir::TRACE)).map_err(|error| Failure::new(Exit::Files, error))
}
