//! The `undertone` command: scenarios in, runs out.

pub mod brief;
mod builtin;
pub mod commands;
mod conduct;
pub mod errors;
mod finished;
mod interrupt;
pub mod memory;
mod offer;
mod prepare;
mod run_dir;
pub mod scenario;
pub mod settings;
mod shard;
mod site;
