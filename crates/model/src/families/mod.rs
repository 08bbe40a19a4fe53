//! The model families: each is a row of names and a reading of `config.json`. To add one, write its
//! row and put it into [`FAMILIES`]; the computation is composed from the same parts.

mod bert;
mod llama;

use crate::error::LoadError;
use crate::spec::{Config, Role, Spec};
use serde::Serializer;

/// The families this project computes.
pub static FAMILIES: &[&Family] =
    &[&bert::BERT, &bert::ROBERTA, &bert::DISTILBERT, &llama::LLAMA, &llama::QWEN2];

/// A module's role and its name; `{}` stands for the layer.
pub type Row = (Role, &'static str);

/// How a family names its modules and arranges its blocks.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What a checkpoint with a task head puts before the names below (`bert.`).
    pub prefix: &'static str,
    pub embedding: &'static [Row],
    pub block: &'static [Row],
    pub last: &'static [Row],
    pub norm_order: NormOrder,
    pub norm: NormKind,
    /// Whether a position sees later ones.
    pub causal: bool,
    pub parse: fn(&Config) -> Result<Spec, LoadError>,
}

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOrder {
    /// `norm(x + part(x))`, the original transformer and BERT.
    Post,
    /// `x + part(norm(x))`, GPT-2 and LLaMA.
    Pre,
}

/// How a norm scales its rows: with a bias (layer norm) or without (RMS norm).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    Layer,
    Rms,
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.model_type == other.model_type
    }
}

pub(crate) fn model_type<S: Serializer>(family: &&Family, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(family.model_type)
}
