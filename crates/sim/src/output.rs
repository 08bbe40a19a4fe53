//! What a driver hands out while it runs and when it ends, and the hash of a trace.

use crate::{Checkpoint, ConfigError};
use base::{CodecError, Packet, Time};
use federation::{Record, Status};
use serde::{Deserialize, Serialize};

/// What a driver's sink is given.
#[derive(Debug)]
pub enum Output<'a> {
    /// The next line of the trace.
    Record(&'a Record),
    /// The run could go on from here; write it down atomically. See
    /// [`checkpoint_rounds`](crate::SimConfig::checkpoint_rounds).
    Checkpoint(Checkpoint),
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub status: Status,
    /// Seconds since the run began, by the driver's clock.
    pub time: Time,
    /// The server's snapshot: what was trained is in it.
    pub server: Packet,
    pub trace_hash: String,
    /// Records handed out since the run began, before a resume too.
    pub records: u64,
    /// Present when the run was interrupted.
    pub checkpoint: Option<Checkpoint>,
}

/// A run that could not be carried out at all.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "the run came to a standstill after {:.1} s: every node waits and nothing is under way (is a \
         needed device missing?)", at.seconds()
    )]
    Standstill { at: Time },
    #[error("the checkpoint cannot be read: {0}")]
    Checkpoint(#[from] CodecError),
    #[error(
        "the checkpoint is of {theirs}, not of {ours}: resume with the scenario and driver it was made by"
    )]
    Foreign { theirs: String, ours: String },
    #[error("no thread could be started for {node}: {source}; use `sim` for this many devices")]
    Threads { node: base::Node, source: std::io::Error },
}

/// The hash of a trace: BLAKE3 over the hash so far and the next line's JSON, from 32 zero bytes. A
/// chain and not one long hash, so that a resumed run needs only 32 bytes of what came before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceHash([u8; 32]);

impl TraceHash {
    /// Take in the next line of a `trace.jsonl`, without its line end.
    pub fn line(&mut self, json: &[u8]) {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.0).update(json);
        self.0 = *hash.finalize().as_bytes();
    }

    /// Take in the next record.
    ///
    /// # Panics
    /// If a record has no JSON form, which none lacks.
    pub fn record(&mut self, record: &Record) {
        self.line(&serde_json::to_vec(record).expect("records are plain data"));
    }
}

impl std::fmt::Display for TraceHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "blake3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// Counts and hashes records on their way to the sink.
pub(crate) struct Tracer<'a> {
    sink: &'a mut dyn FnMut(Output),
    pub hash: TraceHash,
    pub records: u64,
}

impl<'a> Tracer<'a> {
    pub fn new(sink: &'a mut dyn FnMut(Output)) -> Tracer<'a> {
        Tracer { sink, hash: TraceHash::default(), records: 0 }
    }

    pub fn record(&mut self, record: &Record) {
        self.hash.record(record);
        self.records += 1;
        (self.sink)(Output::Record(record));
    }

    pub fn offer(&mut self, checkpoint: Checkpoint) {
        (self.sink)(Output::Checkpoint(checkpoint));
    }
}
