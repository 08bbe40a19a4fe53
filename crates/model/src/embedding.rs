//! From token ids to the input of the first block.

use crate::norm::Norm;
use crate::pass::{Pass, Values};
use crate::tangent::TangentPass;
use crate::tokens::Tokens;
use ops::{Dual, Linear, Mat, Result, embed};
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Embedding {
    pub words: Words,
    /// Learned positions, and the row of position 0.
    pub positions: Option<(Values, u32)>,
    /// Segments (BERT's token types), and how many there are: of one, as in RoBERTa, every token is part.
    pub types: Option<(Values, usize)>,
    pub norm: Option<Norm>,
    pub width: usize,
}

/// The word table.
#[derive(Debug)]
pub(crate) enum Words {
    Table(Values),
    /// Frozen, and the same packed copy as the output head.
    Tied(Arc<Linear>),
}

impl Embedding {
    /// rows x width.
    pub fn forward(&self, pass: Pass<'_>, tokens: &Tokens) -> Result<Mat> {
        let sum = self.sum(pass, tokens)?;
        match &self.norm {
            Some(norm) => norm.forward(pass, &sum),
            None => Ok(sum),
        }
    }

    /// [`Embedding::forward`] with tangents: a constant unless a direction moves what is here.
    pub fn tangent(&self, pass: TangentPass<'_>, tokens: &Tokens) -> Result<Dual> {
        let mut sum = Dual::constant(self.sum(pass.plain(), tokens)?);
        if let Words::Table(Values::Trained(range)) = &self.words {
            sum = pass.add_gathered(range, &tokens.ids, sum)?;
        }
        if let Some((Values::Trained(range), offset)) = &self.positions {
            sum = pass.add_gathered(range, &positions(tokens, *offset), sum)?;
        }
        if let Some((Values::Trained(range), segments)) = &self.types {
            sum = pass.add_gathered(range, &tokens.segments(*segments), sum)?;
        }
        match &self.norm {
            Some(norm) => norm.tangent(pass, &sum),
            None => Ok(sum),
        }
    }

    /// Accumulates the gradients of what is trained here. The sum before the norm is gathered again
    /// instead of being kept.
    pub fn backward(&self, pass: Pass<'_>, tokens: &Tokens, dy: Mat, grad: &mut [f32]) -> Result<()> {
        let dsum = match &self.norm {
            Some(norm) => norm.backward(pass, &self.sum(pass, tokens)?, &dy, grad)?,
            None => dy,
        };
        if let Words::Table(table) = &self.words
            && let Some(grad) = table.gradient(grad)
        {
            embed::backward(&dsum, &tokens.ids, grad)?;
        }
        if let Some((table, offset)) = &self.positions
            && let Some(grad) = table.gradient(grad)
        {
            embed::backward(&dsum, &positions(tokens, *offset), grad)?;
        }
        if let Some((table, segments)) = &self.types
            && let Some(grad) = table.gradient(grad)
        {
            embed::backward(&dsum, &tokens.segments(*segments), grad)?;
        }
        Ok(())
    }

    fn sum(&self, pass: Pass<'_>, tokens: &Tokens) -> Result<Mat> {
        let ws = pass.ws;
        let mut sum = match &self.words {
            Words::Table(table) => embed::gather(ws, &tokens.ids, table.get(pass.theta), self.width)?,
            Words::Tied(head) => {
                embed::gather_with(ws, &tokens.ids, self.width, |id, row| head.row(id, row))?
            }
        };
        if let Some((table, offset)) = &self.positions {
            embed::gather_add(&positions(tokens, *offset), table.get(pass.theta), &mut sum)?;
        }
        if let Some((table, segments)) = &self.types {
            embed::gather_add(&tokens.segments(*segments), table.get(pass.theta), &mut sum)?;
        }
        Ok(sum)
    }

    /// The memory its frozen part holds, a table shared with the head not counted.
    pub fn bytes(&self) -> u64 {
        let words = match &self.words {
            Words::Table(table) => table.bytes(),
            Words::Tied(_) => 0,
        };
        words
            + self.positions.as_ref().map_or(0, |(table, _)| table.bytes())
            + self.types.as_ref().map_or(0, |(table, _)| table.bytes())
            + self.norm.as_ref().map_or(0, Norm::bytes)
    }
}

fn positions(tokens: &Tokens, offset: u32) -> Vec<u32> {
    tokens.positions().map(|position| position + offset).collect()
}
