//! What is known about a run before it starts.

use federation::Member;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The head of every report, and the first fields of `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The run's id, which is also the name of its directory.
    pub run: String,
    pub method: String,
    pub model: String,
    pub dataset: String,
    pub seed: u64,
    /// Rounds the run was asked for; those that ended are in the curve.
    pub rounds: u32,
    pub devices: u32,
    pub clock: Clock,
    #[serde(default)]
    pub fleet: Vec<DeviceClass>,
    /// What a reader must know to judge the figures, such as `"the data is generated"`.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What the times of a run mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// Computed from device profiles and link rates.
    Virtual,
    /// Measured.
    Real,
}

impl Clock {
    /// The adjective for times of this kind.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Virtual => "virtual",
            Clock::Real => "real",
        }
    }
}

/// The devices of one class, as one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceClass {
    pub class: String,
    pub devices: u32,
    /// Training examples over all of them.
    pub examples: u64,
    /// Mean over the devices.
    pub flops_per_s: f64,
    /// Mean over the devices.
    pub up_bytes_per_s: f64,
    /// Mean over the devices.
    pub down_bytes_per_s: f64,
    /// The budget of the smallest device.
    pub memory_bytes: u64,
    /// What a device keeps between jobs (weights, adapters, optimiser state), where job prices do not
    /// hold it already; peaks are quoted with it.
    #[serde(default)]
    pub resident_bytes: u64,
}

impl DeviceClass {
    /// The classes of a fleet, by name.
    pub fn table(members: &[Member]) -> Vec<DeviceClass> {
        let mut groups: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
        for member in members {
            groups.entry(&member.class).or_default().push(member);
        }
        groups.into_iter().map(|(class, members)| DeviceClass::of(class, &members)).collect()
    }

    fn of(class: &str, members: &[&Member]) -> DeviceClass {
        let mean =
            |get: fn(&Member) -> f64| members.iter().map(|m| get(m)).sum::<f64>() / members.len() as f64;
        DeviceClass {
            class: class.to_owned(),
            devices: members.len() as u32,
            examples: members.iter().map(|m| m.examples).sum(),
            flops_per_s: mean(|m| m.flops_per_s),
            up_bytes_per_s: mean(|m| m.up_bytes_per_s),
            down_bytes_per_s: mean(|m| m.down_bytes_per_s),
            memory_bytes: members.iter().map(|m| m.memory_bytes).min().unwrap_or(0),
            resident_bytes: 0,
        }
    }
}

impl RunInfo {
    /// The row of a device class.
    pub fn class(&self, name: &str) -> Option<&DeviceClass> {
        self.fleet.iter().find(|row| row.class == name)
    }
}
