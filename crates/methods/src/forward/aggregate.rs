//! The server's work: rebuild the directions, average, measure the variance, and step.

use super::directions::{Drawn, seeds};
use super::head::Moments;
use super::options::{HeadRule, Pacing, Uplink};
use super::{Bench, Estimator, Task, Told};
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use federation::Fault;
use model::optim::{Optimizer, clip_norm};
use model::tangent::Over;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What is to be averaged, and what it is a step of.
#[derive(Clone, Serialize, Deserialize)]
pub struct Aggregate {
    /// With the parameters before the step.
    pub task: Task,
    /// Of what is below the head, and of the head; at rest before the first step.
    pub optimizers: Option<(Optimizer, Optimizer)>,
    /// Moments gathered in earlier rounds.
    pub moments: Blob,
    /// What counts, by tier, then by node, then by wave. A tier is decided on when it is complete.
    pub told: Vec<Piece>,
    /// No tier follows: step whatever the variance is.
    pub last: bool,
}

/// One wave of one device.
#[derive(Clone, Serialize, Deserialize)]
pub struct Piece {
    pub tier: u32,
    pub node: Node,
    pub picks: Vec<Vec<u32>>,
    pub told: Told,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum Aggregated {
    /// These devices gave what cannot be used, and why.
    Objections(Vec<(Node, String)>),
    /// Not enough perturbations yet.
    More(Spread),
    Stepped(Box<Step>),
}

/// A step, and what it was made of.
#[derive(Clone, Serialize, Deserialize)]
pub struct Step {
    pub theta: Blob,
    pub optimizers: (Optimizer, Optimizer),
    pub moments: Blob,
    /// The mean forward gradient, by which the next directions may be picked.
    pub gradient: Blob,
    pub spread: Spread,
    /// The last tier that counts.
    pub tier: u32,
    pub loss: f64,
    pub examples: u64,
    pub learning_rate: f64,
}

/// How far the halves of the forward gradients lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub perturbations: u64,
    /// The paper's D(g), over all that is perturbed.
    pub variance: f64,
    /// The public code's: the mean over the elements of the one tensor it looks at.
    pub tensor_variance: f64,
    /// Squared length of the mean's noise, and of what is left without it.
    pub noise: f64,
    pub signal: f64,
}

impl Spread {
    pub fn noise_to_signal(&self) -> f64 {
        self.noise / self.signal.max(f64::MIN_POSITIVE)
    }

    fn enough(&self, bench: &Bench) -> bool {
        match bench.options.pacing {
            Pacing::Fixed => false,
            Pacing::Variance => self.variance < bench.options.threshold,
            Pacing::TensorVariance => self.tensor_variance < bench.options.threshold,
            Pacing::NoiseToSignal => self.signal > 0.0 && self.noise_to_signal() < bench.options.threshold,
        }
    }
}

pub fn price(bench: &Bench, job: &Aggregate) -> Cost {
    let perturbations: usize = job.told.iter().map(|piece| piece.told.slopes.len().max(1)).sum();
    let flops = 20 * (bench.scope.moves.len() * perturbations) as u64;
    Cost { flops, bytes: memory(bench) }
}

/// Two halves in f64, a direction, `theta`, a gradient and two optimisers; the moments.
fn memory(bench: &Bench) -> u64 {
    let moments = match bench.options.head {
        HeadRule::ClosedForm => 20 * Moments::len(&bench.lab) as u64,
        HeadRule::Exact | HeadRule::Perturbed => 0,
    };
    36 * bench.lab.parameters() as u64 + moments
}

pub fn run(bench: &Bench, job: Aggregate, meter: &Meter) -> Result<Aggregated, Fault> {
    let _held = hold(meter, memory(bench))?;
    let objections: Vec<(Node, String)> =
        job.told.iter().filter_map(|piece| Some((piece.node, objection(bench, piece)?))).collect();
    if !objections.is_empty() {
        return Ok(Aggregated::Objections(objections));
    }
    let mut halves = Halves::new(bench.scope.moves.len());
    let mut used = 0;
    for tier in job.told.chunk_by(|left, right| left.tier == right.tier) {
        for piece in tier {
            halves.add(bench, &job.task, piece)?;
        }
        used += tier.len();
        if halves.spread(&bench.scope.checked).enough(bench) {
            return step(bench, &job, used, halves);
        }
    }
    if job.last {
        step(bench, &job, used, halves)
    } else {
        Ok(Aggregated::More(halves.spread(&bench.scope.checked)))
    }
}

