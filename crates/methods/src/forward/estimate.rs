//! A device's work: the derivatives of its loss along directions, and what else it tells.

use super::directions::{Drawn, Seeds, seeds};
use super::head::Moments;
use super::options::{Estimator, HeadRule, Uplink, Waves};
use super::prefix::Batch;
use super::{Bench, Task, Told};
use crate::lab::{gather, starts};
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use data::Epoch;
use federation::Fault;
use model::tangent::{self, Fan, Over};
use model::{Below, Loss, Model, backbone, price};
use ops::{Dual, Mat, Workspace};

/// Tangents beside one primal at once: more directions go in several passes.
const AT_ONCE: usize = 16;

/// The rows of a device's batch in a wave.
fn batch(bench: &Bench, node: Node, task: &Task, wave: u32) -> Vec<u32> {
    let lab = &bench.lab;
    let size = lab.work.recipe.per_device_train_batch_size;
    let epoch = Epoch::new(lab.shard(node), size, lab.seed, task.round.into(), node, 0);
    let index = match bench.options.waves {
        Waves::Batches => (wave as usize - 1) % epoch.steps().max(1),
        Waves::OneBatch => 0,
    };
    epoch.batches().nth(index).map(<[u32]>::to_vec).unwrap_or_default()
}

/// What [`run`] will take.
pub fn price(bench: &Bench, node: Node, task: &Task, wave: u32) -> Cost {
    let (lab, scope, options) = (&bench.lab, &bench.scope, &bench.options);
    let Model { spec, task: what, layout, .. } = &*lab.work.model;
    let rows = batch(bench, node, task, wave);
    let starts_of = |rows: &[u32]| starts(&lab.work.train, rows.iter().map(|&row| row as usize));
    let starts = starts_of(&rows);
    if options.estimator == Estimator::Backward {
        let cost = price::training(spec, what, layout, &starts, lab.work.recipe.activations);
        return Cost { flops: cost.flops, bytes: cost.bytes + held(bench) };
    }
    let mut cost = bench.prefix.price(lab, &starts);
    let input = 4 * (spec.width * starts.last().map_or(0, |&end| end as usize)) as u64;
    let from = |lanes: usize| {
        let moves = scope.moves.clone();
        let cost = price::Tangents { spec, task: what, layout, starts: &starts, lanes, moves };
        cost.loss_from(scope.first)
    };
    let activations = lab.work.recipe.activations;
    let plain = price::Split { spec, task: what, layout, at: scope.first, starts: &starts, activations };
    let plain = plain.upper_loss();
    let passes = |cost: Cost, times: u64| Cost { flops: cost.flops * times, bytes: cost.bytes + input };
    let lanes = lanes(bench, task);
    match options.estimator {
        Estimator::Tangent if lanes > 0 => {
            let (full, rest) = (lanes / AT_ONCE, lanes % AT_ONCE);
            let parts = [(AT_ONCE, full as u64), (rest, u64::from(rest > 0))];
            for (lanes, times) in parts.into_iter().filter(|(_, times)| *times > 0) {
                cost = cost + passes(from(lanes), times);
            }
        }
        Estimator::Difference => cost = cost + passes(plain, 2 * lanes as u64),
        Estimator::Tangent | Estimator::Backward => {}
    }
    if exact_head(bench) || lanes == 0 {
        cost = cost + passes(plain, 1);
    }
    if task.moments && wave == 1 {
        let size = lab.work.recipe.per_device_eval_batch_size.get();
        for rows in lab.shard(node).chunks(size) {
            cost = cost + price::inference(spec, what, layout, &starts_of(rows));
        }
    }
    Cost { flops: cost.flops, bytes: cost.bytes + held(bench) }
}

