//! Activation functions, element by element.

use crate::parallel::{Parts, block};
use crate::simd::math::{exp, gauss, map, sigmoid, tanh, zip};
use crate::simd::{Kernel, Simd};
use crate::{Dual, Mat, Result, Workspace};
use std::ops::Range;

/// A function applied to every element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * Phi(x)` with the exact Gaussian distribution function (Hendrycks and Gimpel 2016).
    Gelu,
    /// Its tanh approximation (`gelu_new` and `gelu_pytorch_tanh` in Hugging Face).
    GeluTanh,
    Relu,
    Tanh,
    /// `x * sigmoid(x)`, also called swish.
    Silu,
}

impl Activation {
    pub fn forward(self, ws: &Workspace, x: &Mat) -> Result<Mat> {
        let mut y = ws.scratch(x.rows(), x.width())?;
        let width = x.width();
        ws.by_rows(&mut y, |rows, y| {
            y.copy_from_slice(&x[rows.start * width..rows.end * width]);
            ws.level().run(Apply { function: self, x: y });
        });
        Ok(y)
    }

    /// [`Activation::forward`] in place, where the input is needed no more.
    pub fn apply(self, ws: &Workspace, x: &mut Mat) {
        ws.by_rows(x, |_, x| ws.level().run(Apply { function: self, x }));
    }

    /// [`Activation::apply`] with tangents: `dx` becomes `f'(x) dx`, then `x` becomes `f(x)`.
    pub fn tangent(self, ws: &Workspace, x: &mut Dual) -> Result<()> {
        let (cells, directions) = (x.rows() * x.width(), x.directions());
        let all = Parts::new(x.stack_mut());
        by_cells(ws, cells, |at, slope, _| {
            // SAFETY: blocks of cells are disjoint.
            let x = unsafe { all.part(at.clone()) };
            if directions > 0 {
                slope.fill(1.0);
                ws.level().run(Chain { function: self, x, dy: slope });
            }
            ws.level().run(Apply { function: self, x });
            for below in 1..=directions {
                // SAFETY: as above.
                let dx = unsafe { all.part(below * cells + at.start..below * cells + at.end) };
                ws.level().run(Times { factor: slope, x: dx });
            }
        })
    }

    /// Turns `dy` into `dx = dy * f'(x)` in place; `x` is the input of the forward.
    pub fn backward(self, ws: &Workspace, x: &Mat, dy: &mut Mat) -> Result<()> {
        dy.expect("the gradient of an activation", x.rows(), x.width())?;
        let width = x.width();
        ws.by_rows(dy, |rows, dy| {
            let x = &x[rows.start * width..rows.end * width];
            ws.level().run(Chain { function: self, x, dy });
        });
        Ok(())
    }
}

/// sqrt(2 / pi), and the cubic term of the tanh approximation.
const ALPHA: f32 = 0.797_884_6;
const BETA: f32 = 0.044_715;
/// 1 / sqrt(2 pi)
const DENSITY: f32 = 0.398_942_3;

/// `x = f(x)`.
struct Apply<'a> {
    function: Activation,
    x: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = s.splat(0.0);
        match self.function {
            Activation::Gelu => map(s, self.x, |x| s.mul(x, gauss(s, x))),
            Activation::GeluTanh => map(s, self.x, |x| s.mul(x, sigmoid(s, cubic(s, x)))),
            Activation::Relu => map(s, self.x, |x| s.max(zero, x)),
            Activation::Tanh => map(s, self.x, |x| tanh(s, x)),
            Activation::Silu => map(s, self.x, |x| s.mul(x, sigmoid(s, x))),
        }
    }
}

/// `dy *= f'(x)`.
struct Chain<'a> {
    function: Activation,
    x: &'a [f32],
    dy: &'a mut [f32],
}

impl Kernel for Chain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, dy) = (self.x, self.dy);
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        match self.function {
            Activation::Gelu => zip(s, x, dy, |x, dy| {
                let e = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
                s.mul(dy, s.fma(s.mul(x, e), s.splat(DENSITY), gauss(s, x)))
            }),
            Activation::GeluTanh => zip(s, x, dy, |x, dy| {
                let sigma = sigmoid(s, cubic(s, x));
                let inner = s.fma(s.mul(x, x), s.splat(6.0 * ALPHA * BETA), s.splat(2.0 * ALPHA));
                let slope = s.mul(s.mul(x, inner), s.mul(sigma, s.sub(one, sigma)));
                s.mul(dy, s.add(sigma, slope))
            }),
            Activation::Relu => zip(s, x, dy, |x, dy| s.if_negative(s.sub(zero, x), dy, zero)),
            Activation::Tanh => zip(s, x, dy, |x, dy| {
                let t = tanh(s, x);
                s.mul(dy, s.sub(one, s.mul(t, t)))
            }),
            Activation::Silu => zip(s, x, dy, |x, dy| s.mul(dy, silu_slope(s, x, sigmoid(s, x)))),
        }
    }
}

/// Twice the argument of the tanh approximation, `sqrt(2 / pi) * (x + 0.044715 x^3)`: half of one plus
/// its tanh is the sigmoid of this, which loses no digits where tanh is near 1.
#[inline(always)]
fn cubic<S: Simd>(s: S, x: S::V) -> S::V {
    let slope = s.fma(s.mul(x, x), s.splat(2.0 * ALPHA * BETA), s.splat(2.0 * ALPHA));
    s.mul(x, slope)
}