/// What is wrong with what a device told, if anything.
fn objection(bench: &Bench, Piece { told, .. }: &Piece) -> Option<String> {
    let vector = |what: &str, blob: &Blob, len: usize| match blob.to_f32(len) {
        Err(error) => Some(format!("{what}: {error}")),
        Ok(values) if !ops::slice::all_finite(&values) => Some(format!("{what} is not finite")),
        Ok(_) => None,
    };
    let dense = (!told.dense.is_empty())
        .then(|| vector("its forward gradient", &told.dense, bench.scope.moves.len()));
    let head = (!told.head.is_empty())
        .then(|| vector("the gradient of its head", &told.head, bench.scope.head.len()));
    let moments = || Moments::zero(&bench.lab).add(&told.moments).err();
    let moments = (!told.moments.is_empty()).then(moments);
    dense.flatten().or_else(|| head.flatten()).or_else(|| moments.flatten())
}

/// The forward gradients in two halves, weighted by examples: devices alternate between them.
struct Halves {
    sums: [Vec<f64>; 2],
    weights: [f64; 2],
    perturbations: u64,
    direction: Vec<f32>,
    last: Option<Node>,
    side: usize,
}

impl Halves {
    fn new(len: usize) -> Halves {
        let sums = [vec![0.0; len], vec![0.0; len]];
        Halves { sums, weights: [0.0; 2], perturbations: 0, direction: vec![0.0; len], last: None, side: 1 }
    }

    fn add(&mut self, bench: &Bench, task: &Task, piece: &Piece) -> Result<(), Fault> {
        if self.last != Some(piece.node) {
            (self.last, self.side) = (Some(piece.node), 1 - self.side);
        }
        let (sum, told) = (&mut self.sums[self.side], &piece.told);
        let examples = f64::from(told.examples);
        if !told.dense.is_empty() {
            let dense = told.dense.to_f32(sum.len()).map_err(|error| Fault(error.to_string()))?;
            sum.iter_mut().zip(&dense).for_each(|(sum, value)| *sum += examples * f64::from(*value));
            self.perturbations += match bench.options.estimator {
                Estimator::Backward => 0,
                Estimator::Tangent | Estimator::Difference => {
                    bench.options.directions(told.examples as usize) as u64
                }
            };
        }
        let count = told.slopes.len();
        let picked = Task { picks: piece.picks.clone(), ..task.clone() };
        let directions = seeds(bench, &picked, piece.node, told.wave, count as u32);
        let drawn = Drawn { bench, directions: &directions };
        for (index, slope) in told.slopes.iter().enumerate() {
            drawn.whole(index, &mut self.direction);
            let share = examples * f64::from(*slope) / count as f64;
            sum.iter_mut().zip(&self.direction).for_each(|(sum, v)| *sum += share * f64::from(*v));
        }
        self.weights[self.side] += examples;
        self.perturbations += count as u64;
        Ok(())
    }

    fn mean(&self) -> Vec<f32> {
        let weight = (self.weights[0] + self.weights[1]).max(f64::MIN_POSITIVE);
        let both = self.sums[0].iter().zip(&self.sums[1]);
        both.map(|(left, right)| ((left + right) / weight) as f32).collect()
    }

    /// With m1, m2 the means of the halves, `D = ||((m1 - m)^2 + (m2 - m)^2) / 2||` (FwdLLM, section 3.3),
    /// and `||m1 - m2||^2 / 4` the expected squared noise of m where the halves are of equal weight. The
    /// public code takes the mean of `(m1 - m2)^2 / 2` instead, over one tensor.
    fn spread(&self, checked: &Range<usize>) -> Spread {
        let mut spread = Spread { perturbations: self.perturbations, ..Spread::default() };
        let [left, right] = self.weights;
        if left == 0.0 || right == 0.0 {
            return Spread { variance: f64::MAX, tensor_variance: f64::MAX, noise: f64::MAX, ..spread };
        }
        let (mut fourth, mut square, mut length) = (0.0, 0.0, 0.0);
        for (index, (first, second)) in self.sums[0].iter().zip(&self.sums[1]).enumerate() {
            let mean = (first + second) / (left + right);
            let (first, second) = (first / left, second / right);
            if checked.contains(&index) {
                spread.tensor_variance += 0.5 * (first - second).powi(2) / checked.len() as f64;
            }
            let half = 0.5 * ((first - mean).powi(2) + (second - mean).powi(2));
            fourth += half * half;
            square += half;
            length += mean * mean;
        }
        (spread.variance, spread.noise, spread.signal) =
            (fourth.sqrt(), square, (length - square).max(0.0));
        spread
    }
}

