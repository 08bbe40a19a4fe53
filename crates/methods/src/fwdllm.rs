//! `fwdllm`: devices run forward passes alone and tell derivatives along seeded directions.
//!
//! ```text
//! device i                                   server
//!             <--- Begin{theta, until} ------  opens the round
//!  [perturb]  ---- Told{wave, slopes} ----->  [aggregate] draws the directions again; steps when the
//!                                              variance is low enough, asks for more when it is not
//! ```
//!
//! Both halves are in [`forward`](crate::forward), which `fedsgd` shares.
//!
//! Source: FwdLLM (arXiv 2308.13894).

use crate::forward::{Forward, Options, Row};

/// The row of `fwdllm`.
pub struct Kind;

pub type Fwdllm = Forward<Kind>;

impl Row for Kind {
    const NAME: &'static str = "fwdllm";
    const SOURCE: &'static str = "FwdLLM (arXiv 2308.13894)";
    const DEVICE: &'static str = "forward passes along seeded directions; no backward";
    const SERVER: &'static str = "rebuilds the directions, paces by their variance, steps";
    type Options = Options;

    fn resolve(options: Options) -> Options {
        options
    }
}
