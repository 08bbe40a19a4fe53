//! The built-in data: short utterances to a phone, each with what its speaker wants.
//!
//! Everything here is generated from tables written for this project; no person said any of it. Most
//! utterances mention two intents and want one ("instead of calling anna text ben", "text ben, not
//! call anna"), so that counting words is not enough and a frozen small model is clearly worse than a
//! tuned one. Speakers (`client`) differ in what they want and how they say it.

mod intents;
mod persona;
mod sentence;
mod slots;

use std::collections::BTreeSet;

use base::{Seed, Stream};

use crate::example::{Dataset, Example, Input, Label};
use persona::{NAMES, Persona};

/// Rows of the built-in training set.
pub const TRAIN: usize = 5000;
/// Rows of the built-in test set.
pub const TEST: usize = 1000;
/// The seed of the built-in sets and of the corpus that the built-in model was trained on.
pub const SEED: Seed = Seed(2024);

/// Names of the intents by class index.
pub fn intents() -> Vec<String> {
    intents::INTENTS.iter().map(|intent| intent.name.to_owned()).collect()
}

/// A training and a test set. All utterances are different, so none of one set is in the other.
pub fn generate(train: usize, test: usize, seed: Seed) -> (Dataset, Dataset) {
    let speakers = speakers(seed);
    let mut said = BTreeSet::new();
    let mut draw = |name: &str, rows: usize| {
        let mut examples = Vec::with_capacity(rows);
        let mut stream = seed.child(name, 0).stream();
        while examples.len() < rows {
            let (client, label, text) = speak(&speakers, &mut stream);
            if said.insert(text.clone()) {
                examples.push(Example {
                    input: Input::Text(text),
                    label: Some(Label::Class(label as u32)),
                    client: Some(client.to_owned()),
                    line: examples.len() as u64 + 1,
                });
            }
        }
        Dataset { examples, labels: intents(), path: format!("builtin-{name}").into() }
    };
    (draw("train", train), draw("test", test))
}

/// Sentences without labels for a language model: utterances, and a fifth of them plain statements.
/// No row of `held_out` is among them.
pub fn corpus(lines: usize, held_out: &Dataset, seed: Seed) -> Vec<String> {
    let text = |example: &'_ Example| match &example.input {
        Input::Text(text) => Some(text.clone()),
        _ => None,
    };
    let held_out: BTreeSet<String> = held_out.examples.iter().filter_map(text).collect();
    let speakers = speakers(seed);
    let mut stream = seed.child("corpus", 0).stream();
    let mut corpus = Vec::with_capacity(lines);
    while corpus.len() < lines {
        let line = if stream.unit() < 0.2 {
            sentence::story(&mut stream)
        } else {
            speak(&speakers, &mut stream).2
        };
        if !held_out.contains(&line) {
            corpus.push(line);
        }
    }
    corpus
}

fn speakers(seed: Seed) -> Vec<(&'static str, Persona)> {
    NAMES.iter().zip(0..).map(|(name, index)| (*name, Persona::new(index, seed))).collect()
}

/// Someone says something: who, with which intent, and what.
fn speak(speakers: &[(&'static str, Persona)], stream: &mut Stream) -> (&'static str, usize, String) {
    let (name, persona) = &speakers[stream.below(speakers.len() as u64) as usize];
    let intent = persona.intent(stream);
    let sentence = sentence::utterance(intent, stream);
    (name, intent, persona.say(&sentence, stream))
}