fn step(bench: &Bench, job: &Aggregate, used: usize, halves: Halves) -> Result<Aggregated, Fault> {
    let (lab, scope) = (&bench.lab, &bench.scope);
    let recipe = &lab.work.recipe;
    let (mut theta, told) = (lab.parameters_from(&job.task.theta)?, &job.told[..used]);
    let spread = halves.spread(&bench.scope.checked);
    let mean = halves.mean();
    let mut gradient = vec![0f32; theta.len()];
    gradient[scope.moves.clone()].copy_from_slice(&mean);
    if bench.options.head == HeadRule::Exact {
        head_gradient(told, &mut gradient[scope.head.clone()])?;
    }
    if recipe.max_grad_norm > 0.0 {
        clip_norm(&mut gradient, recipe.max_grad_norm);
    }
    let split = scope.head.start;
    let fresh = || {
        let config = recipe.optimizer();
        (Optimizer::new(&config, split), Optimizer::new(&config, theta.len() - split))
    };
    let mut optimizers = job.optimizers.clone().unwrap_or_else(fresh);
    let rate = recipe.rate(lab.rounds, job.task.round, 0, 1);
    let scale = match (bench.options.scale_rate, spread.perturbations as f32) {
        (true, perturbations) if perturbations > 0.0 => {
            perturbations / (perturbations + scope.moves.len() as f32)
        }
        _ => 1.0,
    };
    let head_rate = match (bench.options.head, bench.options.head_learning_rate) {
        (HeadRule::Exact, Some(own)) => own * rate / recipe.learning_rate.max(f32::MIN_POSITIVE),
        (HeadRule::Exact, None) => rate,
        (HeadRule::Perturbed | HeadRule::ClosedForm, _) => rate * scale,
    };
    let (body, head) = theta.split_at_mut(split);
    if job.task.moving {
        optimizers.0.step(body, &gradient[..split], rate * scale);
    }
    let moments = match bench.options.head {
        HeadRule::ClosedForm => closed_form(bench, job, told, head)?,
        HeadRule::Exact | HeadRule::Perturbed => {
            optimizers.1.step(head, &gradient[split..], head_rate);
            Blob::default()
        }
    };
    if !ops::slice::all_finite(&theta) {
        return Err(Fault("the parameters are not finite after the step: lower the learning rate".into()));
    }
    let examples: u64 = told.iter().map(|piece| u64::from(piece.told.examples)).sum();
    let loss: f64 =
        told.iter().map(|piece| f64::from(piece.told.loss) * f64::from(piece.told.examples)).sum();
    Ok(Aggregated::Stepped(Box::new(Step {
        theta: Blob::from_f32(&theta),
        optimizers,
        moments,
        gradient: Blob::from_f32(&mean),
        spread,
        tier: told.last().map_or(0, |piece| piece.tier),
        loss: loss / examples.max(1) as f64,
        examples,
        learning_rate: f64::from(rate * scale),
    })))
}

/// The mean of the exact gradients of the head, weighted by examples.
fn head_gradient(told: &[Piece], head: &mut [f32]) -> Result<(), Fault> {
    let mut sum = vec![0f64; head.len()];
    let mut weight = 0.0;
    for Piece { told, .. } in told {
        let gradient = told.head.to_f32(head.len()).map_err(|error| Fault(error.to_string()))?;
        let examples = f64::from(told.examples);
        sum.iter_mut().zip(&gradient).for_each(|(sum, value)| *sum += examples * f64::from(*value));
        weight += examples;
    }
    head.iter_mut().zip(&sum).for_each(|(to, sum)| *to = (sum / f64::max(weight, 1.0)) as f32);
    Ok(())
}

