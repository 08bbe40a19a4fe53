//! One row a sequence, for classification.

use crate::error::same;
use crate::ragged::sequences;
use crate::{Mat, Result, Workspace};

/// What stands for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Its first row.
    Cls,
    /// The mean of its rows.
    Mean,
    /// Its last row.
    Last,
}

impl Pooling {
    /// rows x width becomes sequences x width.
    pub fn forward(self, ws: &Workspace, x: &Mat, starts: &[u32]) -> Result<Mat> {
        let ranges = sequences(starts, x.rows())?;
        let mut y = ws.zeros(ranges.len(), x.width())?;
        for (i, range) in ranges.enumerate() {
            let y = y.row_mut(i);
            match self {
                Pooling::Cls => y.copy_from_slice(x.row(range.start)),
                Pooling::Last => y.copy_from_slice(x.row(range.end - 1)),
                Pooling::Mean => {
                    let share = 1.0 / range.len() as f32;
                    range.for_each(|r| crate::slice::axpy(1.0, x.row(r), y));
                    crate::slice::scale(share, y);
                }
            }
        }
        Ok(y)
    }

    /// sequences x width becomes rows x width.
    pub fn backward(self, ws: &Workspace, dy: &Mat, starts: &[u32]) -> Result<Mat> {
        let rows = starts.last().map_or(0, |&end| end as usize);
        let ranges = sequences(starts, rows)?;
        same("the number of sequences", ranges.len(), dy.rows())?;
        let mut dx = ws.zeros(rows, dy.width())?;
        for (i, range) in ranges.enumerate() {
            let dy = dy.row(i);
            match self {
                Pooling::Cls => dx.row_mut(range.start).copy_from_slice(dy),
                Pooling::Last => dx.row_mut(range.end - 1).copy_from_slice(dy),
                Pooling::Mean => {
                    let share = 1.0 / range.len() as f32;
                    range.for_each(|r| crate::slice::axpy(share, dy, dx.row_mut(r)));
                }
            }
        }
        Ok(dx)
    }
}
