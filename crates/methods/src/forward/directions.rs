//! Which directions a wave takes: drawn from seeds that both ends know, and chosen where that is asked for.

use super::options::{Candidates, Options};
use super::{Bench, Task};
use base::{Blob, Node, Seed};
use federation::Fault;
use model::Directions;
use std::ops::Range;

/// The seeds of one direction: one for all of it, or one for each tensor that is moved.
pub type Seeds = Vec<Seed>;

/// Directions as they are drawn. An element depends on its seed and its place alone.
pub struct Drawn<'a> {
    pub bench: &'a Bench,
    pub directions: &'a [Seeds],
}

impl Drawn<'_> {
    /// Writes all of one direction.
    pub fn whole(&self, index: usize, to: &mut [f32]) {
        self.write(index, self.moves().start, to);
    }
}

impl Directions for Drawn<'_> {
    fn count(&self) -> usize {
        self.directions.len()
    }

    fn moves(&self) -> Range<usize> {
        self.bench.scope.moves.clone()
    }

    fn write(&self, index: usize, first: usize, to: &mut [f32]) {
        let draw = self.bench.options.draw;
        if let [seed] = self.directions[index].as_slice() {
            return draw.write(*seed, first, to);
        }
        let asked = first..first + to.len();
        for (tensor, seed) in tensors(self.bench).zip(&self.directions[index]) {
            let (start, end) = (tensor.start.max(asked.start), tensor.end.min(asked.end));
            if start < end {
                draw.write(*seed, start, &mut to[start - first..end - first]);
            }
        }
    }
}

/// The tensors that are moved.
fn tensors(bench: &Bench) -> impl Iterator<Item = Range<usize>> + '_ {
    let moves = &bench.scope.moves;
    let ranges = bench.lab.work.model.layout.sites.iter().map(|site| site.range());
    ranges.filter(|range| moves.start <= range.start && range.end <= moves.end && !range.is_empty())
}

/// The seeds of the directions that a device takes in a wave: those picked, or the first ones.
pub fn seeds(bench: &Bench, task: &Task, node: Node, wave: u32, count: u32) -> Vec<Seeds> {
    let picks = task.picks.get(wave as usize - 1).map_or(&[][..], Vec::as_slice);
    if bench.options.candidates == Candidates::Tensors && !picks.is_empty() {
        let pool = pool(bench, task.round, wave);
        let of_direction = |picks: &[u32]| picks.iter().map(|pick| candidate(pool, *pick)).collect();
        return picks.chunks(tensors(bench).count()).map(of_direction).collect();
    }
    let own = of_device(bench, task.round, node, wave);
    let pick = |index: u32| picks.get(index as usize).copied().unwrap_or(index);
    (0..count).map(|index| vec![candidate(own, pick(index))]).collect()
}

/// Where a device's own candidates of a wave are drawn.
fn of_device(bench: &Bench, round: u32, node: Node, wave: u32) -> Seed {
    let place = bench.lab.seed.child("direction", u64::from(round)).child("device", u64::from(node.0));
    place.child("wave", u64::from(wave))
}

/// Where the candidates of a wave that all devices share are drawn.
fn pool(bench: &Bench, round: u32, wave: u32) -> Seed {
    bench.lab.seed.child("direction", u64::from(round)).child("pool", u64::from(wave))
}

fn candidate(place: Seed, index: u32) -> Seed {
    place.child("candidate", u64::from(index))
}

/// For each device and wave the candidates to take, by their cosine to the mean gradient of an earlier round
/// (discriminative sampling; FwdLLM, section 3.4). The mean of what is left is no longer unbiased: it leans
/// along the old gradient, by about the factor by which the kept cosines squared exceed 1 / d.
pub fn pick(bench: &Bench, round: u32, nodes: &[Node], old: &Blob) -> Result<Vec<Vec<Vec<u32>>>, Fault> {
    let old = old.to_f32(bench.scope.moves.len()).map_err(|error| Fault(error.to_string()))?;
    let waves = 1..=bench.options.most_waves;
    Ok(match bench.options.candidates {
        Candidates::Directions => {
            let of_wave = |node, wave| pick_directions(bench, of_device(bench, round, node, wave), &old);
            nodes.iter().map(|node| waves.clone().map(|wave| of_wave(*node, wave)).collect()).collect()
        }
        Candidates::Tensors => {
            let waves = waves.map(|wave| pick_tensors(bench, pool(bench, round, wave), nodes.len(), &old));
            let waves: Vec<Vec<Vec<u32>>> = waves.collect();
            (0..nodes.len())
                .map(|rank| waves.iter().map(|devices| devices[rank].clone()).collect())
                .collect()
        }
    })
}

/// Of a device's candidates those with the largest |cosine|.
fn pick_directions(bench: &Bench, place: Seed, old: &[f32]) -> Vec<u32> {
    let (options, moves) = (&bench.options, &bench.scope.moves);
    let mut cosines = cosines(options, place, moves, old, options.perturbations);
    cosines.iter_mut().for_each(|cosine| *cosine = cosine.abs());
    highest(&cosines, options.perturbations)
}

/// For each device the candidates of each direction's tensors. Every tensor chooses for itself among as many
/// candidates as there are in all, those with the highest cosine, sign and all: as the public code does.
fn pick_tensors(bench: &Bench, pool: Seed, devices: usize, old: &[f32]) -> Vec<Vec<u32>> {
    let (options, start) = (&bench.options, bench.scope.moves.start);
    let (each, all) = (options.perturbations as usize, options.perturbations * devices as u32);
    let of_tensor = |tensor: Range<usize>| {
        let old = &old[tensor.start - start..tensor.end - start];
        highest(&cosines(options, pool, &tensor, old, all), all)
    };
    let tensors: Vec<Vec<u32>> = tensors(bench).map(of_tensor).collect();
    let direction = |index: usize| tensors.iter().map(move |kept| kept[index]);
    (0..devices).map(|rank| (rank * each..(rank + 1) * each).flat_map(direction).collect()).collect()
}

/// The cosines to `old` of so many candidates that `kept` of them are the share to keep.
fn cosines(options: &Options, place: Seed, range: &Range<usize>, old: &[f32], kept: u32) -> Vec<f64> {
    let candidates = (f64::from(kept) / options.keep).round() as u32;
    let mut direction = vec![0f32; range.len()];
    let mut cosine = |index| {
        options.draw.write(candidate(place, index), range.start, &mut direction);
        ops::slice::dot(&direction, old) / ops::slice::norm2(&direction).sqrt()
    };
    (0..candidates).map(&mut cosine).collect()
}

/// The places of the `count` highest, in order.
fn highest(values: &[f64], count: u32) -> Vec<u32> {
    let mut ranked: Vec<(f64, u32)> = values.iter().copied().zip(0..).collect();
    ranked.sort_by(|left, right| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1)));
    let mut kept: Vec<u32> = ranked.iter().take(count as usize).map(|(_, index)| *index).collect();
    kept.sort_unstable();
    kept
}
