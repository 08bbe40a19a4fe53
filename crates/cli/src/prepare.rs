//! From a scenario to a federation ready for a driver: everything is read, loaded, dealt out and held
//! against the fleet before a run directory exists.

use crate::builtin::{self, Split};
use crate::errors::{Exit, Failure, context};
use crate::memory::PROCESS;
use crate::run_dir::{self, RunDir};
use crate::scenario::{BUILTIN, DataConfig, ModelConfig, Scenario, TaskKind};
use base::{Blob, Node, Seed, units};
use data::{Columns, Dataset, Encoded, Holdings, LabelKind, PartitionConfig, Tokenizer};
use federation::{Acceptance, Member, Plan};
use methods::{Assembly, Draws, Keep, OtherBackbone, Quote, Setup, Workload};
use model::{Lower, Model, PeftConfig, Task};
use report::{Clock, DeviceClass, Resident, RunInfo};
use sim::{Availability, SimConfig, WeatherConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// A run that could begin now.
pub struct Prepared {
    pub scenario: Scenario,
    /// The devices as the fleet has them; drivers are told what is left for jobs.
    members: Vec<Member>,
    pub assembly: Assembly,
    pub sim: SimConfig,
    /// Where the method trains a model.
    pub material: Option<Material>,
    /// What the server keeps between jobs, where the method says so.
    pub server_resident: Option<Resident>,
    /// Where the method keeps what it caches.
    pub keep: Keep,
    /// The decisions of the run that this one replays.
    replay: Option<Acceptance>,
}

/// What a training method works on.
pub struct Material {
    pub work: Workload,
    /// Class names; empty for a language model.
    pub labels: Vec<String>,
    pub holdings: Holdings,
}

/// A model as `[model]` and `[peft]` ask for it, with its tokenizer.
pub struct Loaded {
    pub model: Model,
    /// The trainable parameters at the start.
    pub initial: Vec<f32>,
    pub tokenizer: Tokenizer,
}

/// Whose training rows this process holds.
#[derive(Clone, Copy, Debug)]
pub enum Holder<'a> {
    /// Everybody's: they are read from `data.train` and dealt out.
    Simulator,
    /// Nobody's: each device has its own.
    Server,
    /// One device's own, with the class names of the run and the part of the model that it needs.
    Device { node: Node, rows: &'a str, labels: &'a [String], lower: Option<Lower> },
}

impl Holder<'_> {
    /// The part of the model that this process needs; all of it where none is named.
    fn lower(self) -> Option<Lower> {
        match self {
            Holder::Simulator | Holder::Server => None,
            Holder::Device { lower, .. } => lower,
        }
    }
}

/// Prepare a run of `scenario` on this many threads; with `replay`, one that accepts what an earlier
/// run accepted.
pub fn prepare(
    scenario: Scenario,
    threads: usize,
    replay: Option<Acceptance>,
) -> Result<Prepared, Failure> {
    prepare_for(Holder::Simulator, Draws::Run, scenario, threads, replay)
}

/// The same for a process that holds other rows, and knows of other draws.
pub fn prepare_for(
    holder: Holder,
    draws: Draws,
    scenario: Scenario,
    threads: usize,
    replay: Option<Acceptance>,
) -> Result<Prepared, Failure> {
    let seed = Seed(scenario.run.seed);
    let traffic = scenario.audit.record.then(Default::default);
    let keep = Keep { traffic, draws, ..Keep::default() };
    let Parts { setup, material, availability } =
        parts(holder, &scenario, threads, replay.clone(), keep.clone())?;
    let before = PROCESS.used();
    let mut assembly = (scenario.entry().assemble)(setup)
        .map_err(|error| Failure::new(Exit::Usage, format!("method {}: {error}", scenario.method.name)))?;
    let server_resident = assembly.server_quote.map(|quote| Resident {
        models: quote.models,
        model_bytes: quote.model_bytes,
        adapter_bytes: quote.adapter_bytes,
        measured_model_bytes: PROCESS.used().saturating_sub(before),
    });
    let server = &mut assembly.federation.server;
    let kept = server_resident.map_or(0, |kept| kept.total());
    server.memory_bytes = server.memory_bytes.saturating_sub(kept);
    let members = assembly.federation.devices.clone();
    for (member, quote) in assembly.federation.devices.iter_mut().zip(&assembly.quotes) {
        member.memory_bytes = member.memory_bytes.saturating_sub(quote.resident_bytes);
    }
    let sim = SimConfig {
        weather: weather(&scenario, replay.is_some()),
        faults: scenario.faults.clone(),
        availability,
        checkpoint_rounds: u32::from(assembly.federation.devices.len() <= CHECKPOINTED),
        ..SimConfig::new(seed, threads)
    };
    Ok(Prepared { scenario, members, assembly, sim, material, server_resident, keep, replay })
}

