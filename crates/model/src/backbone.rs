//! Forward and backward over a range of blocks.
//!
//! A model is cut between blocks: a device runs `0..cut`, a server `cut..n`, and what crosses is one
//! activation upwards and its gradient downwards. A whole model is the range `0..n`.

use crate::block;
use crate::error::Error;
use crate::layout::Layout;
use crate::model::Model;
use crate::pass::{Below, Save};
use crate::spec::Place;
use crate::tokens::{Activations, Tokens};
use ops::{Mat, Workspace};
use std::ops::Range;

/// What [`backward`] reads of a forward pass: one activation for each block a gradient comes to and,
/// under [`Activations::Keep`] and of the last block, all that its backward reads.
#[derive(Debug)]
pub struct Trail {
    steps: Vec<Step>,
    below: Below,
}

#[derive(Debug)]
struct Step {
    layer: usize,
    /// The block's input; `None` where it is the norm of the sum of the block before.
    input: Option<Mat>,
    sum: Option<Mat>,
    saved: Option<block::Saved>,
}

/// The input of block 0: rows x width.
pub fn embed(ws: &Workspace, model: &Model, theta: &[f32], tokens: &Tokens) -> Result<Mat, Error> {
    model.check_tokens(tokens)?;
    let pass = model.pass(ws, theta, &tokens.starts)?;
    Ok(model.embedding()?.forward(pass, tokens)?)
}

/// Run the blocks `layers` on `x`, which is rows x width, and return the last one's output. `tap`
/// sees every block's output as it comes.
pub fn forward(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    layers: Range<usize>,
    mut x: Mat,
    starts: &[u32],
    mut tap: impl FnMut(usize, &Mat),
) -> Result<Mat, Error> {
    let pass = model.pass(ws, theta, starts)?;
    for (layer, block) in layers.clone().zip(model.blocks(&layers)?) {
        x = block.forward(pass, &x, Save::Nothing)?.y;
        tap(layer, &x);
    }
    Ok(x)
}

/// [`forward`], leaving behind what [`backward`] reads. `below` says whether the gradient of `x`
/// will be wanted; blocks that no gradient comes to leave nothing.
pub fn forward_for_backward(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    layers: Range<usize>,
    mut x: Mat,
    starts: &[u32],
    activations: Activations,
    below: Below,
) -> Result<(Mat, Trail), Error> {
    let pass = model.pass(ws, theta, starts)?;
    let mut trail = Trail { steps: Vec::new(), below };
    for (layer, block) in layers.clone().zip(model.blocks(&layers)?) {
        let reached = below == Below::Trained || model.layout.trains(layers.start..layer + 1);
        let save = match activations {
            _ if !reached => Save::Nothing,
            // The last block's backward comes next: running it again would save no memory.
            Activations::Recompute if layer + 1 < layers.end => Save::Sum,
            Activations::Keep | Activations::Recompute => Save::ForBackward,
        };
        let block::Forwarded { y, sum, saved } = block.forward(pass, &x, save)?;
        let input = std::mem::replace(&mut x, y);
        if reached {
            let follows = trail.steps.last().is_some_and(|before| before.sum.is_some());
            trail.steps.push(Step { layer, input: (!follows).then_some(input), sum, saved });
        }
    }
    Ok((x, trail))
}

/// From the gradient of the output of a range of blocks to that of its input, which is `None` if it
/// was not wanted. The gradients of the sites are accumulated into `grad`.
pub fn backward(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    trail: Trail,
    starts: &[u32],
    dy: Mat,
    grad: &mut [f32],
) -> Result<Option<Mat>, Error> {
    let pass = model.pass(ws, theta, starts)?;
    model.check_theta(grad)?;
    let Trail { mut steps, below } = trail;
    let first = steps.first().map_or(0, |step| step.layer);
    let mut gradient = Some(dy);
    while let Some(Step { layer, input, sum, saved }) = steps.pop() {
        let Some(dy) = gradient else { break };
        let block = model.block(layer)?;
        let before = steps.last().and_then(|step| step.sum.as_ref());
        let input = match (input, before) {
            (None, Some(sum)) => model.block(layer - 1)?.output(pass, sum)?,
            (input, _) => input.expect("kept unless the block before leaves its sum"),
        };
        let saved = if saved.is_some() { saved } else { block.recompute(pass, &input)? };
        let saved = saved.expect("a block saves what it is asked to");
        let below = Below::of(below == Below::Trained || model.layout.trains(first..layer));
        gradient = block.backward(pass, &input, (saved, sum), dy, below, grad)?;
    }
    Ok(gradient.filter(|_| below == Below::Trained))
}

/// The gradients of what is trained in the embeddings, from that of block 0's input.
pub fn embed_backward(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    tokens: &Tokens,
    dx: Mat,
    grad: &mut [f32],
) -> Result<(), Error> {
    model.check_tokens(tokens)?;
    let pass = model.pass(ws, theta, &tokens.starts)?;
    Ok(model.embedding()?.backward(pass, tokens, dx, grad)?)
}

impl Layout {
    /// Whether a block of `layers` has a site.
    pub(crate) fn trains(&self, layers: Range<usize>) -> bool {
        self.sites.iter().any(|site| matches!(site.place, Place::Block(layer) if layers.contains(&layer)))
    }
}
