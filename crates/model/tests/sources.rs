//! Reading weights: formats, shards, and files that are damaged or from another model.

mod support;

use base::Seed;
use proptest::prelude::*;
use std::borrow::Cow;
use std::path::Path;
use support::{full, load, mean_head, repository};
use undertone_model::{LoadError, Model, PeftConfig, PeftKind, Source, Task};

fn golden(family: &str) -> std::path::PathBuf {
    repository("golden").join(family)
}

fn in_memory(config: String, weights: Vec<u8>) -> Source {
    Source::Memory { config: Cow::Owned(config), weights: Cow::Owned(weights) }
}

fn bert() -> (String, Vec<u8>) {
    let dir = golden("bert");
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    (config, std::fs::read(dir.join("model.safetensors")).unwrap())
}

fn load_bert(config: String, weights: Vec<u8>) -> Result<(Model, Vec<f32>), LoadError> {
    Model::load(&in_memory(config, weights), &mean_head(3), &full(), Seed(7))
}

/// The header of a safetensors file, changed, and the tensors as they were.
fn with_header(
    weights: &[u8],
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Vec<u8> {
    let size = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&weights[8..8 + size]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &weights[8 + size..]].concat()
}

fn refused(result: Result<(Model, Vec<f32>), LoadError>, part: &str) {
    let error = result.map(|_| "loaded").unwrap_err().to_string();
    assert!(error.contains(part), "\"{error}\" does not say \"{part}\"");
}

#[test]
fn a_directory_and_its_bytes_are_the_same_model() {
    let (config, weights) = bert();
    let (from_memory, theta) = load_bert(config, weights).unwrap();
    let (from_directory, same) = load(&golden("bert"), &mean_head(3), &full());
    assert_eq!(from_memory.hash(), from_directory.hash());
    assert!(theta == same);
}

#[test]
fn shards_hold_what_a_single_file_would() {
    // golden/qwen2 is stored in two shards of bf16.
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden("qwen2")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let load =
        |dir: &Path| Model::load(&Source::Directory(dir.to_owned()), &Task::CausalLm, &full(), Seed(7));
    assert!(load(dir.path()).is_ok());
    let index = dir.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("model.norm.weight", "model.other.weight")).unwrap();
    refused(load(dir.path()), "in none of its shards");
    std::fs::write(&index, text.replace("model-00001", "../model-00001")).unwrap();
    refused(load(dir.path()), "no plain file name");
    std::fs::remove_file(&index).unwrap();
    refused(load(dir.path()), "save_pretrained");
}

#[test]
fn names_of_task_models_and_of_old_are_found() {
    let (config, weights) = bert();
    let renamed = with_header(&weights, |header| {
        let old = std::mem::take(header);
        for (name, entry) in old {
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            header.insert(if name == "__metadata__" { name } else { format!("bert.{name}") }, entry);
        }
    });
    let (_, expected) = load_bert(config.clone(), weights).unwrap();
    assert!(load_bert(config, renamed).unwrap().1 == expected);
}

#[test]
fn damage_is_named() {
    let (config, weights) = bert();
    let tensor = "encoder.layer.1.output.dense.weight";
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let changed = with_header(&weights, |header| change(&mut header[tensor]));
        load_bert(config.clone(), changed)
    };
    refused(change(&|entry| entry["shape"] = serde_json::json!([1, 2])), "does not fill");
    refused(
        change(&|entry| entry["data_offsets"] = serde_json::json!([0, 1u64 << 60])),
        "claims the bytes",
    );
    refused(change(&|entry| entry["data_offsets"] = serde_json::json!([8, 0])), "claims the bytes");
    refused(change(&|entry| entry["shape"] = serde_json::json!([u64::MAX, u64::MAX])), "does not fill");
    refused(change(&|entry| entry["dtype"] = "I64".into()), "only F32, F16 and BF16");
    refused(change(&|entry| entry["shape"] = serde_json::json!([38, 24])), "shape");
    let missing = with_header(&weights, |header| {
        let entry = header.remove(tensor).unwrap();
        header.insert("another".to_owned(), entry);
    });
    refused(load_bert(config.clone(), missing), tensor);
    refused(load_bert(config.clone(), weights[..weights.len() - 1].to_vec()), "claims the bytes");
    refused(load_bert(config.clone(), vec![255; 100]), "header claims");
    refused(load_bert(config.clone(), Vec::new()), "no safetensors");
    let mut wild = weights.clone();
    let end = wild.len();
    wild[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let result = load_bert(config, wild);
    // The last tensor of the file may be the pooler, which is not read.
    assert!(result.is_ok() || result.unwrap_err().to_string().contains("not finite"));
}

