//! `side-tuning`: a device runs the frozen model forward once a sample and never trains; the server
//! trains a side network from what it has cached.
//!
//! ```text
//! device i                                     server
//!             <--- Chunk(k) -----------------  asks for what it does not hold yet
//!  [forward]  --- Taps{k, taps, diff} ------>  [store] on disk, then asks for the next
//!             ...                              a device is counted when all of it is there
//!                                              [train] epochs over the shuffled cache: no device
//!                                              [evaluate] when due; closes
//! with head = "trained", after the last chunk
//!  [head]     --- Differences -------------->  [store]
//!             <--- Side(theta) --------------  at the end of the last round
//!  [weigh]    --- Weighed{weight} ---------->  the device's last word
//! with loss = "exact", at every step
//!             <--- Logits{rows, side} -------  [propose]
//!  [answer]   --- Gradient ----------------->  [step]
//! ```
//!
//! One device is PAE MobiLLM (arXiv 2507.01216); many devices that share the side network are Fed MobiLLM
//! (arXiv 2508.06765), whose devices may have different backbones (`side/backbone.rs`). Taps are the pivot rows of the tapped layers, a difference is the label's one-hot
//! vector (or the number) minus the device's own prediction. After its rows are sent a device has no work but the last
//! word, however many epochs the server makes of them.
//!
//! Both halves are in [`side`](crate::side).

use crate::side::bench::SideBench;
use crate::side::device::Device;
use crate::side::options::Options;
use crate::side::server::Server;
use crate::side::weigh;
use crate::{Method, Quote, Saver, Setup, SetupError};
use base::{Blob, Cost, Node};
use std::sync::Arc;

pub struct SideTuning {
    bench: Arc<SideBench>,
    rounds: u32,
}

impl Method for SideTuning {
    const NAME: &'static str = "side-tuning";
    const SOURCE: &'static str = "PAE MobiLLM (arXiv 2507.01216), Fed MobiLLM (arXiv 2508.06765)";
    const DEVICE: &'static str = "frozen forward once per sample; sends pivot activations and differences";
    const SERVER: &'static str = "caches them, trains the side network with no device in the loop";
    const MIXES_BACKBONES: bool = true;
    const REGRESSES: bool = true;
    type Options = Options;
    type Device = Device;
    type Server = Server;

    fn new(options: Options, setup: &Setup) -> Result<SideTuning, SetupError> {
        Ok(SideTuning { bench: Arc::new(SideBench::new(options, setup)?), rounds: setup.plan.rounds })
    }

    fn device(&self, node: Node) -> (Device, Arc<SideBench>) {
        (Device::new(node), self.bench.clone())
    }

    fn server(&self) -> (Server, Arc<SideBench>) {
        (Server::new(&self.bench, self.rounds), self.bench.clone())
    }

    fn quote(&self, node: Node) -> Quote {
        let bench = &self.bench;
        let chunks =
            (0..bench.chunks(node)).map(|index| bench.price_of_forward(node, &bench.chunk(node, index)));
        let cost = chunks.fold(Cost::FREE, |sum, chunk| sum + chunk);
        let rows = bench.rows(node);
        let backbone = bench.backbones.of(node);
        let sent = bench.samples(node) * backbone.shape.sample_bytes();
        Quote {
            cost,
            resident_bytes: backbone.model.bytes() + weigh::kept_bytes(bench, &rows),
            up_bytes: sent as u64,
            down_bytes: 8 * u64::from(bench.chunks(node)),
            lower: None,
        }
    }

    fn trained(server: Server) -> Blob {
        server.into_theta()
    }

    fn saver(&self) -> Option<Saver> {
        Some(self.bench.saver())
    }
}
