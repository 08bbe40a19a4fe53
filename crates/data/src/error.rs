//! What can be wrong with data, said for the person who has to mend it.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in a data file: `train.csv:17`, counted from 1. In a JSON array the number is the row's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// The file as the caller named it.
    pub path: PathBuf,
    /// Line of the file (CSV: where the record starts; JSON array: the number of the row).
    pub line: u64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    #[error("{}: no such file{}; relative paths count from the current directory", path.display(), is_it(nearest))]
    Missing { path: PathBuf, nearest: Option<PathBuf> },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{}: cannot tell the format from this name; it must end in .jsonl, .json, .csv or .tsv, \
         optionally followed by .zst or .gz",
        path.display()
    )]
    Format { path: PathBuf },
    #[error("{}: holds no rows", path.display())]
    Empty { path: PathBuf },
    #[error("{at}: longer than {limit} bytes; is the file damaged, or a quote left open?")]
    LineTooLong { at: At, limit: u64 },
    #[error("{}: unpacks to more than {limit} bytes; split the file, or unpack it first if it is right", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{at}: not valid UTF-8; convert the file to UTF-8")]
    Utf8 { at: At },
    #[error("{at}: {what}")]
    Syntax { at: At, what: String },
    #[error("{at}: no column {wanted:?}; {available}")]
    NoColumn { at: At, wanted: String, available: Available },
    #[error(
        "{at}: cannot tell what the rows hold from the columns {found:?}; name them under \
         [data.columns], e.g. text = {:?}",
        found.first().map_or("text", String::as_str)
    )]
    NoShape { at: At, found: Vec<String> },
    #[error("[data.columns] names {first} and {second}, which belong to different row shapes; keep one")]
    TwoShapes { first: &'static str, second: &'static str },
    #[error("{at}: column {column:?} must hold {expected}, found {found}")]
    Type { at: At, column: String, expected: &'static str, found: String },
    #[error("{at}: label {label} is outside 0..{classes} (the labels are {})", few(labels))]
    LabelRange { at: At, label: i64, classes: usize, labels: Vec<String> },
    #[error("{at}: unknown label {label:?}; the labels are {}", few(labels))]
    LabelName { at: At, label: String, labels: Vec<String> },
    #[error(
        "{at}: label {label:?} is a {kind}, but labels before it are not; make all of them integers \
         or all of them strings"
    )]
    MixedLabels { at: At, label: String, kind: &'static str },
}

/// The columns a row does have, nearest first.
#[derive(Debug)]
pub struct Available {
    pub nearest: Option<String>,
    pub all: Vec<String>,
}

impl Available {
    /// The columns `all`, with the one most like `wanted` picked out.
    pub(crate) fn beside(wanted: &str, all: Vec<String>) -> Available {
        Available { nearest: nearest(wanted, all.iter().map(String::as_str)).map(str::to_owned), all }
    }
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(near) = &self.nearest {
            write!(f, "did you mean {near:?}? ")?;
        }
        write!(f, "the row has {}", few(&self.all))
    }
}

fn is_it(nearest: &Option<PathBuf>) -> String {
    nearest.as_ref().map_or_else(String::new, |near| format!(" (is it {}?)", near.display()))
}

/// At most twelve of `names`, quoted.
fn few(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(12).map(|name| format!("{name:?}")).collect();
    let rest = names.len().saturating_sub(12);
    let tail = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    shown.join(", ") + &tail
}

/// The candidate most like `wanted`, if one is alike at all.
pub(crate) fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|name| (strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// The error for a file that cannot be opened: names the nearest file of its directory.
pub(crate) fn cannot_open(path: &Path, source: std::io::Error) -> DataError {
    if source.kind() != std::io::ErrorKind::NotFound {
        return DataError::Io { path: path.to_owned(), source };
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut beside: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    beside.sort();
    let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let nearest = nearest(&wanted, beside.iter().map(String::as_str)).map(|name| path.with_file_name(name));
    DataError::Missing { path: path.to_owned(), nearest }
}
