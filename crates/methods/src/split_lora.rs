//! `split-lora`: a device trains the blocks below its cut, one full model on the server serves all
//! devices one after another.
//!
//! ```text
//! device i                                         server
//!             <--- Begin{cut, theta[0..cut]} ------  opens the round to the cohort
//!  [forward]  ---- Activations{batch, labels} ---->  queues them; the order is a policy's
//!             <--- Gradient -----------------------  [serve] with this device's upper adapters
//!  [backward]                                        ... for every batch ...
//!             ---- Tuned{theta[0..cut]} ---------->  [inspect] joins both halves
//!                                                    [aggregate] at full depth, in node order
//!                                                    [evaluate] when due; closes
//! ```
//!
//! Both halves are in [`split`](crate::split), which `sl` and `sfl` share. The server's resident memory
//! is one upper model and an adapter with its optimiser a device, whatever the number of devices.
//!
//! Source: memory-efficient split federated learning (arXiv 2506.02940).

use crate::split::{Regime, Row, Split};

/// The row of `split-lora`.
pub struct Kind;

pub type SplitLora = Split<Kind>;

impl Row for Kind {
    const NAME: &'static str = "split-lora";
    const SOURCE: &'static str = "memory-efficient split federated learning (arXiv 2506.02940)";
    const DEVICE: &'static str = "forward and backward of its own lower blocks";
    const SERVER: &'static str = "one model for all devices, served in a scheduled order";
    const REGIME: Regime = Regime::OneModel;
}
