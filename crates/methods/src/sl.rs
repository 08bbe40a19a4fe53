//! `sl`: split learning, one device at a time; the adapters are handed from device to device.
//!
//! ```text
//! server: device 1's whole pass as in `split-lora`, then device 2 begins with its adapters, ...
//! ```
//!
//! The halves are those of [`split`](crate::split). The server holds one upper model and one adapter, and
//! nothing runs beside anything else.
//!
//! Source: split learning, Gupta and Raskar 2018 (arXiv 1810.06060), as the baseline of arXiv 2506.02940.

use crate::split::{Regime, Row, Split};

/// The row of `sl`.
pub struct Kind;

pub type SplitLearning = Split<Kind>;

impl Row for Kind {
    const NAME: &'static str = "sl";
    const SOURCE: &'static str = "baseline (split learning, arXiv 1810.06060)";
    const DEVICE: &'static str = "forward and backward of its own lower blocks, when it is its turn";
    const SERVER: &'static str = "one device at a time; adapters are handed on";
    const REGIME: Regime = Regime::OneDevice;
}
