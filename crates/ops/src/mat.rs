//! Activations.

use crate::Result;
use crate::error::same;
use crate::workspace::Buffer;
use std::ops::{Deref, DerefMut};

/// `rows x width` numbers, row-major: one row a token. Made by a [`Workspace`](crate::Workspace),
/// whose meter is charged while it lives.
#[derive(Debug)]
pub struct Mat {
    rows: usize,
    width: usize,
    buffer: Buffer,
}

impl Mat {
    pub(crate) fn new(rows: usize, width: usize, buffer: Buffer) -> Mat {
        Mat { rows, width, buffer }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// # Panics
    /// If `index` is not a row, as slices do.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.buffer[index * self.width..][..self.width]
    }

    /// # Panics
    /// If `index` is not a row, as slices do.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.buffer[index * self.width..][..self.width]
    }

    /// `self += other`, as a residual connection does.
    pub fn add(&mut self, other: &Mat) -> Result<()> {
        same("the number of rows added", self.rows, other.rows)?;
        same("the width added", self.width, other.width)?;
        crate::slice::axpy(1.0, other, self);
        Ok(())
    }

    /// An error unless this is `rows x width`.
    pub(crate) fn expect(&self, what: &'static str, rows: usize, width: usize) -> Result<()> {
        same(what, rows, self.rows)?;
        same(what, width, self.width)
    }
}

impl Deref for Mat {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer
    }
}

impl DerefMut for Mat {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer
    }
}