/// In a replay nobody lacks memory at another time than in the recorded run: who did is in the log.
fn weather(scenario: &Scenario, replays: bool) -> WeatherConfig {
    let weather = scenario.weather.clone();
    if replays { WeatherConfig { memory_swing: 1.0, ..weather } } else { weather }
}

/// What a scenario's federation is assembled from.
pub struct Parts {
    pub setup: Setup,
    material: Option<Material>,
    availability: Vec<Availability>,
}

/// Resolve a scenario.
pub fn parts(
    holder: Holder,
    scenario: &Scenario,
    threads: usize,
    replay: Option<Acceptance>,
    keep: Keep,
) -> Result<Parts, Failure> {
    let seed = Seed(scenario.run.seed);
    let fleet = scenario.fleet.resolve(seed).map_err(|error| Failure::new(Exit::Usage, error))?;
    let mut devices = fleet.devices;
    let trains = scenario.entry().trains;
    let material = trains.then(|| material(holder, scenario, &mut devices, threads)).transpose()?;
    let plan = Plan {
        rounds: scenario.run.num_server_rounds,
        cohort: scenario.cohort.clone(),
        devices_expected: devices.len() as u32,
        replay,
    };
    let options = scenario.method.options.clone();
    let work = material.as_ref().map(|material| material.work.clone());
    let setup = Setup { server: fleet.server, devices, plan, seed, options, work, keep };
    Ok(Parts { setup, material, availability: fleet.availability })
}

/// Fleets up to this size are checkpointed after every round, so that a kill costs a round at most.
const CHECKPOINTED: usize = 1000;

/// Read the rows, load the model, and deal the rows to the devices.
fn material(
    holder: Holder,
    scenario: &Scenario,
    devices: &mut [Member],
    threads: usize,
) -> Result<Material, Failure> {
    let seed = Seed(scenario.run.seed);
    let (Some(model_config), Some(data_config), Some(peft)) =
        (&scenario.model, &scenario.data, &scenario.peft)
    else {
        return Err(Failure::new(Exit::Usage, "[model], [data] or [peft] is missing"));
    };
    let kind = model_config.task.label_kind();
    let Rows { train, test, dealt } = rows(holder, (data_config, kind), devices.len(), seed)?;
    let mut backbones = Vec::new();
    for config in model_config.all() {
        let task = task(&config, &train.labels)?;
        let loaded = load(&config.path, &task, peft, seed, holder.lower())?;
        loaded.check_length(&config)?;
        backbones.push(loaded);
    }
    let encode = |number: usize, rows: &Dataset, which: &[u32]| {
        let (length, long) = (model_config.max_seq_length, data_config.long_rows);
        backbones[number]
            .tokenizer
            .encode_rows(rows, which, length, long)
            .map_err(|error| Failure::new(Exit::Data, error).at(rows.path.display()))
    };
    let (mut sequences, mut shards) = (Vec::new(), Vec::new());
    let mut nodes = vec![BTreeSet::new(); backbones.len()];
    for (member, rows) in devices.iter_mut().zip(&dealt) {
        let (first, number) = (sequences.len() as u32, model_config.number(&member.class));
        sequences.extend(encode(number, &train, rows)?);
        shards.push((first..sequences.len() as u32).collect());
        member.examples = u64::from(sequences.len() as u32 - first);
        nodes[number].insert(member.node);
    }
    let natural = matches!(data_config.partition, PartitionConfig::Natural { .. });
    let class_of = if natural { class_of_authors(&train, &dealt, devices) } else { BTreeMap::new() };
    let owned = owned(&test, &class_of);
    let mut owners = Vec::new();
    let mut tests: Vec<Vec<Encoded>> = vec![Vec::new(); backbones.len()];
    for (owner, rows) in owned {
        for (number, tests) in tests.iter_mut().enumerate() {
            tests.extend(encode(number, &test, &rows)?);
        }
        owners.resize(tests[0].len(), owner);
    }
    if owners.iter().all(Option::is_none) {
        owners.clear();
    }
    let mut all =
        backbones.into_iter().zip(tests).zip(nodes).map(|((loaded, test), nodes)| OtherBackbone {
            model: Arc::new(loaded.model),
            initial: Blob::from_f32(&loaded.initial),
            test: test.into(),
            nodes,
        });
    let OtherBackbone { model, initial, test, .. } = all.next().expect("[model] names one at least");
    let work = Workload {
        model,
        initial,
        train: sequences.into(),
        shards: shards.into(),
        test,
        owners: owners.into(),
        recipe: scenario.train.clone(),
        threads,
        others: all.collect(),
    };
    Ok(Material { work, holdings: Holdings::count(&train, &dealt), labels: train.labels })
}

