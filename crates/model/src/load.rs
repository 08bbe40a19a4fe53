//! From files to a [`Model`] and its first `theta`.

use crate::adapted::{AdaptedLinear, Core, Lora};
use crate::attention::Attention;
use crate::block::Block;
use crate::bottleneck::Bottleneck;
use crate::embedding::{Embedding, Words};
use crate::error::LoadError;
use crate::families::NormKind;
use crate::head::{Classifier, Head, Kind, Language, LanguageWeight};
use crate::layout::{Layout, SiteKind};
use crate::lora_xs::LoraXs;
use crate::mlp::{Gated, Mlp, Plain};
use crate::model::Model;
use crate::norm::Norm;
use crate::pass::Values;
use crate::peft_config::PeftConfig;
use crate::source::{Source, Weights};
use crate::spec::{Activation, Module, Place, Pooling, Role, Shape, Spec, Task};
use crate::stored::{Lower, stored_name};
use base::Seed;
use ops::attention::{Heads, Mask};
use ops::{Linear, act, rope};
use std::ops::Range;
use std::sync::Arc;

impl Model {
    /// Load a model, and the parameters training starts from.
    ///
    /// New parameters start as in PEFT: LoRA's A uniform in ±1/sqrt(width_in), its B zero. A
    /// bottleneck's lower half starts as A does, its upper half zero, so both leave the backbone's
    /// output unchanged. The head starts normal with deviation 0.02, its bias zero. Each is drawn by
    /// its own name from `seed`, so that parts of a model agree with the whole.
    pub fn load(
        source: &Source,
        task: &Task,
        peft: &PeftConfig,
        seed: Seed,
    ) -> Result<(Model, Vec<f32>), LoadError> {
        let spec = Spec::from_config(&source.config()?)?;
        let layers = 0..spec.layers;
        Model::load_part(source, task, peft, seed, layers)
    }

    /// Load the blocks `layers` only: with the embeddings if the range starts at 0, with final norm
    /// and head if it ends at the last block. Layout and `theta` are those of the part: the whole
    /// model's `theta`, cut at [`Layout::cut`].
    pub fn load_part(
        source: &Source,
        task: &Task,
        peft: &PeftConfig,
        seed: Seed,
        layers: Range<usize>,
    ) -> Result<(Model, Vec<f32>), LoadError> {
        let spec = checked(source, task, peft)?;
        let Range { start, end } = layers;
        if start > end || end > spec.layers {
            return Err(LoadError::Layers { start, end, layers: spec.layers });
        }
        let layout = Layout::of_part(&spec, task, peft, layers.clone());
        let held = Held { embedding: start == 0, layers, head: end == spec.layers };
        load(source, spec, (task, peft), layout, held, seed)
    }

    /// Load of a model what a device holds below its cut. Layout and `theta` are the whole model's; of `theta`
    /// what is not held stands as it starts, whatever the checkpoint has there.
    pub fn load_lower(
        source: &Source,
        task: &Task,
        peft: &PeftConfig,
        seed: Seed,
        lower: Lower,
    ) -> Result<(Model, Vec<f32>), LoadError> {
        let spec = checked(source, task, peft)?;
        let Lower { blocks, head } = lower;
        if blocks > spec.layers {
            return Err(LoadError::Layers { start: 0, end: blocks, layers: spec.layers });
        }
        let layout = Layout::of_part(&spec, task, peft, 0..spec.layers);
        let held = Held { embedding: true, layers: 0..blocks, head };
        load(source, spec, (task, peft), layout, held, seed)
    }
}

/// What a model is made of, once it suits the task and what is to be trained.
fn checked(source: &Source, task: &Task, peft: &PeftConfig) -> Result<Spec, LoadError> {
    let spec = Spec::from_config(&source.config()?)?;
    task.check(&spec)?;
    peft.check(&spec, task)?;
    Ok(spec)
}

/// What is loaded of a model.
struct Held {
    embedding: bool,
    layers: Range<usize>,
    head: bool,
}

