//! What one server keeps for six unequal devices: one model with `split-lora`, six with `sfl`, as the
//! allocator counts them. One test in a program of its own, because the allocator sees every thread.

use base::{Blob, SERVER, Seed, units};
use data::{Encoded, Target};
use federation::{CohortConfig, Fact, Plan, Status};
use methods::{Keep, Setup, TrainConfig, Workload, find};
use model::{Model, PeftConfig, Pooling, Shape, Source, Spec, Task};
use serde_json::{Map, json};
use sim::{FleetConfig, Output, SimConfig};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use undertone_cli::memory::PROCESS;

/// The six devices of arXiv 2506.02940's setting.
const DEVICES: [&str; 6] =
    ["jetson-nano", "jetson-tx2", "snapdragon-8s-gen-3", "snapdragon-8-gen-3", "a17-pro", "m3"];
const SEQUENCE: u32 = 16;

/// A shape, and how many blocks each device has: the server has 0.8 of them on average.
const SHAPES: [(&str, usize, usize, [usize; 6]); 2] =
    [("MiniLM", 6, 384, [1, 1, 1, 1, 1, 2]), ("BERT-base", 12, 768, [2, 2, 2, 2, 3, 3])];

/// What a server keeps, and the most that its jobs hold on top.
struct Held {
    models: u64,
    adapters: u64,
    peak: u64,
}

#[test]
fn one_server_model_for_all_devices_is_a_fifth_of_one_for_each() {
    for (name, layers, width, cuts) in SHAPES {
        let work = workload(layers, width);
        let share = cuts.iter().map(|cut| 1.0 - *cut as f64 / layers as f64).sum::<f64>() / 6.0;
        let (one, each) = (serve("split-lora", &work, &cuts), serve("sfl", &work, &cuts));
        let (ours, theirs) = (one.models + one.adapters, each.models + each.adapters);
        println!("{name}, the server's share of the blocks {share:.3}:");
        for (method, held) in [("split-lora", &one), ("sfl", &each)] {
            println!(
                "  {method:<10}  models {:>9}  adapters {:>8}  peak of a job {:>8}",
                units::bytes(held.models),
                units::bytes(held.adapters),
                units::bytes(held.peak)
            );
        }
        println!("  less resident by {:.1} %", 100.0 * (1.0 - ours as f64 / theirs as f64));
        assert!((share - 0.8).abs() < 0.01);
        assert!((ours as f64) < 0.21 * theirs as f64, "{name}: {ours} against {theirs}");
        let lowest = *cuts.iter().min().unwrap();
        let upper = work.model.upper_copy(lowest).unwrap().bytes();
        let six: usize =
            cuts.iter().map(|cut| work.model.layout.total() - work.model.layout.cut(*cut)).sum();
        let expected = upper + 4 * six as u64;
        assert!(ours as f64 <= 1.1 * expected as f64, "{name}: {ours} for {expected}");
        assert!(one.peak < each.peak, "jobs beside each other hold more");
    }
}

fn serve(method: &str, work: &Workload, cuts: &[usize; 6]) -> Held {
    let profiles = DEVICES.iter().map(|name| ((*name).to_owned(), 1.0)).collect();
    let fleet = FleetConfig { devices: 6, profiles, ..FleetConfig::default() }.resolve(Seed(7)).unwrap();
    let by_class: toml::Table =
        DEVICES.iter().zip(cuts).map(|(name, cut)| ((*name).to_owned(), (*cut as i64).into())).collect();
    let setup = Setup {
        server: fleet.server,
        devices: fleet.devices,
        plan: Plan { rounds: 1, cohort: CohortConfig::default(), devices_expected: 6, replay: None },
        seed: Seed(7),
        options: [("cuts".to_owned(), by_class.into())].into_iter().collect(),
        work: Some(work.clone()),
        keep: Keep::default(),
    };
    let before = PROCESS.used();
    let assembly = (find(method).unwrap().assemble)(setup).unwrap();
    let models = PROCESS.used() - before;
    let quote = assembly.server_quote.unwrap();
    let stated = quote.model_bytes;
    assert!(
        models.abs_diff(stated) < stated / 100 + (1 << 20),
        "{method}: {models} taken, {stated} stated"
    );
    let mut peak = 0;
    let mut sink = |output: Output| {
        if let Output::Record(record) = output
            && let Fact::Ran { label, peak_bytes, .. } = &record.fact
            && record.node == SERVER
            && label == "serve"
        {
            peak = peak.max(*peak_bytes);
        }
    };
    let never = AtomicBool::new(false);
    let ended =
        sim::run(&assembly.federation, &SimConfig::new(Seed(7), 1), &mut sink, &never, None).unwrap();
    assert_eq!(ended.status, Status::Completed);
    Held { models, adapters: quote.adapter_bytes, peak }
}

/// Two short rows a device, and nothing to evaluate but one.
fn workload(layers: usize, width: usize) -> Workload {
    let task = Task::Classification { classes: 6, pooling: Pooling::Mean, squash: None };
    let peft = PeftConfig::lora(8, 16.0, &["query", "value"]);
    let (model, theta) = Model::load(&source(layers, width, &task), &task, &peft, Seed(1)).unwrap();
    let rows = |count: u32| -> Arc<[Encoded]> {
        let row =
            |i: u32| Encoded::whole((0..SEQUENCE).map(|k| (i + k) % 100).collect(), Target::Class(i % 6));
        (0..count).map(row).collect()
    };
    Workload {
        model: Arc::new(model),
        initial: Blob::from_f32(&theta),
        train: rows(12),
        shards: (0..6).map(|i| vec![2 * i, 2 * i + 1]).collect::<Vec<_>>().into(),
        test: rows(1),
        owners: Arc::default(),
        recipe: TrainConfig {
            per_device_train_batch_size: 2.try_into().unwrap(),
            ..TrainConfig::default()
        },
        threads: 1,
        others: Arc::default(),
    }
}

/// A BERT of random weights, with few words: no server holds the embeddings.
fn source(layers: usize, width: usize, task: &Task) -> Source {
    let config = json!({
        "model_type": "bert", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 12,
        "intermediate_size": 4 * width, "vocab_size": 100, "max_position_embeddings": 64, "type_vocab_size": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "architectures": ["BertModel"],
    })
    .to_string();
    let spec = Spec::from_config(&config).unwrap();
    let (mut header, mut data) = (Map::new(), Vec::new());
    let mut draw = Seed(1).stream();
    for module in spec.modules(task, 0..layers) {
        let parameters = match module.shape {
            Shape::Linear { out, width_in, .. } => [("weight", vec![out, width_in]), ("bias", vec![out])],
            Shape::Norm { width, .. } => [("weight", vec![width]), ("bias", vec![width])],
            Shape::Table { rows, width } => [("weight", vec![rows, width]), ("", vec![])],
        };
        for (parameter, shape) in parameters.into_iter().filter(|(parameter, _)| !parameter.is_empty()) {
            let begin = data.len();
            for _ in 0..shape.iter().product::<usize>() {
                data.extend((0.04 * (draw.unit() as f32 - 0.5)).to_le_bytes());
            }
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
            header.insert(format!("{}.{parameter}", module.name), entry);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let weights = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    Source::Memory { config: config.into(), weights: weights.into() }
}
