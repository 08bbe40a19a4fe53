use super::StageArgs;
use crate::conduct::{Driver, Rest, conduct};
use crate::errors::{Exit, Failure, Outcome, context};
use crate::prepare::prepare;
use crate::run_dir::{self, RunDir};
use crate::scenario::Scenario;
use base::Packet;
use clap::Args;
use federation::Acceptance;
use report::{Clock, Summary};
use sim::Checkpoint;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct Resume {
    /// The directory of an interrupted run
    run: PathBuf,
    #[command(flatten)]
    stage: StageArgs,
}

impl Resume {
    pub fn run(self) -> Outcome {
        let dir = run_dir::existing(&self.run)?;
        let path = dir.join(run_dir::CHECKPOINT);
        if !path.exists() {
            return Err(Failure::new(
                Exit::Usage,
                format!("{} has no checkpoint to go on from", dir.display()),
            )
            .help("only an interrupted run has one; a completed run is done"));
        }
        let bytes = std::fs::read(&path).map_err(context(Exit::Files, path.display()))?;
        let packet = Packet::from_bytes(bytes.into()).map_err(context(Exit::Files, path.display()))?;
        let checkpoint = Checkpoint::from_packet(&packet).map_err(context(Exit::Files, path.display()))?;
        let (scenario, _) = Scenario::read(&dir.join(run_dir::SCENARIO), &[])?;
        let (driver, wall_s) = so_far(dir)?;
        let prepared = prepare(scenario, self.stage.threads(), replayed(dir)?)?;
        let stage = self.stage.stage(driver);
        let rest = Rest { checkpoint, wall_s };
        let conducted = conduct(&prepared, RunDir::reopen(dir)?, &stage, Some(rest))?;
        self.stage.say(conducted.next_steps());
        Ok(conducted.exit())
    }
}

/// The driver of the run, and the real seconds it took. A process that was killed wrote no summary;
/// only the virtual driver leaves checkpoints behind in that case.
fn so_far(dir: &Path) -> Result<(Driver, f64), Failure> {
    let path = dir.join(run_dir::SUMMARY);
    if !path.exists() {
        return Ok((Driver::Virtual, 0.0));
    }
    let summary = Summary::read(&path).map_err(|error| Failure::new(Exit::Files, error))?;
    let driver = match summary.info.clock {
        Clock::Virtual => Driver::Virtual,
        Clock::Real => Driver::Local,
    };
    Ok((driver, summary.wall_s))
}

/// The decisions that the run was replaying, if it was.
fn replayed(dir: &Path) -> Result<Option<Acceptance>, Failure> {
    let path = dir.join(run_dir::ACCEPTANCE);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).map_err(context(Exit::Files, path.display()))?;
    serde_json::from_str(&text).map(Some).map_err(context(Exit::Files, path.display()))
}
