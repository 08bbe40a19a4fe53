//! The global model on held-out rows.

use crate::lab::{Lab, gather, starts};
use crate::train::hold;
use base::{Blob, Cost, Meter};
use federation::{Eval, Fault};
use model::{Loss, Model, Targets, price};
use ops::Workspace;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// When the global model is evaluated.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Due {
    pub every: u32,
    pub last: u32,
}

impl Due {
    /// Every `every` rounds, and after the last.
    pub fn at(self, round: u32) -> bool {
        round == self.last || round.is_multiple_of(self.every.max(1))
    }
}

/// Loss, and accuracy with macro-F1 or perplexity, of `theta` on the test rows: over all of them, and
/// over those of each device class where rows have owners.
pub fn evaluate(lab: &Lab, theta: &Blob, meter: &Meter) -> Result<Eval, Fault> {
    let _theta = hold(meter, theta.len() as u64)?;
    let theta = lab.parameters_from(theta)?;
    let workspace = Workspace::new(meter, lab.work.threads);
    let (mut everyone, mut by_class) = (Scores::default(), BTreeMap::new());
    for (class, rows) in groups(lab) {
        let mut scores = Scores::default();
        for batch in rows.chunks(lab.work.recipe.per_device_eval_batch_size.get()) {
            scores.take(lab, &workspace, &theta, batch)?;
        }
        if let Some(class) = class {
            by_class.insert(class.to_owned(), scores.eval());
        }
        everyone.extend(scores);
    }
    Ok(Eval { by_class, ..everyone.eval() })
}

/// Memory of an evaluation. It takes no virtual time: measuring is the observer's work, not the
/// federation's.
pub fn price_of_evaluation(lab: &Lab) -> Cost {
    let work = &lab.work;
    let Model { spec, task, layout, .. } = &*work.model;
    let price = |batch: &[usize]| {
        price::inference(spec, task, layout, &starts(&work.test, batch.iter().copied())).bytes
    };
    let size = work.recipe.per_device_eval_batch_size.get();
    let bytes = groups(lab).values().flat_map(|rows| rows.chunks(size)).map(price).max().unwrap_or(0);
    Cost { flops: 0, bytes: bytes + 4 * lab.parameters() as u64 }
}

/// The test rows of each device class; one group without a name where rows have no owners.
fn groups(lab: &Lab) -> BTreeMap<Option<&str>, Vec<usize>> {
    let mut groups = BTreeMap::new();
    for row in 0..lab.work.test.len() {
        let owner = lab.work.owners.get(row).and_then(Option::as_deref);
        groups.entry(owner).or_insert_with(Vec::new).push(row);
    }
    groups
}

/// What the model made of some rows.
#[derive(Default)]
struct Scores {
    loss: Loss,
    examples: u64,
    truth: Vec<u32>,
}

impl Scores {
    fn take(
        &mut self,
        lab: &Lab,
        workspace: &Workspace,
        theta: &[f32],
        rows: &[usize],
    ) -> Result<(), Fault> {
        let (tokens, targets) = gather(&lab.work.test, rows.iter().copied());
        self.loss += model::loss(workspace, &lab.work.model, theta, &tokens, &targets)
            .map_err(|error| Fault(format!("evaluation: {error}")))?;
        self.examples += rows.len() as u64;
        if let Targets::Classes(classes) = targets {
            self.truth.extend(classes);
        }
        Ok(())
    }

    fn extend(&mut self, other: Scores) {
        self.loss += other.loss;
        self.examples += other.examples;
        self.truth.extend(other.truth);
    }

    fn eval(&self) -> Eval {
        let (loss, examples) = (self.loss.mean(), self.examples);
        if self.truth.is_empty() {
            return Eval { loss, examples, perplexity: Some(loss.exp()), ..Eval::default() };
        }
        Eval {
            loss,
            examples,
            accuracy: Some(self.loss.correct as f64 / self.truth.len() as f64),
            macro_f1: Some(macro_f1(&self.truth, &self.loss.predicted)),
            ..Eval::default()
        }
    }
}

/// The unweighted mean of the F1 of every class that occurs or is predicted.
pub fn macro_f1(truth: &[u32], predicted: &[u32]) -> f64 {
    let classes = truth.iter().chain(predicted).max().map_or(0, |&top| top as usize + 1);
    let (mut hit, mut there, mut said) = (vec![0u64; classes], vec![0u64; classes], vec![0u64; classes]);
    for (&class, &guess) in truth.iter().zip(predicted) {
        there[class as usize] += 1;
        said[guess as usize] += 1;
        hit[class as usize] += u64::from(class == guess);
    }
    let seen = (0..classes).filter(|&class| there[class] + said[class] > 0);
    let scores: Vec<f64> =
        seen.map(|class| 2.0 * hit[class] as f64 / (there[class] + said[class]) as f64).collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    #[test]
    fn macro_f1_by_hand() {
        // class 0: 1 hit of 2 there, 1 said (F1 2/3); class 1: 1 of 1 there, 2 said (2/3); class 2 never occurs.
        let f1 = super::macro_f1(&[0, 0, 1, 3], &[0, 1, 1, 3]);
        assert!((f1 - (2.0 / 3.0 + 2.0 / 3.0 + 1.0) / 3.0).abs() < 1e-12);
    }
}
