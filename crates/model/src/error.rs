//! What can go wrong: while a model is loaded, and while it computes.

use std::path::PathBuf;

/// A model or adapter that cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Config(String),
    #[error("{file} is damaged: {what}; download or copy it again")]
    Corrupt { file: String, what: String },
    #[error("{file} has no tensor \"{name}\": are config.json and the weights from the same model?")]
    MissingTensor { file: String, name: String },
    #[error("tensor \"{name}\" has shape {found:?} where config.json asks for {expected:?}")]
    WrongShape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor \"{name}\" is stored as {dtype}; only F32, F16 and BF16 are read")]
    Dtype { name: String, dtype: String },
    #[error("tensor \"{name}\" holds a number that is not finite")]
    NonFinite { name: String },
    #[error("{0}")]
    Peft(String),
    #[error("{} is there already; name a new directory", .0.display())]
    Exists(PathBuf),
    #[error("the blocks {start}..{end} are not a part of a model of {layers}")]
    Layers { start: usize, end: usize, layers: usize },
}

impl LoadError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> LoadError {
        let path = path.into();
        move |source| LoadError::Io { path, source }
    }
}

/// A computation that cannot be done, or whose result is no number.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ops(#[from] ops::Error),
    #[error("the adapter has {found} parameters where this model has {expected} trainable ones")]
    Theta { found: usize, expected: usize },
    #[error("{0}")]
    Batch(String),
    #[error("the {what} is not finite: lower the learning rate, or look for a damaged example")]
    NonFinite { what: &'static str },
    #[error("this part of the model holds the blocks {held:?}, not {asked}")]
    NotLoaded { held: std::ops::Range<usize>, asked: String },
    #[error("{0}")]
    Directions(String),
    #[error("the model was loaded for {loaded}, not for {asked}")]
    Task { loaded: &'static str, asked: &'static str },
}

impl From<base::OverBudget> for Error {
    fn from(error: base::OverBudget) -> Error {
        Error::Ops(error.into())
    }
}
