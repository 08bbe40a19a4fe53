use crate::brief::Brief;
use crate::errors::{Exit, Failure, Outcome};
use crate::interrupt;
use crate::memory::PROCESS;
use crate::offer::Fetch;
use crate::prepare::{Holder, Prepared, prepare_for, task};
use crate::scenario::{BUILTIN, Scenario};
use crate::site::{self, files};
use base::{Node, Seed, units};
use clap::Args;
use federation::{Fact, Status};
use methods::Draws;
use model::{Lower, Task};
use net::device::channel::Url;
use net::device::{self, DeviceConfig, DeviceNews, EnrollError, Fetcher, JoinError, Leave, Patience};
use net::identity::{Card, Wallet};
use net::protocol::Token;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

#[derive(Debug, Args)]
pub struct Join {
    /// The server, such as https://edge.example:7443
    url: String,
    /// The one-time token from `undertone enroll`, or a file that holds it; needed once
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// This device's rows: .jsonl .json .csv .tsv, also .zst .gz
    #[arg(long, value_name = "FILE")]
    data: Option<String>,
    /// The model's directory; must be the server's, file by file [default: what this device needs of it is
    /// fetched from the server]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// This device's key and journal; a device that was killed goes on from it
    #[arg(long, value_name = "DIR", default_value = "undertone-device")]
    state: PathBuf,
    /// Memory this process may take, such as "2 GB"; a job that does not fit is refused before it starts
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_limit: Option<u64>,
    /// A command that says by its exit code 0 whether this device may work now
    #[arg(long, value_name = "COMMAND")]
    only_when: Option<String>,
    /// Threads to compute on [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// How often a device that may not work asks again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How often the process's memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

fn size(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).ok_or_else(|| "write a size such as \"512 MB\" or \"4 GiB\"".to_owned())
}

impl Join {
    pub fn run(self) -> Outcome {
        super::log_to_stderr();
        let url = Url::parse(&self.url).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("{} is no address of a server", self.url))
                .help("write https://host:port, as the server's operator gave it")
        })?;
        let _lock = site::lock(&self.state)?;
        if let Some(limit) = self.memory_limit {
            guard(limit);
        }
        let interrupt = interrupt::listen();
        let wallet = Wallet::open(&self.state).map_err(files)?;
        let card = self.card(&wallet, &url, interrupt)?;
        let identity = wallet.identity(card.clone()).map_err(files)?;
        eprintln!("{} of {url}", card.node);
        let brief =
            device::brief(&identity, &url, Patience::default(), &mut tell, interrupt).map_err(explain)?;
        let draws = Draws::Own(Seed(wallet.secret()));
        let mut fetcher = Fetcher::new(&identity, &url, Patience::default()).map_err(explain)?;
        let mut fetch =
            |part, path: &Path| fetcher.fetch(part, path, &mut tell, interrupt).map_err(explain);
        let prepared = self.prepare(brief.node, draws, &brief.body, &mut fetch)?;
        let build = || (prepared.assembly.federation.build)(brief.node);
        let config = DeviceConfig {
            budget: self.budget(&prepared, brief.node),
            leave: self.leave(),
            ..DeviceConfig::new(self.state.clone())
        };
        let rested = device::live(&build, (wallet, card), &url, &brief, config, &mut tell, interrupt)
            .map_err(explain)?;
        match rested.status {
            Some(Status::Completed) => {
                eprintln!("the run is completed");
                Ok(Exit::Completed)
            }
            Some(Status::Failed(reason)) => {
                Err(Failure::new(Exit::Failed, format!("the run ended for this device: {reason}")))
            }
            Some(Status::Interrupted) | None => {
                eprintln!("go on with it: undertone join {url} --state {} ...", self.state.display());
                Ok(Exit::Interrupted)
            }
        }
    }

    /// The card of an earlier enrolment, or a fresh one for the token.
    fn card(&self, wallet: &Wallet, url: &Url, interrupt: &AtomicBool) -> Result<Card, Failure> {
        let card = wallet.card().map_err(files)?;
        let token = match (&self.token, card) {
            (None, Some(card)) => return Ok(card),
            (Some(token), card) => {
                let text = std::fs::read_to_string(token).unwrap_or_else(|_| token.clone());
                let token = Token::parse(&text).map_err(|error| Failure::new(Exit::Usage, error))?;
                let same = |card: &Card| card.node == token.node && !card.is_ageing();
                if let Some(card) = card.filter(same) {
                    return Ok(card);
                }
                token
            }
            (None, None) => {
                return Err(Failure::new(Exit::Usage, "this device has not enrolled yet")
                    .help("give the token that the server's operator made: --token undertone1...."));
            }
        };
        let mut persistence = device::Persistence::new(Patience::default(), token.node);
        loop {
            match device::enroll(wallet, url, &token, Patience::default()) {
                Ok(card) => return Ok(card),
                Err(EnrollError::Channel(error)) if !error.is_final() => {
                    let again = persistence.failed(&error);
                    tell(DeviceNews::Trouble { what: error.to_string(), again });
                    device::rest(again, interrupt);
                }
                Err(error) => return Err(Failure::new(Exit::Failed, error)),
            }
            if interrupt.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Failure::new(Exit::Interrupted, "interrupted before the server was reached"));
            }
        }
    }

    fn prepare(
        &self,
        node: Node,
        draws: Draws,
        said: &[u8],
        fetch: &mut Fetch,
    ) -> Result<Prepared, Failure> {
        let (brief, mut scenario) = Brief::open(said)?;
        if node.0 == 0 || node.0 > scenario.fleet.devices {
            return Err(Failure::new(Exit::Failed, format!("the server's scenario has no {node}")));
        }
        let (mut lower, trains) = (None, scenario.entry().trains);
        if let Some(model) = scenario.model.as_mut().filter(|_| trains) {
            let fleet = scenario.fleet.resolve(Seed(scenario.run.seed));
            let fleet = fleet.map_err(|error| Failure::new(Exit::Failed, error))?;
            let class = &fleet.devices[node.0 as usize - 1].class;
            lower = brief.lower.get(class).copied();
            let number = model.number(class);
            // Of other devices' models it knows nothing and needs nothing.
            *model = model.of_class(class);
            model.path = self.model_for(&brief, number, (lower, &task(model, &brief.labels)?), fetch)?;
        }
        let rows = self.rows(&scenario)?;
        let holder = Holder::Device { node, rows, labels: &brief.labels, lower };
        prepare_for(holder, draws, scenario, self.threads.map_or(1, usize::from), None)
    }

    /// The directory of this device's model: its own, or one of what it needs, fetched from the server.
    fn model_for(
        &self,
        brief: &Brief,
        number: usize,
        part: (Option<Lower>, &Task),
        fetch: &mut Fetch,
    ) -> Result<String, Failure> {
        match (&self.model, brief.offers.get(number)) {
            (None, Some(offer)) if !offer.is_empty() => {
                let folder = offer.fetch(&self.state, part, fetch)?;
                Ok(folder.to_string_lossy().into_owned())
            }
            (model, _) => {
                let path = model.as_deref().unwrap_or(BUILTIN);
                brief.check_model(number, path)?;
                Ok(path.to_owned())
            }
        }
    }

    /// The file of this device's rows, where the method trains.
    fn rows(&self, scenario: &Scenario) -> Result<&str, Failure> {
        match &self.data {
            Some(file) => Ok(file),
            None if !scenario.entry().trains => Ok(""),
            None => {
                let what =
                    format!("the run trains by {}, and this device has no rows", scenario.method.name);
                Err(Failure::new(Exit::Usage, what).help("name a file of rows with --data"))
            }
        }
    }

    /// What jobs may take: what the scenario's class of device has, and no more than this process may take
    /// beside what it holds already.
    fn budget(&self, prepared: &Prepared, node: Node) -> u64 {
        let of_class = prepared.assembly.federation.member(node).memory_bytes;
        self.memory_limit.map_or(of_class, |limit| of_class.min(limit.saturating_sub(PROCESS.used())))
    }

    fn leave(&self) -> Leave {
        let Some(command) = self.only_when.clone() else { return Box::new(|| {}) };
        Box::new(move || {
            let mut said = false;
            while !may_work(&command) {
                if !said {
                    eprintln!("waiting until `{command}` allows work");
                    said = true;
                }
                thread::sleep(ASK_AGAIN);
            }
        })
    }
}

