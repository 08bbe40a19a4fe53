//! From files to batches of token ids.
//!
//! [`read`] takes a file of rows in, [`Tokenizer`] turns rows into token ids, [`partition`] deals
//! rows to devices, [`Holdings`] shows who holds what, and [`Epoch`] puts a device's rows into
//! batches. Nothing here knows a tensor or a model.
//!
//! # Padding masks
//! There are none, because there is no padding. A batch is ragged: the ids of its sequences stand one
//! after another, and a list of starts says where each begins. A sequence therefore has exactly its
//! own positions; nothing can attend to a pad, count a pad in a mean, or learn to predict one, and a
//! row's result does not depend on what else is in its batch. What other libraries call the
//! attention mask is 1 for every id here.
mod blocks;
mod chat;
mod columns;
mod encode;
mod epoch;
mod error;
mod example;
mod holdings;
mod labels;
mod partition;
mod plot;
mod read;
mod skew;
mod source;
mod tokenizer;
pub mod utterances;
pub mod vocabulary;

pub use blocks::LongRows;
pub use columns::{Columns, LabelKind};
pub use encode::{Encoded, Target};
pub use epoch::Epoch;
pub use error::{At, Available, DataError};
pub use example::{Dataset, Example, Input, Label, Message};
pub use holdings::Holdings;
pub use partition::{PartitionConfig, PartitionError, SizeLaw, partition};
pub use read::{read, read_within};
pub use source::Limits;
pub use tokenizer::{Tokenizer, TokenizerError};
