//! The loss of a batch, and its gradient.

use crate::backbone::{backward, embed, embed_backward, forward, forward_for_backward};
use crate::error::Error;
use crate::model::Model;
use crate::pass::Below;
use crate::spec::Place;
use crate::tokens::{Activations, Targets, Tokens};
use ops::{Mat, Workspace};

/// The loss of a batch. Sums add up over batches; means do not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of the negative log-likelihoods, in nats.
    pub sum: f64,
    /// Predictions: sequences, or tokens of a language model.
    pub count: usize,
    /// Predictions whose most likely value was right.
    pub correct: usize,
    /// The most likely class of each sequence; empty for a language model.
    pub predicted: Vec<u32>,
}

impl Loss {
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    pub(crate) fn of_classes(loss: ops::loss::Loss, logits: &Mat, classes: &[u32]) -> Loss {
        let predicted: Vec<u32> = (0..logits.rows()).map(|row| argmax(logits.row(row))).collect();
        let correct = predicted.iter().zip(classes).filter(|(predicted, class)| predicted == class).count();
        Loss { sum: loss.sum, count: loss.count, correct, predicted }
    }
}

impl From<ops::loss::Loss> for Loss {
    fn from(loss: ops::loss::Loss) -> Loss {
        Loss { sum: loss.sum, count: loss.count, correct: loss.correct, predicted: Vec::new() }
    }
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Loss) {
        self.sum += other.sum;
        self.count += other.count;
        self.correct += other.correct;
        self.predicted.extend(other.predicted);
    }
}

/// The index of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u32
}

/// The last hidden states, after the final norm where there is one: rows x width.
pub fn hidden(ws: &Workspace, model: &Model, theta: &[f32], tokens: &Tokens) -> Result<Mat, Error> {
    let x = last_block(ws, model, theta, tokens)?;
    Ok(model.head()?.hidden(model.pass(ws, theta, &tokens.starts)?, x)?)
}

/// The logits of each sequence: sequences x classes, or the vocabulary's logits after its last token.
pub fn logits(ws: &Workspace, model: &Model, theta: &[f32], tokens: &Tokens) -> Result<Mat, Error> {
    let x = last_block(ws, model, theta, tokens)?;
    let logits = model.head()?.logits(model.pass(ws, theta, &tokens.starts)?, x)?;
    if ops::slice::all_finite(&logits) { Ok(logits) } else { Err(Error::NonFinite { what: "output" }) }
}

/// The loss of a batch, forward only.
pub fn loss(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    tokens: &Tokens,
    targets: &Targets,
) -> Result<Loss, Error> {
    let x = last_block(ws, model, theta, tokens)?;
    head_loss(ws, model, theta, x, tokens, targets)
}

/// What a classification head's weight reads of each sequence (sequences x width), from the output `x` of
/// the last block.
pub fn features(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    x: Mat,
    starts: &[u32],
) -> Result<Mat, Error> {
    model.head()?.features(model.pass(ws, theta, starts)?, x)
}

/// One row a sequence in place of the output `x` of the last block, where the head computes the same from
/// it as from all: what is worth keeping of a frozen backbone. Read it as sequences of one token.
pub fn condense(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    x: &Mat,
    starts: &[u32],
) -> Result<Option<Mat>, Error> {
    Ok(model.head()?.condense(model.pass(ws, theta, starts)?, x)?)
}

/// The loss from the output `x` of the last block.
pub fn head_loss(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    x: Mat,
    tokens: &Tokens,
    targets: &Targets,
) -> Result<Loss, Error> {
    model.head()?.loss(model.pass(ws, theta, &tokens.starts)?, x, tokens, targets)
}

/// The loss from the output `x` of the last block, and the gradient of its mean: returned for `x` if
/// `below` is trained, and accumulated into `grad` for the sites of the head.
pub fn head_loss_and_gradient(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    x: Mat,
    (tokens, targets): (&Tokens, &Targets),
    below: Below,
    grad: &mut [f32],
) -> Result<(Loss, Option<Mat>), Error> {
    let pass = model.pass(ws, theta, &tokens.starts)?;
    model.check_theta(grad)?;
    model.head()?.loss_and_gradient(pass, x, (tokens, targets), below, grad)
}

/// The loss of a batch; the gradient of its mean is accumulated into `grad`, which is as long as
/// `theta`. Gradients come down only as far as something is trained.
///
/// # Errors
/// [`Error::NonFinite`] when the loss or the gradient is no number; `grad` is then of no use.
pub fn loss_and_gradient(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    tokens: &Tokens,
    targets: &Targets,
    activations: Activations,
    grad: &mut [f32],
) -> Result<Loss, Error> {
    let layout = &model.layout;
    let below = Below::of(layout.trains_below(Place::Block(0)));
    let below_head = Below::of(layout.trains_below(Place::Last));
    let starts = &tokens.starts;
    let x = embed(ws, model, theta, tokens)?;
    let (x, trail) = forward_for_backward(ws, model, theta, model.layers(), x, starts, activations, below)?;
    let batch = (tokens, targets);
    let (loss, dx) = head_loss_and_gradient(ws, model, theta, x, batch, below_head, grad)?;
    let dx = dx.map(|dx| backward(ws, model, theta, trail, starts, dx, grad)).transpose()?.flatten();
    if let Some(dx) = dx {
        embed_backward(ws, model, theta, tokens, dx, grad)?;
    }
    if ops::slice::all_finite(grad) { Ok(loss) } else { Err(Error::NonFinite { what: "gradient" }) }
}

fn last_block(ws: &Workspace, model: &Model, theta: &[f32], tokens: &Tokens) -> Result<Mat, Error> {
    let x = embed(ws, model, theta, tokens)?;
    forward(ws, model, theta, model.layers(), x, &tokens.starts, |_, _| {})
}
