//! Tokens and texts from taps.

use super::{Seen, Tally, distance, nearest};
use crate::side::backbone::Backbone;
use crate::side::cache::{Cache, RowReader};
use crate::side::trainer::{Sample, read};
use federation::Fault;
use model::side::Pivot;
use model::{Pooling, Tokens};
use ops::{Mat, Workspace};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Tokens that the attack on the lowest tap tries, or texts that it learns them from, at most.
const TOKENS: usize = 2000;

/// How a text's states are one row: those of a language model are its last token's.
fn pooling(backbone: &Backbone) -> Pooling {
    backbone.pooling.unwrap_or(Pooling::Last)
}

/// The recorded taps of these samples.
fn taps(ws: &Workspace, traffic: &Cache, backbone: &Backbone, tried: &[Seen]) -> Result<Vec<Mat>, Fault> {
    let samples: Vec<Sample> = tried.iter().map(|seen| seen.sample).collect();
    Ok(read(ws, &mut RowReader::new(traffic), backbone.shape, &samples)?.taps)
}

/// Run the public model on candidate sequences, and keep the taps.
fn public<S: AsRef<[u32]>>(
    ws: &Workspace,
    backbone: &Backbone,
    sequences: &[S],
) -> Result<Vec<Vec<Vec<f32>>>, Fault> {
    let (frozen, pivot) = (backbone.frozen()?, Pivot::Pooled(pooling(backbone)));
    let mut taps = vec![Vec::new(); backbone.layers.len()];
    for batch in sequences.chunks(32) {
        let tapped = backbone.tap(ws, &frozen, &Tokens::of(batch), &pivot)?;
        for (kept, tap) in taps.iter_mut().zip(&tapped.taps) {
            kept.extend((0..tap.rows()).map(|at| tap.row(at).to_vec()));
        }
    }
    Ok(taps)
}

/// Which of the candidate texts a highest tap belongs to; all texts that are tried are candidates.
pub(super) fn whole(
    ws: &Workspace,
    traffic: &Cache,
    backbone: &Backbone,
    tried: &[Seen],
) -> Result<Tally, Fault> {
    let texts: Vec<&[u32]> = tried.iter().map(|seen| seen.text).collect();
    let (candidates, recorded) = (public(ws, backbone, &texts)?, taps(ws, traffic, backbone, tried)?);
    let (Some(candidates), Some(recorded)) = (candidates.last(), recorded.last()) else {
        return Ok(Tally::default());
    };
    let hit = |at: &usize| {
        let found = nearest(candidates.iter().map(|candidate| distance(candidate, recorded.row(*at))));
        texts[found as usize] == texts[*at]
    };
    Ok(Tally { right: (0..texts.len()).filter(hit).count(), blind: 1, tried: texts.len() })
}

/// A token of a text from its lowest tap: the one whose states, in texts of the attacker's own, lie in the tap's
/// direction. The test rows stand for these. Where the pivot is one token of a classifier, the attacker needs
/// none: it takes each token's own state behind what opens every text.
pub(super) fn tokens(
    ws: &Workspace,
    traffic: &Cache,
    backbone: &Backbone,
    tried: &[Seen],
) -> Result<Tally, Fault> {
    let is_last = pooling(backbone) == Pooling::Last;
    let directions = match backbone.pooling {
        None => positions(ws, backbone)?,
        Some(Pooling::Last) => last_tokens(ws, backbone, tried)?,
        Some(Pooling::Cls | Pooling::Mean) => words(ws, backbone)?,
    };
    let recorded = taps(ws, traffic, backbone, tried)?.swap_remove(0);
    let is_right = |text: &[u32], token: u32| {
        if is_last { text.last() == Some(&token) } else { text.contains(&token) }
    };
    let (mut right, mut guesses) = (0, vec![0; directions.of.len()]);
    for (at, seen) in tried.iter().enumerate() {
        let likeness = |(_, direction): &(u32, Vec<f32>)| -directions.likeness(recorded.row(at), direction);
        let found = nearest(directions.of.iter().map(likeness)) as usize;
        right +=
            usize::from(directions.of.get(found).is_some_and(|(token, _)| is_right(seen.text, *token)));
        for (guess, (token, _)) in guesses.iter_mut().zip(&directions.of) {
            *guess += usize::from(is_right(seen.text, *token));
        }
    }
    Ok(Tally { right, blind: guesses.into_iter().max().unwrap_or(0), tried: tried.len() })
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
    fn of<S: AsRef<[u32]>>(states: &[Vec<f32>], tokens: &[S], shares: Range<f64>) -> Directions {
        let width = states.first().map_or(0, Vec::len);
        let (mut mean, mut weights) = (vec![0.0; width], vec![0.0; width]);
        states.iter().for_each(|state| ops::slice::axpy(1.0 / states.len() as f32, state, &mut mean));
        let centred = |state: &[f32]| -> Vec<f32> { state.iter().zip(&mean).map(|(x, m)| x - m).collect() };
        let mut sums: BTreeMap<u32, (usize, Vec<f32>)> = BTreeMap::new();
        for (state, tokens) in states.iter().zip(tokens) {
            let state = centred(state);
            weights.iter_mut().zip(&state).for_each(|(weight, x)| *weight += x * x / states.len() as f32);
            for token in tokens.as_ref().iter().collect::<BTreeSet<_>>() {
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
fn last_tokens(ws: &Workspace, backbone: &Backbone, tried: &[Seen]) -> Result<Directions, Fault> {
    let texts = tried.iter().map(|seen| seen.text);
    let mut vocabulary: Vec<u32> =
        texts.clone().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
    vocabulary.truncate(TOKENS);
    let open = texts.flat_map(<[u32]>::first).next().copied().unwrap_or(0);
    let alone: Vec<[u32; 2]> = vocabulary.iter().map(|&token| [open, token]).collect();
    let states = public(ws, backbone, &alone)?.swap_remove(0);
    let tokens: Vec<[u32; 1]> = vocabulary.into_iter().map(|token| [token]).collect();
    Ok(Directions::of(&states, &tokens, 0.0..2.0))
}

/// Telling words, from texts of the attacker's own: those of at least three texts, but not of every
/// twentieth.
fn words(ws: &Workspace, backbone: &Backbone) -> Result<Directions, Fault> {
    let texts = &backbone.test[..backbone.test.len().min(TOKENS)];
    let tokens: Vec<&[u32]> = texts.iter().map(|row| row.ids.as_slice()).collect();
    let states = public(ws, backbone, &tokens)?.swap_remove(0);
    Ok(Directions::of(&states, &tokens, 3.0 / texts.len().max(1) as f64..0.05))
}

/// Each token by the states of the positions where it stands in the attacker's own texts.
fn positions(ws: &Workspace, backbone: &Backbone) -> Result<Directions, Fault> {
    let rows = backbone.test.iter().map(|row| &row.ids);
    let prefixes = rows.flat_map(|ids| (1..=ids.len()).map(|end| &ids[..end])).take(TOKENS);
    let prefixes: Vec<&[u32]> = prefixes.collect();
    let states = public(ws, backbone, &prefixes)?.swap_remove(0);
    let tokens: Vec<&[u32]> = prefixes.iter().map(|prefix| &prefix[prefix.len() - 1..]).collect();
    Ok(Directions::of(&states, &tokens, 0.0..2.0))
}
