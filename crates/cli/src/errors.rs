//! One clear message for a person, and an exit code for a script.

use std::fmt;
use std::process::ExitCode;

/// How the process ends. `--help` and README show this table; a test holds them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Completed = 0,
    Different = 1,
    Usage = 2,
    Data = 3,
    Model = 4,
    Fit = 5,
    Failed = 6,
    Files = 7,
    Interrupted = 130,
}

impl Exit {
    /// Every code with its meaning, in order.
    pub const ALL: [(Exit, &str); 9] = [
        (Exit::Completed, "the command did what it was asked to"),
        (Exit::Different, "`diff` found a difference"),
        (Exit::Usage, "the command line or the scenario is wrong"),
        (Exit::Data, "the data cannot be read, or does not fit the task"),
        (Exit::Model, "the model cannot be read, or is not supported"),
        (Exit::Fit, "no device can hold the work"),
        (Exit::Failed, "the run started and failed, such as by a loss that is not finite"),
        (Exit::Files, "a run or report cannot be read or written"),
        (Exit::Interrupted, "interrupted; `undertone resume` goes on from there"),
    ];
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command stopped: what is wrong, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    what: String,
    place: Option<String>,
    help: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, what: impl fmt::Display) -> Failure {
        Failure { exit, what: what.to_string(), place: None, help: None }
    }

    /// The file and line, or the option, in which it is wrong.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Failure {
        self.place = Some(place.to_string());
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn help(mut self, help: impl fmt::Display) -> Failure {
        self.help = Some(help.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n  at {place}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

/// What a command returns: how it ended well, or why not.
pub type Outcome = Result<Exit, Failure>;

/// For `map_err`: a failure of that kind, with what was being done when it happened.
pub fn context<E: fmt::Display>(exit: Exit, doing: impl fmt::Display) -> impl FnOnce(E) -> Failure {
    move |error| Failure::new(exit, format!("{doing}: {error}"))
}

/// The exit codes as `--help` prints them.
pub fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in Exit::ALL {
        text += &format!("  {:>3}  {meaning}\n", exit as u8);
    }
    text
}
