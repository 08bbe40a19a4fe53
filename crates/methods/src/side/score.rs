//! How good predictions are.

use crate::evaluate::macro_f1;
use data::Label;
use federation::Eval;
use model::argmax;
use model::side::{AddedTo, joint};
use ops::Mat;

/// Predictions beside the truth: of classes, or of numbers.
#[derive(Default)]
pub struct Score {
    /// Negative log-likelihoods, or squared errors.
    loss: f64,
    true_classes: Vec<u32>,
    said_classes: Vec<u32>,
    /// True and said.
    numbers: Vec<(f32, f32)>,
}

impl Score {
    /// Add rows: `weight` times `side` to `own`, against the truth.
    pub fn add(&mut self, added_to: AddedTo, own: &Mat, side: &Mat, weight: f32, truth: &[Label]) {
        for (at, &label) in truth.iter().enumerate() {
            let joint = joint(added_to, own.row(at), side.row(at), weight);
            match label {
                Label::Class(class) => {
                    self.loss -= f64::from(joint[class as usize].max(f32::MIN_POSITIVE)).ln();
                    self.true_classes.push(class);
                    self.said_classes.push(argmax(&joint));
                }
                Label::Number(number) => {
                    self.loss += f64::from(joint[0] - number).powi(2);
                    self.numbers.push((number, joint[0]));
                }
            }
        }
    }

    pub fn extend(&mut self, other: Score) {
        self.loss += other.loss;
        self.true_classes.extend(other.true_classes);
        self.said_classes.extend(other.said_classes);
        self.numbers.extend(other.numbers);
    }

    pub fn eval(&self) -> Eval {
        let examples = self.true_classes.len() + self.numbers.len();
        let (loss, count) = (self.loss / examples.max(1) as f64, examples.max(1) as f64);
        let eval = Eval { loss, examples: examples as u64, ..Eval::default() };
        if !self.numbers.is_empty() {
            return Eval { pearson: pearson(&self.numbers), ..eval };
        }
        let hits = self.true_classes.iter().zip(&self.said_classes).filter(|(truth, said)| truth == said);
        Eval {
            accuracy: Some(hits.count() as f64 / count),
            macro_f1: Some(macro_f1(&self.true_classes, &self.said_classes)),
            ..eval
        }
    }
}

/// Pearson's correlation of the pairs; none where one of the two never changes.
fn pearson(pairs: &[(f32, f32)]) -> Option<f64> {
    let count = pairs.len() as f64;
    let mean =
        |get: fn(&(f32, f32)) -> f32| pairs.iter().map(|pair| f64::from(get(pair))).sum::<f64>() / count;
    let (x, y) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let (mut along, mut of_x, mut of_y) = (0.0, 0.0, 0.0);
    for pair in pairs {
        let (dx, dy) = (f64::from(pair.0) - x, f64::from(pair.1) - y);
        (along, of_x, of_y) = (along + dx * dy, of_x + dx * dx, of_y + dy * dy);
    }
    Some(along / (of_x * of_y).sqrt()).filter(|correlation| correlation.is_finite())
}

#[cfg(test)]
mod tests {
    use super::pearson;

    #[test]
    fn a_correlation_by_hand() {
        let pairs = [(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (4.0, 3.0)];
        // Covariance 3 over 5, the sums of squares.
        assert!((pearson(&pairs).unwrap() - 0.6).abs() < 1e-12);
        assert_eq!(pearson(&[(1.0, 2.0), (2.0, 2.0)]), None);
    }
}
