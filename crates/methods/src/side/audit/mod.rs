//! Attacks on a run's own traffic, as the server saw it.
//!
//! The attacker is the server: it holds the differences and taps that devices sent, the public backbone,
//! and, for clustering, the labels of one sample a class. What it recovers is held against the truth,
//! which only the simulation knows.

use super::bench::SideBench;
use super::cache::{Cache, Chunk, Part, RowReader};
use super::trainer::{Batch, Sample, read};
use crate::{Setup, SetupError};
use base::Meter;
use data::Target;
use federation::Fault;
use model::side::{Pivot, tap};
use model::{Pooling, argmax};
use ops::{Mat, Workspace};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

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

/// Texts that the attacks on activations try, at most.
const CANDIDATES: usize = 400;
/// Tokens that the attack on the lowest tap tries, or texts that it learns them from, at most.
const TOKENS: usize = 2000;

/// A recorded sample and the row it was made of.
struct Seen {
    sample: Sample,
    row: usize,
    label: u32,
}

/// Attack what `setup.keep.traffic` holds of a side-tuning run.
pub fn audit(setup: &Setup) -> Result<Vec<Finding>, SetupError> {
    let options = setup.options.clone().try_into();
    let options = options.map_err(|error: toml::de::Error| SetupError(error.message().into()))?;
    let bench = SideBench::new(options, setup)?;
    if bench.pivot.is_none() {
        return Err(SetupError("attacks on the traffic of language models are not written yet".into()));
    }
    let traffic = bench.traffic.clone().unwrap_or_default();
    attack(&bench, &traffic).map_err(|Fault(reason)| SetupError(reason))
}

fn attack(bench: &SideBench, traffic: &Cache) -> Result<Vec<Finding>, Fault> {
    let seen = recorded(bench, traffic)?;
    if seen.is_empty() {
        return Err(Fault("no traffic was recorded: set audit.record = true and run again".into()));
    }
    let ws = Workspace::new(&Meter::unlimited(), bench.lab.work.threads);
    let samples: Vec<Sample> = seen.iter().map(|seen| seen.sample).collect();
    let batch = read(&ws, &mut RowReader::new(traffic), bench.shape, &samples)?;
    let truth: Vec<u32> = seen.iter().map(|seen| seen.label).collect();
    let label_chance = most_common(&truth, bench.shape.outputs);
    let said: Vec<u32> = (0..truth.len()).map(|at| argmax(batch.differences.row(at))).collect();
    let clustered = clusters(&batch.differences, &truth, bench.shape.outputs);
    let finding = |attack, recovered, chance, samples| Finding { attack, recovered, chance, samples };
    let (texts, text_chance) = texts(bench, &ws, &seen, &batch)?;
    let (tokens, token_chance) = tokens(bench, &ws, &seen, &batch)?;
    let tried = seen.len().min(CANDIDATES);
    Ok(vec![
        finding("label: largest coordinate", agreement(&said, &truth), label_chance, truth.len()),
        finding(
            "label: clusters, one known label a class",
            agreement(&clustered, &truth),
            label_chance,
            truth.len(),
        ),
        finding("token of the text from the lowest tap", tokens, token_chance, tried),
        finding("text from the highest tap, among candidates", texts, text_chance, tried),
    ])
}

/// Every recorded sample, in node, chunk and row order.
fn recorded(bench: &SideBench, traffic: &Cache) -> Result<Vec<Seen>, Fault> {
    let nodes = traffic.list().map_err(|error| Fault(format!("the recorded traffic: {error}")))?;
    let mut seen = Vec::new();
    for &node in nodes.keys().filter(|node| (1..=bench.lab.work.shards.len() as u32).contains(&node.0)) {
        for chunk in 0..bench.chunks(node) {
            let there = |part| traffic.len(Chunk { node, index: chunk, part }).is_some();
            if !there(Part::Taps) || !there(Part::Differences) {
                continue;
            }
            for (row, position) in (0..).zip(bench.chunk(node, chunk)) {
                let at = bench.lab.shard(node)[position as usize] as usize;
                if let Target::Class(label) = bench.lab.work.train[at].target {
                    seen.push(Seen { sample: Sample { node, chunk, row }, row: at, label });
                }
            }
        }
    }
    Ok(seen)
}

fn agreement(said: &[u32], truth: &[u32]) -> f64 {
    said.iter().zip(truth).filter(|(said, truth)| said == truth).count() as f64 / truth.len().max(1) as f64
}

