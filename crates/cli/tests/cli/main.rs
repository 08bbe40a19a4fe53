//! The binary as a user calls it.

mod readme;
mod runs;
mod scratch;
mod served;
mod side;
mod wrong_input;
