//! One device training alone: the loop that pre-training and probes share.

use std::num::NonZeroUsize;

use anyhow::Result;
use base::{Meter, SERVER, Seed};
use data::{Encoded, Epoch, Target};
use model::optim::{Optimizer, OptimizerConfig, Schedule, clip_norm};
use model::{Activations, Loss, Model, Targets, Tokens};
use ops::Workspace;

/// How to train.
pub struct Recipe {
    pub optimizer: OptimizerConfig,
    pub schedule: Schedule,
    pub max_grad_norm: f32,
    pub batch: NonZeroUsize,
    pub epochs: u64,
}

/// Scratch on all cores of this machine, without a memory budget.
pub fn workspace() -> Workspace {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Workspace::new(&Meter::unlimited(), threads)
}

/// Train `theta` on these sequences; tells step, steps in all, and the mean loss of each batch.
pub fn train(
    ws: &Workspace,
    model: &Model,
    theta: &mut [f32],
    rows: &[Encoded],
    recipe: &Recipe,
    seed: Seed,
    mut tell: impl FnMut(u32, u32, f64),
) -> Result<()> {
    let order: Vec<u32> = (0..rows.len() as u32).collect();
    let total = recipe.epochs as u32 * rows.len().div_ceil(recipe.batch.get()) as u32;
    let mut optimizer = Optimizer::new(&recipe.optimizer, theta.len());
    let mut gradient = vec![0.0; theta.len()];
    for epoch in 0..recipe.epochs {
        for picked in Epoch::new(&order, recipe.batch, seed, 0, SERVER, epoch).batches() {
            let batch: Vec<&Encoded> = picked.iter().map(|row| &rows[*row as usize]).collect();
            let (tokens, targets) = batch_of(&batch);
            gradient.fill(0.0);
            let loss = model::loss_and_gradient(
                ws,
                model,
                theta,
                &tokens,
                &targets,
                Activations::Keep,
                &mut gradient,
            )?;
            clip_norm(&mut gradient, recipe.max_grad_norm);
            let step = optimizer.steps();
            let rate = recipe.optimizer.learning_rate * recipe.schedule.factor(step, total);
            optimizer.step(theta, &gradient, rate);
            tell(step + 1, total, loss.mean());
        }
    }
    Ok(())
}

/// The loss over all of these sequences: sum, count, and how many were predicted right.
pub fn evaluate(ws: &Workspace, model: &Model, theta: &[f32], rows: &[Encoded]) -> Result<Loss> {
    let mut all = Loss { sum: 0.0, count: 0, correct: 0, predicted: Vec::new() };
    for batch in rows.chunks(64) {
        let (tokens, targets) = batch_of(&batch.iter().collect::<Vec<_>>());
        let loss = model::loss(ws, model, theta, &tokens, &targets)?;
        all.sum += loss.sum;
        all.count += loss.count;
        all.correct += loss.correct;
        all.predicted.extend(loss.predicted);
    }
    Ok(all)
}

/// A ragged batch: classes where rows have them, else every next token.
fn batch_of(rows: &[&Encoded]) -> (Tokens, Targets) {
    let sequences: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
    let class = |row: &&Encoded| match row.target {
        Target::Class(class) => Some(class),
        Target::None | Target::Number(_) | Target::Completion { .. } => None,
    };
    let classes: Option<Vec<u32>> = rows.iter().map(class).collect();
    (Tokens::of(&sequences), classes.map_or(Targets::NextToken, Targets::Classes))
}
