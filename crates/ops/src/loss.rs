//! Cross-entropy, over classes and over a vocabulary.

use crate::error::{inside, same};
use crate::parallel::Parts;
use crate::simd::math::{exp_from_largest, largest, map};
use crate::simd::{Kernel, Simd};
use crate::slice::dot;
use crate::{Dual, Error, Mat, Result, Workspace};

/// The target of a row that does not count (-100 in Hugging Face).
pub const IGNORE: u32 = u32::MAX;

/// The loss of some rows. Add up [`Loss::sum`] and [`Loss::count`] over batches, then divide.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// The sum of the negative log-likelihoods, in nats.
    pub sum: f64,
    /// Rows that count.
    pub count: usize,
    /// Of these, rows whose largest logit is the target's.
    pub correct: usize,
}

impl Loss {
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

impl std::ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Loss) {
        self.sum += other.sum;
        self.count += other.count;
        self.correct += other.correct;
    }
}

/// Softmax cross-entropy. `logits` is rows x classes, `targets` has a class a row, or [`IGNORE`].
///
/// # Errors
/// [`Error::NonFinite`] where a logit is NaN or infinite.
pub fn cross_entropy(ws: &Workspace, logits: &Mat, targets: &[u32]) -> Result<Loss> {
    let mut probabilities = ws.copy(logits)?;
    softmax_rows(ws, &mut probabilities, targets)
}

/// [`cross_entropy`], and `logits` become the gradient of `scale` times the sum of the losses: give
/// `1 / count` for the gradient of the mean. Rows that do not count get zeros.
pub fn cross_entropy_backward(
    ws: &Workspace,
    logits: &mut Mat,
    targets: &[u32],
    scale: f32,
) -> Result<Loss> {
    let loss = softmax_rows(ws, logits, targets)?;
    for (r, &target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
        logits.row_mut(r)[target as usize] -= 1.0;
    }
    ws.by_rows(logits, |_, part| crate::slice::scale(scale, part));
    Ok(loss)
}

/// [`cross_entropy`], and the derivative of each row's loss along each direction: directions x rows,
/// zero for rows that do not count.
pub fn cross_entropy_tangent(ws: &Workspace, logits: &Dual, targets: &[u32]) -> Result<(Loss, Vec<f64>)> {
    let (rows, width) = (logits.rows(), logits.width());
    let mut slopes = ws.from_slice(rows, width, logits.primal())?;
    let loss = cross_entropy_backward(ws, &mut slopes, targets, 1.0)?;
    let derivative = |index: usize| {
        let tangents = logits.tangent(index).chunks_exact(width.max(1));
        tangents.zip(slopes.chunks_exact(width.max(1))).map(|(tangent, slope)| dot(tangent, slope))
    };
    Ok((loss, (0..logits.directions()).flat_map(derivative).collect()))
}

/// Turns logits into probabilities, and the rows that do not count into zeros.
fn softmax_rows(ws: &Workspace, logits: &mut Mat, targets: &[u32]) -> Result<Loss> {
    let classes = logits.width();
    same("the number of targets", logits.rows(), targets.len())?;
    for &target in targets.iter().filter(|target| **target != IGNORE) {
        inside("target", target as usize, classes)?;
    }
    // The loss of a row and whether it is correct, by row; summed in that order afterwards.
    let mut losses = ws.zeros(targets.len(), 2)?;
    let parts = Parts::new(&mut losses);
    ws.by_rows(logits, |rows, logits| {
        // SAFETY: blocks of rows are disjoint.
        let losses = unsafe { parts.part(2 * rows.start..2 * rows.end) };
        ws.level().run(Softmax { classes, targets: &targets[rows], logits, losses });
    });
    let mut loss = Loss::default();
    for (r, _) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORE) {
        let row = losses.row(r);
        loss += Loss { sum: f64::from(row[0]), count: 1, correct: row[1] as usize };
    }
    if loss.sum.is_finite() { Ok(loss) } else { Err(Error::NonFinite { what: "the loss" }) }
}

struct Softmax<'a> {
    classes: usize,
    targets: &'a [u32],
    logits: &'a mut [f32],
    /// Two a row: the loss, and 1 where the largest logit is the target's.
    losses: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.logits.chunks_exact_mut(self.classes.max(1)).zip(self.losses.chunks_exact_mut(2));
        for ((row, loss), &target) in rows.zip(self.targets) {
            if target == IGNORE {
                row.fill(0.0);
                continue;
            }
            let (logit, best) = (row[target as usize], largest(s, row));
            let total = exp_from_largest(s, row, 1.0);
            loss[0] = total.ln() - (logit - best);
            loss[1] = f32::from(logit == best);
            let share = s.splat(1.0 / total);
            map(s, row, |p| s.mul(p, share));
        }
    }
}

/// Rows of one chunk of a vocabulary loss: rows x vocabulary stays near 4 MiB.
pub fn chunk_rows(vocabulary: usize) -> usize {
    ((1 << 20) / vocabulary.max(1)).clamp(16, 1024)
}

