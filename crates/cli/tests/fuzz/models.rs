//! The files of models, adapters and side networks. Whole models are loaded with them.

use crate::form::{CHOICE, PACKET, SAFETENSORS, bundle, files, join_safetensors, split_safetensors};
use crate::nodes::golden;
use crate::target::{Decoder, Room, Said, Target, size, target};
use crate::wire::text;
use base::Seed;
use model::peft::Adapter;
use model::side::{self, AddedTo, Form, Reads, SideCard, SideConfig, SideNetwork, Width};
use model::{Model, PeftConfig, PeftKind, Pooling, Shape, Source, Spec, Task};
use std::borrow::Cow;
use std::path::Path;

/// The tiny models take a few hundred kilobytes, most of it packed for the kernels.
const ROOM: Room = Room { bytes: 4 << 20, factor: 64 };

/// Beside it, a table of angles for a million positions, which is the most that a configuration may say.
const CONFIG_ROOM: Room = Room { bytes: 64 << 20, factor: 64 };

pub fn targets() -> Vec<Target> {
    vec![
        target("config of a model", config),
        target("safetensors", safetensors),
        target("shards", shards),
        target("adapter", adapter),
        target("side network", side_network),
    ]
}

pub const TASK: Task = Task::Classification { classes: 3, pooling: Pooling::Mean, squash: None };

fn load(config: &str, weights: Vec<u8>, peft: &PeftConfig) -> Said {
    let (config, weights) = (Cow::Owned(config.to_owned()), Cow::Owned(weights));
    let loaded = Model::load(&Source::Memory { config, weights }, &TASK, peft, Seed(7));
    loaded.map(|(_, theta)| size(theta.len())).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a golden file")
}

/// A configuration beside the weights of its family.
fn config() -> Decoder {
    let families = ["bert", "distilbert", "llama", "roberta"];
    let weights = families.map(|family| read(&golden(family).join("model.safetensors")));
    let config =
        |(index, family): (u8, &str)| [vec![index], read(&golden(family).join("config.json"))].concat();
    let decode = move |bytes: &[u8]| -> Said {
        let (family, config) = bytes.split_first().ok_or("nothing")?;
        let weights = weights[*family as usize % weights.len()].clone();
        let config = text(config);
        load(&config, weights.clone(), &PeftConfig::new(PeftKind::Full))?;
        load(&config, weights, &PeftConfig::new(PeftKind::Lora))
    };
    let seeds = (0..).zip(families).map(config).collect();
    Decoder { seeds, form: CHOICE, room: CONFIG_ROOM, decode: Box::new(decode) }
}

const CONFIG: &str = r#"{"model_type":"bert","hidden_size":4,"num_attention_heads":2,"num_hidden_layers":1,
"intermediate_size":6,"vocab_size":8,"max_position_embeddings":8,"hidden_act":"gelu"}"#;

/// Weights for [`CONFIG`].
fn weights() -> Vec<u8> {
    let spec = Spec::from_config(CONFIG).expect("a sound configuration");
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    for module in spec.modules(&TASK, 0..1) {
        let (shape, bias) = match module.shape {
            Shape::Linear { out, width_in, bias } => (vec![out, width_in], bias.then_some(out)),
            Shape::Norm { width, bias } => (vec![width], bias.then_some(width)),
            Shape::Table { rows, width } => (vec![rows, width], None),
        };
        tensors.push((format!("{}.weight", module.name), shape));
        tensors.extend(bias.map(|out| (format!("{}.bias", module.name), vec![out])));
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    header.insert("__metadata__".to_owned(), serde_json::json!({ "format": "pt" }));
    for (name, shape) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header).expect("a value is JSON");
    join_safetensors(vec![header, vec![0; end]])
}

fn lora() -> PeftConfig {
    PeftConfig::lora(2, 4.0, &["query"])
}

fn safetensors() -> Decoder {
    let decode = |bytes: &[u8]| -> Said { load(CONFIG, bytes.to_vec(), &lora()) };
    Decoder { seeds: vec![weights()], form: SAFETENSORS, room: ROOM, decode: Box::new(decode) }
}

/// A folder for the files of one decode; it is kept as long as the process.
fn folder() -> std::path::PathBuf {
    std::env::current_dir().expect("a scratch folder")
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the scratch folder can be written");
}

