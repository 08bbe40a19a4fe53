//! What can go wrong in an operation.

use base::OverBudget;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The job went over the memory it declared.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// Operands do not fit together.
    #[error("{what} is {found}, but it has to be {expected}")]
    Shape { what: &'static str, expected: usize, found: usize },
    /// An index points outside of its table: a token id, a class or a position.
    #[error("{what} {index} is outside of 0..{len}")]
    Index { what: &'static str, index: usize, len: usize },
    /// `starts` does not cut the rows into sequences.
    #[error("starts have to rise from 0 to the number of rows, {rows}, with a row in every sequence")]
    Starts { rows: usize },
    /// A value that should be a number is not: the learning rate may be too high, or a weight corrupt.
    #[error("{what} is not finite; lower the learning rate, or check the weights and data")]
    NonFinite { what: &'static str },
}

/// An error unless `found` is `expected`.
pub(crate) fn same(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::Shape { what, expected, found }) }
}

/// An error unless `index` is inside of `0..len`.
pub(crate) fn inside(what: &'static str, index: usize, len: usize) -> Result<()> {
    if index < len { Ok(()) } else { Err(Error::Index { what, index, len }) }
}