fn load(
    source: &Source,
    spec: Spec,
    (task, peft): (&Task, &PeftConfig),
    layout: Layout,
    held: Held,
    seed: Seed,
) -> Result<(Model, Vec<f32>), LoadError> {
    let modules = spec.modules(task, layout.layers.clone());
    let (weights, theta) = (source.open()?, Vec::new());
    let mut loader = Loader { spec: &spec, peft, layout: &layout, modules, weights, theta };
    // Only what the file bears out is made room for: a configuration can claim any size.
    loader.expect_all(&held)?;
    loader.theta = initial(&layout, seed);
    let tied = if held.head { loader.tied(task)? } else { None };
    let embedding = held.embedding.then(|| loader.embedding(tied.as_ref())).transpose()?;
    let rope = spec
        .rope_theta
        .map(|theta| Arc::new(rope::Table::new(spec.head_dim, spec.max_positions, f64::from(theta))));
    let blocks = held.layers.clone().map(|layer| loader.block(layer, rope.as_ref()));
    let blocks = blocks.collect::<Result<_, _>>()?;
    let head = held.head.then(|| loader.head(task, tied.as_ref())).transpose()?;
    let Loader { weights, theta, .. } = loader;
    let (task, peft, layout) = (task.clone(), peft.clone(), Arc::new(layout));
    let hash = weights.hash();
    Ok((Model { spec, task, peft, layout, layers: held.layers, embedding, blocks, head, hash }, theta))
}

/// Every site as it starts; those the model has already are overwritten as they are read.
fn initial(layout: &Layout, seed: Seed) -> Vec<f32> {
    let mut theta = vec![0.0; layout.total()];
    for site in &layout.sites {
        let values = &mut theta[site.range()];
        let mut stream = seed.child(&site.name, 0).stream();
        match site.kind {
            // Kaiming uniform with a = sqrt(5), as PEFT and torch.nn.Linear start.
            SiteKind::LoraA | SiteKind::BottleneckDown => {
                let bound = 1.0 / (site.cols as f64).sqrt();
                values.fill_with(|| (bound * (2.0 * stream.unit() - 1.0)) as f32);
            }
            SiteKind::HeadWeight => values.fill_with(|| (0.02 * stream.normal()) as f32),
            SiteKind::Own
            | SiteKind::OwnVector
            | SiteKind::LoraB
            | SiteKind::LoraCore
            | SiteKind::NewBias
            | SiteKind::BottleneckUp
            | SiteKind::BottleneckBias
            | SiteKind::HeadBias => {}
        }
    }
    theta
}

/// The word embedding as the output head uses it too.
enum Tied {
    Frozen(Arc<Linear>),
    Trained(Range<usize>),
}

struct Loader<'a> {
    spec: &'a Spec,
    peft: &'a PeftConfig,
    layout: &'a Layout,
    modules: Vec<Module>,
    weights: Weights,
    theta: Vec<f32>,
}

