//! Rows to token ids, cut to a length.

use tokenizers::Encoding;

use crate::example::{Example, Input, Label};
use crate::tokenizer::{Tokenizer, TokenizerError, guarded};

/// What a row asks the model to learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Nothing is marked: a causal language model predicts every next token.
    None,
    /// The class of the whole sequence.
    Class(u32),
    /// A number for the whole sequence.
    Number(f32),
    /// Only the tokens from this index on are learned; those before are the prompt.
    Completion { from: usize },
}

/// One row as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Token ids, special tokens included; never padded.
    pub ids: Vec<u32>,
    /// Where the second of two texts begins, the special tokens between them being the first one's (as in
    /// BERT's token types); with one text, the number of tokens.
    pub second_from: usize,
    pub target: Target,
    /// Tokens of the row that `max_seq_length` left out.
    pub cut: usize,
}

impl Encoded {
    /// One text, nothing of it cut.
    pub fn whole(ids: Vec<u32>, target: Target) -> Encoded {
        Encoded { second_from: ids.len(), ids, target, cut: 0 }
    }
}

impl Tokenizer {
    /// The start of a text to be continued: what opens a text of this model, but nothing that ends one.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let body = self.body(text, 0)?;
        Ok([&self.single[0], body.get_ids()].concat())
    }

    /// Token ids and target of one row, at most `max_seq_length` ids of it.
    ///
    /// A text too long loses its end, but never a special token around it; the longer of a pair is cut
    /// first. Where a prompt and its completion are too long together, the prompt loses its start and
    /// the completion keeps at least half of the room; a completion cut short does not end in the
    /// end-of-text token.
    ///
    /// # Errors
    /// If special tokens alone fill `max_seq_length`, or the row has no tokens.
    pub fn encode(&self, example: &Example, max_seq_length: usize) -> Result<Encoded, TokenizerError> {
        let line = example.line;
        let target = match example.label {
            None => Target::None,
            Some(Label::Class(class)) => Target::Class(class),
            Some(Label::Number(number)) => Target::Number(number),
        };
        let encoded = match &example.input {
            Input::Text(text) => self.text(self.body(text, line)?.get_ids(), target, max_seq_length)?,
            Input::Pair(first, second) => {
                let (first, second) = (self.body(first, line)?, self.body(second, line)?);
                self.two(first.get_ids(), second.get_ids(), target, max_seq_length)?
            }
            Input::PromptCompletion { prompt, completion } => {
                let learned = self.end_of_text();
                let parts = self.split(&format!("{prompt}{completion}"), prompt.len(), line)?;
                self.completion(parts, [&self.single[0], &learned], target, max_seq_length)?
            }
            Input::Messages(messages) => {
                let chat = self.chat.as_ref().ok_or(TokenizerError::NoChatTemplate)?;
                let (text, prompt) = chat
                    .render(messages)
                    .map_err(|what| TokenizerError::ChatTemplate { line, what: what.to_string() })?;
                // The template writes every special token itself.
                self.completion(self.split(&text, prompt, line)?, [&[], &[]], target, max_seq_length)?
            }
        };
        if encoded.ids.is_empty() { Err(TokenizerError::NoTokens { line }) } else { Ok(encoded) }
    }

    /// A whole text with what opens it and what ends it, however long.
    pub(crate) fn whole_text(&self, text: &str, line: u64) -> Result<Vec<u32>, TokenizerError> {
        let body = self.body(text, line)?;
        Ok([&self.single[0], body.get_ids(), &self.end_of_text()].concat())
    }

    /// What ends a text that is complete: the end-of-text token, or else what the template appends.
    fn end_of_text(&self) -> Vec<u32> {
        self.eos().map_or_else(|| self.single[1].clone(), |eos| vec![eos])
    }

    fn body(&self, text: &str, line: u64) -> Result<Encoding, TokenizerError> {
        guarded(|| self.inner.encode(text, false))
            .map_err(|what| TokenizerError::Encode { line, what: what.to_string() })
    }

    /// Ids of the text, and how many of them lie wholly within its first `prompt` bytes.
    fn split(&self, text: &str, prompt: usize, line: u64) -> Result<(Vec<u32>, usize), TokenizerError> {
        let body = self.body(text, line)?;
        let within = body.get_offsets().iter().take_while(|(_, end)| *end <= prompt).count();
        Ok((body.get_ids().to_vec(), within))
    }

    fn text(&self, body: &[u32], target: Target, max: usize) -> Result<Encoded, TokenizerError> {
        let [before, after] = &self.single;
        let kept = body.len().min(room(max, before.len() + after.len())?);
        let ids = [before, &body[..kept], after].concat();
        Ok(Encoded { second_from: ids.len(), ids, target, cut: body.len() - kept })
    }

    fn two(&self, a: &[u32], b: &[u32], target: Target, max: usize) -> Result<Encoded, TokenizerError> {
        let [before, between, after] = &self.pair;
        let room = room(max, before.len() + between.len() + after.len())?;
        // Longest first: whatever exceeds half of the room gives way, until both fit.
        let keep_a = a.len().min((room - room / 2).max(room.saturating_sub(b.len())));
        let keep_b = b.len().min(room - keep_a);
        let ids = [before, &a[..keep_a], between, &b[..keep_b], after].concat();
        let second_from = before.len() + keep_a + between.len();
        Ok(Encoded { ids, second_from, target, cut: a.len() + b.len() - keep_a - keep_b })
    }

    fn completion(
        &self,
        (body, within): (Vec<u32>, usize),
        [before, after]: [&[u32]; 2],
        target: Target,
        max: usize,
    ) -> Result<Encoded, TokenizerError> {
        let room = room(max, before.len())?;
        let (prompt, completion) = body.split_at(within);
        let completion = [completion, after].concat();
        let keep = completion.len().min((room - room / 2).max(room.saturating_sub(prompt.len())));
        let prompt = &prompt[prompt.len().saturating_sub(room - keep)..];
        let from = before.len() + prompt.len();
        let target = if target == Target::None { Target::Completion { from } } else { target };
        let ids = [before, prompt, &completion[..keep]].concat();
        let cut = within - prompt.len() + completion.len() - keep;
        Ok(Encoded { second_from: ids.len(), ids, target, cut })
    }
}

/// Ids left for text.
fn room(max: usize, special: usize) -> Result<usize, TokenizerError> {
    max.checked_sub(special).filter(|room| *room > 0).ok_or(TokenizerError::TooShort { max, special })
}
