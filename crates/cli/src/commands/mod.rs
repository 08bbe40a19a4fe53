//! The commands, one file each.

mod audit;
mod cache;
mod demo;
mod diff;
mod enroll;
mod export;
mod generate;
mod join;
mod methods;
mod partition;
mod plan;
mod predict;
mod profile;
mod report;
mod resume;
mod revoke;
mod schedule;
mod serve;
mod sim;
mod status;
mod why;

use crate::conduct::{Driver, Stage};
use crate::errors::{Outcome, exit_codes};
use crate::interrupt;
use ::report::{Format, Style};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Fine-tune a language model on the devices that hold the data.
#[derive(Debug, Parser)]
#[command(name = "undertone", version, max_term_width = 100, after_help = exit_codes())]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Every method on the built-in model and data, in two minutes, without network or account
    Demo(demo::Demo),
    /// Before anything runs: does it fit each device, how many bytes and seconds
    Plan(plan::Plan),
    /// Run a scenario's whole federation in this process
    Sim(sim::Sim),
    /// Serve a scenario to real devices, over TLS
    Serve(serve::Serve),
    /// Take part in a served run with rows of one's own
    Join(join::Join),
    /// Make a one-time token for a device of a served run
    Enroll(enroll::Enroll),
    /// Take a device's right to take part away
    Revoke(revoke::Revoke),
    /// Write the shards that `sim` would deal out, with a token for each device
    Partition(partition::Partition),
    /// Where a served run stands, and who is waited for
    Status(status::Show),
    /// Who was left out of a run, why, and what to change
    Why(why::Why),
    /// Go on with a run that was interrupted
    Resume(resume::Resume),
    /// One HTML page and a table from one run or several
    Report(report::Report),
    /// Where two runs part: the first event that differs
    Diff(diff::Diff),
    /// Classify a text with a run's tuned model
    Predict(predict::Predict),
    /// Continue a text with a run's tuned language model
    Generate(generate::Generate),
    /// Write a run's adapter for other programs
    Export(export::Export),
    /// How well forward gradients agree with the true one, for each kind of adapter
    Profile(profile::Profile),
    /// In which order a server should serve its devices: every policy side by side
    Schedule(schedule::Schedule),
    /// Attack a run's own traffic, and print what leaked
    Audit(audit::Audit),
    /// What a server keeps of each device's activations; erase a device's
    Cache(cache::Cache),
    /// The methods that a scenario can name
    Methods(methods::Methods),
}

impl Command {
    pub fn run(self) -> Outcome {
        match self {
            Command::Demo(command) => command.run(),
            Command::Plan(command) => command.run(),
            Command::Sim(command) => command.run(),
            Command::Serve(command) => command.run(),
            Command::Join(command) => command.run(),
            Command::Enroll(command) => command.run(),
            Command::Revoke(command) => command.run(),
            Command::Partition(command) => command.run(),
            Command::Status(command) => command.run(),
            Command::Why(command) => command.run(),
            Command::Resume(command) => command.run(),
            Command::Report(command) => command.run(),
            Command::Diff(command) => command.run(),
            Command::Predict(command) => command.run(),
            Command::Generate(command) => command.run(),
            Command::Export(command) => command.run(),
            Command::Profile(command) => command.run(),
            Command::Schedule(command) => command.run(),
            Command::Audit(command) => command.run(),
            Command::Cache(command) => command.run(),
            Command::Methods(command) => command.run(),
        }
    }
}

/// A scenario and what is laid over it.
#[derive(Debug, Args)]
pub struct ScenarioArgs {
    /// A TOML file; see scenarios/
    pub scenario: PathBuf,
    /// Override a setting, such as --set run.seed=8 (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
}

/// How a run is carried out and shown.
#[derive(Debug, Args)]
pub struct StageArgs {
    /// Threads to compute on; the result does not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = Shown::Text)]
    format: Shown,
}

/// The formats of progress and results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shown {
    /// A line a round; with bars on a terminal
    Text,
    /// One JSON object a line
    Json,
}

impl StageArgs {
    pub fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, usize::from)
    }

    /// Ready to run. From here on Ctrl-C interrupts.
    pub fn stage(&self, driver: Driver) -> Stage {
        Stage { driver, style: self.style(), interrupt: interrupt::listen() }
    }

    /// How progress is shown here.
    pub fn style(&self) -> Style {
        let format = match self.format {
            Shown::Text => Format::Text,
            Shown::Json => Format::Json,
        };
        Style::choose(format, std::io::stdout().is_terminal())
    }

    /// Print text that is for people, not programs.
    pub fn say(&self, text: impl Display) {
        if self.format == Shown::Text {
            print(text);
        }
    }
}

/// Print to standard output; it is no error if nobody reads any more.
pub fn print(text: impl Display) {
    let _ = write!(std::io::stdout(), "{text}");
}

/// Structured lines on standard error: what a server or device does beside its run. `RUST_LOG`-like filters
/// are not read; warnings and what an operator acts on are all there is.
pub fn log_to_stderr() {
    let lines =
        tracing_subscriber::fmt().json().with_max_level(tracing_subscriber::filter::LevelFilter::INFO);
    // A second call, as in tests, changes nothing.
    let _ = lines.with_writer(std::io::stderr).try_init();
}
