//! A tiny model of as many blocks as a test wants, and runs of the split methods on it.

use crate::unequal::unequal;
use base::{Node, SERVER, Seed};
use data::{Encoded, Target};
use federation::{Acceptance, CohortConfig, Fact, Member, Plan, Record, Status};
use model::{Model, PeftConfig, Pooling, Source, Task};
use serde_json::{Map, Value, json};
use sim::{FaultsConfig, Output, SimConfig, WeatherConfig};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use undertone_methods::{Assembly, Keep, Setup, SetupError, Workload, find};

pub fn member(node: Node, memory_bytes: u64) -> Member {
    Member {
        node,
        class: if node.0 == 1 { "small".into() } else { "phone".into() },
        flops_per_s: 1e8 * f64::from(node.0 + 1),
        memory_bytes,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 4e6,
        examples: 9 * u64::from(node.0),
    }
}

/// The golden model of a family with `layers` blocks: its first two, over and over, each a little off.
pub fn deep(family: &str, layers: usize) -> Source {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(family);
    let text = std::fs::read_to_string(directory.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["num_hidden_layers"] = json!(layers);
    let file = std::fs::read(directory.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let (mut again, mut data) = (Map::new(), Vec::new());
    let mut draw = Seed(4).stream();
    for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
        let values = &file[8 + length + offsets[0]..8 + length + offsets[1]];
        let first = name.split('.').position(|part| part == "0" || part == "1");
        let blocks: Vec<String> = match first {
            None => vec![name.clone()],
            Some(place) => {
                let parts: Vec<&str> = name.split('.').collect();
                let own: usize = parts[place].parse().unwrap();
                let named = |layer: usize| {
                    let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
                    parts[place] = layer.to_string();
                    parts.join(".")
                };
                (own..layers).step_by(2).map(named).collect()
            }
        };
        for block in blocks {
            let begin = data.len();
            for four in values.chunks_exact(4) {
                let value = f32::from_le_bytes(four.try_into().unwrap());
                data.extend((value + 0.02 * draw.normal() as f32).to_le_bytes());
            }
            let shape = &entry["shape"];
            again.insert(
                block,
                json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}),
            );
        }
    }
    let header = serde_json::to_vec(&again).unwrap();
    let weights = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    Source::Memory { config: config.to_string().into(), weights: weights.into() }
}

/// What is learned, on rows of random tokens.
#[derive(Clone, Copy)]
pub enum Learn {
    Classes,
    NextTokens,
}

/// Devices with 9 rows, 18 rows, ... of a tiny model of `layers` blocks.
pub fn workload(family: &str, layers: usize, learn: Learn, peft: &PeftConfig, devices: u32) -> Workload {
    let task = match learn {
        Learn::Classes => Task::Classification { classes: 3, pooling: Pooling::Mean, squash: Some(3.0) },
        Learn::NextTokens => Task::CausalLm,
    };
    let loaded = Model::load(&deep(family, layers), &task, peft, Seed(1)).unwrap();
    let mut draw = Seed(2).stream();
    unequal(loaded, devices, 9, 6, || {
        let ids = (0..3 + draw.below(9)).map(|_| draw.below(60) as u32).collect();
        let target = match learn {
            Learn::Classes => Target::Class(draw.below(3) as u32),
            Learn::NextTokens => Target::Completion { from: 0 },
        };
        Encoded::whole(ids, target)
    })
}

/// Two rounds of a small classifier.
pub fn classifier(devices: u32) -> Workload {
    workload("bert", 2, Learn::Classes, &PeftConfig::lora(4, 4.0, &["query", "value"]), devices)
}

pub struct Run {
    pub theta: Vec<f32>,
    pub records: Vec<Record>,
}

/// What a run meets.
pub struct Conditions {
    pub rounds: u32,
    pub server_flops_per_s: f64,
    pub memory_bytes: u64,
    pub cohort: CohortConfig,
    pub weather: WeatherConfig,
    pub faults: FaultsConfig,
    pub replay: Option<Acceptance>,
}

impl Default for Conditions {
    fn default() -> Conditions {
        Conditions {
            rounds: 2,
            server_flops_per_s: 1e8,
            memory_bytes: 1 << 30,
            cohort: CohortConfig::default(),
            weather: WeatherConfig::default(),
            faults: FaultsConfig::default(),
            replay: None,
        }
    }
}

