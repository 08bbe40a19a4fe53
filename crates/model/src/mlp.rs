//! The feed-forward part of a block.

use crate::adapted::{self, AdaptedLinear};
use crate::pass::{Pass, Save};
use crate::tangent::TangentPass;
use ops::act::{self, Activation};
use ops::{Dual, Mat, Result};

#[derive(Clone, Debug)]
pub(crate) enum Mlp {
    Plain(Plain),
    Gated(Gated),
}

/// `down(activation(up(x)))`.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    pub up: AdaptedLinear,
    pub down: AdaptedLinear,
    pub activation: Activation,
}

/// SwiGLU: `down(silu(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub(crate) struct Gated {
    pub gate: AdaptedLinear,
    pub up: AdaptedLinear,
    pub down: AdaptedLinear,
}

/// What the backward reads, besides the input.
#[derive(Debug)]
pub(crate) enum Saved {
    Plain(SavedPlain),
    Gated(SavedGated),
}

#[derive(Debug)]
pub(crate) struct SavedPlain {
    /// Before the activation.
    inner: Mat,
    /// After it, where `down` reads its input.
    active: Option<Mat>,
    sites: [adapted::Saved; 2],
}

#[derive(Debug)]
pub(crate) struct SavedGated {
    gate: Mat,
    up: Mat,
    /// The product, where `down` reads its input.
    active: Option<Mat>,
    sites: [adapted::Saved; 3],
}

impl Mlp {
    /// rows x width becomes rows x width.
    pub fn forward(&self, pass: Pass<'_>, x: &Mat, save: Save) -> Result<(Mat, Option<Saved>)> {
        match self {
            Mlp::Plain(plain) => plain.forward(pass, x, save),
            Mlp::Gated(gated) => gated.forward(pass, x, save),
        }
    }

    /// [`Mlp::forward`] with tangents.
    pub fn tangent(&self, pass: TangentPass<'_>, x: &Dual) -> Result<Dual> {
        match self {
            Mlp::Plain(Plain { up, down, activation }) => {
                let mut inner = up.tangent(pass, x)?;
                activation.tangent(pass.ws(), &mut inner)?;
                down.tangent_last(pass, inner)
            }
            Mlp::Gated(Gated { gate, up, down }) => {
                let (gate, up) = (gate.tangent(pass, x)?, up.tangent(pass, x)?);
                let directions = gate.directions().max(up.directions());
                let (gate, up) = (gate.widen(pass.ws(), directions)?, up.widen(pass.ws(), directions)?);
                let active = act::silu_gate_tangent(pass.ws(), &gate, up)?;
                drop(gate);
                down.tangent_last(pass, active)
            }
        }
    }

    /// What [`Mlp::forward`] saved, once more: all but the last product.
    pub fn recompute(&self, pass: Pass<'_>, x: &Mat) -> Result<Saved> {
        match self {
            Mlp::Plain(plain) => plain.recompute(pass, x),
            Mlp::Gated(gated) => gated.recompute(pass, x),
        }
    }

    /// Adds the gradient of the input to `dx`, if one is wanted. `x` is the input where
    /// [`Mlp::needs_input`].
    pub fn backward(
        &self,
        pass: Pass<'_>,
        x: Option<&Mat>,
        saved: Saved,
        dy: &Mat,
        dx: Option<&mut Mat>,
        grad: &mut [f32],
    ) -> Result<()> {
        match (self, saved) {
            (Mlp::Plain(plain), Saved::Plain(saved)) => plain.backward(pass, x, saved, dy, dx, grad),
            (Mlp::Gated(gated), Saved::Gated(saved)) => gated.backward(pass, x, saved, dy, dx, grad),
            _ => unreachable!("a block gets back what it saved"),
        }
    }

    /// The linears that read the input of this part.
    fn entries(&self) -> (&AdaptedLinear, Option<&AdaptedLinear>) {
        match self {
            Mlp::Plain(plain) => (&plain.up, None),
            Mlp::Gated(gated) => (&gated.up, Some(&gated.gate)),
        }
    }

    fn down(&self) -> &AdaptedLinear {
        match self {
            Mlp::Plain(plain) => &plain.down,
            Mlp::Gated(gated) => &gated.down,
        }
    }

    /// Whether the backward reads the input.
    pub fn needs_input(&self) -> bool {
        let (up, gate) = self.entries();
        up.needs_input() || gate.is_some_and(AdaptedLinear::needs_input)
    }

    pub fn bytes(&self) -> u64 {
        let (up, gate) = self.entries();
        up.bytes() + gate.map_or(0, AdaptedLinear::bytes) + self.down().bytes()
    }
}

