//! Side-tuning: a device runs the frozen model forward once a sample, the server trains a side network
//! from what it has cached.
//!
//! The halves are [`device`] and [`server`]; [`backbone`] is what devices run. The device's parts: [`format`] (how activations are
//! written), [`privacy`] (what becomes of a label before a difference leaves), [`device_head`] and
//! [`weigh`] (its own head, and its last word). The server's: [`store`] and [`cache`] (what came is
//! checked and kept), [`arrivals`] (the account of it), [`trainer`] and [`exact`] (training from it),
//! [`observe`] and [`score`] (how good it is); [`language`] is what differs for language models. [`audit`] attacks what the server was sent. [`every_token`] is what the
//! baseline `mobillm` computes instead.

pub(crate) mod arrivals;
pub mod audit;
pub(crate) mod backbone;
pub(crate) mod bench;
pub mod cache;
pub(crate) mod device;
pub(crate) mod device_head;
pub(crate) mod every_token;
pub(crate) mod exact;
pub mod format;
pub(crate) mod language;
pub(crate) mod observe;
pub(crate) mod options;
pub mod privacy;
pub(crate) mod score;
pub(crate) mod server;
pub(crate) mod store;
pub(crate) mod trainer;
pub(crate) mod weigh;

use arrivals::Taps;
use base::Blob;
use exact::Ask;
use federation::Eval;
use serde::{Deserialize, Serialize};

/// Server to device.
#[derive(Serialize, Deserialize)]
pub enum Down {
    /// Send this chunk of your rows.
    Chunk(u32),
    /// The side network's logits of these rows; say the gradient of the loss.
    Logits { step: u32, ask: Ask },
    /// The side network; say the last word.
    Side(Blob),
}

/// Device to server.
#[derive(Serialize, Deserialize)]
pub enum Up {
    Taps(Taps),
    /// One a chunk, where they had to wait for the device's head.
    Differences(Vec<Blob>),
    Gradient {
        step: u32,
        gradient: Blob,
        loss: f64,
    },
    /// The last word.
    Weighed(Word),
}

/// A device's last word: the weight it gives the side network's output. The measurements are the
/// observer's: they are made on the test rows, which in life a device does not have.
#[derive(Clone, Serialize, Deserialize)]
pub struct Word {
    pub weight: f32,
    /// Of the sum.
    pub eval: Eval,
    /// Of the device's own head alone.
    pub alone: Eval,
}
