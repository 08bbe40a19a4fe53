//! Making a tokenizer for a corpus.

use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;

use crate::tokenizer::TokenizerError;

/// The token that opens every text of a tokenizer made by [`train`], id 0.
pub const BOS: &str = "<s>";
/// The token that ends a text, id 1.
pub const EOS: &str = "</s>";

/// Learn a byte-level BPE vocabulary of at most `size` tokens (Sennrich et al. 2016; bytes as in
/// GPT-2) and return the bytes of its `tokenizer.json`. Any text can be encoded; a text starts with
/// [`BOS`]. The same corpus and size always give the same bytes.
///
/// # Errors
/// If `size` is too small to hold the 256 bytes and the special tokens.
pub fn train(corpus: &[String], size: usize) -> Result<Vec<u8>, TokenizerError> {
    let refused = |what: &dyn std::fmt::Display| TokenizerError::Parse {
        file: "corpus".to_owned(),
        what: what.to_string(),
    };
    if size < 258 {
        return Err(refused(&format_args!(
            "a vocabulary of {size} cannot hold 256 bytes and 2 special tokens"
        )));
    }
    let trainer = BpeTrainer::builder()
        .vocab_size(size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens([BOS, EOS].map(|token| AddedToken::from(token, true)).to_vec())
        .build();
    let byte_level = ByteLevel::new(true, true, true);
    let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_decoder(Some(byte_level));
    tokenizer.train(&mut TrainerWrapper::from(trainer), corpus.iter()).map_err(|error| refused(&error))?;
    let template = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .and_then(|builder| builder.try_pair(format!("{BOS} $A {EOS} $B:1")))
        .map_err(|error| refused(&error))?
        .special_tokens(vec![(BOS, 0), (EOS, 1)])
        .build()
        .map_err(|error| refused(&error))?;
    tokenizer.with_post_processor(Some(template));
    tokenizer.to_string(false).map(String::into_bytes).map_err(|error| refused(&error))
}