impl Loader<'_> {
    /// An error unless the file has every parameter that is held, in the shapes that the configuration says.
    fn expect_all(&self, held: &Held) -> Result<(), LoadError> {
        let is_held = |module: &&Module| match module.place {
            Place::Embedding => held.embedding,
            Place::Block(layer) => held.layers.contains(&layer),
            Place::Last => held.head && module.role != Role::Classifier,
        };
        for module in self.modules.iter().filter(is_held) {
            let (shape, bias) = match module.shape {
                Shape::Linear { out, width_in, bias } => (vec![out, width_in], bias.then_some(out)),
                Shape::Norm { width, bias } => (vec![width], bias.then_some(width)),
                Shape::Table { rows, width } => (vec![rows, width], None),
            };
            self.weights.expect(&self.stored(&module.name, "weight"), &shape)?;
            if let Some(width) = bias {
                self.weights.expect(&self.stored(&module.name, "bias"), &[width])?;
            }
        }
        Ok(())
    }

    fn embedding(&mut self, tied: Option<&Tied>) -> Result<Embedding, LoadError> {
        let words = match tied {
            Some(Tied::Frozen(linear)) => Words::Tied(linear.clone()),
            Some(Tied::Trained(range)) => Words::Table(Values::Trained(range.clone())),
            None => Words::Table(self.table(Role::WordEmbedding)?),
        };
        let has = |role| self.modules.iter().any(|module| module.role == role);
        let (positions, types, norm) =
            (has(Role::PositionEmbedding), has(Role::TypeEmbedding), has(Role::EmbeddingNorm));
        let offset = self.spec.position_offset as u32;
        let positions = positions.then(|| self.table(Role::PositionEmbedding)).transpose()?;
        let types = types.then(|| self.table(Role::TypeEmbedding)).transpose()?;
        Ok(Embedding {
            words,
            positions: positions.map(|table| (table, offset)),
            types: types.map(|table| (table, self.spec.type_vocab)),
            norm: norm.then(|| self.norm(Place::Embedding, Role::EmbeddingNorm)).transpose()?,
            width: self.spec.width,
        })
    }

    fn block(&mut self, layer: usize, rope: Option<&Arc<rope::Table>>) -> Result<Block, LoadError> {
        let (spec, place) = (self.spec, Place::Block(layer));
        let heads = Heads { heads: spec.heads, kv_heads: spec.kv_heads, head_dim: spec.head_dim };
        Ok(Block {
            attention_norm: self.norm(place, Role::AttentionNorm)?,
            attention: Attention {
                query: self.linear(place, Role::Query)?,
                key: self.linear(place, Role::Key)?,
                value: self.linear(place, Role::Value)?,
                output: self.linear(place, Role::AttentionOutput)?,
                heads,
                mask: if spec.family.causal { Mask::Causal } else { Mask::Full },
                rope: rope.cloned(),
            },
            mlp_norm: self.norm(place, Role::MlpNorm)?,
            mlp: self.mlp(place)?,
            order: spec.family.norm_order,
        })
    }

    fn mlp(&mut self, place: Place) -> Result<Mlp, LoadError> {
        let (up, down) = (self.linear(place, Role::Up)?, self.linear(place, Role::Down)?);
        let activation = match self.spec.activation {
            Activation::Gelu => act::Activation::Gelu,
            Activation::GeluTanh => act::Activation::GeluTanh,
            Activation::Relu => act::Activation::Relu,
            Activation::SiluGate => {
                let gate = self.linear(place, Role::Gate)?;
                return Ok(Mlp::Gated(Gated { gate, up, down }));
            }
        };
        Ok(Mlp::Plain(Plain { up, down, activation }))
    }

    fn head(&mut self, task: &Task, tied: Option<&Tied>) -> Result<Head, LoadError> {
        let has_norm = self.modules.iter().any(|module| module.role == Role::FinalNorm);
        let norm = has_norm.then(|| self.norm(Place::Last, Role::FinalNorm)).transpose()?;
        let kind = match task {
            Task::Classification { classes, pooling, squash } => {
                self.classifier(*classes, *pooling, *squash)
            }
            Task::Regression { pooling } => self.classifier(1, *pooling, None),
            Task::CausalLm => {
                let weight = match tied {
                    Some(Tied::Frozen(linear)) => LanguageWeight::Frozen(linear.clone()),
                    Some(Tied::Trained(range)) => LanguageWeight::Trained(range.clone()),
                    None => self.language_weight()?,
                };
                Kind::Language(Language { weight, vocab: self.spec.vocab })
            }
        };
        Ok(Head { norm, kind })
    }

    fn classifier(&mut self, classes: usize, pooling: Pooling, squash: Option<f32>) -> Kind {
        Kind::Classifier(Classifier {
            pooling: pooling.into(),
            squash,
            weight: self.new_values("classifier.weight", classes * self.spec.width),
            bias: self.new_values("classifier.bias", classes),
            classes,
        })
    }

    /// The word embedding, if the head is tied to it.
    fn tied(&mut self, task: &Task) -> Result<Option<Tied>, LoadError> {
        if !(self.spec.tied && *task == Task::CausalLm) {
            return Ok(None);
        }
        let whole = self.spec.modules(task, 0..self.spec.layers);
        let module = whole.into_iter().find(|module| module.role == Role::WordEmbedding);
        let module = module.expect("every family has a word embedding");
        if self.layout.layers.start > 0 && self.peft.trains_weight(&module) {
            return Err(LoadError::Peft(
                "a model whose head is tied to its embedding cannot be cut while both are trained; \
                 use an adapter"
                    .into(),
            ));
        }
        let (vocab, width) = (self.spec.vocab, self.spec.width);
        Ok(Some(match self.values(&module.name, "weight", &[vocab, width])? {
            Values::Frozen(table) => Tied::Frozen(Arc::new(pack(vocab, width, &table, None))),
            Values::Trained(range) => Tied::Trained(range),
        }))
    }

    fn language_weight(&mut self) -> Result<LanguageWeight, LoadError> {
        let (vocab, width) = (self.spec.vocab, self.spec.width);
        let module = self.module(Place::Last, Role::LmHead);
        Ok(match self.values(&module.name, "weight", &[vocab, width])? {
            Values::Frozen(weight) => LanguageWeight::Frozen(Arc::new(pack(vocab, width, &weight, None))),
            Values::Trained(range) => LanguageWeight::Trained(range),
        })
    }

    fn table(&mut self, role: Role) -> Result<Values, LoadError> {
        let module = self.module(Place::Embedding, role);
        match module.shape {
            Shape::Table { rows, width } => self.values(&module.name, "weight", &[rows, width]),
            _ => unreachable!("an embedding is a table"),
        }
    }

    fn norm(&mut self, place: Place, role: Role) -> Result<Norm, LoadError> {
        let (module, width, eps) = (self.module(place, role), self.spec.width, self.spec.norm_eps);
        let weight = self.values(&module.name, "weight", &[width])?;
        Ok(match self.spec.family.norm {
            NormKind::Rms => Norm::Rms { weight, eps },
            NormKind::Layer => {
                let bias = self.values(&module.name, "bias", &[width])?;
                Norm::Layer { weight, bias, eps }
            }
        })
    }

    fn linear(&mut self, place: Place, role: Role) -> Result<AdaptedLinear, LoadError> {
        let module = self.module(place, role);
        let Shape::Linear { out, width_in, bias: has_bias } = module.shape else {
            unreachable!("a projection is a linear");
        };
        let name = &module.name;
        let weight = self.values(name, "weight", &[out, width_in])?;
        let core = self.peft.core(&module).zip(self.range(name, "lora_core.weight"));
        let xs = match (&weight, core) {
            (Values::Frozen(weight), Some((rank, core))) => {
                Some(LoraXs::new(weight, width_in, core, rank.r, rank.scale))
            }
            _ => None,
        };
        let bias = if has_bias { Some(self.values(name, "bias", &[out])?) } else { None };
        let bias = bias.or_else(|| self.range(name, "bias").map(Values::Trained));
        let core = match (weight, bias) {
            (Values::Trained(weight), Some(Values::Trained(bias))) => {
                Core::Trained { weight, bias: Some(bias), out, width_in }
            }
            (Values::Trained(weight), _) => Core::Trained { weight, bias: None, out, width_in },
            (Values::Frozen(weight), Some(Values::Trained(bias))) => {
                Core::TrainedBias { weight: pack(out, width_in, &weight, None), bias }
            }
            (Values::Frozen(weight), Some(Values::Frozen(bias))) => {
                Core::Frozen(pack(out, width_in, &weight, Some(&bias)))
            }
            (Values::Frozen(weight), None) => Core::Frozen(pack(out, width_in, &weight, None)),
        };
        let lora = self.peft.rank(&module).zip(self.range(name, "lora_A.weight"));
        let lora = lora.zip(self.range(name, "lora_B.weight"));
        let lora = lora.map(|((rank, a), b)| Lora { a, b, scale: rank.scale });
        Ok(AdaptedLinear { core, lora, xs, bottleneck: self.bottleneck(name) })
    }

    fn bottleneck(&self, name: &str) -> Option<Bottleneck> {
        Some(Bottleneck {
            down: self.range(name, "adapter_down.weight")?,
            down_bias: self.range(name, "adapter_down.bias")?,
            up: self.range(name, "adapter_up.weight")?,
            up_bias: self.range(name, "adapter_up.bias")?,
        })
    }

    fn module(&self, place: Place, role: Role) -> Module {
        let here = |module: &&Module| module.place == place && module.role == role;
        let module = self.modules.iter().find(here);
        module.expect("a family lists every module its blocks are made of").clone()
    }

    /// Read a parameter of the checkpoint: into `theta` where it is trained.
    fn values(&mut self, module: &str, parameter: &str, shape: &[usize]) -> Result<Values, LoadError> {
        let values = self.weights.read(&self.stored(module, parameter), shape)?;
        match self.range(module, parameter) {
            Some(range) => {
                self.theta[range.clone()].copy_from_slice(&values);
                Ok(Values::Trained(range))
            }
            None => Ok(Values::Frozen(values)),
        }
    }

    /// The name under which the file has a parameter.
    fn stored(&self, module: &str, parameter: &str) -> String {
        stored_name(self.spec, module, parameter, &|name| self.weights.contains(name))
    }

    /// A parameter of the head, which no checkpoint has.
    fn new_values(&self, name: &str, len: usize) -> Values {
        match self.layout.site(name) {
            Some(site) => Values::Trained(site.range()),
            None => Values::Frozen(vec![0.0; len]),
        }
    }

    fn range(&self, module: &str, parameter: &str) -> Option<Range<usize>> {
        self.layout.site(&format!("{module}.{parameter}")).map(|site| site.range())
    }
}

fn pack(out: usize, width_in: usize, weight: &[f32], bias: Option<&[f32]>) -> Linear {
    Linear::pack(out, width_in, weight, bias).expect("a tensor is read with exactly this shape")
}
