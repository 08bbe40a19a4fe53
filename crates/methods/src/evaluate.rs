//! The global model on held-out rows.

use crate::lab::{Lab, gather, starts};
use crate::train::hold;
use base::{Blob, Cost, Meter};
use federation::{Eval, Fault};
use model::{Model, Targets, price};
use ops::Workspace;
use serde::{Deserialize, Serialize};

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

/// Loss, and accuracy with macro-F1 or perplexity, of `theta` on the test rows.
pub fn evaluate(lab: &Lab, theta: &Blob, meter: &Meter) -> Result<Eval, Fault> {
    let work = &lab.work;
    let _theta = hold(meter, theta.len() as u64)?;
    let theta = lab.parameters_from(theta)?;
    let workspace = Workspace::new(meter, work.threads);
    let (mut loss, mut count) = (0.0, 0usize);
    let (mut truth, mut predicted) = (Vec::new(), Vec::new());
    for rows in batches(lab) {
        let (tokens, targets) = gather(&work.test, rows);
        let outcome = model::loss(&workspace, &work.model, &theta, &tokens, &targets)
            .map_err(|error| Fault(format!("evaluation: {error}")))?;
        loss += outcome.sum;
        count += outcome.count;
        if let Targets::Classes(classes) = targets {
            truth.extend(classes);
            predicted.extend(outcome.predicted);
        }
    }
    let loss = loss / count.max(1) as f64;
    let examples = work.test.len() as u64;
    if truth.is_empty() {
        return Ok(Eval { loss, examples, perplexity: Some(loss.exp()), ..Eval::default() });
    }
    let hits = truth.iter().zip(&predicted).filter(|(a, b)| a == b).count();
    Ok(Eval {
        loss,
        examples,
        accuracy: Some(hits as f64 / truth.len() as f64),
        macro_f1: Some(macro_f1(&truth, &predicted)),
        perplexity: None,
    })
}

/// Memory of an evaluation. It takes no virtual time: measuring is the observer's work, not the
/// federation's.
pub fn price_of_evaluation(lab: &Lab) -> Cost {
    let work = &lab.work;
    let price = |rows: std::ops::Range<usize>| {
        let Model { spec, task, layout, .. } = &*work.model;
        price::inference(spec, task, layout, &starts(&work.test, rows))
    };
    let bytes = batches(lab).map(|rows| price(rows).bytes).max().unwrap_or(0);
    Cost { flops: 0, bytes: bytes + 4 * lab.parameters() as u64 }
}

fn batches(lab: &Lab) -> impl Iterator<Item = std::ops::Range<usize>> {
    let (total, size) = (lab.work.test.len(), lab.work.recipe.per_device_eval_batch_size.get());
    (0..total.div_ceil(size)).map(move |i| i * size..((i + 1) * size).min(total))
}

/// The unweighted mean of the F1 of every class that occurs or is predicted.
fn macro_f1(truth: &[u32], predicted: &[u32]) -> f64 {
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
