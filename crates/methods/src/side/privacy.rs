//! What a device does to its labels before a prediction difference leaves it, and what that is worth.
//!
//! The difference `onehot(y) - b` gives its label away: the one positive coordinate is `y`. Noise and
//! randomised response bound what can be learned about a *label* (label differential privacy); nothing
//! here protects the activations that travel beside it.
//!
//! Each difference is drawn once a sample and sent once, by the seed of that sample: a device that is
//! killed sends the same draw again, and the epochs the server makes of it are post-processing. So
//! epsilon does not grow with epochs. It holds only if `b` itself depends on no label, or on none but
//! the randomised ones, and if nobody else can repeat the draw: a real device draws from its own secret, which
//! is not the run's seed ([`Draws`](crate::Draws)).
//!
//! Sources: the exact privacy of Gaussian noise, Balle and Wang 2018 (arXiv 1805.06530), Theorem 8;
//! k-ary randomised response, Kairouz et al. 2014 (arXiv 1407.1338).

use base::Seed;
use serde::{Deserialize, Serialize};

/// `privacy` of the method's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "mode", rename_all = "kebab-case")]
pub enum Privacy {
    /// The server reads every label off the differences.
    #[default]
    Plain,
    /// Gaussian noise on the difference.
    Noise {
        epsilon: f64,
        #[serde(default = "default_delta")]
        delta: f64,
    },
    /// The label is replaced by a random one now and then, and the difference debiased.
    RandomizedResponse { epsilon: f64 },
    /// The coordinates are mixed by an orthogonal matrix that the server does not know. This is
    /// obscurity: clustering and one known label a class undo it.
    Mixed {},
}

fn default_delta() -> f64 {
    1e-5
}

/// How far two differences lie apart that differ in the label alone: `|onehot(y) - onehot(z)|`.
pub const SENSITIVITY: f64 = std::f64::consts::SQRT_2;

/// The largest epsilon that is taken for one: beyond it nothing is protected.
const MOST: f64 = 30.0;

impl Privacy {
    /// Refuse what is no privacy parameter.
    pub fn check(self) -> Result<(), String> {
        let (epsilon, delta) = match self {
            Privacy::Plain | Privacy::Mixed {} => return Ok(()),
            Privacy::Noise { epsilon, delta } => (epsilon, delta),
            Privacy::RandomizedResponse { epsilon } => (epsilon, 0.5),
        };
        if !(epsilon > 0.0 && epsilon <= MOST) {
            return Err(format!("privacy.epsilon is {epsilon}; it must be above 0 and at most {MOST}"));
        }
        if !(delta > 0.0 && delta < 1.0) {
            return Err(format!("privacy.delta is {delta}; it must lie between 0 and 1"));
        }
        Ok(())
    }

    /// The epsilon and delta of each label, where they are bounded.
    pub fn guarantee(self) -> Option<(f64, f64)> {
        match self {
            Privacy::Plain | Privacy::Mixed {} => None,
            Privacy::Noise { epsilon, delta } => Some((epsilon, delta)),
            Privacy::RandomizedResponse { epsilon } => Some((epsilon, 0.0)),
        }
    }

    /// The label that everything on the device goes by: the true one, but under randomised response,
    /// where it is drawn here, once a sample.
    pub fn label(self, label: u32, classes: usize, sample: Seed) -> u32 {
        let Privacy::RandomizedResponse { epsilon } = self else { return label };
        let mut stream = sample.child("label", 0).stream();
        if stream.unit() < keep(epsilon, classes) || classes < 2 {
            return label;
        }
        let other = stream.below(classes as u64 - 1) as u32;
        if other < label { other } else { other + 1 }
    }

    /// What the sample's label stands for: its one-hot vector, debiased under randomised response so
    /// that its mean over the draw is the one-hot vector of the true label.
    pub fn target(self, label: u32, classes: usize) -> Vec<f32> {
        let mut target = vec![0.0; classes];
        target[label as usize] = 1.0;
        if let Privacy::RandomizedResponse { epsilon } = self
            && classes > 1
        {
            let keep = keep(epsilon, classes);
            let other = (1.0 - keep) / (classes as f64 - 1.0);
            for value in &mut target {
                *value = ((f64::from(*value) - other) / (keep - other)) as f32;
            }
        }
        target
    }

    /// The difference as it leaves the device: `target - own`, with noise where asked.
    pub fn difference(self, label: u32, own: &[f32], sample: Seed) -> Vec<f32> {
        let mut difference = self.target(label, own.len());
        difference.iter_mut().zip(own).for_each(|(d, own)| *d -= own);
        if let Privacy::Noise { epsilon, delta } = self {
            let deviation = gaussian_deviation(epsilon, delta, SENSITIVITY);
            let mut stream = sample.child("noise", 0).stream();
            difference.iter_mut().for_each(|d| *d += (deviation * stream.normal()) as f32);
        }
        difference
    }
}

/// How likely a label is to be kept.
fn keep(epsilon: f64, classes: usize) -> f64 {
    epsilon.exp() / (epsilon.exp() + classes as f64 - 1.0)
}

/// The delta at which Gaussian noise of this deviation is `epsilon`-private, exactly (Balle and Wang,
/// Theorem 8).
pub fn gaussian_delta(deviation: f64, epsilon: f64, sensitivity: f64) -> f64 {
    let (half, slope) = (sensitivity / (2.0 * deviation), epsilon * deviation / sensitivity);
    phi(half - slope) - epsilon.exp() * phi(-half - slope)
}

