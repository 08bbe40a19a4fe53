//! The same machines over a real network: a server behind one TLS port, and devices that poll.
//!
//! A transport is a driver, a loop around `Machine::handle`. Here the loop is [`host`], the same for both
//! sides: it commits inputs to a [`Store`] before their effects leave, and runs jobs on a thread beside it.
//!
//! ```text
//! device                                             server
//! Host <- FileStore                                  SqliteStore -> Host
//!   |  ^                                               |  ^
//!   v  |                                               v  |
//! courier --- POST /v1/messages, PATCH /v1/uploads --> routes     commit, then 204
//!         <-- GET /v1/messages (held open), /v1/blobs -- outbox   kept until the next poll says so
//! ```
//!
//! Messages may still be lost, doubled and reordered: the links inside the machines see to that. What this
//! crate proves is who a message is from (TLS with certificates of the server's own authority, and a
//! signature over each request that changes something), and that contents are whole (they are asked for by
//! their BLAKE3 hash). docs/protocol.md is the protocol in words.

pub mod authority;
mod bench;
pub mod blobs;
pub mod board;
mod clock;
mod database;
pub mod device;
pub mod envelope;
mod file_store;
pub mod files;
pub mod host;
pub mod identity;
pub mod protocol;
pub mod registry;
pub mod server;
mod sqlite_store;
mod store;
pub mod tls;

pub use authority::{Authority, IdentityError};
pub use board::Board;
pub use clock::Clock;
pub use file_store::FileStore;
pub use registry::Registry;
pub use server::{ServeError, ServerConfig, ServerNews, StatusReport, serve};
pub use sqlite_store::{SqliteStore, read_records};
pub use store::{Batch, Past, Store, StoreError};
