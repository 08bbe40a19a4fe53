//! A batch of token ids, and what is to be predicted from it.

use crate::error::Error;
use ops::loss::IGNORE;

/// A ragged batch: the tokens of all sequences one after another, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// B + 1 numbers: where each sequence begins, and the end.
    pub starts: Vec<u32>,
    /// B numbers: at which token of its sequence the second of two texts begins (BERT's token type 1), the
    /// sequence's length where there is one text. Empty: no sequence has a second text.
    pub second_from: Vec<u32>,
}

/// What the model should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// One class a sequence.
    Classes(Vec<u32>),
    /// The next token of the same sequence, at every position but the last.
    NextToken,
    /// The next token, where its position in the sequence is at least this: a number a sequence. The
    /// tokens before it are the prompt, which is read but not learned.
    Completion(Vec<u32>),
}

/// How blocks get back what their backward reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// Everything is kept: no product is repeated.
    #[default]
    Keep,
    /// One activation a block is kept; before its backward a block runs forward again, except for its
    /// last product and the last block.
    Recompute,
}

impl Tokens {
    /// A batch of these sequences, one text each.
    pub fn of<S: AsRef<[u32]>>(sequences: &[S]) -> Tokens {
        let mut tokens = Tokens { ids: Vec::new(), starts: vec![0], second_from: Vec::new() };
        for sequence in sequences {
            tokens.ids.extend_from_slice(sequence.as_ref());
            tokens.starts.push(tokens.ids.len() as u32);
        }
        tokens
    }

    /// Tokens in all.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Each token's position in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        self.starts.windows(2).flat_map(|pair| 0..pair[1].saturating_sub(pair[0]))
    }

    /// Each token's segment in a model that has this many: 1 in the second of two texts, if it has two.
    pub(crate) fn segments(&self, of: usize) -> Vec<u32> {
        let mut segments = vec![0; self.rows()];
        if of < 2 {
            return segments;
        }
        for (pair, from) in self.starts.windows(2).zip(&self.second_from) {
            let (start, end) = (pair[0] as usize, pair[1] as usize);
            segments[(start + *from as usize).min(end)..end].fill(1);
        }
        segments
    }

    /// Refuse what the model has no row or position for.
    pub(crate) fn check(&self, vocab: usize, max_positions: usize) -> Result<(), Error> {
        let fails = |message| Err(Error::Batch(message));
        if !self.second_from.is_empty() && self.second_from.len() != self.sequences() {
            let (found, expected) = (self.second_from.len(), self.sequences());
            return fails(format!("{found} second texts for {expected} sequences"));
        }
        let covers =
            self.starts.first() == Some(&0) && self.starts.last() == Some(&(self.ids.len() as u32));
        if self.ids.is_empty() || !covers {
            return fails(format!("starts do not span the {} tokens of the batch", self.ids.len()));
        }
        for (index, pair) in self.starts.windows(2).enumerate() {
            if pair[0] >= pair[1] {
                return fails(format!("sequence {index} is empty; give every example at least one token"));
            }
            let length = (pair[1] - pair[0]) as usize;
            if length > max_positions {
                return fails(format!(
                    "sequence {index} has {length} tokens and the model {max_positions} positions; \
                     lower max_seq_length"
                ));
            }
        }
        match self.ids.iter().find(|id| **id as usize >= vocab) {
            Some(id) => fails(format!(
                "token {id} is outside the vocabulary of {vocab}: are tokenizer and model from the same place?"
            )),
            None => Ok(()),
        }
    }

    /// For every row the token to predict, or [`IGNORE`].
    pub(crate) fn next(&self, targets: &Targets) -> Result<Vec<u32>, Error> {
        let from: Vec<u32> = match targets {
            Targets::NextToken => vec![0; self.sequences()],
            Targets::Completion(from) if from.len() == self.sequences() => from.clone(),
            Targets::Completion(from) => {
                let (found, expected) = (from.len(), self.sequences());
                return Err(Error::Batch(format!("{found} completions for {expected} sequences")));
            }
            Targets::Classes(_) => {
                return Err(Error::Task { loaded: "causal language modelling", asked: "classes" });
            }
        };
        let mut next = vec![IGNORE; self.ids.len()];
        for (pair, from) in self.starts.windows(2).zip(from) {
            let (start, end) = (pair[0] as usize, pair[1] as usize);
            let follower = self.ids[start + 1..end].iter();
            for (at, (next, follower)) in next[start..].iter_mut().zip(follower).enumerate() {
                if at + 1 >= from as usize {
                    *next = *follower;
                }
            }
        }
        Ok(next)
    }
}
