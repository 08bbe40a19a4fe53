//! Derivatives along directions, by forward passes alone (FwdLLM, arXiv 2308.13894, equation 2).
//!
//! A pass carries K tangents beside one primal activation, as dual numbers do: it is exact, needs no step
//! size, and reads each frozen weight once for all of them. Nothing is kept for later, so it holds what
//! inference holds, 1 + K times over, of the block it is in. Blocks below whatever the directions move run
//! once, as in inference; what they give can be kept and handed in again.

use crate::directions::Directions;
use crate::error::Error;
use crate::model::Model;
use crate::pass::Pass;
use crate::tokens::{Targets, Tokens};
use crate::train::Loss;
use ops::{Dual, Mat, Workspace};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Directions, and which rows of a batch each of them moves.
#[derive(Clone, Copy)]
pub struct Fan<'a> {
    pub directions: &'a dyn Directions,
    pub over: Over,
}

/// What a direction is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// The whole batch: K directions are K lanes of tangents.
    #[default]
    Batch,
    /// One sequence of B: K lanes carry K * B directions, of which direction `lane * B + b` moves the
    /// parameters that sequence b sees. As many derivatives as there are sequences for the same products.
    Sequences,
}

impl Over {
    /// Directions that so many lanes of tangents over so many sequences carry.
    pub fn directions(self, lanes: usize, sequences: usize) -> usize {
        match self {
            Over::Batch => lanes,
            Over::Sequences => lanes * sequences,
        }
    }
}

/// What a pass found.
#[derive(Clone, Debug, PartialEq)]
pub struct Derivatives {
    pub loss: Loss,
    /// For each direction, the derivative of the mean loss of the rows it moves.
    pub slopes: Vec<f64>,
}

impl<'a> Fan<'a> {
    /// Every direction moves the whole batch.
    pub fn batch(directions: &'a dyn Directions) -> Fan<'a> {
        Fan { directions, over: Over::Batch }
    }
}

/// The input of block 0 with its tangents; a constant unless the directions move the embeddings.
pub fn embed(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    tokens: &Tokens,
    fan: Fan<'_>,
) -> Result<Dual, Error> {
    model.check_tokens(tokens)?;
    let pass = TangentPass::new(ws, model, theta, &tokens.starts, fan)?;
    Ok(model.embedding()?.tangent(pass, tokens)?)
}

/// Run the blocks `layers` on `x`: with [`embed`]'s result, or from any block with `Dual::constant` of a
/// kept activation, if no direction moves anything below. The result is a constant if none of these blocks
/// is moved either.
pub fn blocks(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    layers: Range<usize>,
    mut x: Dual,
    starts: &[u32],
    fan: Fan<'_>,
) -> Result<Dual, Error> {
    let pass = TangentPass::new(ws, model, theta, starts, fan)?;
    for block in model.blocks(&layers)? {
        x = block.tangent(pass, x)?;
    }
    Ok(x)
}

/// The loss and its derivatives from the output `x` of the last block.
pub fn head_loss(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    x: Dual,
    (tokens, targets): (&Tokens, &Targets),
    fan: Fan<'_>,
) -> Result<Derivatives, Error> {
    let pass = TangentPass::new(ws, model, theta, &tokens.starts, fan)?;
    let (loss, slopes) = model.head()?.loss_tangent(pass, x, tokens, targets)?;
    let slopes = match fan.over {
        Over::Sequences => slopes,
        Over::Batch => {
            let shares = shares(tokens, targets)?;
            let mean = |lane: &[f64]| lane.iter().zip(&shares).map(|(slope, share)| slope * share).sum();
            slopes.chunks_exact(shares.len()).map(mean).collect()
        }
    };
    if slopes.iter().all(|slope: &f64| slope.is_finite()) {
        Ok(Derivatives { loss, slopes })
    } else {
        Err(Error::NonFinite { what: "derivative" })
    }
}

/// The loss of a batch and its derivatives.
pub fn loss(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    tokens: &Tokens,
    targets: &Targets,
    fan: Fan<'_>,
) -> Result<Derivatives, Error> {
    let x = embed(ws, model, theta, tokens, fan)?;
    let x = blocks(ws, model, theta, model.layers(), x, &tokens.starts, fan)?;
    head_loss(ws, model, theta, x, (tokens, targets), fan)
}

/// The share of each sequence's predictions in all of them: the derivative of a batch's mean loss is that of
/// its sequences' losses, each times its share.
pub fn shares(tokens: &Tokens, targets: &Targets) -> Result<Vec<f64>, Error> {
    let counts: Vec<usize> = match targets {
        Targets::Classes(classes) => vec![1; classes.len()],
        Targets::NextToken | Targets::Completion(_) => {
            let next = tokens.next(targets)?;
            let counted = |pair: &[u32]| {
                let rows = &next[pair[0] as usize..pair[1] as usize];
                rows.iter().filter(|target| **target != ops::loss::IGNORE).count()
            };
            tokens.starts.windows(2).map(counted).collect()
        }
    };
    let all = counts.iter().sum::<usize>().max(1) as f64;
    Ok(counts.into_iter().map(|count| count as f64 / all).collect())
}

/// One pass with tangents over one ragged batch.
#[derive(Clone, Copy)]
pub(crate) struct TangentPass<'a> {
    pass: Pass<'a>,
    fan: Fan<'a>,
    lanes: usize,
}