/// How often the most common label occurs.
fn most_common(truth: &[u32], classes: usize) -> f64 {
    let count = |class| truth.iter().filter(|&&label| label == class).count();
    (0..classes as u32).map(count).max().unwrap_or(0) as f64 / truth.len().max(1) as f64
}

/// k-means (Lloyd's iterations) from the first sample of each class, whose label is known.
pub fn clusters(points: &Mat, truth: &[u32], classes: usize) -> Vec<u32> {
    let known = (0..classes as u32).map(|class| truth.iter().position(|&label| label == class));
    let mut centres: Vec<Option<Vec<f32>>> = known.map(|at| at.map(|at| points.row(at).to_vec())).collect();
    let mut assigned = vec![0; truth.len()];
    for _ in 0..20 {
        for (at, assigned) in assigned.iter_mut().enumerate() {
            let distance = |centre: &Option<Vec<f32>>| {
                centre.as_ref().map_or(f32::INFINITY, |centre| distance(centre, points.row(at)))
            };
            *assigned = nearest(centres.iter().map(distance));
        }
        for (class, centre) in (0u32..).zip(&mut centres) {
            let Some(centre) = centre else { continue };
            let members: Vec<usize> = (0..truth.len()).filter(|&at| assigned[at] == class).collect();
            if members.is_empty() {
                continue;
            }
            centre.fill(0.0);
            members
                .iter()
                .for_each(|&at| ops::slice::axpy(1.0 / members.len() as f32, points.row(at), centre));
        }
    }
    assigned
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

/// Run the public model on candidate sequences, and keep the taps.
fn public(bench: &SideBench, ws: &Workspace, sequences: &[Vec<u32>]) -> Result<Vec<Vec<Vec<f32>>>, Fault> {
    let frozen = bench.lab.parameters_from(&bench.lab.work.initial)?;
    let mut taps = vec![Vec::new(); bench.layers.len()];
    for batch in sequences.chunks(32) {
        let tokens = model::Tokens::of(batch);
        let tapped = tap(ws, &bench.lab.work.model, &frozen, &tokens, &bench.layers, bench.pooled())
            .map_err(|error| Fault(format!("the audit: {error}")))?;
        for (kept, tap) in taps.iter_mut().zip(&tapped.taps) {
            kept.extend((0..tap.rows()).map(|at| tap.row(at).to_vec()));
        }
    }
    Ok(taps)
}

/// Which of the candidate texts a highest tap belongs to; all recorded texts are candidates.
fn texts(bench: &SideBench, ws: &Workspace, seen: &[Seen], batch: &Batch) -> Result<(f64, f64), Fault> {
    let tried = &seen[..seen.len().min(CANDIDATES)];
    let rows = &bench.lab.work.train;
    let sequences: Vec<Vec<u32>> = tried.iter().map(|seen| rows[seen.row].ids.clone()).collect();
    let taps = public(bench, ws, &sequences)?;
    let (Some(candidates), Some(recorded)) = (taps.last(), batch.taps.last()) else {
        return Ok((0.0, 0.0));
    };
    let hit = |at: &usize| {
        let found = nearest(candidates.iter().map(|candidate| distance(candidate, recorded.row(*at))));
        sequences[found as usize] == sequences[*at]
    };
    let hits = (0..tried.len()).filter(hit).count();
    Ok((hits as f64 / tried.len() as f64, 1.0 / tried.len() as f64))
}

/// A token of a text from its lowest tap. Where the pivot is one token, the attacker compares the tap with
/// each token's own state behind what opens every text; where it is a mean, with what the mean of texts
/// that hold the token is beyond that of all: known from texts of its own, for which the test rows stand.
fn tokens(bench: &SideBench, ws: &Workspace, seen: &[Seen], batch: &Batch) -> Result<(f64, f64), Fault> {
    let tried = &seen[..seen.len().min(CANDIDATES)];
    let Some(recorded) = batch.taps.first() else { return Ok((0.0, 0.0)) };
    let text = |seen: &Seen| &bench.lab.work.train[seen.row].ids;
    let directions = match bench.pooled() {
        Pivot::Pooled(Pooling::Last) => last_tokens(bench, ws, tried)?,
        _ => words(bench, ws)?,
    };
    let is_right = |seen: &Seen, token: u32| match bench.pooled() {
        Pivot::Pooled(Pooling::Last) => text(seen).last() == Some(&token),
        _ => text(seen).contains(&token),
    };
    let (mut hits, mut guesses) = (0usize, vec![0usize; directions.of.len()]);
    for (at, seen) in tried.iter().enumerate() {
        let likeness = |(_, direction): &(u32, Vec<f32>)| -directions.likeness(recorded.row(at), direction);
        let found = nearest(directions.of.iter().map(likeness)) as usize;
        hits += usize::from(directions.of.get(found).is_some_and(|(token, _)| is_right(seen, *token)));
        for (guess, (token, _)) in guesses.iter_mut().zip(&directions.of) {
            *guess += usize::from(is_right(seen, *token));
        }
    }
    let share = |count: usize| count as f64 / tried.len().max(1) as f64;
    Ok((share(hits), share(guesses.into_iter().max().unwrap_or(0))))
}

/// Where a state moves when a token is there.
struct Directions {
    mean: Vec<f32>,
    /// One over the variance of each coordinate.
    weights: Vec<f32>,
    of: Vec<(u32, Vec<f32>)>,
}

impl Directions {
    /// From states and the tokens that each stands for; tokens outside of `shares` of them are left out.
    fn of(states: &[Vec<f32>], tokens: &[Vec<u32>], shares: Range<f64>) -> Directions {
        let width = states.first().map_or(0, Vec::len);
        let (mut mean, mut weights) = (vec![0.0; width], vec![0.0; width]);
        states.iter().for_each(|state| ops::slice::axpy(1.0 / states.len() as f32, state, &mut mean));
        let centred = |state: &[f32]| -> Vec<f32> { state.iter().zip(&mean).map(|(x, m)| x - m).collect() };
        let mut sums: BTreeMap<u32, (usize, Vec<f32>)> = BTreeMap::new();
        for (state, tokens) in states.iter().zip(tokens) {
            let state = centred(state);
            weights.iter_mut().zip(&state).for_each(|(weight, x)| *weight += x * x / states.len() as f32);
            for token in tokens.iter().collect::<BTreeSet<_>>() {
                let (count, sum) = sums.entry(*token).or_insert_with(|| (0, vec![0.0; width]));
                *count += 1;
                ops::slice::axpy(1.0, &state, sum);
            }
        }
        weights.iter_mut().for_each(|weight| *weight = 1.0 / weight.max(1e-12));
        let within = |count: usize| shares.contains(&(count as f64 / states.len() as f64));
        let of =
            sums.into_iter().filter(|(_, (count, _))| within(*count)).map(|(token, (count, mut sum))| {
                ops::slice::scale(1.0 / count as f32, &mut sum);
                (token, sum)
            });
        let of = of.collect();
        Directions { mean, weights, of }
    }

    /// The cosine between a state and a direction, coordinates weighed by their variance.
    fn likeness(&self, state: &[f32], direction: &[f32]) -> f32 {
        let (mut along, mut length, mut size) = (0.0, 0.0, 1e-30);
        for (((x, mean), weight), d) in state.iter().zip(&self.mean).zip(&self.weights).zip(direction) {
            let x = x - mean;
            along += weight * x * d;
            length += weight * d * d;
            size += weight * x * x;
        }
        along / (length * size).max(1e-30).sqrt()
    }
}

/// The states of single tokens behind what opens every text.
fn last_tokens(bench: &SideBench, ws: &Workspace, tried: &[Seen]) -> Result<Directions, Fault> {
    let texts = tried.iter().map(|seen| &bench.lab.work.train[seen.row].ids);
    let mut vocabulary: Vec<u32> =
        texts.clone().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
    vocabulary.truncate(TOKENS);
    let open = texts.flat_map(|ids| ids.first()).next().copied().unwrap_or(0);
    let alone: Vec<Vec<u32>> = vocabulary.iter().map(|&token| vec![open, token]).collect();
    let states = public(bench, ws, &alone)?.swap_remove(0);
    let tokens: Vec<Vec<u32>> = vocabulary.into_iter().map(|token| vec![token]).collect();
    Ok(Directions::of(&states, &tokens, 0.0..2.0))
}

/// Telling words, from texts of the attacker's own: those of at least three texts, but not of every
/// twentieth.
fn words(bench: &SideBench, ws: &Workspace) -> Result<Directions, Fault> {
    let texts = &bench.lab.work.test[..bench.lab.work.test.len().min(TOKENS)];
    let tokens: Vec<Vec<u32>> = texts.iter().map(|row| row.ids.clone()).collect();
    let states = public(bench, ws, &tokens)?.swap_remove(0);
    Ok(Directions::of(&states, &tokens, 3.0 / texts.len().max(1) as f64..0.05))
}
