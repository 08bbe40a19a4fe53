//! A frozen linear layer.

use crate::error::same;
use crate::{Mat, Result, Workspace};

/// `y = x W^T + b` with weights that never change.
///
/// The one copy of W is cut into panels of [`PANEL`] outputs; within a panel the outputs of one
/// input stand side by side, as the forward kernel reads them. The backward kernel transposes each
/// tile of that same copy as it comes to it.
#[derive(Debug)]
pub struct Linear {
    out: usize,
    in_: usize,
    panels: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// Outputs a panel. The last panel is cut down to a multiple of [`LANE`].
const PANEL: usize = 48;
const LANE: usize = 16;

impl Linear {
    /// Pack `weight`, out x in row-major as Hugging Face stores it. Its original can be dropped.
    pub fn pack(out: usize, in_: usize, weight: &[f32], bias: Option<&[f32]>) -> Result<Linear> {
        same("the size of the weight", out * in_, weight.len())?;
        if let Some(bias) = bias {
            same("the length of the bias", out, bias.len())?;
        }
        let mut panels = vec![0.0; out.next_multiple_of(LANE) * in_];
        for (o, row) in weight.chunks_exact(in_.max(1)).enumerate() {
            let (base, wide) = place(out, in_, o);
            for (i, value) in row.iter().enumerate() {
                panels[base + i * wide] = *value;
            }
        }
        Ok(Linear { out, in_, panels, bias: bias.map(<[f32]>::to_vec) })
    }

    /// The width of the output.
    pub fn out(&self) -> usize {
        self.out
    }

    /// The width of the input.
    pub fn width_in(&self) -> usize {
        self.in_
    }

    /// The memory it holds.
    pub fn bytes(&self) -> u64 {
        4 * (self.panels.len() + self.bias.as_ref().map_or(0, Vec::len)) as u64
    }

    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The weights as they were given to [`Linear::pack`].
    pub fn unpack(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.out * self.in_];
        for (o, row) in weight.chunks_exact_mut(self.in_.max(1)).enumerate() {
            self.copy_row(o, row);
        }
        weight
    }

    /// Row `index` of W (of length in), for an embedding that is tied to this layer.
    pub fn row(&self, index: usize, row: &mut [f32]) -> Result<()> {
        crate::error::inside("row", index, self.out)?;
        same("the length of a row", self.in_, row.len())?;
        self.copy_row(index, row);
        Ok(())
    }

    fn copy_row(&self, index: usize, row: &mut [f32]) {
        let (base, wide) = place(self.out, self.in_, index);
        for (i, value) in row.iter_mut().enumerate() {
            *value = self.panels[base + i * wide];
        }
    }

    /// `x W^T + b`: rows x in becomes rows x out.
    pub fn forward(&self, ws: &Workspace, x: &Mat) -> Result<Mat> {
        self.forward_with(ws, x, self.bias())
    }

    /// [`Linear::forward`] with a bias of the caller's (BitFit trains it) in place of the frozen one.
    pub fn forward_with_bias(&self, ws: &Workspace, x: &Mat, bias: &[f32]) -> Result<Mat> {
        self.forward_with(ws, x, Some(bias))
    }

    fn forward_with(&self, ws: &Workspace, x: &Mat, bias: Option<&[f32]>) -> Result<Mat> {
        x.expect("the input of a linear layer", x.rows(), self.in_)?;
        let mut y = ws.zeros(x.rows(), self.out)?;
        if let Some(bias) = bias {
            crate::dense::add_bias(ws, bias, &mut y)?;
        }
        for r in 0..x.rows() {
            let y = y.row_mut(r);
            for first in (0..self.out).step_by(PANEL) {
                let (base, wide) = place(self.out, self.in_, first);
                let mut sums = [0.0; PANEL];
                for (x, weights) in x.row(r).iter().zip(self.panels[base..].chunks_exact(wide)) {
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum += x * weight;
                    }
                }
                for (y, sum) in y[first..].iter_mut().zip(&sums[..wide]) {
                    *y += sum;
                }
            }
        }
        Ok(y)
    }

    /// `dx = dy W`: rows x out becomes rows x in.
    pub fn backward(&self, ws: &Workspace, dy: &Mat) -> Result<Mat> {
        let mut dx = ws.zeros(dy.rows(), self.in_)?;
        self.backward_add(ws, dy, &mut dx)?;
        Ok(dx)
    }

    /// `dx += dy W`, where several layers read the same input or a residual runs beside this one.
    pub fn backward_add(&self, _ws: &Workspace, dy: &Mat, dx: &mut Mat) -> Result<()> {
        dy.expect("the gradient of a linear layer's output", dy.rows(), self.out)?;
        dx.expect("the gradient of a linear layer's input", dy.rows(), self.in_)?;
        for r in 0..dy.rows() {
            for first in (0..self.out).step_by(PANEL) {
                let (base, wide) = place(self.out, self.in_, first);
                let dy = &dy.row(r)[first..(first + wide).min(self.out)];
                for (dx, weights) in dx.row_mut(r).iter_mut().zip(self.panels[base..].chunks_exact(wide)) {
                    *dx += dy.iter().zip(weights).map(|(dy, weight)| dy * weight).sum::<f32>();
                }
            }
        }
        Ok(())
    }
}

/// Where output `o` begins in the panels, and the distance from one input to the next.
fn place(out: usize, in_: usize, o: usize) -> (usize, usize) {
    let first = o - o % PANEL;
    let wide = (out - first).next_multiple_of(LANE).min(PANEL);
    (first * in_ + o - first, wide)
}
