//! Conversations to text, by the Jinja template of `tokenizer_config.json`.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, context};
use serde_json::Value;
use std::io;

use crate::example::Message;
use crate::tokenizer::Config;

/// Instructions one rendering may take: a template comes with a model and is not to be trusted.
const FUEL: u64 = 10_000_000;

/// Bytes one rendering may come to, beside so many times what its messages hold.
const ROOM: usize = 256 << 10;
const TIMES: usize = 8;

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The `chat_template` of a configuration, or of its entry called `default`.
    pub(crate) fn from_config(
        config: &Config,
        bos: Option<&(String, u32)>,
        eos: Option<&(String, u32)>,
    ) -> Result<Option<ChatTemplate>, String> {
        let source = match config.get("chat_template") {
            Some(Value::String(source)) => source,
            Some(Value::Array(named)) => {
                let default = named.iter().find(|entry| entry["name"] == "default").or(named.first());
                match default.map(|entry| &entry["template"]) {
                    Some(Value::String(source)) => source,
                    _ => return Err("entries of chat_template need a name and a template".to_owned()),
                }
            }
            _ => return Ok(None),
        };
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // Hugging Face renders with these two settings.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| error.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |what: String| -> Result<(), Error> {
            Err(Error::new(ErrorKind::InvalidOperation, what))
        });
        environment.add_template_owned("chat", source.clone()).map_err(|error| error.to_string())?;
        let text = |token: Option<&(String, u32)>| token.map(|(text, _)| text.clone()).unwrap_or_default();
        Ok(Some(ChatTemplate { environment, bos: text(bos), eos: text(eos) }))
    }

    /// The conversation as text, and how many of its bytes are prompt: those it shares with what the
    /// model is given when asked for the last message.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<(String, usize), Error> {
        let template = self.environment.get_template("chat")?;
        let said: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let render = |messages: &[Message], add_generation_prompt: bool| {
            let (bos_token, eos_token) = (&self.bos, &self.eos);
            let messages: Vec<_> = messages
                .iter()
                .map(|message| context! { role => &message.role, content => &message.content })
                .collect();
            let mut text = Bounded { text: Vec::new(), most: ROOM + TIMES * said };
            let context = context! { messages, bos_token, eos_token, add_generation_prompt };
            template.render_captured_to(context, &mut text)?;
            String::from_utf8(text.text)
                .map_err(|_| Error::new(ErrorKind::BadSerialization, "not valid UTF-8"))
        };
        let text = render(messages, false)?;
        let asked = render(&messages[..messages.len().saturating_sub(1)], true)?;
        let shared = text.chars().zip(asked.chars()).take_while(|(a, b)| a == b);
        let prompt = shared.map(|(a, _)| a.len_utf8()).sum();
        Ok((text, prompt))
    }
}

/// A text that grows to `most` bytes and no further.
struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.most {
            return Err(io::Error::other(format!(
                "it makes more than {} bytes of these messages",
                self.most
            )));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
