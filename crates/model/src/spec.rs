//! What a model is made of, read from its `config.json`.

use crate::error::LoadError;
use crate::families::{self, Family};
use serde::Serialize;
use serde_json::{Map, Value};
use std::ops::Range;

/// The shape of a transformer. All figures count elements, not bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spec {
    #[serde(serialize_with = "families::model_type")]
    pub family: &'static Family,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    /// Key and value heads; fewer than `heads` under grouped-query attention.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Inner width of the feed-forward part.
    pub ffn: usize,
    pub vocab: usize,
    /// The longest sequence the model has positions for.
    pub max_positions: usize,
    /// Rows of the position table before the first used one (RoBERTa: 2).
    pub position_offset: usize,
    /// Rows of the segment table; 0 when there is none.
    pub type_vocab: usize,
    pub norm_eps: f32,
    pub activation: Activation,
    /// Base of the rotary position embedding; `None` for learned positions.
    pub rope_theta: Option<f32>,
    /// The output head is the word embedding.
    pub tied: bool,
    pub qkv_bias: bool,
    pub attention_output_bias: bool,
    pub mlp_bias: bool,
}

/// The non-linearity of the feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Exact, with the error function.
    Gelu,
    /// The tanh approximation.
    GeluTanh,
    Relu,
    /// SwiGLU: `silu(gate) * up`.
    SiluGate,
}

/// What the model is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    Classification {
        classes: usize,
        pooling: Pooling,
        /// `Some(k)`: the head sees `tanh(k * pooled)`, which keeps its input bounded however long
        /// the pooled vectors of a backbone are.
        squash: Option<f32>,
    },
    /// One number a sequence, which a side network learns: the head is there and stays zero.
    Regression {
        pooling: Pooling,
    },
    CausalLm,
}

/// How the last hidden states of a sequence become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The first token's.
    Cls,
    Mean,
    /// The last token's.
    Last,
}

impl From<Pooling> for ops::pool::Pooling {
    fn from(pooling: Pooling) -> ops::pool::Pooling {
        match pooling {
            Pooling::Cls => ops::pool::Pooling::Cls,
            Pooling::Mean => ops::pool::Pooling::Mean,
            Pooling::Last => ops::pool::Pooling::Last,
        }
    }
}

/// The part a module plays in its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    WordEmbedding,
    PositionEmbedding,
    TypeEmbedding,
    EmbeddingNorm,
    Query,
    Key,
    Value,
    AttentionOutput,
    AttentionNorm,
    Gate,
    Up,
    Down,
    MlpNorm,
    FinalNorm,
    LmHead,
    Classifier,
}

/// Where in the forward pass a module stands; the order of places is the order of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Embedding,
    Block(usize),
    /// The final norm and the head.
    Last,
}

/// A named group of parameters, as Hugging Face names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// For example `encoder.layer.0.attention.self.query`.
    pub name: String,
    pub role: Role,
    pub place: Place,
    pub shape: Shape,
}

/// The parameters of a [`Module`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `weight` of `out` x `width_in`, and `bias` of `out`.
    Linear { out: usize, width_in: usize, bias: bool },
    /// `weight` of `width`, and `bias` of `width`.
    Norm { width: usize, bias: bool },
    /// `weight` of `rows` x `width`.
    Table { rows: usize, width: usize },
}

const MOST_LAYERS: usize = 1 << 10;
const MOST_POSITIONS: usize = 1 << 20;

impl Spec {
    /// Read a `config.json`. What this project cannot compute is refused here, by name.
    pub fn from_config(json: &str) -> Result<Spec, LoadError> {
        let value: Value = serde_json::from_str(json)
            .map_err(|error| LoadError::Config(format!("config.json is no JSON: {error}")))?;
        let Value::Object(map) = value else {
            return Err(LoadError::Config("config.json holds no object".into()));
        };
        let config = Config(map);
        let model_type = config.text("model_type")?;
        let family = families::FAMILIES.iter().find(|family| family.model_type == model_type);
        let Some(family) = family else {
            let known: Vec<&str> = families::FAMILIES.iter().map(|family| family.model_type).collect();
            let known = known.join(", ");
            return Err(LoadError::Config(format!("model_type \"{model_type}\" is not one of {known}")));
        };
        let spec = (family.parse)(&config)?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), LoadError> {
        let sizes =
            [self.layers, self.width, self.heads, self.kv_heads, self.head_dim, self.ffn, self.vocab];
        let small = |size: &usize| (1..=1 << 24).contains(size);
        let tables = [self.type_vocab, self.position_offset];
        if !sizes.iter().all(small) || tables.iter().any(|size| *size > 1 << 24) {
            return Err(LoadError::Config("a size in config.json is 0 or absurdly large".into()));
        }
        // Of blocks there are names, and of positions rotary angles, before any weight is read.
        for (what, count, most) in
            [("blocks", self.layers, MOST_LAYERS), ("positions", self.max_positions, MOST_POSITIONS)]
        {
            if !(1..=most).contains(&count) {
                return Err(LoadError::Config(format!(
                    "config.json says {count} {what}; 1 to {most} are read"
                )));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv) = (self.heads, self.kv_heads);
            return Err(LoadError::Config(format!(
                "{heads} heads do not share {kv} key-value heads evenly"
            )));
        }
        if self.rope_theta.is_some() && !self.head_dim.is_multiple_of(2) {
            return Err(LoadError::Config(format!(
                "rotary positions need an even head_dim, not {}",
                self.head_dim
            )));
        }
        Ok(())
    }