pub fn assemble(
    method: &str,
    options: &str,
    work: &Workload,
    conditions: &Conditions,
) -> Result<Assembly, SetupError> {
    let Conditions { rounds, server_flops_per_s, memory_bytes, cohort, replay, .. } = conditions;
    let devices = work.shards.len() as u32;
    let (cohort, replay) = (cohort.clone(), replay.clone());
    let setup = Setup {
        server: Member { flops_per_s: *server_flops_per_s, ..member(SERVER, 1 << 32) },
        devices: (1..=devices).map(|i| member(Node(i), *memory_bytes)).collect(),
        plan: Plan { rounds: *rounds, cohort, devices_expected: devices, replay },
        seed: Seed(11),
        options: options.parse().unwrap(),
        work: Some(work.clone()),
        keep: Keep::default(),
    };
    (find(method).unwrap().assemble)(setup)
}

pub fn run(method: &str, options: &str, work: &Workload, memory_bytes: u64) -> Result<Run, SetupError> {
    run_under(method, options, work, &Conditions { memory_bytes, ..Conditions::default() })
}

pub fn run_under(
    method: &str,
    options: &str,
    work: &Workload,
    conditions: &Conditions,
) -> Result<Run, SetupError> {
    let assembly = assemble(method, options, work, conditions)?;
    let mut records = Vec::new();
    let mut sink = |output: Output| {
        if let Output::Record(record) = output {
            records.push(record.clone());
        }
    };
    let Conditions { weather, faults, .. } = conditions;
    let fair = SimConfig::new(Seed(3), 1);
    let config = SimConfig { weather: weather.clone(), faults: faults.clone(), ..fair };
    let ended = sim::run(&assembly.federation, &config, &mut sink, &AtomicBool::new(false), None).unwrap();
    assert_eq!(ended.status, Status::Completed, "{method} {options}");
    let trained = (assembly.trained)(&ended.server).unwrap();
    Ok(Run { theta: trained.to_f32(work.model.layout.total()).unwrap(), records })
}

pub fn weights(method: &str, options: &str, work: &Workload) -> Vec<f32> {
    run(method, options, work, 1 << 30).unwrap().theta
}

impl Run {
    /// Bytes of all messages from a device, or to one.
    pub fn sent(&self, from_device: bool) -> u64 {
        let sent = self.records.iter().filter(|record| (record.node != SERVER) == from_device);
        sent.map(|record| if let Fact::Sent { bytes, .. } = record.fact { bytes } else { 0 }).sum()
    }

    /// A figure of the last round.
    pub fn figure(&self, name: &str) -> Option<f64> {
        let of = |record: &Record| match &record.fact {
            Fact::RoundClosed { summary, .. } => summary.figures.get(name).copied(),
            _ => None,
        };
        self.records.iter().filter_map(of).next_back()
    }
}

/// The trace's hash of a run that is interrupted after so many records, and resumed by another program.
/// `kill` is the chance of each input of a device to kill its process.
pub fn interrupted(options: &str, work: &Workload, kill: f64, after: usize) -> String {
    let interrupt = AtomicBool::new(false);
    let mut seen = 0;
    let mut sink = |output: Output| {
        seen += usize::from(matches!(output, Output::Record(_)));
        interrupt.store(seen >= after, Ordering::Relaxed);
    };
    let faults = FaultsConfig { kill, down_seconds: 0.05, ..FaultsConfig::default() };
    let config = SimConfig { faults, ..SimConfig::new(Seed(3), 1) };
    let assembly = assemble("split-lora", options, work, &Conditions::default()).unwrap();
    let ended = sim::run(&assembly.federation, &config, &mut sink, &interrupt, None).unwrap();
    let Some(checkpoint) = ended.checkpoint else { return ended.trace_hash };
    let assembly = assemble("split-lora", options, work, &Conditions::default()).unwrap();
    let never = AtomicBool::new(false);
    sim::run(&assembly.federation, &config, &mut |_| (), &never, Some(checkpoint)).unwrap().trace_hash
}

/// The cosine of the angle between two moves.
pub fn alignment(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The distance over the length.
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let off = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (off / square(&mut expected.iter().map(|x| f64::from(*x)))).sqrt()
}
