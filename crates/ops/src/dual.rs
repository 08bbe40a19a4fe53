//! Activations with tangents: the dual numbers of forward-mode differentiation.

use crate::error::same;
use crate::parallel::Parts;
use crate::{Mat, Result, Workspace};

/// An activation (rows x width) and its tangents along K directions, one below another in one
/// matrix of (1 + K) * rows x width: a product with a frozen weight reads it once for all of them.
///
/// With K = 0 it is a constant: nothing before it depends on what the directions move. Constants stay
/// constants until something that is moved adds to them, so a frozen prefix costs one forward pass.
#[derive(Debug)]
pub struct Dual {
    stack: Mat,
    rows: usize,
}

impl Dual {
    /// An activation that no direction moves.
    pub fn constant(x: Mat) -> Dual {
        Dual { rows: x.rows(), stack: x }
    }

    /// `stack` holds the activation's rows and, below them, those of its tangents.
    pub fn stacked(stack: Mat, rows: usize) -> Result<Dual> {
        let rest = stack.rows().checked_rem(rows).unwrap_or(stack.rows());
        same("the rows beyond whole tangents", 0, rest)?;
        Ok(Dual { stack, rows })
    }

    /// Rows of the activation alone.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.stack.width()
    }

    /// K, or 0 for a constant.
    pub fn directions(&self) -> usize {
        (self.stack.rows() / self.rows.max(1)).saturating_sub(1)
    }

    pub fn is_constant(&self) -> bool {
        self.stack.rows() == self.rows
    }

    /// The activation, rows x width.
    pub fn primal(&self) -> &[f32] {
        &self.stack[..self.rows * self.stack.width()]
    }

    /// Its tangent along direction `index`, rows x width.
    ///
    /// # Panics
    /// If there is no such direction, as slices do.
    pub fn tangent(&self, index: usize) -> &[f32] {
        let len = self.rows * self.stack.width();
        &self.stack[(index + 1) * len..][..len]
    }

    /// The activation, and its tangents one after another.
    pub fn split_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        let len = self.rows * self.stack.width();
        self.stack.split_at_mut(len)
    }

    /// All rows: the activation's, then those of each tangent.
    pub fn stack(&self) -> &Mat {
        &self.stack
    }

    /// All rows, for what treats every one alike.
    pub fn stack_mut(&mut self) -> &mut Mat {
        &mut self.stack
    }

    /// The stack of a linear map of this one: `map` makes a matrix with as many rows.
    pub fn map(&self, map: impl FnOnce(&Mat) -> Result<Mat>) -> Result<Dual> {
        let stack = map(&self.stack)?;
        same("the rows of a mapped activation", self.stack.rows(), stack.rows())?;
        Ok(Dual { stack, rows: self.rows })
    }

    /// The same with `directions` tangents, zeros where it was a constant.
    pub fn widen(self, ws: &Workspace, directions: usize) -> Result<Dual> {
        if !self.is_constant() || directions == 0 {
            return Ok(self);
        }
        let (rows, len) = (self.rows, self.stack.len());
        let mut stack = ws.scratch((1 + directions) * rows, self.stack.width())?;
        stack[..len].copy_from_slice(&self.stack);
        stack[len..].fill(0.0);
        Ok(Dual { stack, rows })
    }

    /// `self + other`, tangents included; either may be a constant.
    pub fn add(self, ws: &Workspace, other: &Dual) -> Result<Dual> {
        same("the number of rows added", self.rows, other.rows)?;
        same("the width added", self.width(), other.width())?;
        let mut sum = self.widen(ws, other.directions())?;
        if !other.is_constant() {
            same("the number of directions added", sum.directions(), other.directions())?;
        }
        let (own, width) = (other.stack.len(), sum.width());
        let stack = Parts::new(&mut sum.stack);
        ws.share_rows(other.stack.rows(), width, |rows| {
            let cells = rows.start * width..rows.end * width;
            debug_assert!(cells.end <= own);
            // SAFETY: blocks of rows are disjoint.
            crate::slice::axpy(1.0, &other.stack[cells.clone()], unsafe { stack.part(cells) });
        });
        Ok(sum)
    }

    /// The activation without its tangents.
    pub fn into_primal(self, ws: &Workspace) -> Result<Mat> {
        if self.is_constant() {
            return Ok(self.stack);
        }
        ws.copy_rows(&self.stack, 0..self.rows)
    }
}

/// `starts` of a batch that stands `copies` times one below another.
pub fn repeated(starts: &[u32], copies: usize) -> Vec<u32> {
    let rows = starts.last().copied().unwrap_or(0);
    let behind = |copy: usize| starts.iter().skip(1).map(move |start| copy as u32 * rows + start);
    starts.iter().take(1).copied().chain((0..copies).flat_map(behind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Meter;

    #[test]
    fn constants_stay_narrow_until_something_moves_them() {
        let ws = Workspace::new(&Meter::unlimited(), 2);
        let constant = |value| Dual::constant(ws.from_slice(1, 2, &[value, value]).unwrap());
        let wide = Dual::stacked(ws.from_slice(3, 2, &[1., 2., 3., 4., 5., 6.]).unwrap(), 1).unwrap();
        assert_eq!((wide.directions(), wide.tangent(1)), (2, &[5.0f32, 6.0][..]));
        assert!(constant(1.0).add(&ws, &constant(2.0)).unwrap().is_constant());
        let sum = constant(10.0).add(&ws, &wide).unwrap().add(&ws, &constant(100.0)).unwrap();
        assert_eq!(&**sum.stack(), &[111.0, 112.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(Dual::stacked(ws.zeros(3, 2).unwrap(), 2).is_err());
        assert_eq!(repeated(&[0, 2, 5], 3), [0, 2, 5, 7, 10, 12, 15]);
    }
}