/// Adds the moments that arrived and fits the head to all of them.
fn closed_form(bench: &Bench, job: &Aggregate, told: &[Piece], head: &mut [f32]) -> Result<Blob, Fault> {
    let mut moments = Moments::restore(&bench.lab, &job.moments);
    for piece in told.iter().filter(|piece| !piece.told.moments.is_empty()) {
        moments.add(&piece.told.moments).map_err(Fault)?;
    }
    if let Some((weight, bias)) = moments.fit() {
        let (to_weight, to_bias) = head.split_at_mut(weight.len());
        to_weight.copy_from_slice(&weight);
        to_bias.copy_from_slice(&bias);
    }
    Ok(moments.store())
}

/// Whether what a device told has the shape that was asked for; an error says what is wrong.
pub fn shape(asked: Asked, told: &Told) -> Result<(), String> {
    let Asked { perturbations, perturb, uplink, moving, exact_head, moments, batch } = asked;
    if !told.loss.is_finite() || told.examples == 0 || told.examples > batch {
        return Err(format!("a loss of {} over {} examples", told.loss, told.examples));
    }
    let directions = perturb.directions(perturbations as usize, told.examples as usize);
    let scalars = if moving && uplink == Uplink::Scalars { directions } else { 0 };
    if told.slopes.len() != scalars {
        return Err(format!("it told {} derivatives where {scalars} were asked for", told.slopes.len()));
    }
    if let Some(at) = told.slopes.iter().position(|slope| !slope.is_finite()) {
        return Err(format!("derivative {at} of its wave {} is {}", told.wave, told.slopes[at]));
    }
    if told.dense.is_empty() == (moving && uplink == Uplink::Dense) {
        return Err("a forward gradient that was not asked for, or none that was".into());
    }
    if told.head.is_empty() == exact_head || told.moments.is_empty() == moments {
        return Err("a head's gradient or moments that were not asked for, or none that were".into());
    }
    Ok(())
}

/// What a device was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub perturbations: u32,
    pub perturb: Over,
    pub uplink: Uplink,
    pub moving: bool,
    pub exact_head: bool,
    pub moments: bool,
    /// Examples of a batch at most.
    pub batch: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: means (1, 4) and (3, 0) of halves that weigh the same.
    #[test]
    fn the_spread_of_two_halves_is_what_paper_and_public_code_say() {
        let mut halves = Halves::new(2);
        (halves.sums, halves.weights) = ([vec![2.0, 8.0], vec![6.0, 0.0]], [2.0, 2.0]);
        let spread = halves.spread(&(1..2));
        assert_eq!(spread.variance, (1f64 + 16.0).sqrt());
        assert_eq!(spread.tensor_variance, 8.0);
        assert_eq!((spread.noise, spread.signal), (5.0, 8.0 - 5.0));
        halves.weights[1] = 0.0;
        assert_eq!(halves.spread(&(1..2)).tensor_variance, f64::MAX);
    }

    #[test]
    fn what_was_not_asked_for_is_refused_by_name() {
        let asked = Asked {
            perturbations: 2,
            perturb: Over::Batch,
            uplink: Uplink::Scalars,
            moving: true,
            exact_head: false,
            moments: false,
            batch: 8,
        };
        let good = Told { wave: 3, examples: 8, loss: 1.0, slopes: vec![0.5, -0.5], ..Told::default() };
        assert_eq!(shape(asked, &good), Ok(()));
        let refused = |told: Told, words: &str| {
            let reason = shape(asked, &told).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        };
        refused(Told { slopes: vec![0.5, f32::NAN], ..good.clone() }, "derivative 1 of its wave 3 is NaN");
        refused(Told { slopes: vec![0.5], ..good.clone() }, "1 derivatives where 2");
        let each = Asked { perturb: Over::Sequences, ..asked };
        assert!(shape(each, &good).unwrap_err().contains("2 derivatives where 16"));
        refused(Told { loss: f32::INFINITY, ..good.clone() }, "a loss of inf");
        refused(Told { examples: 9, ..good.clone() }, "over 9 examples");
        refused(Told { dense: Blob::from_f32(&[1.0]), ..good.clone() }, "not asked for");
        refused(Told { head: Blob::from_f32(&[1.0]), ..good }, "head's gradient");
    }
}
