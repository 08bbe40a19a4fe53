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

use crate::split::device::{Device, DeviceBench};
use crate::split::server::{Server, ServerBench};
use crate::split::{Options, Regime, Split};
use crate::{Method, Quote, Setup, SetupError};
use base::{Blob, Node};
use std::sync::Arc;

pub struct SplitLearning(Split);

impl Method for SplitLearning {
    const NAME: &'static str = "sl";
    const SOURCE: &'static str = "baseline (split learning, arXiv 1810.06060)";
    const DEVICE: &'static str = "forward and backward of its own lower blocks, when it is its turn";
    const SERVER: &'static str = "one device at a time; adapters are handed on";
    type Options = Options;
    type Device = Device;
    type Server = Server;

    fn new(options: Options, setup: &Setup) -> Result<SplitLearning, SetupError> {
        Split::new(options, setup, Regime::OneDevice).map(SplitLearning)
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