    /// The modules of the blocks `layers`, with the embeddings when the range starts at 0 and the
    /// final norm and head when it ends at the last block: in forward order.
    pub fn modules(&self, task: &Task, layers: Range<usize>) -> Vec<Module> {
        let mut modules = Vec::new();
        let mut add = |rows: &[families::Row], place| {
            modules.extend(rows.iter().map(|row| self.module(row, place, task)));
        };
        if layers.start == 0 {
            add(self.family.embedding, Place::Embedding);
        }
        layers.clone().for_each(|layer| add(self.family.block, Place::Block(layer)));
        if layers.end == self.layers {
            add(self.family.last, Place::Last);
            match task {
                Task::Classification { .. } | Task::Regression { .. } => {
                    add(&[(Role::Classifier, "classifier")], Place::Last);
                }
                Task::CausalLm if self.tied => {}
                Task::CausalLm => add(&[(Role::LmHead, "lm_head")], Place::Last),
            }
        }
        modules
    }

    fn module(&self, &(role, pattern): &families::Row, place: Place, task: &Task) -> Module {
        let name = match place {
            Place::Block(layer) => pattern.replace("{}", &layer.to_string()),
            Place::Embedding | Place::Last => pattern.to_owned(),
        };
        Module { name, role, place, shape: self.shape(role, task) }
    }

    fn shape(&self, role: Role, task: &Task) -> Shape {
        let linear = |out, width_in, bias| Shape::Linear { out, width_in, bias };
        let (width, kv) = (self.width, self.kv_heads * self.head_dim);
        match role {
            Role::WordEmbedding => Shape::Table { rows: self.vocab, width },
            Role::PositionEmbedding => {
                Shape::Table { rows: self.max_positions + self.position_offset, width }
            }
            Role::TypeEmbedding => Shape::Table { rows: self.type_vocab, width },
            Role::Query => linear(self.heads * self.head_dim, width, self.qkv_bias),
            Role::Key | Role::Value => linear(kv, width, self.qkv_bias),
            Role::AttentionOutput => linear(width, self.heads * self.head_dim, self.attention_output_bias),
            Role::Gate | Role::Up => linear(self.ffn, width, self.mlp_bias),
            Role::Down => linear(width, self.ffn, self.mlp_bias),
            Role::LmHead => linear(self.vocab, width, false),
            Role::Classifier => linear(task.classes(), width, true),
            Role::EmbeddingNorm | Role::AttentionNorm | Role::MlpNorm | Role::FinalNorm => {
                Shape::Norm { width, bias: self.family.norm == families::NormKind::Layer }
            }
        }
    }
}

impl Task {
    /// Outputs of the head; 0 for a language model.
    pub fn classes(&self) -> usize {
        match self {
            Task::Classification { classes, .. } => *classes,
            Task::Regression { .. } => 1,
            Task::CausalLm => 0,
        }
    }

    pub(crate) fn check(&self, spec: &Spec) -> Result<(), LoadError> {
        match self {
            Task::CausalLm if !spec.family.causal => Err(LoadError::Config(format!(
                "{} is an encoder: it can classify, but it is no causal language model",
                spec.family.model_type
            ))),
            Task::Classification { classes, .. } if *classes < 2 => {
                Err(LoadError::Config(format!("classification needs at least two classes, not {classes}")))
            }
            Task::Classification { squash: Some(k), .. } if !(k.is_finite() && *k > 0.0) => {
                Err(LoadError::Config(format!("squash must be a positive number, not {k}")))
            }
            _ => Ok(()),
        }
    }
}

/// `config.json` with errors that name the key.
pub struct Config(Map<String, Value>);

impl Config {
    pub fn text(&self, key: &str) -> Result<&str, LoadError> {
        let value = self.0.get(key).and_then(Value::as_str);
        value.ok_or_else(|| LoadError::Config(format!("config.json has no text \"{key}\"")))
    }

    pub fn size(&self, key: &str) -> Result<usize, LoadError> {
        let value = self.0.get(key).and_then(Value::as_u64);
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| LoadError::Config(format!("config.json has no whole number \"{key}\"")))
    }

    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        if self.is_set(key) { self.size(key) } else { Ok(default) }
    }

    pub fn number_or(&self, key: &str, default: f32) -> Result<f32, LoadError> {
        if !self.is_set(key) {
            return Ok(default);
        }
        let value = self.0.get(key).and_then(Value::as_f64);
        let value =
            value.ok_or_else(|| LoadError::Config(format!("\"{key}\" in config.json is no number")))?;
        Ok(value as f32)
    }

    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        if !self.is_set(key) {
            return Ok(default);
        }
        let value = self.0.get(key).and_then(Value::as_bool);
        value.ok_or_else(|| LoadError::Config(format!("\"{key}\" in config.json is not true or false")))
    }

    /// Whether the key is there and not null.
    pub fn is_set(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_null())
    }

    /// The object under `key`.
    pub fn section(&self, key: &str) -> Option<Config> {
        self.0.get(key).and_then(Value::as_object).cloned().map(Config)
    }

    pub fn activation(&self, key: &str) -> Result<Activation, LoadError> {
        match self.text(key)? {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(LoadError::Config(format!(
                "{key} \"{other}\" is not one of gelu, gelu_new, gelu_pytorch_tanh, relu"
            ))),
        }
    }

    /// An error unless the key is absent, null or `only`.
    pub fn expect_text(&self, key: &str, only: &str) -> Result<(), LoadError> {
        if !self.is_set(key) || self.text(key)? == only {
            return Ok(());
        }
        Err(LoadError::Config(format!("{key} \"{}\" is not supported, only \"{only}\"", self.text(key)?)))
    }
}