/// An index, and the one shard it names.
fn shards() -> Decoder {
    let (dir, weights) = (folder(), weights());
    let parts = split_safetensors(&weights).expect("sound weights");
    let header: serde_json::Map<_, _> = serde_json::from_slice(&parts[0]).expect("a sound header");
    let names = header.keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<_, _> = names.map(|name| (name.clone(), "a.safetensors".into())).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    let decode = move |bytes: &[u8]| -> Said {
        let files = files(bytes).ok_or("no bundle of files")?;
        write(&dir.join("config.json"), CONFIG.as_bytes());
        write(&dir.join("model.safetensors.index.json"), &files[0]);
        write(&dir.join("a.safetensors"), files.get(1).map_or(&[][..], Vec::as_slice));
        let loaded = Model::load(&Source::Directory(dir.clone()), &TASK, &lora(), Seed(7));
        loaded.map(|(_, theta)| size(theta.len())).map_err(|error| error.to_string())
    };
    let seeds = vec![bundle(&[index.as_bytes(), &weights])];
    Decoder { seeds, form: PACKET, room: ROOM, decode: Box::new(decode) }
}

const ADAPTER: [&str; 2] = ["adapter_config.json", "head_config.json"];
const TENSORS: [&str; 2] = ["adapter_model.safetensors", "head.safetensors"];

/// An adapter's four files, those of tensors as header and data, on the model they are made for.
fn adapter() -> Decoder {
    let seed = |name: &str| {
        let dir = golden("bert").join(name);
        let mut parts: Vec<Vec<u8>> = ADAPTER.iter().map(|file| read(&dir.join(file))).collect();
        for file in TENSORS {
            parts.extend(split_safetensors(&read(&dir.join(file))).expect("sound tensors"));
        }
        bundle(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let (dir, base) = (folder(), Source::Directory(golden("bert")));
    let decode = move |bytes: &[u8]| -> Said {
        let parts = files(bytes).filter(|parts| parts.len() == 6).ok_or("no bundle of files")?;
        ADAPTER.iter().zip(&parts).for_each(|(file, part)| write(&dir.join(file), part));
        for (file, parts) in TENSORS.iter().zip(parts[2..].chunks(2)) {
            write(&dir.join(file), &join_safetensors(parts.to_vec()));
        }
        let said = |error: model::LoadError| error.to_string();
        let adapter = Adapter::open(&dir).map_err(said)?;
        let (model, _) = Model::load(&base, &adapter.task(), &adapter.peft, Seed(7)).map_err(said)?;
        adapter.theta(&model).map(|theta| size(theta.len())).map_err(said)
    };
    let seeds = vec![seed("cls-dense"), seed("mean-qv")];
    Decoder { seeds, form: PACKET, room: ROOM, decode: Box::new(decode) }
}

/// How a side network is built, and its tensors as header and data.
fn side_network() -> Decoder {
    let dir = folder();
    let seed = |form| {
        let backbones = vec![Width::Own, Width::Projected(6)];
        let network = SideConfig { form, taps: 2, width: 4, outputs: 3, backbones };
        let theta = SideNetwork::new(network.clone()).expect("a sound network").initial(Seed(3));
        let (reads, added_to) = (Reads::Pivot, AddedTo::Probabilities);
        let labels = ["a", "b", "c"].map(str::to_owned).to_vec();
        let card = SideCard { network, layers: vec![vec![0, 1]; 2], reads, added_to, labels };
        side::save(&dir, &card, &theta).expect("the scratch folder can be written");
        let tensors = split_safetensors(&read(&dir.join(side::WEIGHTS_FILE))).expect("sound tensors");
        bundle(&[&read(&dir.join(side::CONFIG_FILE)), &tensors[0], &tensors[1]])
    };
    let seeds = vec![seed(Form::Cascade { r: 2 }), seed(Form::Mlp { hidden: 5 })];
    let decode = move |bytes: &[u8]| -> Said {
        let parts = files(bytes).filter(|parts| parts.len() == 3).ok_or("no bundle of files")?;
        write(&dir.join(side::CONFIG_FILE), &parts[0]);
        write(&dir.join(side::WEIGHTS_FILE), &join_safetensors(parts[1..].to_vec()));
        side::load(&dir).map(|(_, _, theta)| size(theta.len())).map_err(|error| error.to_string())
    };
    Decoder { seeds, form: PACKET, room: ROOM, decode: Box::new(decode) }
}