/// Rows of one lane that one direction moves.
struct Segment {
    direction: usize,
    lane: usize,
    rows: Range<usize>,
}

impl<'a> TangentPass<'a> {
    fn new(
        ws: &'a Workspace,
        model: &Model,
        theta: &'a [f32],
        starts: &'a [u32],
        fan: Fan<'a>,
    ) -> Result<TangentPass<'a>, Error> {
        let pass = model.pass(ws, theta, starts)?;
        let (moves, count) = (fan.directions.moves(), fan.directions.count());
        let across = |edge: usize| {
            model.layout.sites.iter().find(|site| site.range().start < edge && edge < site.range().end)
        };
        if let Some(site) = across(moves.start).or_else(|| across(moves.end)) {
            return Err(Error::Directions(format!("the directions move a part of {} only", site.name)));
        }
        let sequences = starts.len().saturating_sub(1).max(1);
        let lanes = match fan.over {
            Over::Batch => count,
            Over::Sequences if count.is_multiple_of(sequences) => count / sequences,
            Over::Sequences => {
                return Err(Error::Directions(format!("{count} directions for {sequences} sequences")));
            }
        };
        if lanes == 0 {
            return Err(Error::Directions("a pass with tangents needs at least one direction".into()));
        }
        Ok(TangentPass { pass, fan, lanes })
    }

    pub fn ws(&self) -> &'a Workspace {
        self.pass.ws
    }

    pub fn theta(&self) -> &'a [f32] {
        self.pass.theta
    }

    pub fn starts(&self) -> &'a [u32] {
        self.pass.starts
    }

    /// The pass without tangents.
    pub fn plain(&self) -> Pass<'a> {
        self.pass
    }

    /// The tangents of an activation that is no constant.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// The same over other rows: pooled ones, or a chunk.
    pub fn at<'b>(self, starts: &'b [u32]) -> TangentPass<'b>
    where
        'a: 'b,
    {
        TangentPass { pass: Pass { starts, ..self.pass }, ..self }
    }

    /// Where the sequences begin in all rows of `x`.
    pub fn repeated(&self, x: &Dual) -> Vec<u32> {
        ops::dual::repeated(self.pass.starts, 1 + x.directions())
    }

    /// A copy of some rows of an activation, without tangents.
    pub fn copy_rows(&self, x: &Dual, rows: Range<usize>) -> ops::Result<Mat> {
        self.pass.ws.copy_rows(x.stack(), rows)
    }

    fn moves(&self, range: &Range<usize>) -> bool {
        let moves = self.fan.directions.moves();
        moves.start <= range.start && range.end <= moves.end && !range.is_empty()
    }

    fn segments(&self) -> impl Iterator<Item = Segment> + use<'a> {
        let (starts, over) = (self.pass.starts, self.fan.over);
        let sequences = starts.len().saturating_sub(1);
        let pieces = if over == Over::Batch { 1 } else { sequences };
        (0..self.lanes * pieces).map(move |direction| {
            let (lane, piece) = (direction / pieces, direction % pieces);
            let last = if over == Over::Batch { sequences } else { piece + 1 };
            Segment { direction, lane, rows: starts[piece] as usize..starts[last] as usize }
        })
    }

    /// A direction's part at `range`, in one row.
    fn part(&self, direction: usize, range: &Range<usize>) -> ops::Result<Mat> {
        let mut part = self.pass.ws.scratch(1, range.len())?;
        self.fan.directions.write(direction, range.start, &mut part);
        Ok(part)
    }

    /// `dy += db`, if a direction moves the bias at `range`.
    pub fn add_bias(&self, range: Option<&Range<usize>>, y: Dual) -> ops::Result<Dual> {
        self.add(range, y, |part, _, rows| {
            rows.chunks_exact_mut(part.len()).for_each(|row| ops::slice::axpy(1.0, part, row));
            Ok(())
        })
    }

    /// `dy += scale * x dW^T`, if a direction moves the weight at `range`.
    pub fn add_product(
        &self,
        x: &Dual,
        range: Option<&Range<usize>>,
        scale: f32,
        y: Dual,
    ) -> ops::Result<Dual> {
        let shape = (x.width(), y.width());
        self.add(range, y, |part, rows, y| {
            let x = &x.primal()[rows.start * shape.0..rows.end * shape.0];
            ops::dense::forward_add(self.pass.ws, x, part, scale, y, shape)
        })
    }

    /// `dy += make(part, rows)`, if a direction moves what is at `range`.
    pub fn add_rows(
        &self,
        range: Option<&Range<usize>>,
        y: Dual,
        make: impl Fn(&[f32], Range<usize>) -> ops::Result<Mat>,
    ) -> ops::Result<Dual> {
        self.add(range, y, |part, rows, y| {
            ops::slice::axpy(1.0, &make(part, rows)?, y);
            Ok(())
        })
    }

    /// Adds row `ids[i]` of the moved table at `range` to row i of every tangent. Only the rows that occur
    /// are drawn.
    pub fn add_gathered(&self, range: &Range<usize>, ids: &[u32], y: Dual) -> ops::Result<Dual> {
        if !self.moves(range) {
            return Ok(y);
        }
        let mut y = y.widen(self.pass.ws, self.lanes)?;
        let (width, all) = (y.width(), y.rows());
        for Segment { direction, lane, rows } in self.segments() {
            for row in rows {
                let first = range.start + ids[row] as usize * width;
                let part = self.part(direction, &(first..first + width))?;
                ops::slice::axpy(1.0, &part, y.stack_mut().row_mut((1 + lane) * all + row));
            }
        }
        Ok(y)
    }

    /// Calls `add(part, rows, rows of dy)` for every segment, if the directions move what is at `range`.
    fn add(
        &self,
        range: Option<&Range<usize>>,
        y: Dual,
        add: impl Fn(&[f32], Range<usize>, &mut [f32]) -> ops::Result<()>,
    ) -> ops::Result<Dual> {
        let Some(range) = range.filter(|range| self.moves(range)) else { return Ok(y) };
        let mut y = y.widen(self.pass.ws, self.lanes)?;
        let (width, all) = (y.width(), y.rows());
        for Segment { direction, lane, rows } in self.segments() {
            if rows.is_empty() {
                continue;
            }
            let part = self.part(direction, range)?;
            let (_, tangents) = y.split_mut();
            let cells = (lane * all + rows.start) * width..(lane * all + rows.end) * width;
            add(&part, rows, &mut tangents[cells])?;
        }
        Ok(y)
    }
}
