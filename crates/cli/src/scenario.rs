//! The scenario: one TOML file that says everything about a run.
//!
//! Each table's settings live beside what they configure; this file composes them.

use crate::errors::Failure;
use crate::settings::{Settings, nearest};
use data::{Columns, LabelKind, LongRows, PartitionConfig};
use federation::{CohortConfig, Member};
use methods::{Entry, METHODS, TrainConfig};
use model::{PeftConfig, Pooling};
use serde::{Deserialize, Serialize};
use sim::{FaultsConfig, FleetConfig, WeatherConfig};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Devices of these classes have another model. For side-tuning.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_class: BTreeMap<String, OtherModel>,
}

/// A value of `model.by_class`; what it does not say is as for the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherModel {
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
}

impl ModelConfig {
    /// Every model that devices have, each once, that of most devices first.
    pub fn all(&self) -> Vec<ModelConfig> {
        let mut all = vec![ModelConfig { by_class: BTreeMap::new(), ..self.clone() }];
        for class in self.by_class.keys() {
            let model = self.of_class(class);
            if !all.contains(&model) {
                all.push(model);
            }
        }
        all
    }

    /// The model of a class of devices.
    pub fn of_class(&self, class: &str) -> ModelConfig {
        let plain = ModelConfig { by_class: BTreeMap::new(), ..self.clone() };
        match self.by_class.get(class) {
            None => plain,
            Some(other) => ModelConfig {
                path: other.path.clone(),
                pooling: other.pooling.unwrap_or(self.pooling),
                ..plain
            },
        }
    }

    /// The number of a class's model among [`ModelConfig::all`].
    pub fn number(&self, class: &str) -> usize {
        let model = self.of_class(class);
        self.all().iter().position(|other| *other == model).unwrap_or(0)
    }
}

/// What is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    #[default]
    Classification,
    /// A number a row.
    Regression,
    CausalLm,
}

impl TaskKind {
    /// What the label column holds.
    pub fn label_kind(self) -> LabelKind {
        match self {
            TaskKind::Regression => LabelKind::Numbers,
            TaskKind::Classification | TaskKind::CausalLm => LabelKind::Classes,
        }
    }
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
        let fleet = self.fleet.resolve(base::Seed(self.run.seed)).map_err(config)?;
        self.cohort.validate(self.fleet.devices).map_err(|error| settings.wrong(&["cohort"], error.0))?;
        self.train.check().map_err(|(key, reason)| settings.wrong(&["train", key], reason))?;
        let Some(model) = &self.model else { return Ok(()) };
        if model.max_seq_length == 0 {
            return Err(settings.wrong(&["model", "max_seq_length"], "is 0; no token would be left"));
        }
        check_by_class(model, &fleet.devices, settings)
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

/// Every class that is named has devices, and some device has the model that is no class's own.
fn check_by_class(model: &ModelConfig, devices: &[Member], settings: &Settings) -> Result<(), Failure> {
    let classes: BTreeSet<&str> = devices.iter().map(|member| member.class.as_str()).collect();
    let known = || classes.iter().copied().collect::<Vec<_>>().join(", ");
    if let Some(name) = model.by_class.keys().find(|name| !classes.contains(name.as_str())) {
        let what = format!("names no class that a device has; they have {}", known());
        return Err(settings.wrong(&["model", "by_class", name], what));
    }
    if !classes.is_empty() && classes.iter().all(|class| model.by_class.contains_key(*class)) {
        let what = format!("gives every class ({}) a model and leaves none with model.path", known());
        return Err(settings.wrong(&["model", "by_class"], what));
    }
    Ok(())
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
