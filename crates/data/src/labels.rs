//! From labels as written to class indices.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::columns::{Columns, LabelKind, wrong_type};
use crate::error::{At, DataError};
use crate::example::{Example, Label};

/// Class indices above this are taken for a mistake (a hash or an identifier in the label column).
const MOST_CLASSES: i64 = 1 << 16;

/// The label column of a file while it is read.
pub(crate) struct Labels {
    kind: LabelKind,
    numbers: Vec<f32>,
    given: Option<Vec<String>>,
    /// CSV: every cell is text, so a column is integers only if all of it is.
    untyped: bool,
    raw: Vec<Raw>,
}

#[derive(Clone, Debug)]
enum Raw {
    Index(i64),
    Name(String),
}

impl Labels {
    /// Of the columns the names by class index, if known beforehand, and the kind.
    pub(crate) fn new(columns: &Columns, untyped: bool) -> Labels {
        Labels {
            kind: columns.label_kind,
            given: columns.labels.clone(),
            untyped,
            raw: Vec::new(),
            numbers: Vec::new(),
        }
    }

    /// Take the label of the next row in.
    pub(crate) fn push(&mut self, value: &Value, column: &str, at: &At) -> Result<(), DataError> {
        if self.kind == LabelKind::Numbers {
            let number = number(value, self.untyped);
            let number = number.ok_or_else(|| wrong_type(at, column, "a number in every row", value))?;
            self.numbers.push(number);
            return Ok(());
        }
        let raw = match value {
            Value::String(name) if name.is_empty() => {
                return Err(wrong_type(at, column, "a label in every row", value));
            }
            Value::String(name) => Raw::Name(name.clone()),
            Value::Number(number) => match number.as_i64() {
                Some(index) => Raw::Index(index),
                None => return Err(wrong_type(at, column, "integers or strings", value)),
            },
            other => return Err(wrong_type(at, column, "integers or strings", other)),
        };
        match (self.raw.first(), &raw) {
            (Some(Raw::Index(_)), Raw::Name(_)) => {
                Err(DataError::MixedLabels { at: at.clone(), label: shown(&raw), kind: "string" })
            }
            (Some(Raw::Name(_)), Raw::Index(_)) => {
                Err(DataError::MixedLabels { at: at.clone(), label: shown(&raw), kind: "integer" })
            }
            _ => {
                self.raw.push(raw);
                Ok(())
            }
        }
    }

    /// Write class indices into the examples; the class names.
    pub(crate) fn resolve(self, examples: &mut [Example], path: &Path) -> Result<Vec<String>, DataError> {
        for (example, number) in examples.iter_mut().zip(&self.numbers) {
            example.label = Some(Label::Number(*number));
        }
        if self.raw.is_empty() {
            return Ok(Vec::new());
        }
        let raw = if self.untyped { typed(self.raw, self.given.as_deref()) } else { self.raw };
        let names = self.given.unwrap_or_else(|| names(&raw));
        let by_name: BTreeMap<&str, u32> = names.iter().map(String::as_str).zip(0..).collect();
        for (example, raw) in examples.iter_mut().zip(raw) {
            let at = At { path: path.to_owned(), line: example.line };
            example.label = Some(Label::Class(index(raw, &names, &by_name, at)?));
        }
        Ok(names)
    }
}

/// Cells of a CSV column: integers if all are, or if they are no names of the given list.
fn typed(raw: Vec<Raw>, given: Option<&[String]>) -> Vec<Raw> {
    let parsed = |raw: &Raw| match raw {
        Raw::Name(name) => name.trim().parse().ok(),
        Raw::Index(index) => Some(*index),
    };
    let is_given = |raw: &Raw| match (raw, given) {
        (Raw::Name(name), Some(given)) => given.contains(name),
        _ => false,
    };
    if raw.iter().any(is_given) {
        return raw;
    }
    let indices: Option<Vec<i64>> = raw.iter().map(parsed).collect();
    indices.map_or(raw, |indices| indices.into_iter().map(Raw::Index).collect())
}

/// The class names a label column implies: its strings, sorted, or `"0"` to the largest integer.
fn names(raw: &[Raw]) -> Vec<String> {
    let mut distinct = BTreeSet::new();
    let mut largest = 0;
    for label in raw {
        match label {
            Raw::Name(name) => _ = distinct.insert(name),
            Raw::Index(index) => largest = largest.max(*index),
        }
    }
    if distinct.is_empty() {
        return (0..=largest.min(MOST_CLASSES - 1)).map(|index| index.to_string()).collect();
    }
    distinct.into_iter().cloned().collect()
}

fn index(raw: Raw, names: &[String], by_name: &BTreeMap<&str, u32>, at: At) -> Result<u32, DataError> {
    let labels = || names.to_vec();
    match raw {
        Raw::Index(label) => match u32::try_from(label) {
            Ok(index) if (index as usize) < names.len() => Ok(index),
            _ => Err(DataError::LabelRange { at, label, classes: names.len(), labels: labels() }),
        },
        Raw::Name(label) => match by_name.get(label.as_str()) {
            Some(index) => Ok(*index),
            None => Err(DataError::LabelName { at, label, labels: labels() }),
        },
    }
}

fn shown(raw: &Raw) -> String {
    match raw {
        Raw::Index(index) => index.to_string(),
        Raw::Name(name) => name.clone(),
    }
}

/// A finite number as written: in a file without types also as text.
fn number(value: &Value, untyped: bool) -> Option<f32> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) if untyped => text.trim().parse().ok(),
        _ => None,
    };
    number.map(|number| number as f32).filter(|number| number.is_finite())
}
