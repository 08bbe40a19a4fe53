//! Local training: the recipe of `[train]`, and epochs over a device's rows.

use crate::lab::{Lab, gather, starts};
use base::{Blob, Charge, Cost, Meter, Node};
use data::Epoch;
use federation::Fault;
use model::optim::{Optim, Optimizer, OptimizerConfig, Schedule, SchedulerType, clip_norm};
use model::{Activations, Loss, Model, price};
use ops::Workspace;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// `[train]`, in the names of the Hugging Face trainer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    pub learning_rate: f32,
    pub per_device_train_batch_size: NonZeroUsize,
    pub per_device_eval_batch_size: NonZeroUsize,
    /// Passes over a device's rows in each round.
    pub local_epochs: u32,
    /// At most this many optimiser steps of a device in a round; 0 for no bound.
    pub max_steps: u32,
    pub gradient_accumulation_steps: NonZeroUsize,
    pub optim: Optim,
    pub weight_decay: f32,
    pub adam_beta1: f32,
    pub adam_beta2: f32,
    pub adam_epsilon: f32,
    /// Of SGD.
    pub momentum: f32,
    /// Largest gradient norm; 0 turns clipping off.
    pub max_grad_norm: f32,
    /// How the learning rate moves over all steps of the run.
    pub lr_scheduler_type: SchedulerType,
    /// Share of those steps over which it rises.
    pub warmup_ratio: f64,
    /// What a block keeps for its backward pass.
    pub activations: Activations,
    /// Rounds between evaluations of the global model; the last round is always evaluated.
    pub eval_every: u32,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        let OptimizerConfig {
            optim,
            learning_rate,
            weight_decay,
            adam_beta1,
            adam_beta2,
            adam_epsilon,
            momentum,
        } = OptimizerConfig::default();
        TrainConfig {
            learning_rate,
            per_device_train_batch_size: const { NonZeroUsize::new(16).unwrap() },
            per_device_eval_batch_size: const { NonZeroUsize::new(64).unwrap() },
            local_epochs: 1,
            max_steps: 0,
            gradient_accumulation_steps: NonZeroUsize::MIN,
            optim,
            weight_decay,
            adam_beta1,
            adam_beta2,
            adam_epsilon,
            momentum,
            max_grad_norm: 1.0,
            lr_scheduler_type: SchedulerType::Constant,
            warmup_ratio: 0.0,
            activations: Activations::Keep,
            eval_every: 1,
        }
    }
}

impl TrainConfig {
    /// The first figure that cannot be meant: its key, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let at_least_zero = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("adam_epsilon", self.adam_epsilon),
            ("max_grad_norm", self.max_grad_norm),
        ];
        let below_one = [
            ("adam_beta1", self.adam_beta1),
            ("adam_beta2", self.adam_beta2),
            ("momentum", self.momentum),
            ("warmup_ratio", self.warmup_ratio as f32),
        ];
        if let Some((key, value)) =
            at_least_zero.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            return Err((key, format!("is {value}; a number of at least 0 is needed")));
        }
        if let Some((key, value)) = below_one.iter().find(|(_, value)| !(0.0..1.0).contains(value)) {
            return Err((key, format!("is {value}; it must be at least 0 and below 1")));
        }
        if self.local_epochs == 0 {
            return Err(("local_epochs", "is 0; nothing would be trained".into()));
        }
        Ok(())
    }

    pub fn optimizer(&self) -> OptimizerConfig {
        OptimizerConfig {
            optim: self.optim,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            adam_beta1: self.adam_beta1,
            adam_beta2: self.adam_beta2,
            adam_epsilon: self.adam_epsilon,
            momentum: self.momentum,
        }
    }

    /// The learning rate of a step of a round, when every round has this many steps.
    pub fn rate(&self, rounds: u32, round: u32, step: u32, steps: u32) -> f32 {
        let before = round.saturating_sub(1).saturating_mul(steps);
        let factor = self.schedule().factor(before.saturating_add(step), rounds.saturating_mul(steps));
        self.learning_rate * factor
    }

    pub fn schedule(&self) -> Schedule {
        Schedule { lr_scheduler_type: self.lr_scheduler_type, warmup_ratio: self.warmup_ratio }
    }
}

/// Which pass over the rows this is.
pub struct Pass {
    pub round: u32,
    /// Whose rows: the order of batches is drawn for it.
    pub node: Node,
    /// Threads of its kernels.
    pub threads: usize,
}

/// Parameters being trained, with their optimiser.
pub struct Learner {
    pub theta: Vec<f32>,
    pub optimizer: Optimizer,
    /// Parameters, gradient and the optimiser's state.
    _held: Charge,
}

/// What a pass left behind.
pub struct Trained {
    pub learner: Learner,
    /// Mean loss over the pass.
    pub loss: f64,
    /// Rows of the shard, each counted once however many epochs.
    pub examples: u64,
}

