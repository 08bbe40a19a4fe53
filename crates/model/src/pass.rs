//! What every part of a forward or backward pass reads.

use ops::Workspace;
use std::ops::Range;

/// One pass over one ragged batch.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub ws: &'a Workspace,
    /// The trained parameters.
    pub theta: &'a [f32],
    /// Where the sequences begin: B + 1 numbers, as in [`Tokens`](crate::Tokens).
    pub starts: &'a [u32],
}

/// What a forward pass leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Save {
    Nothing,
    /// What a block cannot do without when it is run again before its backward: the sum before its
    /// last norm, where there is one.
    Sum,
    /// All that the backward reads.
    ForBackward,
}

impl Save {
    /// What `make` makes if the backward will read it; else what it captured is dropped here.
    pub fn keep<T>(self, make: impl FnOnce() -> T) -> Option<T> {
        (self == Save::ForBackward).then(make)
    }
}

/// Whether anything before some place of the model is trained, so that a gradient has to come down
/// to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// Nothing is: backward stops here.
    Frozen,
    /// The gradient of the input is wanted.
    Trained,
}

impl Below {
    pub(crate) fn of(trained: bool) -> Below {
        if trained { Below::Trained } else { Below::Frozen }
    }
}

/// A parameter that is used as it is: frozen beside the model, or a range of `theta`.
#[derive(Clone, Debug)]
pub(crate) enum Values {
    Frozen(Vec<f32>),
    Trained(Range<usize>),
}

impl Values {
    pub fn get<'a>(&'a self, theta: &'a [f32]) -> &'a [f32] {
        match self {
            Values::Frozen(values) => values,
            Values::Trained(range) => &theta[range.clone()],
        }
    }

    /// Its part of `theta`, if it is trained.
    pub fn range(&self) -> Option<&Range<usize>> {
        match self {
            Values::Frozen(_) => None,
            Values::Trained(range) => Some(range),
        }
    }

    /// Its part of the gradient, if it is trained.
    pub fn gradient<'a>(&self, gradient: &'a mut [f32]) -> Option<&'a mut [f32]> {
        match self {
            Values::Frozen(_) => None,
            Values::Trained(range) => Some(&mut gradient[range.clone()]),
        }
    }

    pub fn is_trained(&self) -> bool {
        matches!(self, Values::Trained(_))
    }

    /// The memory it holds outside of `theta`.
    pub fn bytes(&self) -> u64 {
        match self {
            Values::Frozen(values) => 4 * values.len() as u64,
            Values::Trained(_) => 0,
        }
    }
}
