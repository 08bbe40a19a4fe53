//! A model's tokenizer, with the special tokens its files ask for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::Encoding;

use crate::chat::ChatTemplate;

/// Why text could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    #[error("{}: {source}; a model directory needs tokenizer.json (the file of a fast tokenizer)", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{file}: {what}")]
    Parse { file: String, what: String },
    #[error("max_seq_length = {max} leaves no room for text beside {special} special tokens")]
    TooShort { max: usize, special: usize },
    #[error(
        "line {line}: the row encodes to no token at all; remove it, or add its characters to the tokenizer"
    )]
    NoTokens { line: u64 },
    #[error("line {line}: cannot encode: {what}")]
    Encode { line: u64, what: String },
    #[error(
        "rows of messages need a chat template, and tokenizer_config.json has none; use rows of prompt \
         and completion instead"
    )]
    NoChatTemplate,
    #[error("line {line}: the chat template fails: {what}")]
    ChatTemplate { line: u64, what: String },
    #[error(
        "line {line}: only rows of plain text can be cut into blocks (chunk, pack), and this row has a \
         {has}; use truncate"
    )]
    NotPlainText { line: u64, has: &'static str },
}

/// A tokenizer with the special tokens its model expects.
pub struct Tokenizer {
    pub(crate) inner: tokenizers::Tokenizer,
    /// Special tokens before and after a text.
    pub(crate) single: [Vec<u32>; 2],
    /// Special tokens before, between and after two texts.
    pub(crate) pair: [Vec<u32>; 3],
    pub(crate) chat: Option<ChatTemplate>,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Tokenizer {
    /// From a Hugging Face model directory: `tokenizer.json`, and `tokenizer_config.json`,
    /// `special_tokens_map.json` and `chat_template.jinja` where present.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing or either file is malformed.
    pub fn load(directory: &Path) -> Result<Tokenizer, TokenizerError> {
        let path = directory.join("tokenizer.json");
        let tokenizer = std::fs::read(&path).map_err(|source| TokenizerError::Io { path, source })?;
        let mut config = optional_json(&directory.join("special_tokens_map.json"))?;
        let own = optional_json(&directory.join("tokenizer_config.json"))?;
        config.extend(own);
        if let Ok(template) = std::fs::read_to_string(directory.join("chat_template.jinja")) {
            config.insert("chat_template".to_owned(), Value::String(template));
        }
        Self::assemble(&tokenizer, &config)
    }

    /// From the bytes of `tokenizer.json` and, if there is one, of `tokenizer_config.json`.
    ///
    /// # Errors
    /// If either is malformed.
    pub fn from_bytes(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
        let config =
            config.map_or_else(|| Ok(Config::new()), |bytes| json("tokenizer_config.json", bytes))?;
        Self::assemble(tokenizer, &config)
    }

    fn assemble(tokenizer: &[u8], config: &Config) -> Result<Tokenizer, TokenizerError> {
        let malformed = |what: tokenizers::Error| parse_error("tokenizer.json", what.to_string());
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(tokenizer)).map_err(malformed)?;
        // Files saved with fixed padding or truncation would override max_seq_length.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(malformed)?;
        let special = |key: &str| -> Option<(String, u32)> {
            let text = match config.get(key)? {
                Value::String(text) => text,
                Value::Object(token) => token.get("content")?.as_str()?,
                _ => return None,
            };
            Some((text.to_owned(), inner.token_to_id(text)?))
        };
        let (bos, eos) = (special("bos_token"), special("eos_token"));
        let chat = ChatTemplate::from_config(config, bos.as_ref(), eos.as_ref())
            .map_err(|what| parse_error("chat template", what))?;
        let (bos, eos) = (bos.map(|(_, id)| id), eos.map(|(_, id)| id));

        let ends = Ends {
            bos: bos.zip(flag(config, "add_bos_token")),
            eos: eos.zip(flag(config, "add_eos_token")),
        };
        let single = ends.around(&guarded(|| inner.encode("a", true)).map_err(malformed)?)?;
        let pair = ends.around(&guarded(|| inner.encode(("a", "a"), true)).map_err(malformed)?)?;
        Ok(Tokenizer { inner, single, pair, bos, eos, chat })
    }

    /// The token a text of this model starts with, if it has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if it has one: generation stops there.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Number of token ids, added tokens included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The text of these ids, special tokens left out.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        guarded(|| self.inner.decode(ids, true))
            .map_err(|what| TokenizerError::Encode { line: 0, what: what.to_string() })
    }
}

/// The library panics at some files (a decoder without its fields, say) where it could tell what is wrong.
pub(crate) fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    let failed =
        |_| Err("the tokenizer library fails on this file; save it again with save_pretrained".into());
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(failed)
}

/// The tokens that begin and end a text, with whether `tokenizer_config.json` wants them: it wins over
/// the post-processor of `tokenizer.json`, as in the fast LLaMA tokenizer.
struct Ends {
    bos: Option<(u32, bool)>,
    eos: Option<(u32, bool)>,
}

impl Ends {
    /// The special tokens before, between and after the texts of an encoding.
    fn around<const RUNS: usize>(&self, encoding: &Encoding) -> Result<[Vec<u32>; RUNS], TokenizerError> {
        let mut runs = vec![Vec::new()];
        let mut last = None;
        let tokens = encoding.get_ids().iter().zip(encoding.get_special_tokens_mask());
        for ((id, special), text) in tokens.zip(encoding.get_sequence_ids()) {
            match runs.last_mut() {
                Some(run) if *special == 1 => run.push(*id),
                _ if text != last => {
                    runs.push(Vec::new());
                    last = text;
                }
                _ => {}
            }
        }
        if let (Some((token, wanted)), Some(first)) = (self.bos, runs.first_mut()) {
            first.retain(|id| *id != token);
            first.splice(0..0, wanted.then_some(token));
        }
        if let (Some((token, wanted)), Some(last)) = (self.eos, runs.last_mut()) {
            last.retain(|id| *id != token);
            last.extend(wanted.then_some(token));
        }
        let apart =
            |_| parse_error("tokenizer.json", "its post-processor does not keep texts apart".to_owned());
        runs.try_into().map_err(apart)
    }
}

fn flag(config: &Config, key: &str) -> Option<bool> {
    config.get(key)?.as_bool()
}

pub(crate) type Config = serde_json::Map<String, Value>;

fn optional_json(path: &Path) -> Result<Config, TokenizerError> {
    match std::fs::read(path) {
        Ok(bytes) => json(&path.display().to_string(), &bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Config::new()),
        Err(source) => Err(TokenizerError::Io { path: path.to_owned(), source }),
    }
}

fn json(file: &str, bytes: &[u8]) -> Result<Config, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|error| parse_error(file, error.to_string()))
}

fn parse_error(file: &str, what: String) -> TokenizerError {
    TokenizerError::Parse { file: file.to_owned(), what }
}