/// What is read, and which of the training rows each device holds.
pub struct Rows {
    pub train: Dataset,
    pub test: Dataset,
    pub dealt: Vec<Vec<u32>>,
}

/// Read the rows that `holder` holds, and deal them to their devices.
pub fn rows(
    holder: Holder,
    (config, kind): (&DataConfig, LabelKind),
    devices: usize,
    seed: Seed,
) -> Result<Rows, Failure> {
    let none = |labels: &[String]| Dataset {
        examples: Vec::new(),
        labels: labels.to_vec(),
        path: config.train.clone().into(),
    };
    match holder {
        Holder::Simulator => {
            let train = read_rows(&config.train, &columns(config, kind), Split::Train)?;
            let columns = columns(config, kind).with_labels(&train.labels);
            let test = read_rows(&config.test, &columns, Split::Test)?;
            let dealt = data::partition(&train, &config.partition, devices, seed.child("partition", 0))
                .map_err(|error| Failure::new(Exit::Data, error))?;
            Ok(Rows { train, test, dealt })
        }
        Holder::Server => {
            let test = read_rows(&config.test, &columns(config, kind), Split::Test)?;
            Ok(Rows { train: none(&test.labels), test, dealt: vec![Vec::new(); devices] })
        }
        Holder::Device { node, rows, labels, .. } => {
            // The names of columns in the scenario are those of the server's file.
            let columns = Columns { label_kind: kind, ..Columns::default() }.with_labels(labels);
            let train = read_rows(rows, &columns, Split::Train)?;
            let mut dealt = vec![Vec::new(); devices];
            dealt[node.0 as usize - 1] = (0..train.len() as u32).collect();
            Ok(Rows { test: none(labels), train, dealt })
        }
    }
}

/// The class of the device that holds each author's training rows.
fn class_of_authors<'a>(
    train: &'a Dataset,
    dealt: &[Vec<u32>],
    devices: &'a [Member],
) -> BTreeMap<&'a str, &'a str> {
    let held = dealt.iter().zip(devices).flat_map(|(rows, member)| {
        rows.iter().map(|&row| (train.examples[row as usize].client.as_deref(), member.class.as_str()))
    });
    held.filter_map(|(author, class)| Some((author?, class))).collect()
}

/// The rows of `test` by the class their author belongs to.
fn owned(test: &Dataset, class_of: &BTreeMap<&str, &str>) -> BTreeMap<Option<String>, Vec<u32>> {
    let mut owned: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for (example, row) in test.examples.iter().zip(0..) {
        let class = example.client.as_deref().and_then(|author| class_of.get(author));
        owned.entry(class.map(|&class| class.to_owned())).or_default().push(row);
    }
    owned
}

