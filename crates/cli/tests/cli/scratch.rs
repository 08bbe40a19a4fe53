//! A scratch directory to call the binary in.

use assert_cmd::Command;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    /// With `tiny.toml`: a tiny model of random weights, and a few rows that it can learn by heart.
    pub fn tiny() -> Scratch {
        let scratch = Scratch::new();
        scratch.write("tiny.toml", TINY);
        scratch.write("train.jsonl", &rows(&[0, 1, 2].repeat(20)));
        scratch.write("test.jsonl", &rows(&[0, 1, 2]));
        scratch.write("model/tokenizer.json", TOKENIZER);
        for file in ["config.json", "model.safetensors"] {
            let from = workspace().join("golden/bert").join(file);
            fs::copy(from, scratch.path().join("model").join(file)).unwrap();
        }
        scratch
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// `undertone` with these arguments, in this directory.
    pub fn undertone(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
        command.current_dir(self.path()).args(arguments);
        command
    }
}

pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One row a label, whose text tells it.
pub fn rows(labels: &[u32]) -> String {
    labels.iter().map(|label| format!("{{\"text\": \"a b c {label}\", \"label\": {label}}}\n")).collect()
}

const TINY: &str = r#"
[run]
name = "tiny"
num-server-rounds = 3
[model]
path = "model"
max_seq_length = 16
[data]
train = "train.jsonl"
test = "test.jsonl"
[fleet]
devices = 6
[cohort]
fraction-train = 0.5
[peft]
kind = "lora"
r = 2
[train]
learning_rate = 0.02
local_epochs = 3
[method]
name = "fedavg-lora"
"#;

/// One token a word, for models that have none of their own.
pub const TOKENIZER: &str = r#"{
  "version": "1.0",
  "pre_tokenizer": { "type": "Whitespace" },
  "model": {
    "type": "WordLevel",
    "vocab": { "[UNK]": 0, "a": 1, "b": 2, "c": 3, "0": 4, "1": 5, "2": 6 },
    "unk_token": "[UNK]"
  }
}"#;
