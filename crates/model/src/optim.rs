//! Optimisers, learning-rate schedules and clipping, on flat vectors.
//!
//! Names and defaults are those of the Hugging Face trainer where it has them.

use base::Blob;
use serde::{Deserialize, Serialize};

/// The settings of an optimiser. Weight decay falls on every trained parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    pub optim: Optim,
    pub learning_rate: f32,
    pub weight_decay: f32,
    pub adam_beta1: f32,
    pub adam_beta2: f32,
    pub adam_epsilon: f32,
    /// Of SGD.
    pub momentum: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optim {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).
    AdamW,
    /// Gradient descent with heavy-ball momentum as in PyTorch, and L2 weight decay.
    Sgd,
}

impl Default for OptimizerConfig {
    fn default() -> OptimizerConfig {
        OptimizerConfig {
            optim: Optim::AdamW,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            momentum: 0.9,
        }
    }
}

/// An optimiser and its state. It survives being stored: moments travel as blobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub struct Optimizer {
    config: OptimizerConfig,
    steps: u32,
    /// AdamW's first moments, SGD's velocity.
    first: Vec<f32>,
    /// AdamW's second moments; empty for SGD.
    second: Vec<f32>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    config: OptimizerConfig,
    steps: u32,
    parameters: u64,
    first: Blob,
    second: Blob,
}

impl Optimizer {
    /// An optimiser at rest, for this many parameters.
    pub fn new(config: &OptimizerConfig, parameters: usize) -> Optimizer {
        let second = match config.optim {
            Optim::AdamW => vec![0.0; parameters],
            Optim::Sgd => Vec::new(),
        };
        Optimizer { config: config.clone(), steps: 0, first: vec![0.0; parameters], second }
    }

    /// Bytes of state an optimiser holds for this many parameters.
    pub fn state_bytes(config: &OptimizerConfig, parameters: usize) -> u64 {
        let moments = match config.optim {
            Optim::AdamW => 2,
            Optim::Sgd => 1,
        };
        4 * moments * parameters as u64
    }

    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Move `theta` against `gradient` by one step at this learning rate.
    ///
    /// # Panics
    /// If the lengths are not that of [`Optimizer::new`].
    pub fn step(&mut self, theta: &mut [f32], gradient: &[f32], learning_rate: f32) {
        assert_eq!(theta.len(), self.first.len(), "parameters the optimiser was made for");
        assert_eq!(gradient.len(), self.first.len(), "a gradient a parameter");
        self.steps += 1;
        match self.config.optim {
            Optim::AdamW => self.adamw(theta, gradient, learning_rate),
            Optim::Sgd => self.sgd(theta, gradient, learning_rate),
        }
    }

    fn adamw(&mut self, theta: &mut [f32], gradient: &[f32], learning_rate: f32) {
        let OptimizerConfig { adam_beta1: beta1, adam_beta2: beta2, adam_epsilon: epsilon, .. } =
            self.config;
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(self.steps as i32);
        let rate = (f64::from(learning_rate) / correction(beta1)) as f32;
        let root = correction(beta2).sqrt() as f32;
        let shrink = 1.0 - learning_rate * self.config.weight_decay;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((theta, gradient), (first, second)) in theta.iter_mut().zip(gradient).zip(moments) {
            *first = beta1 * *first + (1.0 - beta1) * gradient;
            *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
            *theta = *theta * shrink - rate * *first / (second.sqrt() / root + epsilon);
        }
    }

    fn sgd(&mut self, theta: &mut [f32], gradient: &[f32], learning_rate: f32) {
        let OptimizerConfig { weight_decay, momentum, .. } = self.config;
        for ((theta, gradient), velocity) in theta.iter_mut().zip(gradient).zip(&mut self.first) {
            *velocity = momentum * *velocity + gradient + weight_decay * *theta;
            *theta -= learning_rate * *velocity;
        }
    }
}

impl From<Optimizer> for Stored {
    fn from(optimizer: Optimizer) -> Stored {
        Stored {
            parameters: optimizer.first.len() as u64,
            first: Blob::from_f32(&optimizer.first),
            second: Blob::from_f32(&optimizer.second),
            config: optimizer.config,
            steps: optimizer.steps,
        }
    }
}

impl TryFrom<Stored> for Optimizer {
    type Error = base::CodecError;

    fn try_from(stored: Stored) -> Result<Optimizer, base::CodecError> {
        let parameters = usize::try_from(stored.parameters).unwrap_or(usize::MAX);
        let second = match stored.config.optim {
            Optim::AdamW => parameters,
            Optim::Sgd => 0,
        };
        Ok(Optimizer {
            first: stored.first.to_f32(parameters)?,
            second: stored.second.to_f32(second)?,
            config: stored.config,
            steps: stored.steps,
        })
    }
}

/// How the learning rate moves over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    pub lr_scheduler_type: SchedulerType,
    /// Share of the steps over which the rate rises from 0. `constant` ignores it, as in Hugging Face.
    pub warmup_ratio: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    #[default]
    Constant,
    ConstantWithWarmup,
    /// Down to 0 in a straight line.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
}

impl Schedule {
    /// What the learning rate is multiplied with at `step` (from 0) of `total`.
    pub fn factor(&self, step: u32, total: u32) -> f32 {
        if self.lr_scheduler_type == SchedulerType::Constant {
            return 1.0;
        }
        let (step, total) = (f64::from(step), f64::from(total));
        let warmup = (self.warmup_ratio.clamp(0.0, 1.0) * total).ceil();
        if step < warmup {
            return (step / warmup.max(1.0)) as f32;
        }
        let progress = ((step - warmup) / (total - warmup).max(1.0)).min(1.0);
        let factor = match self.lr_scheduler_type {
            SchedulerType::Constant | SchedulerType::ConstantWithWarmup => 1.0,
            SchedulerType::Linear => 1.0 - progress,
            SchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        factor as f32
    }
}

/// Scale a gradient down to `max_grad_norm` if its Euclidean norm is larger; returns the norm it had.
pub fn clip_norm(gradient: &mut [f32], max_grad_norm: f32) -> f64 {
    let norm = ops::slice::norm2(gradient).sqrt();
    let factor = f64::from(max_grad_norm) / (norm + 1e-6);
    if factor < 1.0 {
        ops::slice::scale(factor as f32, gradient);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_optimizer_goes_on_as_if_nothing_had_happened() {
        for optim in [Optim::AdamW, Optim::Sgd] {
            let config = OptimizerConfig { optim, weight_decay: 0.1, ..OptimizerConfig::default() };
            let mut optimizer = Optimizer::new(&config, 3);
            let mut theta = vec![1.0, -2.0, 3.0];
            optimizer.step(&mut theta, &[0.5, 0.25, -1.0], 0.1);
            let packet = base::encode(&optimizer);
            let mut back: Optimizer = base::decode(&packet).unwrap();
            let mut again = theta.clone();
            optimizer.step(&mut theta, &[0.1, 0.2, 0.3], 0.1);
            back.step(&mut again, &[0.1, 0.2, 0.3], 0.1);
            assert_eq!((optimizer, theta), (back, again));
        }
    }

    #[test]
    fn clipping_never_lengthens() {
        let mut gradient = [3.0, 4.0];
        assert_eq!(clip_norm(&mut gradient, 10.0), 5.0);
        assert_eq!(gradient, [3.0, 4.0]);
        clip_norm(&mut gradient, 1.0);
        assert!((ops::slice::norm2(&gradient).sqrt() - 1.0).abs() < 1e-5);
    }
}