/// Load a model with fresh adapters, or a part of one, and its tokenizer.
pub fn load(
    path: &str,
    task: &Task,
    peft: &PeftConfig,
    seed: Seed,
    lower: Option<Lower>,
) -> Result<Loaded, Failure> {
    let (source, tokenizer) = match path {
        BUILTIN => (builtin::model(), builtin::tokenizer()?),
        path if !Path::new(path).is_dir() => {
            return Err(Failure::new(Exit::Model, format!("model.path = \"{path}\" is no directory"))
                .help("name a Hugging Face directory (config.json, tokenizer.json, model.safetensors), or \"builtin\""));
        }
        path => {
            let tokenizer = Tokenizer::load(Path::new(path));
            let tokenizer = tokenizer.map_err(|error| Failure::new(Exit::Model, error))?;
            (model::Source::Directory(path.into()), tokenizer)
        }
    };
    let loaded = match lower {
        None => Model::load(&source, task, peft, seed),
        Some(lower) => Model::load_lower(&source, task, peft, seed, lower),
    };
    let (model, initial) = loaded.map_err(|error| {
        let exit = if matches!(error, model::LoadError::Peft(_)) { Exit::Usage } else { Exit::Model };
        Failure::new(exit, error)
    })?;
    Ok(Loaded { model, initial, tokenizer })
}

impl Loaded {
    fn check_length(&self, config: &ModelConfig) -> Result<(), Failure> {
        let (asked, most) = (config.max_seq_length, self.model.spec.max_positions);
        if asked <= most {
            return Ok(());
        }
        let what = format!("model.max_seq_length = {asked}, but {} has positions for {most}", config.path);
        Err(Failure::new(Exit::Usage, what))
    }
}

/// The task of `[model]` with these class names.
pub fn task(config: &ModelConfig, labels: &[String]) -> Result<Task, Failure> {
    match config.task {
        TaskKind::CausalLm => Ok(Task::CausalLm),
        TaskKind::Regression => Ok(Task::Regression { pooling: config.pooling }),
        TaskKind::Classification if labels.len() < 2 => {
            let found = if labels.is_empty() {
                "no label".to_owned()
            } else {
                format!("only the label {:?}", labels[0])
            };
            Err(Failure::new(
                Exit::Data,
                format!("the training rows carry {found}; classification needs two or more"),
            )
            .help("name the column with data.columns.label, or set model.task = \"causal-lm\""))
        }
        TaskKind::Classification => Ok(Task::Classification {
            classes: labels.len(),
            pooling: config.pooling,
            squash: config.squash,
        }),
    }
}

fn read_rows(path: &str, columns: &Columns, split: Split) -> Result<Dataset, Failure> {
    if path == BUILTIN {
        return Ok(builtin::rows(split));
    }
    data::read(Path::new(path), columns).map_err(|error| Failure::new(Exit::Data, error))
}

/// The columns to read, with the one that a natural partition goes by.
fn columns(config: &DataConfig, kind: LabelKind) -> Columns {
    let client = config.partition.column().map(str::to_owned).or_else(|| config.columns.client.clone());
    Columns { client, label_kind: kind, ..config.columns.clone() }
}

impl Prepared {
    /// Write what is known before the run begins.
    pub fn write(&self, run: &RunDir) -> Result<(), Failure> {
        let write = |name: &str, text: String| {
            std::fs::write(run.file(name), text)
                .map_err(context(Exit::Files, format!("cannot write {name}")))
        };
        write(run_dir::SCENARIO, self.scenario.to_toml())?;
        if let Some(material) = &self.material {
            write(run_dir::PARTITION, material.holdings.svg())?;
        }
        if let Some(replay) = &self.replay {
            let text = serde_json::to_string(replay).expect("an acceptance log is plain data");
            write(run_dir::ACCEPTANCE, text)?;
        }
        Ok(())
    }

