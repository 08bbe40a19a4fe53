//! The folder of a served run: the server's keys and database, and the scenario it serves.

use crate::errors::{Exit, Failure, context};
use crate::run_dir;
use crate::scenario::Scenario;
use federation::Record;
use net::files::{create_private, write_atomically};
use net::{Authority, Board, Registry};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Held by the process that works in a folder.
const LOCK: &str = "lock";
/// Where the server writes the run while it goes on.
const WRITING: &str = "writing";

/// A served run's folder.
pub struct Site {
    pub folder: PathBuf,
}

/// For `map_err`: something about files went wrong.
pub fn files(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Files, error)
}

/// Refuse a folder that another process works in. The lock ends with the process, however it ends.
pub fn lock(folder: &Path) -> Result<File, Failure> {
    create_private(folder).map_err(files)?;
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(context(Exit::Files, path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::new(Exit::Usage, format!("another process works in {}", folder.display()))
                .help("name another folder with --state, or end the other process"))
        }
        Err(TryLockError::Error(error)) => Err(context(Exit::Files, path.display())(error)),
    }
}

impl Site {
    /// Open the folder for this scenario, or make it. A folder serves one run only.
    pub fn open(folder: &Path, scenario: &Scenario) -> Result<Site, Failure> {
        let site = Site { folder: folder.to_owned() };
        create_private(folder).map_err(files)?;
        let (path, ours) = (folder.join(run_dir::SCENARIO), scenario.to_toml());
        match fs::read_to_string(&path) {
            Ok(theirs) if theirs == ours => {}
            Ok(_) => {
                let what = format!("{} belongs to a run of another scenario", folder.display());
                return Err(Failure::new(Exit::Usage, what)
                    .help("serve the scenario as it was, or name a new folder with --state"));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_atomically(&path, ours.as_bytes()).map_err(files)?;
            }
            Err(error) => return Err(context(Exit::Files, path.display())(error)),
        }
        Ok(site)
    }

    /// A folder that is one already.
    pub fn existing(folder: &Path) -> Result<(Site, Scenario), Failure> {
        let path = folder.join(run_dir::SCENARIO);
        if !path.is_file() || !folder.join("store.db").is_file() {
            return Err(Failure::new(Exit::Files, format!("{} is no served run", folder.display()))
                .help("name the folder given to `serve --state`"));
        }
        let (scenario, _) = Scenario::read(&path, &[])?;
        Ok((Site { folder: folder.to_owned() }, scenario))
    }

    pub fn authority(&self) -> Result<Authority, Failure> {
        Authority::open(&self.folder).map_err(files)
    }

    pub fn registry(&self) -> Result<Registry, Failure> {
        Registry::open(&self.folder).map_err(files)
    }

    /// What has been recorded, before this process too.
    pub fn records(&self) -> Result<Vec<Record>, Failure> {
        net::read_records(&self.folder, 0).map_err(files)
    }

    /// The run directory, if the run has ended and was written down whole.
    pub fn finished(&self) -> Option<PathBuf> {
        let partial = fs::read_to_string(self.folder.join(WRITING)).ok()?;
        let done = PathBuf::from(partial.trim_end_matches('/').strip_suffix(".partial")?);
        done.join(run_dir::SUMMARY).is_file().then_some(done)
    }

    /// Forget the run directory that a killed process left half-written; it is written anew from the
    /// database.
    pub fn clear_leftover(&self) -> Result<(), Failure> {
        let Ok(path) = fs::read_to_string(self.folder.join(WRITING)) else { return Ok(()) };
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(context(Exit::Files, path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Remember where the run is being written.
    pub fn note_leftover(&self, run: &Path) -> Result<(), Failure> {
        let path = std::path::absolute(run).map_err(context(Exit::Files, run.display()))?;
        write_atomically(&self.folder.join(WRITING), path.to_string_lossy().as_bytes()).map_err(files)
    }
}

/// Where a run stands: one that is served, or one that has ended and is kept.
pub fn board(folder: &Path) -> Result<Board, Failure> {
    if folder.join("store.db").is_file() {
        let (site, scenario) = Site::existing(folder)?;
        return Ok(Board::of(expected(&scenario), scenario.run.num_server_rounds, &site.records()?));
    }
    let dir = run_dir::existing(folder)?;
    let (scenario, _) = Scenario::read(&dir.join(run_dir::SCENARIO), &[])?;
    let trace = report::TraceReader::open(&dir.join(run_dir::TRACE)).map_err(files)?;
    let records = trace.collect::<Result<Vec<_>, _>>().map_err(files)?;
    Ok(Board::of(expected(&scenario), scenario.run.num_server_rounds, &records))
}

/// How many devices take part.
pub fn expected(scenario: &Scenario) -> u32 {
    if scenario.entry().federated { scenario.fleet.devices } else { 0 }
}