/// Memory of a job beside the activations: `theta`, a copy or a gradient, and the moments.
fn held(bench: &Bench) -> u64 {
    let moments = match bench.options.head {
        HeadRule::ClosedForm => Moments::len(&bench.lab) as u64,
        HeadRule::Exact | HeadRule::Perturbed => 0,
    };
    8 * bench.lab.parameters() as u64 + 4 * moments
}

/// Tangents that a wave takes beside a primal.
fn lanes(bench: &Bench, task: &Task) -> usize {
    if task.moving && !bench.scope.moves.is_empty() { bench.options.perturbations as usize } else { 0 }
}

fn exact_head(bench: &Bench) -> bool {
    bench.options.head == HeadRule::Exact
}

pub fn run(bench: &Bench, node: Node, task: &Task, wave: u32, meter: &Meter) -> Result<Told, Fault> {
    let lab = &bench.lab;
    let _held = hold(meter, held(bench))?;
    let theta = lab.parameters_from(&task.theta)?;
    let rows = batch(bench, node, task, wave);
    let workspace = Workspace::new(meter, 1);
    let mut told = Told { wave, examples: rows.len() as u32, ..Told::default() };
    if rows.is_empty() {
        return Err(Fault("the device has no rows".into()));
    }
    if bench.options.estimator == Estimator::Backward {
        return backward(bench, &theta, &rows, &workspace, told);
    }
    let batch = bench.prefix.batch(lab, &theta, &rows, &workspace)?;
    let count = if lanes(bench, task) > 0 { bench.options.directions(rows.len()) } else { 0 };
    let directions = seeds(bench, task, node, wave, count as u32);
    let pass = Pass { bench, batch: &batch, ws: &workspace };
    let fault = |error: model::Error| Fault(error.to_string());
    let mut loss = None;
    match bench.options.estimator {
        Estimator::Tangent => {
            for directions in directions.chunks(bench.options.perturb.directions(AT_ONCE, rows.len())) {
                let found = pass.tangents(&theta, directions).map_err(fault)?;
                told.slopes.extend(found.slopes.iter().map(|slope| *slope as f32));
                loss = Some(found.loss);
            }
        }
        Estimator::Difference | Estimator::Backward => {
            for direction in &directions {
                let (slope, middle) = pass.difference(&theta, direction).map_err(fault)?;
                told.slopes.push(slope);
                loss = Some(middle);
            }
        }
    }
    if exact_head(bench) || directions.is_empty() {
        let (head, at) = pass.head(&theta).map_err(fault)?;
        told.head = if exact_head(bench) { Blob::from_f32(&head) } else { Blob::default() };
        loss = Some(at);
    }
    told.loss = loss.map_or(0.0, |loss| loss.mean() as f32);
    if bench.options.uplink == Uplink::Dense {
        told.dense = Blob::from_f32(&dense(bench, &directions, &told.slopes));
        told.slopes.clear();
    }
    drop(batch);
    if task.moments && wave == 1 {
        told.moments = Moments::of_device(lab, &theta, node, &workspace)?.to_blob();
    }
    Ok(told)
}

/// The mean of `slope * direction`.
fn dense(bench: &Bench, directions: &[Seeds], slopes: &[f32]) -> Vec<f32> {
    let len = bench.scope.moves.len();
    let (mut mean, mut direction) = (vec![0f32; len], vec![0f32; len]);
    let drawn = Drawn { bench, directions };
    for (index, slope) in slopes.iter().enumerate() {
        drawn.whole(index, &mut direction);
        ops::slice::axpy(slope / slopes.len() as f32, &direction, &mut mean);
    }
    mean
}

/// A whole gradient, as in FedSGD.
fn backward(
    bench: &Bench,
    theta: &[f32],
    rows: &[u32],
    ws: &Workspace,
    mut told: Told,
) -> Result<Told, Fault> {
    let work = &bench.lab.work;
    let (tokens, targets) = gather(&work.train, rows.iter().map(|&row| row as usize));
    let mut gradient = vec![0f32; theta.len()];
    let kept = work.recipe.activations;
    let loss = model::loss_and_gradient(ws, &work.model, theta, &tokens, &targets, kept, &mut gradient);
    told.loss = loss.map_err(|error| Fault(error.to_string()))?.mean() as f32;
    told.dense = Blob::from_f32(&gradient);
    Ok(told)
}