    /// Write the trained parameters, if the method trains a model: as an adapter, or in its own files.
    pub fn save_trained(&self, run: &RunDir, trained: &Blob) -> Result<(), Failure> {
        let (Some(Material { work, labels, .. }), Some(config)) = (&self.material, &self.scenario.model)
        else {
            return Ok(());
        };
        if let Some(save) = &self.assembly.saver {
            return save(&run.file(""), trained, labels).map_err(|error| Failure::new(Exit::Files, error));
        }
        let theta = trained
            .to_f32(work.model.layout.total())
            .map_err(context(Exit::Failed, "the trained parameters cannot be read"))?;
        model::peft::save(&run.file(run_dir::ADAPTER), &work.model, &theta, &config.path, labels)
            .map_err(|error| Failure::new(Exit::Files, error))
    }

    /// The head of this run's reports.
    pub fn info(&self, run: String, clock: Clock) -> RunInfo {
        let Scenario { run: config, model, data, method, .. } = &self.scenario;
        let none = || "none".to_owned();
        let mut notes = Vec::new();
        if data.as_ref().is_some_and(|data| data.train == BUILTIN) {
            notes.push("the data is generated by this program".to_owned());
        }
        if clock == Clock::Virtual {
            notes.push(
                "the devices are simulated: times come from their profiles, computing and bytes are real"
                    .to_owned(),
            );
        }
        notes.extend(self.assembly.notes.iter().cloned());
        RunInfo {
            run,
            method: method.name.clone(),
            model: model.as_ref().map_or_else(none, names),
            dataset: data.as_ref().map_or_else(none, |data| dataset_name(&data.train)),
            seed: config.seed,
            rounds: config.num_server_rounds,
            devices: self.members.len() as u32,
            clock,
            fleet: self.classes(),
            notes,
        }
    }

    /// One row a device class, with the most that a device of it keeps between jobs.
    fn classes(&self) -> Vec<DeviceClass> {
        let mut classes = DeviceClass::table(&self.members);
        for (member, quote) in self.quoted() {
            if let Some(row) = classes.iter_mut().find(|row| row.class == member.class) {
                row.resident_bytes = row.resident_bytes.max(quote.resident_bytes);
            }
        }
        classes
    }

    /// Each device with what one round asks of it.
    pub fn quoted(&self) -> impl Iterator<Item = (&Member, &Quote)> {
        self.members.iter().zip(&self.assembly.quotes)
    }

    /// An error if no device could hold its work; otherwise how many could not.
    pub fn unfit(&self) -> Result<usize, Failure> {
        let all = self.assembly.quotes.len();
        let unfit = self.quoted().filter(|(member, quote)| !fits(member, quote)).count();
        if all == 0 || unfit < all {
            return Ok(unfit);
        }
        let smallest =
            self.quoted().min_by_key(|(member, quote)| need(quote).saturating_sub(member.memory_bytes));
        let (member, quote) = smallest.expect("there is a device");
        Err(Failure::new(
            Exit::Fit,
            format!(
                "no device can hold the work: {} needs {} and has {}",
                member.class,
                units::bytes(need(quote)),
                units::bytes(member.memory_bytes)
            ),
        )
        .help("`undertone plan` shows each class; try train.activations = \"recompute\", a smaller batch, a shorter max_seq_length or a smaller model"))
    }
}

/// The most bytes a device holds at once.
pub fn need(quote: &Quote) -> u64 {
    quote.resident_bytes + quote.cost.bytes
}

/// Whether a device's memory holds its work.
pub fn fits(member: &Member, quote: &Quote) -> bool {
    need(quote) <= member.memory_bytes
}

/// The models that devices have.
fn names(config: &ModelConfig) -> String {
    config.all().iter().map(|model| last_name(&model.path)).collect::<Vec<_>>().join(" and ")
}

fn last_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// `../data/emotion/train.jsonl.zst` is `emotion`.
fn dataset_name(train: &str) -> String {
    let folder = Path::new(train).parent().and_then(Path::file_name);
    folder.map_or_else(|| last_name(train), |name| name.to_string_lossy().into_owned())
}
