//! One frozen forward pass, and what leaves it at the side.

use crate::error::Error;
use crate::head::Kind;
use crate::model::Model;
use crate::spec::Pooling;
use crate::tokens::Tokens;
use crate::{backbone, forward};
use ops::{Mat, Workspace};

/// The rows of a layer's states that leave through its tap: those that the loss reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pivot {
    /// One row a sequence.
    Pooled(Pooling),
    /// These rows of the batch, as generation counts a loss at some positions.
    Rows(Vec<u32>),
    /// Every token's row, as MobiLLM sends them.
    Every,
}

/// The pivot rows of one forward pass.
#[derive(Debug)]
pub struct Tapped {
    /// rows x width, one a tapped layer, in the order asked for.
    pub taps: Vec<Mat>,
    /// rows x width: what the backbone's own head reads, after the final norm where there is one.
    pub hidden: Mat,
}

impl Pivot {
    /// The pivot rows of `x`.
    pub fn select(&self, ws: &Workspace, x: &Mat, starts: &[u32]) -> ops::Result<Mat> {
        match self {
            Pivot::Every => ws.copy(x),
            Pivot::Pooled(pooling) => ops::pool::Pooling::from(*pooling).forward(ws, x, starts),
            Pivot::Rows(rows) => {
                let mut picked = ws.scratch(rows.len(), x.width())?;
                for (at, &row) in rows.iter().enumerate() {
                    if row as usize >= x.rows() {
                        let (index, len) = (row as usize, x.rows());
                        return Err(ops::Error::Index { what: "pivot row", index, len });
                    }
                    picked.row_mut(at).copy_from_slice(x.row(row as usize));
                }
                Ok(picked)
            }
        }
    }
}

/// Run the frozen model forward and keep the pivot rows of the outputs of `layers`, which rise.
pub fn tap(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    tokens: &Tokens,
    layers: &[usize],
    pivot: &Pivot,
) -> Result<Tapped, Error> {
    if let Some(layer) = layers.iter().find(|layer| !model.layers().contains(layer)) {
        return Err(Error::NotLoaded { held: model.layers(), asked: format!("block {layer}") });
    }
    let x = backbone::embed(ws, model, theta, tokens)?;
    let mut taps: ops::Result<Vec<Mat>> = Ok(Vec::with_capacity(layers.len()));
    let x = forward(ws, model, theta, model.layers(), x, &tokens.starts, |layer, x| {
        if layers.contains(&layer)
            && let Ok(kept) = &mut taps
        {
            match pivot.select(ws, x, &tokens.starts) {
                Ok(rows) => kept.push(rows),
                Err(error) => taps = Err(error),
            }
        }
    })?;
    let hidden = model.head()?.hidden(model.pass(ws, theta, &tokens.starts)?, x)?;
    let hidden = pivot.select(ws, &hidden, &tokens.starts)?;
    Ok(Tapped { taps: taps?, hidden })
}

/// rows x vocabulary: a language model's own logits, from the rows of [`Tapped::hidden`].
pub fn vocabulary_logits(ws: &Workspace, model: &Model, theta: &[f32], hidden: &Mat) -> Result<Mat, Error> {
    match &model.head()?.kind {
        Kind::Language(language) => Ok(language.forward(model.pass(ws, theta, &[])?, hidden)?),
        Kind::Classifier(_) => {
            Err(Error::Task { loaded: "classification", asked: "the logits of a vocabulary" })
        }
    }
}

/// The last layer of each of `blocks` equal blocks of a backbone: how backbones of different depth are
/// aligned (Fed MobiLLM).
///
/// # Errors
/// A sentence, when there are fewer layers than blocks, or none are asked for.
pub fn even_layers(layers: usize, blocks: usize) -> Result<Vec<usize>, String> {
    if !(1..=layers).contains(&blocks) {
        return Err(format!("{layers} layers cannot be cut into {blocks} blocks"));
    }
    Ok((1..=blocks).map(|block| block * layers / blocks - 1).collect())
}