/// The least deviation of Gaussian noise that is (`epsilon`, `delta`)-private, by bisection: accurate
/// to a billionth, rounded up.
pub fn gaussian_deviation(epsilon: f64, delta: f64, sensitivity: f64) -> f64 {
    let (mut low, mut high) = (0.0, sensitivity);
    while gaussian_delta(high, epsilon, sensitivity) > delta {
        high *= 2.0;
    }
    while high - low > 1e-9 * high {
        let middle = 0.5 * (low + high);
        if gaussian_delta(middle, epsilon, sensitivity) > delta { low = middle } else { high = middle }
    }
    high
}

/// The normal distribution function.
fn phi(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// An orthogonal matrix, `size` rows one after another, uniform over the group: what the devices share
/// and the server does not know.
pub fn secret_mix(size: usize, secret: Seed) -> Vec<f32> {
    let mut stream = secret.stream();
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(size);
    while rows.len() < size {
        let mut row: Vec<f64> = (0..size).map(|_| stream.normal()).collect();
        for done in rows.iter().chain(rows.iter()) {
            let along: f64 = row.iter().zip(done).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(done).for_each(|(a, b)| *a -= along * b);
        }
        let length = row.iter().map(|a| a * a).sum::<f64>().sqrt();
        if length > 1e-6 {
            rows.push(row.into_iter().map(|a| a / length).collect());
        }
    }
    rows.into_iter().flatten().map(|a| a as f32).collect()
}

/// `x` mixed: the matrix times it.
pub fn mixed(mix: &[f32], x: &[f32]) -> Vec<f32> {
    mix.chunks(x.len()).map(|row| ops::slice::dot(row, x) as f32).collect()
}

/// The inverse of [`mixed`]: the transpose times it.
pub fn unmixed(mix: &[f32], x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (row, &value) in mix.chunks(x.len()).zip(x) {
        ops::slice::axpy(value, row, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The privacy loss of the Gaussian mechanism by its definition, integrated: the sup over events
    /// of `P(A) - e^eps Q(A)` is the integral of the positive part of `p - e^eps q`.
    fn delta_by_integration(deviation: f64, epsilon: f64, sensitivity: f64) -> f64 {
        let density = |x: f64| (-0.5 * x * x).exp() / (std::f64::consts::TAU).sqrt();
        let step = 1e-4;
        let shift = sensitivity / deviation;
        let points = (-120_000..120_000).map(|i| f64::from(i) * step);
        points.map(|x| (density(x) - epsilon.exp() * density(x + shift)).max(0.0) * step).sum()
    }

    #[test]
    fn the_delta_of_gaussian_noise_is_what_its_definition_integrates_to() {
        for (deviation, epsilon) in [(1.0, 1.0), (3.0, 0.5), (2.0, 2.0), (0.7, 4.0)] {
            let exact = gaussian_delta(deviation, epsilon, SENSITIVITY);
            let summed = delta_by_integration(deviation, epsilon, SENSITIVITY);
            assert!((exact - summed).abs() < 1e-5, "{exact} against {summed}");
        }
    }

    #[test]
    fn the_deviation_is_the_least_that_keeps_the_promise() {
        for epsilon in [0.1, 1.0, 2.0, 8.0] {
            let deviation = gaussian_deviation(epsilon, 1e-5, SENSITIVITY);
            assert!(gaussian_delta(deviation, epsilon, SENSITIVITY) <= 1e-5);
            assert!(gaussian_delta(0.999 * deviation, epsilon, SENSITIVITY) > 1e-5);
        }
        // The classical bound (Dwork and Roth 2014) asks for more noise than is needed.
        let classical = (2.0 * (1.25e5f64).ln()).sqrt() * SENSITIVITY;
        assert!(gaussian_deviation(1.0, 1e-5, SENSITIVITY) < classical);
    }

    #[test]
    fn randomised_response_keeps_epsilon_and_its_target_is_unbiased() {
        let (epsilon, classes) = (1.5, 6);
        let privacy = Privacy::RandomizedResponse { epsilon };
        let (mut counts, mut mean) = (vec![0f64; classes], vec![0f64; classes]);
        let draws = 200_000;
        for sample in 0..draws {
            let label = privacy.label(2, classes, Seed(1).child("sample", sample));
            counts[label as usize] += 1.0;
            let target = privacy.target(label, classes);
            mean.iter_mut().zip(target).for_each(|(m, t)| *m += f64::from(t) / draws as f64);
        }
        let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
        assert!((counts[2] / least).ln() < epsilon + 0.05);
        for (class, mean) in mean.iter().enumerate() {
            assert!((mean - f64::from(u8::from(class == 2))).abs() < 0.02, "{mean} of class {class}");
        }
        let again = |sample| privacy.label(2, classes, Seed(1).child("sample", sample));
        assert!(
            (0..100).all(|sample| again(sample) == again(sample)),
            "a second draw would cost a second epsilon"
        );
    }

    #[test]
    fn the_largest_coordinate_of_a_plain_difference_is_the_label() {
        let own = [0.7, 0.1, 0.2];
        for label in 0..3 {
            let difference = Privacy::Plain.difference(label, &own, Seed(1));
            assert_eq!(model::argmax(&difference), label);
            assert!(difference.iter().sum::<f32>().abs() < 1e-6);
        }
    }

    #[test]
    fn a_mix_keeps_lengths_and_is_undone_by_its_transpose() {
        let mix = secret_mix(7, Seed(4));
        let x: Vec<f32> = (0..7).map(|i| i as f32 - 2.5).collect();
        let y = mixed(&mix, &x);
        assert!((ops::slice::norm2(&x) - ops::slice::norm2(&y)).abs() < 1e-4);
        assert!(unmixed(&mix, &y).iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-5));
        assert!(y.iter().zip(&x).any(|(a, b)| (a - b).abs() > 0.1));
    }
}