/// Whether the owner's command says so. It is this device's own; no server has a say in it.
fn may_work(command: &str) -> bool {
    let ran = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

/// End the process when it takes more than it may: prices should have refused the job before, and what was
/// acknowledged is in the journal.
fn guard(limit: u64) {
    thread::spawn(move || {
        loop {
            let used = PROCESS.used();
            if used > limit {
                let (used, limit) = (units::bytes(used), units::bytes(limit));
                eprintln!("error: this process holds {used}, and --memory-limit is {limit}");
                std::process::exit(Exit::Fit as i32);
            }
            thread::sleep(LOOK);
        }
    });
}

/// Say what this device is doing.
fn tell(news: DeviceNews) {
    match news {
        DeviceNews::Connected | DeviceNews::Stopped(_) | DeviceNews::Excluded(_) => {}
        DeviceNews::Trouble { what, again } if again.is_zero() => eprintln!("{what}"),
        DeviceNews::Trouble { what, again } => {
            eprintln!("{what}; trying again in {}", units::seconds(again.as_secs_f64()));
        }
        DeviceNews::Record(record) => match record.fact {
            Fact::Ran { label, begin, peak_bytes, .. } => {
                let took = units::seconds(record.t.seconds() - begin.seconds());
                eprintln!("{label}: {took}, {}", units::bytes(peak_bytes));
            }
            Fact::Fault { label, reason, .. } => eprintln!("{label} failed: {reason}"),
            Fact::Malformed { reason, .. } => eprintln!("a message of the server cannot be read: {reason}"),
            Fact::Restored { replayed } => eprintln!("going on from the journal ({replayed} inputs)"),
            _ => {}
        },
    }
}

fn explain(error: JoinError) -> Failure {
    match error {
        JoinError::Store(_) | JoinError::Identity(_) => files(error),
        JoinError::Interrupted => Failure::new(Exit::Interrupted, error),
        JoinError::Host(_) | JoinError::Excluded(_) | JoinError::Expired | JoinError::Threads(_) => {
            Failure::new(Exit::Failed, error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_decides_when_a_device_works() {
        assert!(may_work("true"));
        assert!(!may_work("exit 1"));
        assert!(!may_work("/no/such/command"));
    }
}