/// `d/dx x * sigmoid(x)`, given the sigmoid.
#[inline(always)]
fn silu_slope<S: Simd>(s: S, x: S::V, sigmoid: S::V) -> S::V {
    let one = s.splat(1.0);
    s.mul(sigmoid, s.fma(x, s.sub(one, sigmoid), one))
}

/// SwiGLU: `silu(gate) * up` (Shazeer 2020). All rows x ffn.
pub fn silu_gate(ws: &Workspace, gate: &Mat, up: &Mat) -> Result<Mat> {
    up.expect("the up projection", gate.rows(), gate.width())?;
    let mut y = ws.scratch(gate.rows(), gate.width())?;
    let width = gate.width();
    ws.by_rows(&mut y, |rows, y| {
        let cells = rows.start * width..rows.end * width;
        y.copy_from_slice(&up[cells.clone()]);
        ws.level().run(Gate { gate: &gate[cells], up: y });
    });
    Ok(y)
}

/// [`silu_gate`] with tangents, in the place of `up`: `dy = up silu'(gate) dgate + silu(gate) dup`.
pub fn silu_gate_tangent(ws: &Workspace, gate: &Dual, mut up: Dual) -> Result<Dual> {
    up.stack().expect("the up projection", gate.stack().rows(), gate.width())?;
    let (cells, directions) = (gate.rows() * gate.width(), gate.directions());
    let all = Parts::new(up.stack_mut());
    by_cells(ws, cells, |at, by_gate, by_up| {
        // SAFETY: blocks of cells are disjoint.
        let up = unsafe { all.part(at.clone()) };
        let gates = &gate.primal()[at.clone()];
        if directions > 0 {
            by_up.fill(1.0);
            ws.level().run(GateChain { gate: gates, up, dy: by_up, dgate: by_gate });
        }
        ws.level().run(Gate { gate: gates, up });
        for index in 0..directions {
            let below = (index + 1) * cells;
            // SAFETY: as above.
            let dup = unsafe { all.part(below + at.start..below + at.end) };
            ws.level().run(Times { factor: by_up, x: dup });
            ws.level().run(PlusTimes { factor: by_gate, x: &gate.tangent(index)[at.clone()], y: dup });
        }
    })?;
    Ok(up)
}

/// Elements of an activation whose slopes exist at once.
const CELLS: usize = 1 << 12;

/// Shares out `task(cells, scratch, more scratch)`, with as many floats of scratch as cells.
fn by_cells(
    ws: &Workspace,
    cells: usize,
    task: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> Result<()> {
    ws.share_scratch(cells.div_ceil(CELLS), 2 * CELLS, |index, scratch| {
        let at = block(cells, CELLS, index);
        let (first, second) = scratch.split_at_mut(CELLS);
        let len = at.len();
        task(at, &mut first[..len], &mut second[..len]);
    })
}

/// `x *= factor`.
struct Times<'a> {
    factor: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Times<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        zip(s, self.factor, self.x, |factor, x| s.mul(factor, x));
    }
}

/// `y += factor * x`.
struct PlusTimes<'a> {
    factor: &'a [f32],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for PlusTimes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.factor.chunks(S::LANES).zip(self.x.chunks(S::LANES));
        for ((factor, x), y) in inputs.zip(self.y.chunks_mut(S::LANES)) {
            s.store(y, s.fma(s.load(factor), s.load(x), s.load(y)));
        }
    }
}

/// `(dgate, dup)` of [`silu_gate`]; `dy` becomes `dup`.
pub fn silu_gate_backward(ws: &Workspace, gate: &Mat, up: &Mat, mut dy: Mat) -> Result<(Mat, Mat)> {
    up.expect("the up projection", gate.rows(), gate.width())?;
    dy.expect("the gradient of a gate", gate.rows(), gate.width())?;
    let mut dgate = ws.scratch(gate.rows(), gate.width())?;
    let width = gate.width();
    let dup = Parts::new(&mut dy);
    ws.by_rows(&mut dgate, |rows, dgate| {
        let cells = rows.start * width..rows.end * width;
        // SAFETY: blocks of rows are disjoint.
        let dy = unsafe { dup.part(cells.clone()) };
        ws.level().run(GateChain { gate: &gate[cells.clone()], up: &up[cells], dy, dgate });
    });
    Ok((dgate, dy))
}

/// `up *= silu(gate)`.
struct Gate<'a> {
    gate: &'a [f32],
    up: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        zip(s, self.gate, self.up, |g, u| s.mul(s.mul(g, sigmoid(s, g)), u));
    }
}

/// `dgate = dy * up * silu'(gate)` and `dy *= silu(gate)`.
struct GateChain<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    dy: &'a mut [f32],
    dgate: &'a mut [f32],
}

impl Kernel for GateChain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.gate.chunks(S::LANES).zip(self.up.chunks(S::LANES));
        let outputs = self.dgate.chunks_mut(S::LANES).zip(self.dy.chunks_mut(S::LANES));
        for ((gate, up), (dgate, dy)) in inputs.zip(outputs) {
            let (g, d) = (s.load(gate), s.load(dy));
            let sigma = sigmoid(s, g);
            s.store(dgate, s.mul(s.mul(d, s.load(up)), silu_slope(s, g, sigma)));
            s.store(dy, s.mul(d, s.mul(g, sigma)));
        }
    }
}
