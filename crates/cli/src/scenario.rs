//! The scenario: one TOML file that says everything about a run.
//!
//! Each table's settings live beside what they configure; this file composes them.

use crate::errors::Failure;
use crate::settings::{Settings, nearest};
use data::{Columns, LongRows, PartitionConfig};
use federation::CohortConfig;
use methods::{Entry, METHODS, TrainConfig};
use model::{PeftConfig, Pooling};
use serde::{Deserialize, Serialize};
use sim::{FaultsConfig, FleetConfig, WeatherConfig};
use std::path::Path;

/// The `path`, `train` or `test` that means what the program carries in itself.
pub const BUILTIN: &str = "builtin";

/// A scenario with every default filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub run: RunConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelConfig>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataConfig>,
    #[serde(default)]
    pub fleet: FleetConfig,
    #[serde(default)]
    pub cohort: CohortConfig,
    #[serde(default)]
    pub weather: WeatherConfig,
    #[serde(default)]
    pub faults: FaultsConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peft: Option<PeftConfig>,
    #[serde(default)]
    pub train: TrainConfig,
    pub method: MethodConfig,
    #[serde(default)]
    pub audit: AuditConfig,
}

/// `[audit]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Keep what devices send, as the server sees it, under `traffic/` of the run.
    pub record: bool,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RunConfig {
    /// Runs are kept in `runs/<name>-<n>`.
    pub name: String,
    #[serde(default = "default_seed")]
    pub seed: u64,
    #[serde(default = "default_rounds")]
    pub num_server_rounds: u32,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A Hugging Face directory, or `"builtin"`.
    pub path: String,
    #[serde(default)]
    pub task: TaskKind,
    /// Classification: how the last hidden states become one vector.
    #[serde(default = "default_pooling")]
    pub pooling: Pooling,
    /// Classification: the head sees `tanh(squash * pooled)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub squash: Option<f32>,
    /// The longest sequence, in tokens.
    #[serde(default = "default_length")]
    pub max_seq_length: usize,
}

/// What is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    #[default]
    Classification,
    CausalLm,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A file of rows, or `"builtin"`.
    pub train: String,
    pub test: String,
    #[serde(default)]
    pub long_rows: LongRows,
    #[serde(default = "default_partition")]
    pub partition: PartitionConfig,
    #[serde(default)]
    pub columns: Columns,
}

/// `[method]`: the name, and the keys of that method's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MethodConfig {
    pub name: String,
    #[serde(flatten)]
    pub options: toml::Table,
}

fn default_seed() -> u64 {
    7
}

fn default_rounds() -> u32 {
    10
}

fn default_pooling() -> Pooling {
    Pooling::Mean
}

fn default_length() -> usize {
    128
}

fn default_partition() -> PartitionConfig {
    PartitionConfig::Iid {}
}

impl Scenario {
    /// Read `path` with `--set` options over it, and check what can be checked without opening
    /// anything else. The settings as given come along, to be shown.
    pub fn read(path: &Path, sets: &[String]) -> Result<(Scenario, Settings), Failure> {
        Scenario::of(Settings::read(path, sets)?)
    }

    /// The same from settings read elsewhere.
    pub fn of(settings: Settings) -> Result<(Scenario, Settings), Failure> {
        let scenario: Scenario = settings.typed()?;
        scenario.check(&settings)?;
        Ok((scenario, settings))
    }

    /// The row of the method's list.
    ///
    /// # Panics
    /// If the scenario was not checked.
    pub fn entry(&self) -> &'static Entry {
        methods::find(&self.method.name).expect("a scenario's method is checked when it is read")
    }

    /// The resolved scenario as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a scenario is plain data with string keys")
    }

    fn check(&self, settings: &Settings) -> Result<(), Failure> {
        let name_is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &self.run.name;
        if name.is_empty() || name.starts_with('.') || !name.chars().all(name_is_plain) {
            return Err(
                settings.wrong(&["run", "name"], format!("is \"{name}\", which is no plain file name"))
            );
        }
        if self.run.num_server_rounds == 0 {
            return Err(settings.wrong(&["run", "num-server-rounds"], "is 0; at least one round is needed"));
        }
        let entry = methods::find(&self.method.name).ok_or_else(|| self.unknown_method(settings))?;
        settings.check_table(&["method"], &self.method.options, entry.check)?;
        if entry.trains && (self.model.is_none() || self.data.is_none() || self.peft.is_none()) {
            let missing = [("model", self.model.is_none()), ("data", self.data.is_none())];
            let table = missing.iter().find(|(_, missing)| *missing).map_or("peft", |(table, _)| table);
            return Err(settings.wrong(&[table], "is missing").help(format!(
                "{} trains a model: say which, on what and how, in [model], [data] and [peft]",
                entry.name
            )));
        }
        self.check_figures(settings)
    }

    fn check_figures(&self, settings: &Settings) -> Result<(), Failure> {
        let config = |error: sim::ConfigError| {
            let path: Vec<&str> = error.key.split('.').collect();
            settings.wrong(&path, &error.reason)
        };
        self.weather.check().map_err(config)?;
        self.faults.check().map_err(config)?;
        self.fleet.resolve(base::Seed(self.run.seed)).map_err(config)?;
        self.cohort.validate(self.fleet.devices).map_err(|error| settings.wrong(&["cohort"], error.0))?;
        self.train.check().map_err(|(key, reason)| settings.wrong(&["train", key], reason))?;
        match &self.model {
            Some(model) if model.max_seq_length == 0 => {
                Err(settings.wrong(&["model", "max_seq_length"], "is 0; no token would be left"))
            }
            _ => Ok(()),
        }
    }

    fn unknown_method(&self, settings: &Settings) -> Failure {
        let known: Vec<String> = METHODS.iter().map(|entry| entry.name.to_owned()).collect();
        let name = &self.method.name;
        let near = nearest(name, &known).map_or(String::new(), |near| format!("did you mean \"{near}\"? "));
        settings
            .wrong(&["method", "name"], format!("cannot be \"{name}\""))
            .help(format!("{near}The methods are {} (`undertone methods`)", known.join(", ")))
    }
}

/// The settings a user gave, one table a line, as a run shows them first.
pub fn short(given: &toml::Table) -> String {
    let line = |(name, value): (&String, &toml::Value)| match value {
        toml::Value::Table(table) => {
            let pair = |(key, value): (&String, &toml::Value)| format!("{key} = {value}");
            format!("[{name}] {}\n", table.iter().map(pair).collect::<Vec<_>>().join("  "))
        }
        other => format!("{name} = {other}\n"),
    };
    given.iter().map(line).collect()
}
