//! `summary.json`: a run as a few figures, for people and programs.

use crate::fold::{Fold, Point, Totals};
use crate::run_info::{Clock, RunInfo};
use crate::trouble::Trouble;
use base::Time;
use base::files::write_atomically;
use federation::{Eval, Status};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How a run ended, as its driver says.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    pub status: Status,
    pub time: Time,
    /// Real seconds the run took.
    pub wall_s: f64,
    pub trace_hash: String,
    pub weights_hash: Option<String>,
}

/// The contents of `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    #[serde(flatten)]
    pub info: RunInfo,
    /// The latest measurement of the global model on held-out data.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "without_nulls")]
    pub eval: Option<Eval>,
    /// The same before anything was trained.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "without_nulls")]
    pub before: Option<Eval>,
    pub curve: Vec<Point>,
    /// Virtual seconds, or real ones when served.
    pub time_s: f64,
    /// Always real.
    pub wall_s: f64,
    pub bytes: Bytes,
    pub device_peak_bytes: Peaks,
    pub server_peak_bytes: u64,
    /// What the server keeps between jobs, where the method is about that; peaks of jobs come on top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_resident: Option<Resident>,
    /// The most memory the process that ran it all held, where that was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_peak_bytes: Option<u64>,
    pub messages: u64,
    /// How many the network lost; known in simulation only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_lost: Option<u64>,
    /// What devices did and took, by class.
    #[serde(default)]
    pub classes: BTreeMap<String, Totals>,
    #[serde(default)]
    pub server: Totals,
    /// What was lost and why.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
    /// What the server recovers from what it was sent; empty until the run is audited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaks: Vec<Leak>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_hash: Option<String>,
    pub trace_hash: String,
    /// `"status"`, and `"reason"` where the run failed.
    #[serde(flatten, with = "StatusFields")]
    pub status: Status,
}

/// What one attack on a run's own traffic recovered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leak {
    pub attack: String,
    /// Share of the samples it was right about.
    pub recovered: f64,
    /// The same for the best guess that has seen nothing.
    pub chance: f64,
    pub samples: u64,
}

/// [`Status`] as two fields of the file.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Status", tag = "status", content = "reason", rename_all = "kebab-case")]
pub(crate) enum StatusFields {
    Completed,
    Failed(String),
    Interrupted,
}

/// Measures that a task does not have are left out.
pub(crate) fn without_nulls<S: Serializer>(eval: &Option<Eval>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut value = serde_json::to_value(eval).map_err(S::Error::custom)?;
    prune(&mut value);
    value.serialize(serializer)
}

fn prune(value: &mut serde_json::Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.values_mut().for_each(prune);
        fields.retain(|_, field| !field.is_null() && field.as_object().is_none_or(|map| !map.is_empty()));
    }
}

/// Bytes on the devices' links.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    pub up: u64,
    pub down: u64,
}

/// The most memory a device needed: what it keeps between jobs and the peak of its largest job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peaks {
    pub max: u64,
    pub by_class: BTreeMap<String, u64>,
}

/// What a server keeps between jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// Models, or upper parts of one.
    pub models: u32,
    pub model_bytes: u64,
    /// Adapters with their optimisers, when every device is in the middle of its pass.
    pub adapter_bytes: u64,
    /// What building the models took, as the allocator counted it.
    pub measured_model_bytes: u64,
}

impl Resident {
    pub fn total(&self) -> u64 {
        self.model_bytes + self.adapter_bytes
    }
}

/// `summary.json` cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{}: not a summary of a run ({error}); was it written by another version?", path.display())]
    Json { path: PathBuf, error: serde_json::Error },
}

impl Summary {
    /// The summary of a run that ended.
    pub fn of(info: &RunInfo, fold: &Fold, ending: &Ending) -> Summary {
        let classes = fold.classes();
        Summary {
            info: info.clone(),
            eval: fold.eval.clone(),
            before: fold.before.clone(),
            curve: fold.curve.clone(),
            time_s: ending.time.seconds(),
            wall_s: ending.wall_s,
            bytes: Bytes { up: fold.bytes_up, down: fold.bytes_down },
            device_peak_bytes: Peaks::of(info, &classes),
            server_peak_bytes: fold.server.job_peak_bytes,
            server_resident: None,
            process_peak_bytes: None,
            messages: fold.messages,
            messages_lost: Some(fold.unarrived).filter(|_| info.clock == Clock::Virtual),
            classes,
            server: fold.server.clone(),
            troubles: fold.troubles(),
            leaks: Vec::new(),
            weights_hash: ending.weights_hash.clone(),
            trace_hash: ending.trace_hash.clone(),
            status: ending.status.clone(),
        }
    }

    /// The file's text: JSON, indented.
    pub fn to_json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("a summary is plain data with string keys");
        text.push('\n');
        text
    }

    /// Write the file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), SummaryError> {
        write_atomically(path, self.to_json().as_bytes())
            .map_err(|error| SummaryError::Io { path: path.to_owned(), error })
    }

    /// Read a file back.
    pub fn read(path: &Path) -> Result<Summary, SummaryError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SummaryError::Io { path: path.to_owned(), error })?;
        serde_json::from_str(&text).map_err(|error| SummaryError::Json { path: path.to_owned(), error })
    }

    /// Seconds that devices were busy, all of them together.
    pub fn device_busy_s(&self) -> f64 {
        self.classes.values().map(|totals| totals.busy_ns).sum::<u64>() as f64 / 1e9
    }

    /// The share of labels that the best attack recovered, where the run was audited.
    pub fn labels_recovered(&self) -> Option<f64> {
        let labels = self.leaks.iter().filter(|leak| leak.attack.starts_with("label"));
        labels.map(|leak| leak.recovered).max_by(f64::total_cmp)
    }

    /// What one job of a class's devices held at most, with what they keep between jobs.
    pub fn device_bytes(&self, class: &str) -> Option<Memory> {
        let totals = self.classes.get(class).filter(|totals| totals.jobs > 0)?;
        let row = self.info.class(class);
        let resident = row.map_or(0, |row| row.resident_bytes);
        Some(Memory {
            priced: resident + totals.job_priced_bytes,
            measured: resident + totals.job_peak_bytes,
            budget: row.map(|row| row.memory_bytes),
        })
    }
}

/// The memory of one device class, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub priced: u64,
    pub measured: u64,
    pub budget: Option<u64>,
}

impl Peaks {
    fn of(info: &RunInfo, classes: &BTreeMap<String, Totals>) -> Peaks {
        let peak = |(class, totals): (&String, &Totals)| {
            let resident = info.class(class).map_or(0, |row| row.resident_bytes);
            (class.clone(), resident + totals.job_peak_bytes)
        };
        let by_class: BTreeMap<_, _> =
            classes.iter().filter(|(_, totals)| totals.jobs > 0).map(peak).collect();
        Peaks { max: by_class.values().copied().max().unwrap_or(0), by_class }
    }
}

/// The word for a status, with its reason.
pub fn status_text(status: &Status) -> String {
    match status {
        Status::Completed => "completed".to_owned(),
        Status::Interrupted => "interrupted".to_owned(),
        Status::Failed(reason) => format!("failed: {reason}"),
    }
}
