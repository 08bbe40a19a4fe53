//! What outlives the process of a node.

use base::{Node, Time};
use federation::journal::Entry;
use federation::{Journal, Record};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a node's past is kept. Two implementations: [`SqliteStore`](crate::SqliteStore) of a server, whose
/// past others look at, and [`FileStore`](crate::FileStore) of a device, which has no database. A server
/// that is one of several would need a third.
pub trait Store: Send {
    /// What was committed so far. Asked once, before anything else.
    fn load(&mut self) -> Result<Past, StoreError>;

    /// Make a batch last: all of it, or nothing. When this returns, it survives the loss of the process
    /// and of the machine's power.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;
}

/// What a store holds when a process begins.
#[derive(Default)]
pub struct Past {
    pub journal: Journal,
    /// The largest sequence number seen from each device.
    pub sequences: BTreeMap<Node, u64>,
}

impl Past {
    /// When the last thing in it happened.
    pub fn time(&self) -> Time {
        self.journal.time()
    }
}

/// What happened since the last commit.
#[derive(Default)]
pub struct Batch {
    /// The journal's new entries; a snapshot among them voids all before it.
    pub entries: Vec<Entry>,
    pub records: Vec<Record>,
    pub sequences: BTreeMap<Node, u64>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.records.is_empty() && self.sequences.is_empty()
    }
}

/// A store that cannot do what it is for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Sqlite { path: PathBuf, source: rusqlite::Error },
    #[error("{path} is damaged: {what}")]
    Damaged { path: PathBuf, what: String },
}

impl StoreError {
    /// For `map_err`: what went wrong with that file.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    }

    pub(crate) fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = path.to_owned();
        move |source| StoreError::Sqlite { path: path.clone(), source }
    }

    pub(crate) fn damaged(path: &Path, what: impl ToString) -> StoreError {
        StoreError::Damaged { path: path.to_owned(), what: what.to_string() }
    }
}