/// What `down` saved and, where it reads it, its input. `active` computes that input.
fn recompute_down(
    down: &AdaptedLinear,
    pass: Pass<'_>,
    active: impl FnOnce() -> Result<Mat>,
) -> Result<(Option<Mat>, adapted::Saved)> {
    if !down.recomputes() && !down.needs_input() {
        return Ok((None, adapted::Saved::default()));
    }
    let active = active()?;
    let saved = down.recompute(pass, &active)?;
    Ok((down.needs_input().then_some(active), saved))
}

impl Plain {
    fn forward(&self, pass: Pass<'_>, x: &Mat, save: Save) -> Result<(Mat, Option<Saved>)> {
        let (mut inner, up) = self.up.forward(pass, x)?;
        if save != Save::ForBackward {
            self.activation.apply(pass.ws, &mut inner);
            return Ok((self.down.forward(pass, &inner)?.0, None));
        }
        let active = self.activation.forward(pass.ws, &inner)?;
        let (y, down) = self.down.forward(pass, &active)?;
        let active = self.down.needs_input().then_some(active);
        Ok((y, Some(Saved::Plain(SavedPlain { inner, active, sites: [up, down] }))))
    }

    fn recompute(&self, pass: Pass<'_>, x: &Mat) -> Result<Saved> {
        let (inner, up) = self.up.forward(pass, x)?;
        let active = || self.activation.forward(pass.ws, &inner);
        let (active, down) = recompute_down(&self.down, pass, active)?;
        Ok(Saved::Plain(SavedPlain { inner, active, sites: [up, down] }))
    }

    fn backward(
        &self,
        pass: Pass<'_>,
        x: Option<&Mat>,
        saved: SavedPlain,
        dy: &Mat,
        dx: Option<&mut Mat>,
        grad: &mut [f32],
    ) -> Result<()> {
        let SavedPlain { inner, active, sites: [up, down] } = saved;
        if dx.is_none() && !self.up.is_trained() {
            return self.down.backward_add(pass, active.as_ref(), &down, dy, None, grad);
        }
        let mut dinner = self.down.backward(pass, active.as_ref(), &down, dy, grad)?;
        drop((active, down));
        self.activation.backward(pass.ws, &inner, &mut dinner)?;
        drop(inner);
        self.up.backward_add(pass, x, &up, &dinner, dx, grad)
    }
}

impl Gated {
    fn forward(&self, pass: Pass<'_>, x: &Mat, save: Save) -> Result<(Mat, Option<Saved>)> {
        let (gate, gate_sites) = self.gate.forward(pass, x)?;
        let (up, up_sites) = self.up.forward(pass, x)?;
        let active = act::silu_gate(pass.ws, &gate, &up)?;
        let inner = save.keep(|| (gate, up));
        let (y, down) = self.down.forward(pass, &active)?;
        let saved = inner.map(|(gate, up)| {
            let active = self.down.needs_input().then_some(active);
            Saved::Gated(SavedGated { gate, up, active, sites: [gate_sites, up_sites, down] })
        });
        Ok((y, saved))
    }

    fn recompute(&self, pass: Pass<'_>, x: &Mat) -> Result<Saved> {
        let (gate, gate_sites) = self.gate.forward(pass, x)?;
        let (up, up_sites) = self.up.forward(pass, x)?;
        let active = || act::silu_gate(pass.ws, &gate, &up);
        let (active, down) = recompute_down(&self.down, pass, active)?;
        Ok(Saved::Gated(SavedGated { gate, up, active, sites: [gate_sites, up_sites, down] }))
    }

    fn backward(
        &self,
        pass: Pass<'_>,
        x: Option<&Mat>,
        saved: SavedGated,
        dy: &Mat,
        mut dx: Option<&mut Mat>,
        grad: &mut [f32],
    ) -> Result<()> {
        let SavedGated { gate, up, active, sites: [gate_sites, up_sites, down] } = saved;
        if dx.is_none() && !self.up.is_trained() && !self.gate.is_trained() {
            return self.down.backward_add(pass, active.as_ref(), &down, dy, None, grad);
        }
        let dactive = self.down.backward(pass, active.as_ref(), &down, dy, grad)?;
        drop((active, down));
        let (dgate, dup) = act::silu_gate_backward(pass.ws, &gate, &up, dactive)?;
        drop((gate, up));
        self.gate.backward_add(pass, x, &gate_sites, &dgate, dx.as_deref_mut(), grad)?;
        drop((dgate, gate_sites));
        self.up.backward_add(pass, x, &up_sites, &dup, dx, grad)
    }
}