/// A safetensors file of this header and so many bytes of tensors.
fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn malformed_safetensors_are_refused_each_by_its_fault() {
    let tensor = |name: &str, dtype: &str, shape: &str, begin: i64, end: i64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let only = |dtype: &str, shape: &str, begin, end, data| {
        file(&format!("{{{}}}", tensor("a", dtype, shape, begin, end)), data)
    };
    let first = tensor("a", "F32", "[2]", 0, 8);
    let with =
        |begin, end, data| file(&format!("{{{first},{}}}", tensor("b", "F32", "[2]", begin, end)), data);
    let header = |len: u64| [&len.to_le_bytes()[..], b"{}"].concat();
    let cases = [
        ("a header longer than the file", header(100), "header claims"),
        ("a header of 2^63 bytes", header(1 << 63), "header claims"),
        ("no header", header(0), "no list of tensors"),
        ("no object", file("[]", 0), "no list of tensors"),
        ("negative offsets", only("F32", "[2]", -8, 0, 8), "-8"),
        ("offsets in the wrong order", only("F32", "[2]", 8, 0, 8), "claims the bytes"),
        ("offsets beyond the file", with(8, 16, 15), "claims the bytes"),
        ("overlapping offsets", with(4, 12, 12), "overlaps"),
        ("the same bytes twice", with(0, 8, 8), "overlaps"),
        ("holed offsets", with(12, 20, 20), "leaves a hole"),
        ("a hole at the start", only("F32", "[2]", 4, 12, 12), "leaves a hole"),
        ("trailing bytes", with(8, 16, 17), "1 bytes follow"),
        ("a name twice", file(&format!("{{{first},{first}}}"), 8), "twice"),
        ("a shape that overflows", only("F16", "[9223372036854775807,2]", 0, 8, 8), "does not fill"),
        ("a size that overflows", only("F32", "[4611686018427387906]", 0, 8, 8), "does not fill"),
        ("a negative shape", only("F32", "[-2]", 0, 8, 8), "-2"),
        ("text for a shape", only("F32", "\"2\"", 0, 8, 8), "tensor \"a\""),
    ];
    let (config, _) = bert();
    for (case, bytes, part) in cases {
        let error = load_bert(config.clone(), bytes).map(drop).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, LoadError::Corrupt { .. }) && text.contains(part), "{case}: {text}");
    }
}

#[test]
fn a_configuration_takes_no_memory_that_its_weights_do_not_bear_out() {
    let (config, weights) = bert();
    let with = |from: &str, to: &str| load_bert(config.replace(from, to), weights.clone());
    refused(with("\"hidden_size\": 24", "\"hidden_size\": 12582912"), "shape");
    refused(with("\"vocab_size\": 67", "\"vocab_size\": 16777216"), "shape");
    refused(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 16777216"), "blocks; 1 to 1024");
    refused(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000"), "no tensor");
    let rank = PeftConfig::lora(1 << 40, 8.0, &["query"]);
    refused(Model::load(&in_memory(config, weights), &mean_head(3), &rank, Seed(7)), "is above 24");
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    let (config, weights) = bert();
    let with = |from: &str, to: &str| load_bert(config.replace(from, to), weights.clone());
    refused(with("\"model_type\": \"bert\"", "\"model_type\": \"mamba\""), "mamba");
    refused(with("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\""), "mish");
    refused(with("\"hidden_size\": 24", "\"hidden_size\": \"24\""), "hidden_size");
    refused(load_bert("[]".into(), weights.clone()), "no object");
    let source = Source::Directory(golden("bert"));
    let refuse = |task: &Task, peft: &PeftConfig, part: &str| {
        refused(Model::load(&source, task, peft, Seed(7)), part)
    };
    refuse(&Task::CausalLm, &full(), "encoder");
    refuse(&mean_head(1), &full(), "at least two classes");
    refuse(&mean_head(2), &PeftConfig::lora(4, 8.0, &["q_proj"]), "\"query\", \"key\", \"value\"");
    refuse(&mean_head(2), &PeftConfig::lora(0, 8.0, &["query"]), "at least 1");
    let late = PeftConfig { layers_to_transform: Some(vec![2]), ..PeftConfig::new(PeftKind::Lora) };
    refuse(&mean_head(2), &late, "block 2 of 2");
    let parts = Model::load_part(&source, &mean_head(2), &full(), Seed(7), 1..4);
    refused(parts, "1..4");
}

#[test]
fn unknown_keys_of_a_peft_table_are_errors() {
    let parse = serde_json::from_str::<PeftConfig>;
    assert!(parse(r#"{"kind": "lora", "rank": 8}"#).unwrap_err().to_string().contains("rank"));
    let config = parse(r#"{"kind": "lora", "r": 4, "target_modules": "all-linear"}"#).unwrap();
    assert_eq!((config.r, config.lora_alpha), (4, 16.0));
}

proptest! {
    /// Whatever a file holds, reading it ends in a model or in an error.
    #[test]
    fn no_file_makes_the_reader_panic(
        cuts in prop::option::of(0usize..20_000),
        flips in prop::collection::vec((0usize..6_000, any::<u8>()), 0..6),
    ) {
        let (config, mut weights) = bert();
        for (at, value) in flips {
            let at = at % weights.len();
            weights[at] = value;
        }
        if let Some(cut) = cuts {
            weights.truncate(cut);
        }
        let _ = load_bert(config, weights);
    }
}
