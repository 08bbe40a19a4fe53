//! Which columns of a file hold what.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{At, Available, DataError};
use crate::example::{Input, Message};

/// A row as it stands in the file.
pub(crate) type Row = Map<String, Value>;

/// `[data.columns]` of a scenario. What is not named is found under its usual name, in this order:
/// `messages`; `prompt`, `completion`; `instruction`, `input`, `output`; `sentence1`, `sentence2`;
/// `text`. `label` and `client` are optional columns beside any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    pub text: Option<String>,
    pub sentence1: Option<String>,
    pub sentence2: Option<String>,
    pub prompt: Option<String>,
    pub completion: Option<String>,
    pub messages: Option<String>,
    pub instruction: Option<String>,
    pub input: Option<String>,
    pub output: Option<String>,
    /// Integers or strings; any numbers, where numbers are learned.
    pub label: Option<String>,
    /// The key of the natural partition: one value a person or device.
    pub client: Option<String>,
    /// Names of the labels by class index. Give those of the training set when reading the test set:
    /// integers outside the list and unknown strings are then errors.
    pub labels: Option<Vec<String>>,
    /// What the label column holds. The task says so, and no key of its own.
    #[serde(skip)]
    pub label_kind: LabelKind,
}

/// What labels are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabelKind {
    #[default]
    Classes,
    /// A number a row.
    Numbers,
}

impl Columns {
    /// The same columns with the class names of a set read before.
    #[must_use]
    pub fn with_labels(&self, labels: &[String]) -> Columns {
        let labels = if labels.is_empty() { None } else { Some(labels.to_vec()) };
        Columns { labels, ..self.clone() }
    }

    /// What the rows hold, decided once from the first row.
    pub(crate) fn shape(&self, first: &Row, at: &At) -> Result<Shape, DataError> {
        let named = [
            ("messages", self.messages.is_some()),
            ("prompt", self.prompt.is_some() || self.completion.is_some()),
            ("instruction", self.instruction.is_some() || self.input.is_some() || self.output.is_some()),
            ("sentence1", self.sentence1.is_some() || self.sentence2.is_some()),
            ("text", self.text.is_some()),
        ];
        let mut chosen = named.iter().filter(|(_, is_named)| *is_named).map(|(name, _)| *name);
        let has = |name: &str| first.contains_key(name);
        let kind = match (chosen.next(), chosen.next()) {
            (Some(first), Some(second)) => return Err(DataError::TwoShapes { first, second }),
            (Some(only), None) => only,
            _ if has("messages") => "messages",
            _ if has("prompt") && has("completion") => "prompt",
            _ if has("instruction") && has("output") => "instruction",
            _ if has("sentence1") && has("sentence2") => "sentence1",
            _ if has("text") => "text",
            _ => {
                let found = first.keys().cloned().collect();
                return Err(DataError::NoShape { at: at.clone(), found });
            }
        };
        let or = |name: &Option<String>, usual: &str| name.clone().unwrap_or_else(|| usual.to_owned());
        Ok(match kind {
            "messages" => Shape::Messages(or(&self.messages, "messages")),
            "prompt" => {
                Shape::PromptCompletion(or(&self.prompt, "prompt"), or(&self.completion, "completion"))
            }
            "instruction" => Shape::Alpaca {
                instruction: or(&self.instruction, "instruction"),
                input: self.input.clone().or_else(|| has("input").then(|| "input".to_owned())),
                output: or(&self.output, "output"),
            },
            "sentence1" => Shape::Pair(or(&self.sentence1, "sentence1"), or(&self.sentence2, "sentence2")),
            _ => Shape::Text(or(&self.text, "text")),
        })
    }
}

/// The columns an [`Input`] is made of.
pub(crate) enum Shape {
    Text(String),
    Pair(String, String),
    PromptCompletion(String, String),
    Messages(String),
    Alpaca { instruction: String, input: Option<String>, output: String },
}

impl Shape {
    /// The input of one row.
    pub(crate) fn input(&self, row: &Row, at: &At) -> Result<Input, DataError> {
        Ok(match self {
            Shape::Text(text) => Input::Text(string(row, text, at)?),
            Shape::Pair(first, second) => Input::Pair(string(row, first, at)?, string(row, second, at)?),
            Shape::PromptCompletion(prompt, completion) => Input::PromptCompletion {
                prompt: string(row, prompt, at)?,
                completion: string(row, completion, at)?,
            },
            Shape::Messages(column) => Input::Messages(messages(row, column, at)?),
            Shape::Alpaca { instruction, input, output } => {
                let instruction = string(row, instruction, at)?;
                let input = input.as_ref().map(|column| string(row, column, at)).transpose()?;
                Input::PromptCompletion {
                    prompt: alpaca(&instruction, input.as_deref().unwrap_or("")),
                    completion: string(row, output, at)?,
                }
            }
        })
    }
}

/// The prompt of an alpaca row: its three headings, without the preamble.
fn alpaca(instruction: &str, input: &str) -> String {
    let input = if input.trim().is_empty() { String::new() } else { format!("### Input:\n{input}\n\n") };
    format!("### Instruction:\n{instruction}\n\n{input}### Response:\n")
}

/// The cell of a column that must exist.
pub(crate) fn cell<'a>(row: &'a Row, column: &str, at: &At) -> Result<&'a Value, DataError> {
    row.get(column).ok_or_else(|| DataError::NoColumn {
        at: at.clone(),
        wanted: column.to_owned(),
        available: Available::beside(column, row.keys().cloned().collect()),
    })
}

/// The cell of a column that must exist and hold text.
fn string(row: &Row, column: &str, at: &At) -> Result<String, DataError> {
    match cell(row, column, at)? {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong_type(at, column, "a string", other)),
    }
}

fn messages(row: &Row, column: &str, at: &At) -> Result<Vec<Message>, DataError> {
    let value = cell(row, column, at)?;
    let expected = "a list of {\"role\", \"content\"} with at least one entry";
    match serde_json::from_value::<Vec<Message>>(value.clone()) {
        Ok(messages) if !messages.is_empty() => Ok(messages),
        _ => Err(wrong_type(at, column, expected, value)),
    }
}

/// The error for a cell of the wrong kind; shows the start of what was found.
pub(crate) fn wrong_type(at: &At, column: &str, expected: &'static str, found: &Value) -> DataError {
    let found: String = found.to_string().chars().take(60).collect();
    DataError::Type { at: at.clone(), column: column.to_owned(), expected, found }
}
