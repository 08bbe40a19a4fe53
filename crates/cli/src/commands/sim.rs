use super::{ScenarioArgs, StageArgs};
use crate::conduct::{Driver, conduct};
use crate::errors::{Exit, Failure, Outcome};
use crate::prepare::prepare;
use crate::run_dir::{self, RunDir};
use crate::scenario::{Scenario, short};
use clap::Args;
use federation::Acceptance;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Sim {
    /// A TOML file; see scenarios/
    #[arg(required_unless_present = "replay")]
    scenario: Option<PathBuf>,
    /// Override a setting, such as --set run.seed=8 (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Keep the run here; must be new or empty [default: runs/<name>-<n>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Accept in each round what this earlier run accepted, and so end in its weights
    #[arg(long, value_name = "RUN")]
    replay: Option<PathBuf>,
    /// What carries the run out
    #[arg(long, value_enum, default_value_t = Driver::Virtual)]
    driver: Driver,
    #[command(flatten)]
    stage: StageArgs,
}

impl Sim {
    pub fn run(self) -> Outcome {
        let replay = self.replay.as_deref().map(acceptance).transpose()?;
        let file = match (&self.scenario, &self.replay) {
            (Some(file), _) => file.clone(),
            (None, Some(run)) => run.join(run_dir::SCENARIO),
            (None, None) => unreachable!("the command line demands one of them"),
        };
        let scenario = ScenarioArgs { scenario: file, sets: self.sets };
        let (scenario, given) = Scenario::read(&scenario.scenario, &scenario.sets)?;
        self.stage.say(short(given.given()));
        let prepared = prepare(scenario, self.stage.threads(), replay)?;
        let unfit = prepared.unfit()?;
        if unfit > 0 {
            self.stage.say(format!(
                "{unfit} devices cannot hold the work and will refuse it; see `undertone plan`\n"
            ));
        }
        let run = RunDir::create(self.out.as_deref(), &prepared.scenario.run.name)?;
        let stage = self.stage.stage(self.driver);
        let conducted = conduct(&prepared, run, &stage, None)?;
        self.stage.say(conducted.next_steps());
        Ok(conducted.exit())
    }
}

/// Who was drawn and who was counted in an earlier run.
fn acceptance(run: &Path) -> Result<Acceptance, Failure> {
    let trace = run_dir::existing(run)?.join(run_dir::TRACE);
    let records = report::TraceReader::open(&trace)
        .and_then(|reader| reader.collect::<Result<Vec<_>, _>>())
        .map_err(|error| Failure::new(Exit::Files, error))?;
    Ok(Acceptance::from_records(&records))
}