/// Passes over one batch from the first trained block.
struct Pass<'a> {
    bench: &'a Bench,
    batch: &'a Batch,
    ws: &'a Workspace,
}

impl Pass<'_> {
    fn model(&self) -> &Model {
        &self.bench.lab.work.model
    }

    fn blocks(&self) -> std::ops::Range<usize> {
        self.bench.scope.first..self.model().spec.layers
    }

    fn input(&self) -> Result<Mat, model::Error> {
        Ok(self.ws.copy(&self.batch.x)?)
    }

    fn tangents(&self, theta: &[f32], directions: &[Seeds]) -> Result<tangent::Derivatives, model::Error> {
        let directions = Drawn { bench: self.bench, directions };
        let over = self.bench.options.perturb;
        let fan = Fan { directions: &directions, over };
        let Batch { tokens, targets, .. } = self.batch;
        let x = Dual::constant(self.input()?);
        let x = tangent::blocks(self.ws, self.model(), theta, self.blocks(), x, &tokens.starts, fan)?;
        let mut found = tangent::head_loss(self.ws, self.model(), theta, x, (tokens, targets), fan)?;
        if over == Over::Sequences {
            // A sequence's part of the batch's loss, times their number: the mean of `slope * direction` over
            // all sequences is then the batch's forward gradient, whatever part of the predictions each has.
            let shares = tangent::shares(tokens, targets)?;
            let scales = shares.iter().map(|share| share * shares.len() as f64).cycle();
            found.slopes.iter_mut().zip(scales).for_each(|(slope, scale)| *slope *= scale);
        }
        Ok(found)
    }

    fn last(&self, theta: &[f32]) -> Result<Mat, model::Error> {
        let (x, starts) = (self.input()?, &self.batch.tokens.starts);
        backbone::forward(self.ws, self.model(), theta, self.blocks(), x, starts, |_, _| {})
    }

    fn loss(&self, theta: &[f32]) -> Result<Loss, model::Error> {
        let Batch { tokens, targets, .. } = self.batch;
        model::head_loss(self.ws, self.model(), theta, self.last(theta)?, tokens, targets)
    }

    /// The central difference along a direction, perturbing a copy of `theta` in place, and the loss at
    /// its upper end.
    fn difference(&self, theta: &[f32], direction: &Seeds) -> Result<(f32, Loss), model::Error> {
        let (moves, h) = (self.bench.scope.moves.clone(), self.bench.options.step_size);
        let drawn = Drawn { bench: self.bench, directions: std::slice::from_ref(direction) };
        let mut direction = vec![0f32; moves.len()];
        drawn.whole(0, &mut direction);
        let at = |step: f32| {
            let mut theta = theta.to_vec();
            ops::slice::axpy(step, &direction, &mut theta[moves.clone()]);
            self.loss(&theta)
        };
        let (above, below) = (at(h)?, at(-h)?);
        Ok((((above.mean() - below.mean()) / (2.0 * f64::from(h))) as f32, above))
    }

    /// The exact gradient of the head, for which the forward pass is enough.
    fn head(&self, theta: &[f32]) -> Result<(Vec<f32>, Loss), model::Error> {
        let Batch { tokens, targets, .. } = self.batch;
        let mut gradient = vec![0f32; theta.len()];
        let (x, batch) = (self.last(theta)?, (tokens, targets));
        let head = self.bench.scope.head.clone();
        let found = model::head_loss_and_gradient(
            self.ws,
            self.model(),
            theta,
            x,
            batch,
            Below::Frozen,
            &mut gradient,
        )?;
        Ok((gradient[head].to_vec(), found.0))
    }
}
