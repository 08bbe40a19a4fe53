//! The `undertone` command: scenarios in, runs out.

pub mod errors;
pub mod memory;
pub mod settings;
