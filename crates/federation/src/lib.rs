//! The narrow waist: what a node is, and what the author of a method writes.
//!
//! # The contract
//!
//! A node is a value, a [`Machine`]. It is told what happened ([`Input`]) and answers with what it
//! wants done ([`Effects`]): sending, waiting and computing are all effects. A *driver* is a loop
//! around [`Machine::handle`]; it owns the clock, the network and the threads, and there are several:
//! virtual time, OS threads, a real network. A machine does none of these itself, so every driver ends
//! in the same weights.
//!
//! A driver promises:
//!
//! 1. It journals each input before the effects of handling it leave the node. After a kill it
//!    builds the machine anew, feeds [`Input::Restored`] with the last snapshot and then the inputs
//!    journalled since, dropping effects except for the tasks that are still outstanding.
//!    [`Durable`] does this.
//! 2. It feeds [`Input::Timer`] at or after each requested time. A spurious timer is always allowed,
//!    and one is fed after every restore: machines re-arm what they wait for.
//! 3. It runs a [`Task`] at most once per life of the process and answers with [`Input::Done`], or with
//!    [`Input::Refused`] when its price does not fit the node's memory. Of a task that the machine has
//!    abandoned it may say nothing.
//! 4. Messages may be lost, doubled, delayed and reordered, and their bodies damaged. Machines number,
//!    check and repeat them. Two things only the driver's channel can prove: who a message is from, and
//!    that a blob's content is whole (TLS, content addresses).
//!
//! A method's author writes none of this: [`Worker`] and [`Coordinator`] turn a [`Side`] into a
//! [`Machine`].

mod acceptance;
mod alarm;
mod cohort;
pub mod coordinator;
mod frame;
#[cfg(test)]
mod hostile;
mod jobs;
pub mod journal;
mod link;
mod losses;
mod machine;
mod pace;
mod roster;
mod side;
pub mod trace;
mod worker;

pub use acceptance::{Acceptance, Accepted};
pub use coordinator::{Coordinator, Plan};
pub use frame::PROTOCOL;
pub use journal::{Durable, Journal, Revived};
pub use losses::EMPTY_ROUNDS;
pub use machine::{Effects, Federation, Input, JobId, Machine, Memory, Outcome, Status, Task};
pub use pace::{CohortConfig, CohortError, Pace};
pub use side::{Cx, Event, Fault, Member, Side, Summary};
pub use trace::{Eval, Fact, Record};
pub use worker::Worker;
