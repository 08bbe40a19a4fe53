use super::{ScenarioArgs, StageArgs};
use crate::brief::Brief;
use crate::conduct::{Log, conclude};
use crate::errors::{Exit, Failure, Outcome};
use crate::interrupt;
use crate::prepare::{Holder, Prepared, prepare_for};
use crate::run_dir::RunDir;
use crate::scenario::{BUILTIN, Scenario, short};
use crate::site::{self, Site, files};
use base::SERVER;
use clap::Args;
use federation::{Fact, Status};
use methods::Draws;
use net::{Board, ServeError, ServerConfig, ServerNews};
use report::Clock;
use sim::{Ended, Output, TraceHash};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    scenario: ScenarioArgs,
    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    /// The server's keys and database [default: served/<name>]; a server that was killed goes on from it
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Keep the run here; must be new or empty [default: runs/<name>-<n>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A name or address by which programs other than devices reach this server (may be repeated)
    #[arg(long, value_name = "HOST")]
    name: Vec<String>,
    #[command(flatten)]
    stage: StageArgs,
}

impl Serve {
    pub fn run(self) -> Outcome {
        super::log_to_stderr();
        let (scenario, given) = Scenario::read(&self.scenario.scenario, &self.scenario.sets)?;
        let state = self.state.clone();
        let state = state.unwrap_or_else(|| Path::new("served").join(&scenario.run.name));
        let site = Site::open(&state, &scenario)?;
        let _lock = site::lock(&state)?;
        if let Some(run) = site.finished() {
            self.stage.say(format!("this run has ended: {}\n", run.display()));
            return Ok(Exit::Completed);
        }
        self.stage.say(short(given.given()));
        let held = holder(&scenario);
        let prepared = prepare_for(held, Draws::Theirs, scenario, self.stage.threads(), None)?;
        prepared.keep.settle(&state);
        site.clear_leftover()?;
        let run = RunDir::create(self.out.as_deref(), &prepared.scenario.run.name)?;
        site.note_leftover(&run.file(""))?;
        let mut log = Log::open(&prepared, &run, self.stage.style(), Clock::Real, None)?;
        let ended = self.carry_out(&prepared, &site, &mut log, interrupt::listen())?;
        log.close()?;
        if ended.status == Status::Interrupted {
            self.stage
                .say(format!("\ngo on with it: the same command, with --state {}\n", state.display()));
            return Ok(Exit::Interrupted);
        }
        let conducted = conclude(&prepared, run, log, &ended)?;
        self.stage.say(conducted.next_steps());
        Ok(conducted.exit())
    }

    fn carry_out(
        &self,
        prepared: &Prepared,
        site: &Site,
        log: &mut Log,
        interrupt: &AtomicBool,
    ) -> Result<Ended, Failure> {
        let (brief, shelf) = Brief::of(prepared)?;
        let config = ServerConfig {
            names: self.name.clone(),
            brief: serde_json::to_vec(&brief).expect("a brief is plain data"),
            shelf,
            devices: prepared.assembly.federation.devices.len() as u32,
            rounds: prepared.scenario.run.num_server_rounds,
            budget: prepared.assembly.federation.server.memory_bytes,
            ..ServerConfig::new(site.folder.clone(), self.listen)
        };
        let earlier = site.records()?;
        log.recall(&earlier)?;
        let (mut hash, mut records) = (TraceHash::default(), earlier.len() as u64);
        earlier.iter().for_each(|record| hash.record(record));
        let mut board = Board::of(config.devices, config.rounds, &earlier);
        let mut sink = |news: ServerNews| match news {
            ServerNews::Listening(at) => self.stage.say(greeting(at, site)),
            ServerNews::Record(record) => {
                hash.record(record);
                records += 1;
                board.push(record);
                if let Fact::Joined { device, class, .. } = &record.fact {
                    self.stage.say(format!("{device} joined ({class}); {}\n", board.headline()));
                }
                log.take(Output::Record(record), interrupt);
            }
        };
        let build = || (prepared.assembly.federation.build)(SERVER);
        let rested = net::serve(&build, config, &mut sink, interrupt).map_err(explain)?;
        Ok(Ended {
            status: rested.status.unwrap_or(Status::Interrupted),
            time: rested.time,
            server: rested.snapshot,
            trace_hash: hash.to_string(),
            records,
            checkpoint: None,
        })
    }
}

/// Rows stand on the server only where they are its own to train on, or where it deals them out as `sim`
/// does.
fn holder(scenario: &Scenario) -> Holder<'static> {
    let here =
        scenario.data.as_ref().is_some_and(|data| data.train == BUILTIN || Path::new(&data.train).exists());
    if here || !scenario.entry().federated { Holder::Simulator } else { Holder::Server }
}

fn greeting(at: SocketAddr, site: &Site) -> String {
    format!(
        "listening on {at}\n  a token for a device:  undertone enroll {}\n  who is waited for:     undertone status {}\n",
        site.folder.display(),
        site.folder.display()
    )
}

fn explain(error: ServeError) -> Failure {
    match error {
        ServeError::Listen { .. } => {
            Failure::new(Exit::Usage, error).help("choose another port with --listen")
        }
        ServeError::Host(_) | ServeError::Threads(_) => Failure::new(Exit::Failed, error),
        ServeError::Store(_) | ServeError::Identity(_) => files(error),
    }
}
