//! Lookup of token, position and type embeddings.

use crate::error::{inside, same};
use crate::{Mat, Result, Workspace};

/// Row `ids[i]` of `table` (vocabulary x width, row-major) for every i: ids x width.
pub fn gather(ws: &Workspace, ids: &[u32], table: &[f32], width: usize) -> Result<Mat> {
    let mut y = ws.zeros(ids.len(), width)?;
    gather_add(ids, table, &mut y)?;
    Ok(y)
}

/// Adds row `ids[i]` of `table` to row i of `y`: position and type embeddings.
pub fn gather_add(ids: &[u32], table: &[f32], y: &mut Mat) -> Result<()> {
    let width = y.width();
    same("the number of ids", y.rows(), ids.len())?;
    let rows = table.len() / width.max(1);
    same("the size of the embedding table", rows * width, table.len())?;
    for (i, &id) in ids.iter().enumerate() {
        inside("token id", id as usize, rows)?;
        crate::slice::axpy(1.0, &table[id as usize * width..][..width], y.row_mut(i));
    }
    Ok(())
}

/// [`gather`] from a table that is not a plain slice (tied to a [`Linear`](crate::Linear), or
/// stored in half precision): `fetch` writes the row of one id.
pub fn gather_with(
    ws: &Workspace,
    ids: &[u32],
    width: usize,
    mut fetch: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<Mat> {
    let mut y = ws.scratch(ids.len(), width)?;
    for (i, &id) in ids.iter().enumerate() {
        fetch(id as usize, y.row_mut(i))?;
    }
    Ok(y)
}

/// The gradient of a trainable table: adds row i of `dy` to row `ids[i]` of `dtable`.
pub fn backward(dy: &Mat, ids: &[u32], dtable: &mut [f32]) -> Result<()> {
    let width = dy.width();
    same("the number of ids", dy.rows(), ids.len())?;
    let rows = dtable.len() / width.max(1);
    same("the size of the embedding table", rows * width, dtable.len())?;
    for (i, &id) in ids.iter().enumerate() {
        inside("token id", id as usize, rows)?;
        crate::slice::axpy(1.0, dy.row(i), &mut dtable[id as usize * width..][..width]);
    }
    Ok(())
}