impl Learner {
    /// Start from `theta` with a fresh optimiser.
    pub fn fresh(lab: &Lab, theta: &Blob, meter: &Meter) -> Result<Learner, Fault> {
        let optimizer = Optimizer::new(&lab.work.recipe.optimizer(), lab.parameters());
        Learner::resume(lab, theta, optimizer, meter)
    }

    /// Go on from `theta` with the optimiser of an earlier pass.
    pub fn resume(lab: &Lab, theta: &Blob, optimizer: Optimizer, meter: &Meter) -> Result<Learner, Fault> {
        let held = hold(meter, learner_bytes(lab))?;
        Ok(Learner { theta: lab.parameters_from(theta)?, optimizer, _held: held })
    }

    /// `local_epochs` over `rows`.
    pub fn train(mut self, lab: &Lab, rows: &[u32], pass: &Pass, meter: &Meter) -> Result<Trained, Fault> {
        let recipe = &lab.work.recipe;
        let workspace = Workspace::new(meter, pass.threads);
        let mut gradient = vec![0f32; self.theta.len()];
        let (mut loss, mut seen) = (0.0, 0usize);
        let steps = steps(lab, rows, pass);
        let count = steps.len() as u32;
        for (step, group) in steps.iter().enumerate() {
            let outcome = self.gradient(lab, &workspace, group, &mut gradient);
            let outcome =
                outcome.map_err(|error| Fault(format!("step {step} of round {}: {error}", pass.round)))?;
            loss += outcome.sum;
            seen += outcome.count;
            if recipe.max_grad_norm > 0.0 {
                clip_norm(&mut gradient, recipe.max_grad_norm);
            }
            let rate = recipe.rate(lab.rounds, pass.round, step as u32, count);
            self.optimizer.step(&mut self.theta, &gradient, rate);
        }
        if !ops::slice::all_finite(&self.theta) {
            return Err(Fault(format!("the parameters are not finite after round {}", pass.round)));
        }
        Ok(Trained { learner: self, loss: loss / seen.max(1) as f64, examples: rows.len() as u64 })
    }

    /// The gradient of the mean loss over a step's batches.
    fn gradient(
        &self,
        lab: &Lab,
        workspace: &Workspace,
        batches: &[Vec<u32>],
        gradient: &mut [f32],
    ) -> Result<Loss, model::Error> {
        let work = &lab.work;
        let mut total = Loss::default();
        gradient.fill(0.0);
        for batch in batches {
            let (tokens, targets) = gather(&work.train, batch.iter().map(|&row| row as usize));
            let kept = work.recipe.activations;
            total += model::loss_and_gradient(
                workspace,
                &work.model,
                &self.theta,
                &tokens,
                &targets,
                kept,
                gradient,
            )?;
        }
        ops::slice::scale(1.0 / batches.len() as f32, gradient);
        Ok(total)
    }
}

fn learner_bytes(lab: &Lab) -> u64 {
    let parameters = lab.parameters();
    8 * parameters as u64 + Optimizer::state_bytes(&lab.work.recipe.optimizer(), parameters)
}

/// The batches of a pass, in groups of one optimiser step, `max_steps` at most.
pub fn steps(lab: &Lab, rows: &[u32], pass: &Pass) -> Vec<Vec<Vec<u32>>> {
    let mut steps = all_steps(lab, rows, pass);
    let most = lab.work.recipe.max_steps;
    if most > 0 {
        steps.truncate(most as usize);
    }
    steps
}

/// The same, however many steps there are.
pub fn all_steps(lab: &Lab, rows: &[u32], pass: &Pass) -> Vec<Vec<Vec<u32>>> {
    let recipe = &lab.work.recipe;
    let mut steps = Vec::new();
    for epoch in 0..recipe.local_epochs {
        let size = recipe.per_device_train_batch_size;
        let batches = Epoch::new(rows, size, lab.seed, pass.round.into(), pass.node, epoch.into());
        let batches: Vec<Vec<u32>> = batches.batches().map(<[u32]>::to_vec).collect();
        steps.extend(batches.chunks(recipe.gradient_accumulation_steps.get()).map(<[_]>::to_vec));
    }
    steps
}

/// What [`Learner::train`] will take.
pub fn price_of_pass(lab: &Lab, rows: &[u32], pass: &Pass) -> Cost {
    let work = &lab.work;
    let mut cost = Cost::FREE;
    for batch in steps(lab, rows, pass).iter().flatten() {
        let starts = starts(&work.train, batch.iter().map(|&row| row as usize));
        let Model { spec, task, layout, .. } = &*work.model;
        cost = cost + price::training(spec, task, layout, &starts, work.recipe.activations);
    }
    Cost { flops: cost.flops, bytes: cost.bytes + learner_bytes(lab) }
}

/// Take memory for what lives outside the workspace.
pub fn hold(meter: &Meter, bytes: u64) -> Result<Charge, Fault> {
    meter.charge(bytes).map_err(|error| Fault(error.to_string()))
}
