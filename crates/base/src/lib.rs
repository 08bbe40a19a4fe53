//! What every other crate is built from: time, identity, seeds, units, the memory meter and the
//! bounded codec. Nothing here reads a clock, a setting or an environment variable.

mod codec;
mod cost;
mod draws;
pub mod files;
mod meter;
mod seed;
mod time;
pub mod units;

pub use codec::{Blob, CodecError, Packet, decode, encode};
pub use cost::Cost;
pub use meter::{Charge, Meter, OverBudget};
pub use seed::{Seed, Stream};
pub use time::{Node, SERVER, Time};
