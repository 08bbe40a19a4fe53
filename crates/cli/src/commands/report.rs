use super::print;
use crate::errors::{Exit, Outcome};
use crate::finished::Finished;
use crate::run_dir;
use clap::Args;
use report::{Summary, comparison_table};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Report {
    /// Directories of runs
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where the page is written [default: in the run; report.html for several]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Report {
    pub fn run(self) -> Outcome {
        let runs = self.runs.iter().map(|dir| Finished::read(dir)).collect::<Result<Vec<_>, _>>()?;
        let out = match (&self.out, self.runs.as_slice()) {
            (Some(out), _) => out.clone(),
            (None, [run]) => run.join(run_dir::REPORT),
            (None, _) => PathBuf::from(run_dir::REPORT),
        };
        crate::finished::write_report(&out, "Runs side by side", &runs)?;
        let summaries: Vec<&Summary> = runs.iter().map(|run| &run.summary).collect();
        print(comparison_table(&summaries));
        print(format_args!("\n{}\n", out.display()));
        Ok(Exit::Completed)
    }
}
