//! Drivers that need no network: a simulator under virtual time, and one thread a node in real time.
//!
//! Both are loops around `Machine::handle`, and in both every message is bytes, every input is
//! journalled before its effects leave, and a kill restores from the journal. What differs is the
//! clock:
//!
//! - [`run`]: thousands of virtual devices in one process. Jobs take the time their price and the
//!   device's speed say, messages the time that links and [`weather`] say. The trace is the same on
//!   any number of threads, and across interruptions.
//! - [`local::run`]: a thread a node and real races, for tests of the machines and small federations.
//!
//! ```text
//! FleetConfig --resolve--> members --> Federation ---+
//! WeatherConfig, FaultsConfig --> SimConfig ---------+--> run --> Output::Record ...  (the trace)
//! Checkpoint (of an interrupted run) ----------------+        --> Ended { server snapshot, hash }
//! ```
//!
//! In synchronous pace both drivers end in the same weights, whatever the weather and the faults; a run
//! with deadlines is reproduced by replaying its acceptance log (`federation::Acceptance`).

mod agenda;
mod availability;
mod checkpoint;
mod config;
pub mod faults;
pub mod fleet;
mod host;
mod link;
pub mod local;
mod output;
mod pool;
pub mod profiles;
mod site;
mod virtual_time;
pub mod weather;

pub use availability::Availability;
pub use checkpoint::Checkpoint;
pub use config::{ConfigError, SimConfig};
pub use faults::FaultsConfig;
pub use fleet::{Fleet, FleetConfig};
pub use output::{Ended, Output, SimError, TraceHash};
pub use profiles::{PROFILES, Profile};
pub use virtual_time::run;
pub use weather::{ServerLink, WeatherConfig};
