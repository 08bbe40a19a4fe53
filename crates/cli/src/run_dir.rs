//! Where a run is kept: `runs/<name>-<n>/`, or the directory given with `--out`.
//!
//! A run is written under `<directory>.partial` and takes its name only once it is whole, be it
//! completed or interrupted. One that failed leaves its trace in `<directory>.failed`.

use crate::errors::{Exit, Failure, context};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

pub const SCENARIO: &str = "scenario.toml";
pub const TRACE: &str = "trace.jsonl";
pub const SUMMARY: &str = "summary.json";
pub const REPORT: &str = "report.html";
pub const ADAPTER: &str = "adapter";
pub const CHECKPOINT: &str = "checkpoint.bin";
/// Who holds what, as a figure for the report.
pub const PARTITION: &str = "partition.svg";
/// What a replaying run accepts, taken from the run it replays.
pub const ACCEPTANCE: &str = "replay.json";

/// A run being written. Dropped without [`RunDir::keep`] or [`RunDir::fail`], it leaves nothing.
#[derive(Debug)]
pub struct RunDir {
    /// Where it is written now; `None` once it has its name.
    partial: Option<PathBuf>,
    done: PathBuf,
}

impl RunDir {
    /// A fresh directory: `out`, which must be new or empty, or the next free `runs/<name>-<n>`.
    pub fn create(out: Option<&Path>, name: &str) -> Result<RunDir, Failure> {
        match out {
            Some(out) => RunDir::at(out),
            None => RunDir::numbered(Path::new("runs"), name),
        }
    }

    fn at(out: &Path) -> Result<RunDir, Failure> {
        refuse_used(out)?;
        let partial = beside(out, ".partial");
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.map_or(Ok(()), fs::create_dir_all).map_err(cannot_write(out))?;
        match fs::create_dir(&partial) {
            Ok(()) => Ok(RunDir { partial: Some(partial), done: out.to_owned() }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::new(
                Exit::Usage,
                format!("{} exists", partial.display()),
            )
            .help(
                "another run is being written there, or one was killed; remove it or choose another --out",
            )),
            Err(error) => Err(cannot_write(&partial)(error)),
        }
    }

    fn numbered(parent: &Path, name: &str) -> Result<RunDir, Failure> {
        fs::create_dir_all(parent).map_err(cannot_write(parent))?;
        for number in 1u32.. {
            let done = parent.join(format!("{name}-{number}"));
            let partial = beside(&done, ".partial");
            if done.exists() || beside(&done, ".failed").exists() {
                continue;
            }
            match fs::create_dir(&partial) {
                Ok(()) => return Ok(RunDir { partial: Some(partial), done }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot_write(&partial)(error)),
            }
        }
        Err(Failure::new(Exit::Files, format!("{} is full of runs named {name}", parent.display())))
    }

    /// An earlier run, to be gone on with. One whose process was killed still stands under `.partial`;
    /// it takes its name now, since it has a checkpoint to be kept.
    pub fn reopen(dir: &Path) -> Result<RunDir, Failure> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let done = match name.strip_suffix(".partial") {
            Some(name) if !dir.with_file_name(name).exists() => {
                let done = dir.with_file_name(name);
                fs::rename(dir, &done).map_err(cannot_write(&done))?;
                done
            }
            _ => dir.to_owned(),
        };
        Ok(RunDir { partial: None, done })
    }

    /// The name of its directory.
    pub fn id(&self) -> String {
        self.done.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A file of the run, where it is now.
    pub fn file(&self, name: &str) -> PathBuf {
        self.partial.as_ref().unwrap_or(&self.done).join(name)
    }

    /// Give the run its name. Returns its directory.
    pub fn keep(mut self) -> Result<PathBuf, Failure> {
        if let Some(partial) = &self.partial {
            if self.done.exists() {
                fs::remove_dir(&self.done).map_err(cannot_write(&self.done))?;
            }
            fs::rename(partial, &self.done).map_err(cannot_write(&self.done))?;
            self.partial = None;
        }
        Ok(self.done.clone())
    }

    /// Put the run aside as failed, over an earlier failure of that name. Returns its directory.
    pub fn fail(mut self) -> Result<PathBuf, Failure> {
        let failed = beside(&self.done, ".failed");
        if failed.join(TRACE).exists() {
            fs::remove_dir_all(&failed).map_err(cannot_write(&failed))?;
        }
        let now = self.partial.take().unwrap_or_else(|| self.done.clone());
        fs::rename(&now, &failed).map_err(cannot_write(&failed))?;
        Ok(failed)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            let _ = fs::remove_dir_all(partial);
        }
    }
}

/// The directory of an earlier run, if it is one.
pub fn existing(dir: &Path) -> Result<&Path, Failure> {
    if dir.join(SCENARIO).is_file() {
        return Ok(dir);
    }
    let what = if dir.is_dir() { "holds no scenario.toml, so it is no run" } else { "does not exist" };
    Err(Failure::new(Exit::Files, format!("{} {what}", dir.display()))
        .help("a run is a directory such as runs/demo-1; `ls runs` shows yours"))
}

fn refuse_used(out: &Path) -> Result<(), Failure> {
    let used = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(cannot_write(out)(error)),
    };
    if used {
        return Err(Failure::new(Exit::Usage, format!("--out {} is not empty", out.display()))
            .help("name a directory that is new or empty; no run is ever overwritten"));
    }
    Ok(())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    context(Exit::Files, format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_run_has_its_name_only_when_it_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        let first = RunDir::numbered(dir, "a").unwrap();
        fs::write(first.file(TRACE), "").unwrap();
        let second = RunDir::numbered(dir, "a").unwrap();
        assert_eq!((first.id().as_str(), second.id().as_str()), ("a-1", "a-2"));
        assert_eq!(names(dir), ["a-1.partial", "a-2.partial"]);
        drop(second);
        assert_eq!(first.keep().unwrap(), dir.join("a-1"));
        let second = RunDir::numbered(dir, "a").unwrap();
        assert_eq!(second.id(), "a-2");
        second.fail().unwrap();
        assert_eq!(RunDir::numbered(dir, "a").unwrap().id(), "a-3");
        assert_eq!(names(dir), ["a-1", "a-2.failed"]);
    }

    #[test]
    fn out_must_be_new_or_empty_and_is_left_as_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let out = scratch.path().join("deep/out");
        fs::create_dir_all(&out).unwrap();
        for _ in 0..2 {
            let run = RunDir::at(&out).unwrap();
            fs::write(run.file(TRACE), "").unwrap();
            run.fail().unwrap();
        }
        assert_eq!(names(out.parent().unwrap()), ["out", "out.failed"]);
        RunDir::at(&out).unwrap().keep().unwrap();
        fs::write(out.join("x"), "").unwrap();
        assert_eq!(RunDir::at(&out).unwrap_err().exit, Exit::Usage);
    }
}
