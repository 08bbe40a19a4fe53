//! The real data sets and tokenizers beside the repository, where they are.

use std::path::{Path, PathBuf};

use base::Seed;
use serde_json::Value;
use undertone_data::{
    Columns, Dataset, Example, Holdings, Input, LongRows, PartitionConfig, Target, Tokenizer, partition,
    read,
};

fn shared() -> Option<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if !shared.is_dir() {
        eprintln!("SKIPPED: ../shared not found");
        return None;
    }
    Some(shared)
}

fn set(shared: &Path, name: &str, columns: &Columns) -> Dataset {
    read(&shared.join("data").join(name), columns).unwrap_or_else(|error| panic!("{error}"))
}

/// Row counts as the sets' own README states them.
#[test]
fn every_set_reads_completely() {
    let Some(shared) = shared() else { return };
    let plain = Columns::default();
    for (name, rows, labels, clients) in [
        ("emotion/train.jsonl.zst", 16_000, 6, 0),
        ("ag_news/test.jsonl.zst", 7_600, 4, 0),
        ("banking77/train.jsonl.zst", 10_003, 77, 0),
        ("sst2/validation.jsonl.zst", 872, 2, 0),
        ("meld/train.jsonl.zst", 9_989, 7, 260),
        ("shakespeare/train.jsonl.zst", 5_679, 0, 299),
        ("shakespeare/all.jsonl.zst", 1, 0, 0),
        ("dolly_3k/train.jsonl.zst", 2_996, 0, 0),
    ] {
        let dataset = set(&shared, name, &plain);
        let found = (dataset.len(), dataset.labels.len(), dataset.clients().len());
        assert_eq!(found, (rows, labels, clients), "{name}");
    }
    let mapped = Columns { client: Some("source".to_owned()), ..plain.clone() };
    assert!(set(&shared, "cola/train.jsonl.zst", &mapped).clients().len() > 5);
    let mapped = Columns { prompt: Some("mr".to_owned()), completion: Some("text".to_owned()), ..plain };
    let dataset = set(&shared, "e2e_nlg/train.jsonl.zst", &mapped);
    assert!(matches!(dataset.examples[0].input, Input::PromptCompletion { .. }));
}

#[test]
fn emotion_divides_over_sixteen_devices() {
    let Some(shared) = shared() else { return };
    let dataset = set(&shared, "emotion/train.jsonl.zst", &Columns::default());
    let dirichlet = PartitionConfig::Dirichlet { alpha: 0.5, min_rows: 10, self_balancing: false };
    let shards = partition(&dataset, &dirichlet, 16, Seed(7)).unwrap();
    let holdings = Holdings::count(&dataset, &shards);
    assert_eq!(holdings.totals().iter().sum::<u32>(), 16_000);
    assert!((0.2..0.7).contains(&holdings.skew()), "{}", holdings.table());
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_agree_with_the_reference() {
    let Some(shared) = shared() else { return };
    let models = shared.join("models");
    let mut compared = 0;
    for name in ["all-MiniLM-L6-v2", "stories260K", "TinyStories-656K"] {
        let tokenizer = Tokenizer::load(&models.join(name)).unwrap_or_else(|error| panic!("{error}"));
        let golden: Value =
            serde_json::from_slice(&std::fs::read(models.join(name).join("golden.json")).unwrap()).unwrap();
        let one = [golden.clone()];
        for entry in golden["sentences"].as_array().map_or(&one[..], Vec::as_slice) {
            let text = entry["text"].as_str().unwrap().to_owned();
            let example = Example { input: Input::Text(text), label: None, client: None, line: 1 };
            let encoded = tokenizer.encode(&example, 512).unwrap();
            assert_eq!(encoded.ids, ids(&entry["input_ids"]), "{name}");
            assert_eq!(encoded.target, Target::None);
            compared += 1;
        }
    }
    assert!(compared >= 5, "only {compared} texts were compared");
    let missing = Tokenizer::load(&models).err().unwrap().to_string();
    assert!(missing.contains("needs tokenizer.json"), "{missing}");
}

#[test]
fn shakespeare_packs_and_decodes() {
    let Some(shared) = shared() else { return };
    let tokenizer = Tokenizer::load(&shared.join("models/stories260K")).unwrap();
    let dataset = set(&shared, "shakespeare/train.jsonl.zst", &Columns::default());
    let rows: Vec<u32> = (0..200).collect();
    let blocks = tokenizer.encode_rows(&dataset, &rows, 128, LongRows::Pack).unwrap();
    assert!(blocks[..blocks.len() - 1].iter().all(|block| block.ids.len() == 128));
    let Input::Text(first) = &dataset.examples[0].input else { panic!("not text") };
    let start = tokenizer.decode(&blocks[0].ids).unwrap();
    assert!(start.starts_with(first.as_str()), "{start}");
}
