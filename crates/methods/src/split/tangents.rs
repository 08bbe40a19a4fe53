//! The device's half by forward passes alone: the server's gradient of the activations comes down, the
//! device takes tangents of its activations along seeded directions, and steps by their inner products.
//!
//! With `lambda` the gradient of the loss by the activations `z(theta)` and `v` a direction, `lambda . dz v`
//! is the derivative of the loss along `v`, so that its mean times `v` is the gradient. Every sequence of
//! a batch has directions of its own: for the same products, as many derivatives as there are sequences.
//!
//! Sources: HO-SFL (arXiv 2603.14773), with exact tangents in the place of its differences; the estimator
//! is FwdLLM's (arXiv 2308.13894, equation 2).

use super::device::Pass;
use super::parts::Part;
use super::step::{backward_bytes, batch, indices, named, rows_of, tread};
use super::{Options, Terms};
use crate::lab::{Lab, gather};
use crate::train::hold;
use base::{Blob, Cost, Meter, Seed};
use federation::Fault;
use model::optim::Optimizer;
use model::tangent::{self, Fan, Over};
use model::{Directions, Draw, Layout, Model, Seeded, Site, SiteKind, price};
use ops::{Dual, Workspace};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `[method] forward_gradient`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForwardGradient {
    /// Directions of each sequence in a step.
    pub perturbations: u32,
    /// So many of them at once: more read the weights less often and hold more.
    pub lanes: u32,
    /// Of every LoRA pair so many columns of B move, and A stays as it was drawn (LoRA-FA, arXiv 2308.03303):
    /// the relative error of an estimate grows with the root of how many parameters move.
    pub rank: u32,
    /// A factor on the learning rate of the device's half: estimates are noisy, and an optimiser that
    /// rescales them steps as far along noise.
    pub rate: f32,
}

impl Default for ForwardGradient {
    fn default() -> ForwardGradient {
        ForwardGradient { perturbations: 4, lanes: 2, rank: 1, rate: 1.0 }
    }
}

impl ForwardGradient {
    /// The number of directions of each pass.
    fn passes(&self) -> impl Iterator<Item = u32> {
        let (lanes, all) = (self.lanes.max(1), self.perturbations.max(1));
        (0..all.div_ceil(lanes)).map(move |pass| lanes.min(all - pass * lanes))
    }
}

/// What a reader must know of estimates on these terms: by how much their noise exceeds what they estimate.
pub fn note(lab: &Lab, options: &Options, terms: &Terms) -> String {
    let (layout, config) = (&lab.work.model.layout, options.forward_gradient);
    let moved = |site: &Site| match site.kind {
        SiteKind::LoraA => 0,
        SiteKind::LoraB => site.rows * site.cols.min(config.rank.max(1) as usize),
        _ => site.rows * site.cols,
    };
    let below = layout.sites.iter().filter(|site| site.range().end <= layout.cut(terms.cut()));
    let parameters: usize = below.map(moved).sum();
    let batch = lab.work.recipe.per_device_train_batch_size.get();
    let derivatives = batch * config.perturbations.max(1) as usize;
    format!(
        "forward gradients estimate {parameters} parameters from {derivatives} derivatives a step: about {:.0} times as \
         much noise as gradient, which helps while gradients are large and costs once they are small",
        (parameters as f64 / derivatives as f64).max(1.0)
    )
}

/// A step of the device's half from the gradient of its activations.
pub fn step(
    lab: &Lab,
    options: &Options,
    pass: &Pass,
    (step, gradient): (u32, &Blob),
    meter: &Meter,
) -> Result<(Blob, Optimizer), Fault> {
    let (model, config) = (&*lab.work.model, options.forward_gradient);
    let (rows, count) = batch(lab, pass, step)?;
    let (tokens, _) = gather(&lab.work.train, indices(&rows));
    let part = Part::of_device(&model.layout, options.labels, &pass.terms);
    let blocks = Part::of_blocks(&model.layout, options.labels, &pass.terms);
    let _held = hold(meter, backward_bytes(lab, pass.terms.traffic, tokens.rows(), blocks.len()))?;
    let mut theta = part.spread(&pass.theta)?;
    let mut grad = vec![0f32; theta.len()];
    let workspace = Workspace::new(meter, 1);
    let width = model.spec.width;
    let mut lambda =
        workspace.scratch(tokens.rows(), width).map_err(|error| named(pass, step)(error.into()))?;
    pass.terms.traffic.unpack(gradient, width, &mut lambda)?;
    let mut drawn = 0;
    for lanes in config.passes() {
        let seeds = seeds(lab, pass, step, drawn, lanes * tokens.sequences() as u32);
        drawn += seeds.len() as u32;
        let drawn = Seeded { seeds: &seeds, draw: Draw::Normal, moves: 0..model.layout.cut(pass.cut()) };
        let directions = Narrow { drawn, layout: &model.layout, rank: config.rank.max(1) as usize };
        let fan = Fan { directions: &directions, over: Over::Sequences };
        let z = tangent::embed(&workspace, model, &theta, &tokens, fan)
            .and_then(|x| tangent::blocks(&workspace, model, &theta, 0..pass.cut(), x, &tokens.starts, fan))
            .map_err(named(pass, step))?;
        let slopes = slopes(&z, &lambda, &tokens.starts);
        drop(z);
        accumulate(&directions, &slopes, 1.0 / config.perturbations.max(1) as f32, &mut grad);
    }
    let rate = config.rate * pass.terms.rate(lab, pass.round, step, count);
    let optimizer = tread(lab, &blocks, &mut theta, &grad, pass.optimizer.clone(), rate)?;
    Ok((Blob::from_f32(&part.gather(&theta)), optimizer))
}

