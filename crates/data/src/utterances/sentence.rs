//! From intents to sentences.

use base::Stream;

use super::intents::{Act, INTENTS, Intent};
use super::slots::expand;

/// Sentences in which one act is wanted, `{a}`, and another is mentioned but not wanted, `{b}`. Both
/// stand first and last, and in the same forms, equally often: the words alone do not tell which is
/// meant.
const CONTRASTS: [&str; 42] = [
    "don't {b}, {a}",
    "{a}, don't {b}",
    "{a}, please don't {b}",
    "{a} instead of {b.doing}",
    "instead of {b.doing} {a}",
    "{b}, no wait, {a}",
    "{b}, sorry, i meant {a}",
    "{b}, or better, {a}",
    "{a}, not {b}",
    "not {b}, {a}",
    "i asked you to {a}, not to {b}",
    "i didn't ask you to {b} but to {a}",
    "i never said {b}, i said {a}",
    "i said {a}, i never said {b}",
    "you have already {b.done}, so now {a}",
    "now {a}, you have already {b.done}",
    "stop {b.doing} and {a}",
    "stop {b.doing}, start {a.doing}",
    "start {a.doing}, stop {b.doing}",
    "i will {b} myself, you {a}",
    "you {a}, i will {b} myself",
    "{person} wants me to {b}, but {a}",
    "never mind {b.doing}, {a}",
    "how about {a.doing} rather than {b.doing}",
    "rather than {b.doing} how about {a.doing}",
    "{a} and forget about {b.doing}",
    "forget about {b.doing} and {a}",
    "would you mind {a.doing}, i am done with {b.doing}",
    "i am done with {b.doing}, would you mind {a.doing}",
    "before i {b}, {a}",
    "{a} before i {b}",
    "i have no time to {b}, just {a}",
    "just {a}, i have no time to {b}",
    "i wanted you to {b} but now i want you to {a}",
    "don't {b}, start {a.doing}",
    "start {a.doing}, don't {b}",
    "i will {b} myself, would you mind {a.doing}",
    "would you mind {a.doing}, i will {b} myself",
    "how about {a.doing} before i {b}",
    "before i {b} how about {a.doing}",
    "i have no time to {b}, try {a.doing}",
    "not {b}, i meant {a.doing}",
];

/// Plain sentences around one act.
const PLAIN: [&str; 8] = [
    "{a}",
    "{a}",
    "can you {a}",
    "could you {a}",
    "i want you to {a}",
    "i would like you to {a}",
    "would you mind {a.doing}",
    "it is time to {a}",
];

/// What people tell each other: no request, only for the corpus of the language model.
const STORIES: [&str; 8] = [
    "{person} has {a.done} and {b.done}",
    "{day} {person} wants to {a} and then {b}",
    "i have {a.done} because {person} asked me to {b}",
    "{person} was {a.doing} while i was {b.doing}",
    "first we {a}, then we {b}",
    "{person} said that {news}",
    "{person} likes {a.doing} but not {b.doing}",
    "after {a.doing} i went to the {place} with {person}",
];

/// An utterance with this intent.
pub(crate) fn utterance(intent: usize, stream: &mut Stream) -> String {
    let wanted = INTENTS[intent];
    let kind = stream.unit();
    if kind < 0.12 {
        return expand(pick(wanted.direct, stream), stream);
    }
    if kind < 0.22 {
        return sentence(pick(&PLAIN, stream), wanted, wanted, stream);
    }
    let other = (intent + 1 + stream.below(INTENTS.len() as u64 - 1) as usize) % INTENTS.len();
    let other = INTENTS[other];
    if kind < 0.42 {
        return sentence(pick(wanted.around, stream), wanted, other, stream);
    }
    sentence(pick(&CONTRASTS, stream), wanted, other, stream)
}

/// A sentence without a request.
pub(crate) fn story(stream: &mut Stream) -> String {
    let (a, b) = (pick(&INTENTS, stream), pick(&INTENTS, stream));
    sentence(pick(&STORIES, stream), a, b, stream)
}

/// Fill a sentence: `{a}`, `{a.doing}`, `{a.done}` with an act of `a`; `{b}`, `{b.doing}`, `{b.done}`,
/// also written `{base}` and `{doing}`, with one of `b`; then all other gaps.
fn sentence(frame: &str, a: Intent, b: Intent, stream: &mut Stream) -> String {
    let (a, b) = (pick(a.acts, stream), pick(b.acts, stream));
    let form = |act: Act, form: usize| format!("{} {}", act.verb[form], act.rest);
    let text = frame
        .replace("{a}", &form(a, 0))
        .replace("{a.doing}", &form(a, 1))
        .replace("{a.done}", &form(a, 2))
        .replace("{b}", &form(b, 0))
        .replace("{base}", &form(b, 0))
        .replace("{b.doing}", &form(b, 1))
        .replace("{doing}", &form(b, 1))
        .replace("{b.done}", &form(b, 2));
    expand(&text, stream)
}

/// One of these, each equally likely.
pub(crate) fn pick<T: Copy>(items: &[T], stream: &mut Stream) -> T {
    items[stream.below(items.len() as u64) as usize]
}
