//! How rows longer or shorter than `max_seq_length` become sequences.

use serde::{Deserialize, Serialize};

use crate::encode::{Encoded, Target};
use crate::example::{Dataset, Input};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// `long_rows` of a scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LongRows {
    /// One sequence a row; what exceeds `max_seq_length` is cut off (and counted in [`Encoded::cut`]).
    #[default]
    Truncate,
    /// A row becomes as many blocks of `max_seq_length` as it needs. Causal language models only.
    Chunk,
    /// All rows of a device, one after another, are cut into blocks of `max_seq_length`. Causal
    /// language models only.
    Pack,
}

impl Tokenizer {
    /// The sequences of these rows of a set, in order.
    ///
    /// Neighbouring blocks share one token, so that every token after a text's first is predicted
    /// exactly once however the text is cut. Blocks ignore labels.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; also if rows to be cut into blocks are not plain text.
    ///
    /// # Panics
    /// If a row lies outside the set.
    pub fn encode_rows(
        &self,
        dataset: &Dataset,
        rows: &[u32],
        max_seq_length: usize,
        long_rows: LongRows,
    ) -> Result<Vec<Encoded>, TokenizerError> {
        let examples = rows.iter().map(|row| &dataset.examples[*row as usize]);
        if long_rows == LongRows::Truncate {
            return examples.map(|example| self.encode(example, max_seq_length)).collect();
        }
        if max_seq_length < 2 {
            return Err(TokenizerError::TooShort { max: max_seq_length, special: 1 });
        }
        let texts = examples.map(|example| match &example.input {
            Input::Text(text) => self.whole_text(text, example.line),
            Input::Pair(..) => {
                Err(TokenizerError::NotPlainText { line: example.line, has: "second sentence" })
            }
            Input::PromptCompletion { .. } => {
                Err(TokenizerError::NotPlainText { line: example.line, has: "completion" })
            }
            Input::Messages(_) => {
                Err(TokenizerError::NotPlainText { line: example.line, has: "list of messages" })
            }
        });
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let texts = if long_rows == LongRows::Pack { vec![texts.concat()] } else { texts };
        Ok(texts.iter().flat_map(|text| blocks(text, max_seq_length)).collect())
    }
}

/// Blocks of at most `size` (at least 2) ids, each starting with the last id of the one before.
fn blocks(text: &[u32], size: usize) -> impl Iterator<Item = Encoded> {
    let starts = (0..text.len().saturating_sub(1).max(text.len().min(1))).step_by(size - 1);
    starts.map(move |start| {
        let ids = text[start..text.len().min(start + size)].to_vec();
        Encoded::whole(ids, Target::None)
    })
}