/// Directions that leave LoRA's A alone, and of B all but the first columns.
struct Narrow<'a> {
    drawn: Seeded<'a>,
    layout: &'a Layout,
    rank: usize,
}

impl Directions for Narrow<'_> {
    fn count(&self) -> usize {
        self.drawn.count()
    }

    fn moves(&self) -> Range<usize> {
        self.drawn.moves()
    }

    fn write(&self, index: usize, first: usize, to: &mut [f32]) {
        let asked = first..first + to.len();
        let touched = |site: &&Site| site.range().start < asked.end && asked.start < site.range().end;
        let mut sites = self.layout.sites.iter().filter(touched).peekable();
        if sites.peek().is_some_and(|site| site.kind == SiteKind::LoraA && site.range().end >= asked.end) {
            return to.fill(0.0);
        }
        self.drawn.write(index, first, to);
        for site in sites {
            let stays = |place: &usize| match site.kind {
                SiteKind::LoraA => true,
                SiteKind::LoraB => (place - site.offset) % site.cols >= self.rank,
                _ => false,
            };
            let both = site.range().start.max(asked.start)..site.range().end.min(asked.end);
            both.filter(stays).for_each(|place| to[place - first] = 0.0);
        }
    }
}

/// A seed for each direction of a pass.
fn seeds(lab: &Lab, pass: &Pass, step: u32, from: u32, count: u32) -> Vec<Seed> {
    let path = lab.seed.child("forward-gradient", u64::from(pass.round));
    let path = path.child("device", u64::from(pass.node.0)).child("step", u64::from(step));
    (from..from + count).map(|index| path.child("direction", u64::from(index))).collect()
}

/// For each direction the inner product of its tangents with the gradient, over the rows it moves:
/// direction `lane * B + b` is that of sequence b.
fn slopes(z: &Dual, lambda: &[f32], starts: &[u32]) -> Vec<f32> {
    let dot =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let of_lane = |lane: &[f32]| -> Vec<f32> {
        let cells = |row: u32| row as usize * z.width();
        let rows = starts.windows(2).map(|pair| cells(pair[0])..cells(pair[1]));
        rows.map(|cells| dot(&lane[cells.clone()], &lambda[cells]) as f32).collect()
    };
    (0..z.directions()).flat_map(|lane| of_lane(z.tangent(lane))).collect()
}

/// `grad += scale * sum of slope * direction`, a stretch at a time, so that no direction stands in
/// memory whole.
fn accumulate(directions: &Narrow<'_>, slopes: &[f32], scale: f32, grad: &mut [f32]) {
    const STRETCH: usize = 1024;
    let mut part = [0f32; STRETCH];
    let moved = &mut grad[directions.moves()];
    for (place, stretch) in moved.chunks_mut(STRETCH).enumerate() {
        let part = &mut part[..stretch.len()];
        for (index, slope) in slopes.iter().enumerate() {
            directions.write(index, place * STRETCH, part);
            ops::slice::axpy(scale * slope, part, stretch);
        }
    }
}

/// What [`step`] will take.
pub fn price(lab: &Lab, options: &Options, terms: &Terms, starts: &[u32]) -> Cost {
    let Model { spec, task, layout, .. } = &*lab.work.model;
    let config = options.forward_gradient;
    let mut cost = Cost::FREE;
    for lanes in config.passes() {
        let moves = 0..layout.cut(terms.cut());
        let pass = price::Tangents { spec, task, layout, starts, lanes: lanes as usize, moves };
        let sequences = starts.len().saturating_sub(1) as u64;
        let sums = 2 * u64::from(lanes) * sequences * layout.cut(terms.cut()) as u64;
        let pass = pass.lower(terms.cut());
        cost = cost + Cost { flops: pass.flops + sums, ..pass };
    }
    let trained = Part::of_blocks(layout, options.labels, terms).len();
    let (rows, width) = (rows_of(starts), spec.width);
    let held = backward_bytes(lab, terms.traffic, rows, trained) + 4 * (rows * width) as u64;
    Cost { bytes: cost.bytes + held, ..cost }
}
