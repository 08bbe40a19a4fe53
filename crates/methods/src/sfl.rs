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

use crate::split::device::{Device, DeviceBench};
use crate::split::server::{Server, ServerBench};
use crate::split::{Options, Regime, Split};
use crate::{Method, Quote, Setup, SetupError};
use base::{Blob, Node};
use std::sync::Arc;

pub struct SplitFed(Split);

impl Method for SplitFed {
    const NAME: &'static str = "sfl";
    const SOURCE: &'static str = "baseline (SplitFed, arXiv 2004.12088)";
    const DEVICE: &'static str = "forward and backward of its own lower blocks";
    const SERVER: &'static str = "a copy of the upper blocks for every device, all at once";
    type Options = Options;
    type Device = Device;
    type Server = Server;

    fn new(options: Options, setup: &Setup) -> Result<SplitFed, SetupError> {
        Split::new(options, setup, Regime::ModelPerDevice).map(SplitFed)
    }

    fn device(&self, node: Node) -> (Device, Arc<DeviceBench>) {
        self.0.device(node)
    }

    fn server(&self) -> (Server, Arc<ServerBench>) {
        self.0.server()
    }

    fn quote(&self, node: Node) -> Quote {
        self.0.quote(node)
    }

    fn trained(server: Server) -> Blob {
        server.trained()
    }
}
