//! Attacks on a run's own traffic, as the server saw it.
//!
//! The attacker is the server: it holds the differences and taps that devices sent, the public backbones, the side
//! network it trained, and, for clustering, the labels of one sample a class. What it recovers is held against the
//! truth, which only the simulation knows. [`labels`] attacks the differences, [`texts`] the taps.

mod labels;
mod texts;

pub use labels::clusters;

use super::backbone::Backbone;
use super::bench::SideBench;
use super::cache::{Cache, Chunk, Part};
use super::language;
use super::trainer::Sample;
use crate::{Setup, SetupError};
use base::{Blob, Meter};
use data::{Label, Target};
use federation::Fault;
use ops::Workspace;

/// What one attack recovered.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub attack: &'static str,
    /// Share of the samples it was right about.
    pub recovered: f64,
    /// The same for a guess that has seen nothing.
    pub chance: f64,
    pub samples: usize,
}

/// A recorded sample and what it was made of.
#[derive(Clone, Copy)]
struct Seen<'a> {
    sample: Sample,
    /// The tokens that its states come from: of a language model those up to its position.
    text: &'a [u32],
    /// What it is of: a class, a number, or as a class the next token.
    label: Label,
}

/// How often an attack was right.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    right: usize,
    /// How often the best guess that has seen nothing is.
    blind: usize,
    tried: usize,
}

impl Tally {
    fn finding(self, attack: &'static str) -> Finding {
        let share = |count: usize| count as f64 / self.tried.max(1) as f64;
        Finding { attack, recovered: share(self.right), chance: share(self.blind), samples: self.tried }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.right += other.right;
        self.blind += other.blind;
        self.tried += other.tried;
    }
}

/// Attack what `setup.keep.traffic` holds of a side-tuning run; `trained` is the side network as its files
/// have it.
pub fn audit(setup: &Setup, trained: Option<&Blob>) -> Result<Vec<Finding>, SetupError> {
    let options = setup.options.clone().try_into();
    let options = options.map_err(|error: toml::de::Error| SetupError(error.message().into()))?;
    let bench = SideBench::new(options, setup)?;
    let traffic = bench.traffic.clone().unwrap_or_default();
    attack(&bench, &traffic, trained).map_err(|Fault(reason)| SetupError(reason))
}

fn attack(bench: &SideBench, traffic: &Cache, trained: Option<&Blob>) -> Result<Vec<Finding>, Fault> {
    let seen = recorded(bench, traffic)?;
    if seen.is_empty() {
        return Err(Fault("no traffic was recorded: set audit.record = true and run again".into()));
    }
    let ws = Workspace::new(&Meter::unlimited(), bench.lab.work.threads);
    let mut findings = labels::attack(bench, &ws, traffic, &seen)?;
    if let Some(trained) = trained {
        let tally = labels::ask(bench, &ws, traffic, &bench.theta(trained)?, &seen)?;
        findings.push(tally.finding("label: the trained side network, asked"));
    }
    let (mut tokens, mut whole) = (Tally::default(), Tally::default());
    for backbone in bench.backbones.iter() {
        let tried = tried(bench, backbone, &seen);
        if !tried.is_empty() {
            tokens += texts::tokens(&ws, traffic, backbone, &tried)?;
            whole += texts::whole(&ws, traffic, backbone, &tried)?;
        }
    }
    findings.push(tokens.finding(if bench.is_language() {
        "token at the position, from the lowest tap"
    } else {
        "token of the text from the lowest tap"
    }));
    findings.push(whole.finding("text from the highest tap, among candidates"));
    Ok(findings)
}

/// Texts that the attacks on activations try, at most.
const CANDIDATES: usize = 400;

/// One sample of each of a backbone's first texts: of a language model the last one, which has seen most of it.
fn tried<'a>(bench: &SideBench, backbone: &Backbone, seen: &[Seen<'a>]) -> Vec<Seen<'a>> {
    let its_own = |seen: &&Seen| bench.backbones.of(seen.sample.node).number == backbone.number;
    let seen: Vec<Seen> = seen.iter().filter(its_own).copied().collect();
    let same_text = |a: &Seen, b: &Seen| std::ptr::eq(a.text.as_ptr(), b.text.as_ptr());
    seen.chunk_by(same_text).map(|text| text[text.len() - 1]).take(CANDIDATES).collect()
}

/// Every recorded sample, in node, chunk and row order.
fn recorded<'a>(bench: &'a SideBench, traffic: &Cache) -> Result<Vec<Seen<'a>>, Fault> {
    let nodes = traffic.list().map_err(|error| Fault(format!("the recorded traffic: {error}")))?;
    let mut seen = Vec::new();
    for &node in nodes.keys().filter(|node| (1..=bench.lab.work.shards.len() as u32).contains(&node.0)) {
        for chunk in 0..bench.chunks(node) {
            let there = |part| traffic.len(Chunk { node, index: chunk, part }).is_some();
            if !there(Part::Taps) || !there(Part::Differences) {
                continue;
            }
            let (positions, mut row) = (bench.chunk(node, chunk), 0);
            for at in bench.places(node, &positions) {
                for (text, label) in made_of(bench, at) {
                    seen.push(Seen { sample: Sample { node, chunk, row }, text, label });
                    row += 1;
                }
            }
        }
    }
    Ok(seen)
}

/// The samples of a row: tokens and label of each.
fn made_of(bench: &SideBench, row: usize) -> Vec<(&[u32], Label)> {
    let row = &bench.lab.work.train[row];
    match row.target {
        Target::Class(class) => vec![(&row.ids, Label::Class(class))],
        Target::Number(number) => vec![(&row.ids, Label::Number(number))],
        Target::None | Target::Completion { .. } => {
            let learned = row.ids.len() - language::samples(row)..row.ids.len();
            learned.map(|next| (&row.ids[..next], Label::Class(row.ids[next]))).collect()
        }
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The index of the smallest, the first of equals.
fn nearest(distances: impl Iterator<Item = f32>) -> u32 {
    let mut best = (f32::INFINITY, 0);
    for (index, distance) in (0..).zip(distances) {
        if distance < best.0 {
            best = (distance, index);
        }
    }
    best.1
}