/// Cross-entropy over a vocabulary, chunk by chunk, so that rows x vocabulary never exists whole.
///
/// `hidden` is rows x width and `targets` a token a row, or [`IGNORE`]; rows that do not count are
/// not computed. `head` turns a chunk x width into a chunk x vocabulary.
pub fn causal_lm<E: From<Error>>(
    ws: &Workspace,
    hidden: &Mat,
    targets: &[u32],
    vocabulary: usize,
    mut head: impl FnMut(&Mat) -> Result<Mat, E>,
) -> Result<Loss, E> {
    same("the number of targets", hidden.rows(), targets.len())?;
    let mut loss = Loss::default();
    for rows in counted(targets).chunks(chunk_rows(vocabulary)) {
        let (chunk, chunk_targets) = select(ws, hidden, targets, rows)?;
        loss += softmax_rows(ws, &mut head(&chunk)?, &chunk_targets)?;
    }
    Ok(loss)
}

/// [`causal_lm`] with the gradient of `scale` times the sum of the losses: returns it for `hidden`.
///
/// `head` also returns what its own backward reads; `head_backward` gets the chunk, that, and the
/// gradient of the chunk's logits, accumulates the gradients of the head's parameters if it has
/// any, and returns the gradient of the chunk.
pub fn causal_lm_backward<S, E: From<Error>>(
    ws: &Workspace,
    hidden: &Mat,
    targets: &[u32],
    (vocabulary, scale): (usize, f32),
    mut head: impl FnMut(&Mat) -> Result<(Mat, S), E>,
    mut head_backward: impl FnMut(&Mat, S, &Mat) -> Result<Mat, E>,
) -> Result<(Loss, Mat), E> {
    same("the number of targets", hidden.rows(), targets.len())?;
    let mut loss = Loss::default();
    let mut dhidden = ws.zeros(hidden.rows(), hidden.width())?;
    for rows in counted(targets).chunks(chunk_rows(vocabulary)) {
        let (chunk, chunk_targets) = select(ws, hidden, targets, rows)?;
        let (mut logits, saved) = head(&chunk)?;
        loss += cross_entropy_backward(ws, &mut logits, &chunk_targets, scale)?;
        let dchunk = head_backward(&chunk, saved, &logits)?;
        for (i, &r) in rows.iter().enumerate() {
            dhidden.row_mut(r).copy_from_slice(dchunk.row(i));
        }
    }
    Ok((loss, dhidden))
}

/// [`causal_lm`], and the derivative of each row's loss along each direction: directions x rows.
///
/// `head` turns a chunk and the rows of `hidden` it was made of into the chunk's logits.
pub fn causal_lm_tangent<E: From<Error>>(
    ws: &Workspace,
    hidden: &Dual,
    targets: &[u32],
    vocabulary: usize,
    directions: usize,
    mut head: impl FnMut(&Dual, &[usize]) -> Result<Dual, E>,
) -> Result<(Loss, Vec<f64>), E> {
    same("the number of targets", hidden.rows(), targets.len())?;
    let (mut loss, mut slopes) = (Loss::default(), vec![0.0; directions * hidden.rows()]);
    for rows in counted(targets).chunks(tangent_chunk_rows(vocabulary, directions)) {
        let mut chunk = ws.scratch((1 + hidden.directions()) * rows.len(), hidden.width())?;
        for copy in 0..=hidden.directions() {
            for (i, &r) in rows.iter().enumerate() {
                let from = hidden.stack().row(copy * hidden.rows() + r);
                chunk.row_mut(copy * rows.len() + i).copy_from_slice(from);
            }
        }
        let chunk_targets: Vec<u32> = rows.iter().map(|&r| targets[r]).collect();
        let logits = head(&Dual::stacked(chunk, rows.len())?, rows)?;
        let (part, derivatives) = cross_entropy_tangent(ws, &logits, &chunk_targets)?;
        loss += part;
        for (index, derivatives) in derivatives.chunks_exact(rows.len()).enumerate() {
            for (&r, derivative) in rows.iter().zip(derivatives) {
                slopes[index * hidden.rows() + r] = *derivative;
            }
        }
    }
    Ok((loss, slopes))
}

/// Rows of one chunk of a vocabulary loss with tangents: the logits of all take what they take alone, but
/// no fewer than 8 rows are worth a product.
pub fn tangent_chunk_rows(vocabulary: usize, directions: usize) -> usize {
    (chunk_rows(vocabulary) / (1 + directions)).max(8)
}

/// The rows that count.
fn counted(targets: &[u32]) -> Vec<usize> {
    (0..targets.len()).filter(|&r| targets[r] != IGNORE).collect()
}

fn select(ws: &Workspace, hidden: &Mat, targets: &[u32], rows: &[usize]) -> Result<(Mat, Vec<u32>)> {
    let mut chunk = ws.scratch(rows.len(), hidden.width())?;
    for (i, &r) in rows.iter().enumerate() {
        chunk.row_mut(i).copy_from_slice(hidden.row(r));
    }
    Ok((chunk, rows.iter().map(|&r| targets[r]).collect()))
}
