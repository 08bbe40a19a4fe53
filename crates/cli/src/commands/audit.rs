use super::print;
use crate::errors::{Exit, Failure, Outcome};
use crate::finished::{Finished, write_report};
use crate::prepare::{Holder, Parts, parts};
use crate::run_dir;
use crate::scenario::Scenario;
use base::Blob;
use clap::Args;
use methods::Keep;
use report::{Leak, Summary, Table};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Audit {
    /// The directory of a run of side-tuning with audit.record = true
    run: PathBuf,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

impl Audit {
    pub fn run(self) -> Outcome {
        let dir = run_dir::existing(&self.run)?;
        let (scenario, _) = Scenario::read(&dir.join(run_dir::SCENARIO), &[])?;
        if scenario.method.name != "side-tuning" {
            let what =
                format!("attacks are known for side-tuning, and this run is {}", scenario.method.name);
            return Err(Failure::new(Exit::Usage, what));
        }
        let keep = Keep::recording();
        keep.settle(dir);
        let Parts { setup, .. } = parts(Holder::Simulator, &scenario, self.threads, None, keep)?;
        let (_, _, theta) = model::side::load(dir).map_err(|error| Failure::new(Exit::Model, error))?;
        let findings = methods::side::audit::audit(&setup, Some(&Blob::from_f32(&theta)))
            .map_err(|error| Failure::new(Exit::Failed, error))?;
        let leaks = findings.into_iter().map(|found| Leak {
            attack: found.attack.to_owned(),
            recovered: found.recovered,
            chance: found.chance,
            samples: found.samples as u64,
        });
        let leaks: Vec<Leak> = leaks.collect();
        print(format_args!("what the server recovers from what it was sent:\n{}", table(&leaks)));
        keep_in_report(dir, leaks)?;
        Ok(Exit::Completed)
    }
}

fn table(leaks: &[Leak]) -> Table {
    let mut table = Table::new(1, ["attack", "recovered", "blind guess", "samples"]);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for leak in leaks {
        let (recovered, chance) = (percent(leak.recovered), percent(leak.chance));
        table.row(vec![leak.attack.clone(), recovered, chance, leak.samples.to_string()]);
    }
    table
}

/// Write what was found beside the run's accuracy.
fn keep_in_report(dir: &Path, leaks: Vec<Leak>) -> Result<(), Failure> {
    let files = |error| Failure::new(Exit::Files, error);
    let path = dir.join(run_dir::SUMMARY);
    let summary = Summary { leaks, ..Summary::read(&path).map_err(files)? };
    summary.write(&path).map_err(files)?;
    let name = summary.info.run.clone();
    write_report(&dir.join(run_dir::REPORT), &name, &[Finished::read(dir)?])
}
