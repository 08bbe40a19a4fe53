//! What the program carries in itself: a small model pre-trained by this project, and generated
//! utterances to tune it on. `cargo run --release -p xtask -- builtin` makes the model again.

use crate::errors::{Exit, Failure};
use data::{Dataset, Tokenizer, utterances};
use model::Source;
use std::borrow::Cow;

const CONFIG: &str = include_str!("../../../assets/builtin/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../../assets/builtin/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../../assets/builtin/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../../assets/builtin/tokenizer_config.json");

pub fn model() -> Source {
    Source::Memory { config: Cow::Borrowed(CONFIG), weights: Cow::Borrowed(WEIGHTS) }
}

pub fn tokenizer() -> Result<Tokenizer, Failure> {
    Tokenizer::from_bytes(TOKENIZER, Some(TOKENIZER_CONFIG))
        .map_err(|error| Failure::new(Exit::Model, error))
}

/// Which rows of the built-in set are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

pub fn rows(split: Split) -> Dataset {
    let (train, test) = utterances::generate(utterances::TRAIN, utterances::TEST, utterances::SEED);
    match split {
        Split::Train => train,
        Split::Test => test,
    }
}
