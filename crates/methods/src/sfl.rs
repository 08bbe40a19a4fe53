//! `sfl`: split federated learning with a server model for every device.
//!
//! ```text
//! as `split-lora`, but the server begins with each device's activations as they arrive, on a copy
//! of the upper blocks that is this device's own; k jobs at once share its speed
//! ```
//!
//! The halves are those of [`split`](crate::split), and so are the weights in the end; memory and time are
//! not. The copies are really made.
//!
//! Source: SplitFed, Thapa et al. 2020 (arXiv 2004.12088), as the baseline of arXiv 2506.02940.

use crate::split::{Regime, Row, Split};

/// The row of `sfl`.
pub struct Kind;

pub type SplitFed = Split<Kind>;

impl Row for Kind {
    const NAME: &'static str = "sfl";
    const SOURCE: &'static str = "baseline (SplitFed, arXiv 2004.12088)";
    const DEVICE: &'static str = "forward and backward of its own lower blocks";
    const SERVER: &'static str = "a copy of the upper blocks for every device, all at once";
    const REGIME: Regime = Regime::ModelPerDevice;
}
