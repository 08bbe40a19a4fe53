//! What a target is, and the list of them: every decoder of bytes that come from outside.

use crate::form::Form;
use crate::{models, nodes, rows, runs, wire};

/// What a decoder makes of bytes: the rough shape of what it accepts, or the text of its error.
pub type Said = Result<String, String>;

type Decode = Box<dyn FnMut(&[u8]) -> Said>;

/// A decoder by name. What it needs is built when it is run, in a process of its own.
pub struct Target {
    pub name: String,
    pub build: Box<dyn Fn() -> Decoder>,
}

/// A decoder with what it is really given.
pub struct Decoder {
    pub seeds: Vec<Vec<u8>>,
    /// How its bytes are framed, so that mutants may reach behind lengths and checksums.
    pub form: Form,
    pub room: Room,
    pub decode: Decode,
}

/// The memory that one decode may take beyond what was there before.
#[derive(Clone, Copy)]
pub struct Room {
    pub bytes: u64,
    /// So many bytes more for each byte of input.
    pub factor: u64,
}

impl Room {
    pub fn of(self, input: &[u8]) -> u64 {
        self.bytes + self.factor * input.len() as u64
    }
}

/// A row of the list.
pub fn target(name: &str, build: impl Fn() -> Decoder + 'static) -> Target {
    Target { name: name.to_owned(), build: Box::new(build) }
}

/// Every target.
pub fn all() -> Vec<Target> {
    let lists = [wire::targets(), nodes::targets(), models::targets(), rows::targets(), runs::targets()];
    lists.into_iter().flatten().collect()
}

/// How large, roughly: a letter for the bits of a count, since digits do not make an outcome new.
pub fn size(count: usize) -> String {
    char::from(b'A' + (usize::BITS - count.leading_zeros()) as u8).to_string()
}
