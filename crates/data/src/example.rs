//! What a row of data is, once read.

use std::path::PathBuf;

/// The text of one row, in one of the shapes users bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// `{"text"}`
    Text(String),
    /// `{"sentence1", "sentence2"}`: encoded together, as the tokenizer's pair template says.
    Pair(String, String),
    /// `{"prompt", "completion"}` or alpaca's `{"instruction", "input", "output"}`: only the
    /// completion is learned.
    PromptCompletion { prompt: String, completion: String },
    /// `{"messages"}`: rendered with the tokenizer's chat template; only the last message is learned.
    Messages(Vec<Message>),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

/// What a row should come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// Index into [`Dataset::labels`].
    Class(u32),
    /// A number, which is finite.
    Number(f32),
}

impl Label {
    /// The class, where it is one.
    pub fn class(self) -> Option<u32> {
        if let Label::Class(class) = self { Some(class) } else { None }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    pub input: Input,
    /// Either every row of a set has one, or none; all of one kind.
    pub label: Option<Label>,
    /// Who wrote it: the key of the natural partition.
    pub client: Option<String>,
    /// Line of the file it came from, from 1 (0: generated).
    pub line: u64,
}

/// The rows of one file, in its order; nothing is dropped and nothing is merged.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub examples: Vec<Example>,
    /// Names by class index; empty when rows carry no label, or numbers. Integer labels without given names are
    /// named `"0"`, `"1"`, ...; string labels are numbered in sorted order.
    pub labels: Vec<String>,
    pub path: PathBuf,
}

impl Dataset {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are no rows (never true of a set that was read from a file).
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// The distinct natural keys, sorted. Rows without a key are not counted.
    pub fn clients(&self) -> Vec<&str> {
        let keys: std::collections::BTreeSet<&str> =
            self.examples.iter().filter_map(|example| example.client.as_deref()).collect();
        keys.into_iter().collect()
    }
}
