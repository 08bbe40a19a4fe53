//! `fedsgd`: each device sends the gradient of one batch, the server steps by their mean.
//!
//! ```text
//! device i                                   server
//!             <--- Begin{theta} -------------  opens the round
//!  [gradient] ---- Told{gradient} --------->  [aggregate] weighted by examples; steps
//! ```
//!
//! The halves are those of [`forward`](crate::forward) with the whole gradient in place of forward ones:
//! what `fwdllm` would do if the devices could run backward.
//!
//! Source: FedSGD, McMahan et al. 2017 (arXiv 1602.05629).

use crate::forward::{Estimator, Forward, Options, Row};
use serde::{Deserialize, Serialize};

/// The row of `fedsgd`.
pub struct Kind;

pub type Fedsgd = Forward<Kind>;

/// There are none.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

impl Row for Kind {
    const NAME: &'static str = "fedsgd";
    const SOURCE: &'static str = "baseline (FedSGD, McMahan et al. 2017)";
    const DEVICE: &'static str = "forward and backward over one batch a round";
    const SERVER: &'static str = "steps by the mean gradient";
    type Options = NoOptions;

    fn resolve(NoOptions {}: NoOptions) -> Options {
        Options { estimator: Estimator::Backward, ..Options::default() }
    }
}
