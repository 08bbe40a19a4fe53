//! Who speaks: each persona wants some things more than others, and has habits of speech.

use base::{Seed, Stream};

use super::intents::INTENTS;
use super::sentence::pick;
use crate::skew::simplex;

/// Names of the personas: the natural key of the data set.
pub(crate) const NAMES: [&str; 48] = [
    "ada", "amir", "anouk", "asha", "bela", "bruno", "carmen", "chidi", "dara", "dmitri", "elif", "emil",
    "farah", "felix", "gia", "goran", "hana", "hugo", "ines", "ivan", "jana", "jun", "kaia", "karim",
    "lena", "luca", "mara", "mateo", "nadia", "nils", "olga", "omar", "petra", "pablo", "qiang", "rania",
    "rosa", "sefa", "signe", "tariq", "tess", "uma", "viktor", "wanda", "xenia", "yara", "zeno", "zuri",
];

const OPENINGS: [&str; 12] =
    ["hey", "ok", "um", "hello", "right", "so", "oh", "well", "listen", "hi there", "quick one", "good"];
const CLOSINGS: [&str; 10] = [
    "please",
    "thanks",
    "now",
    "for me",
    "right away",
    "if you can",
    "will you",
    "ok",
    "when you can",
    "quickly",
];

/// Preferences and habits, drawn once per name.
pub(crate) struct Persona {
    /// Probability of each intent.
    wants: Vec<f64>,
    opening: (f64, [&'static str; 2]),
    closing: (f64, [&'static str; 2]),
    /// Probability of a slip of the finger in a word.
    slips: f64,
}

impl Persona {
    pub(crate) fn new(index: u64, seed: Seed) -> Persona {
        let stream = &mut seed.child("persona", index).stream();
        let even = 0.2 / INTENTS.len() as f64;
        let wants = simplex(INTENTS.len(), 0.5, stream).iter().map(|share| even + 0.8 * share).collect();
        Persona {
            wants,
            opening: (0.6 * stream.unit(), [pick(&OPENINGS, stream), pick(&OPENINGS, stream)]),
            closing: (0.5 * stream.unit(), [pick(&CLOSINGS, stream), pick(&CLOSINGS, stream)]),
            slips: 0.04 * stream.unit() * stream.unit(),
        }
    }

    /// What this persona wants now.
    pub(crate) fn intent(&self, stream: &mut Stream) -> usize {
        let mut rest = stream.unit();
        let past = self.wants.iter().position(|share| {
            rest -= share;
            rest < 0.0
        });
        past.unwrap_or(INTENTS.len() - 1)
    }

    /// The sentence as this persona types it.
    pub(crate) fn say(&self, sentence: &str, stream: &mut Stream) -> String {
        let mut text = String::new();
        if stream.unit() < self.opening.0 {
            text.push_str(pick(&self.opening.1, stream));
            text.push(' ');
        }
        for (place, word) in sentence.split(' ').enumerate() {
            if place > 0 {
                text.push(' ');
            }
            if stream.unit() < self.slips {
                text.push_str(&slip(word, stream))
            } else {
                text.push_str(word)
            }
        }
        if stream.unit() < self.closing.0 {
            text.push(' ');
            text.push_str(pick(&self.closing.1, stream));
        }
        text
    }
}

/// A letter left out, doubled, or swapped with the next.
fn slip(word: &str, stream: &mut Stream) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() < 4 {
        return word.to_owned();
    }
    let place = 1 + stream.below(letters.len() as u64 - 2) as usize;
    match stream.below(3) {
        0 => _ = letters.remove(place),
        1 => letters.insert(place, letters[place]),
        _ => letters.swap(place, place + 1),
    }
    letters.into_iter().collect()
}
