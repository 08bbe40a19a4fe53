//! What of a model is trained: the `[peft]` table of a scenario, in PEFT's names.

use crate::error::LoadError;
use crate::spec::{Module, Place, Role, Shape, Spec, Task};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which parameters are trained, and which are added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeftConfig {
    pub kind: PeftKind,
    /// LoRA rank.
    #[serde(default = "default_rank")]
    pub r: usize,
    /// LoRA output is scaled by `lora_alpha / r`, or by `lora_alpha / sqrt(r)` with `use_rslora`.
    #[serde(default = "default_alpha")]
    pub lora_alpha: f32,
    /// Rank-stabilised scaling (Kalajdzievski 2023).
    #[serde(default)]
    pub use_rslora: bool,
    /// Names of linear modules, matched as whole endings (`query` is `...self.query`). By default
    /// query and value for LoRA, the two outputs of a block for bottlenecks, everything for BitFit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<TargetModules>,
    /// Only these blocks; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Rank of the modules whose name has this ending.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alpha of the modules whose name has this ending.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f32>,
    /// Inner width of bottleneck adapters.
    #[serde(default = "default_bottleneck")]
    pub bottleneck_size: usize,
    /// Whether the classification head is trained along.
    #[serde(default = "default_train_head")]
    pub train_head: bool,
}

/// The ways of fine-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeftKind {
    /// Low-rank updates of frozen linears (Hu et al. 2022).
    Lora,
    /// A core of `r` x `r` between frozen singular vectors of a linear's own weight (Bałazy et al. 2024).
    #[serde(rename = "lora-xs")]
    LoraXs,
    /// Two small linears after a frozen one, around a residual (Houlsby et al. 2019).
    Bottleneck,
    /// Every bias, norms included (Ben Zaken et al. 2022). A linear without one gets one.
    Bitfit,
    /// Only the classification head.
    Head,
    /// Every parameter.
    Full,
    /// Nothing: for inference.
    None,
}

/// `"all-linear"`, or a list of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    Shorthand(Shorthand),
    Names(Vec<String>),
}

/// PEFT's word for every linear but the output head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shorthand {
    #[serde(rename = "all-linear")]
    AllLinear,
}

/// The LoRA of one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rank {
    pub r: usize,
    pub alpha: f32,
    pub scale: f32,
}

/// Times the width of what a bottleneck is put around.
const WIDEST_BOTTLENECK: usize = 16;

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f32 {
    16.0
}

fn default_bottleneck() -> usize {
    64
}

fn default_train_head() -> bool {
    true
}

impl PeftConfig {
    /// This kind, everything else at its default.
    pub fn new(kind: PeftKind) -> PeftConfig {
        PeftConfig {
            kind,
            r: default_rank(),
            lora_alpha: default_alpha(),
            use_rslora: false,
            target_modules: None,
            layers_to_transform: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            bottleneck_size: default_bottleneck(),
            train_head: default_train_head(),
        }
    }

    /// LoRA on these modules.
    pub fn lora(r: usize, lora_alpha: f32, target_modules: &[&str]) -> PeftConfig {
        let names = target_modules.iter().map(|name| (*name).to_owned()).collect();
        PeftConfig {
            r,
            lora_alpha,
            target_modules: Some(TargetModules::Names(names)),
            ..PeftConfig::new(PeftKind::Lora)
        }
    }

    /// Refuse what does not fit the model: a name or layer it does not have, a rank of 0.
    pub fn check(&self, spec: &Spec, task: &Task) -> Result<(), LoadError> {
        let modules = spec.modules(task, 0..spec.layers);
        let fails = |message| Err(LoadError::Peft(message));
        let matches =
            |ending: &String| modules.iter().any(|module| is_adaptable(module) && ends(module, ending));
        let named = match &self.target_modules {
            Some(TargetModules::Names(names)) => names.as_slice(),
            _ => &[],
        };
        let patterns = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
        if let Some(name) = named.iter().chain(patterns).find(|name| !matches(name)) {
            let known = endings(&modules);
            return fails(format!("no linear module is named \"{name}\"; this model has {known}"));
        }
        if named.is_empty() && self.target_modules == Some(TargetModules::Names(Vec::new())) {
            return fails("target_modules is empty; leave it out for the default".into());
        }
        if let Some(layer) = self.layers_to_transform.iter().flatten().find(|layer| **layer >= spec.layers)
        {
            return fails(format!("layers_to_transform names block {layer} of {}", spec.layers));
        }
        if self.r == 0 || self.bottleneck_size == 0 || self.rank_pattern.values().any(|r| *r == 0) {
            return fails("r, rank_pattern and bottleneck_size must be at least 1".into());
        }
        for module in &modules {
            let Shape::Linear { out, width_in, .. } = module.shape else { continue };
            // LoRA-XS has singular vectors of the weight for its core, and no more than there are.
            let ranks = [(self.rank(module), out.max(width_in)), (self.core(module), out.min(width_in))];
            let too_high = |(rank, most): &(Option<Rank>, usize)| rank.is_some_and(|rank| rank.r > *most);
            if let Some((_, most)) = ranks.iter().find(|rank| too_high(rank)) {
                return fails(format!(
                    "the rank at {} is above {most}, the size of its weight",
                    module.name
                ));
            }
            let most = WIDEST_BOTTLENECK * out.max(width_in);
            if self.bottleneck(module).is_some_and(|size| size > most) {
                let size = self.bottleneck_size;
                return fails(format!("bottleneck_size = {size} is above {most} and no bottleneck"));
            }
        }
        if !self.lora_alpha.is_finite() || self.alpha_pattern.values().any(|alpha| !alpha.is_finite()) {
            return fails("lora_alpha must be a finite number".into());
        }
        if self.kind == PeftKind::Head && *task == Task::CausalLm {
            return fails(
                "kind \"head\" needs a classification task: a causal language model has no head of its own"
                    .into(),
            );
        }
        Ok(())
    }

    /// The LoRA this module gets.
    pub(crate) fn rank(&self, module: &Module) -> Option<Rank> {
        self.rank_of(PeftKind::Lora, module)
    }

    /// The LoRA-XS core this module gets.
    pub(crate) fn core(&self, module: &Module) -> Option<Rank> {
        self.rank_of(PeftKind::LoraXs, module)
    }

    fn rank_of(&self, kind: PeftKind, module: &Module) -> Option<Rank> {
        if self.kind != kind || !self.targets(module, &[Role::Query, Role::Value]) {
            return None;
        }
        let r = pattern(&self.rank_pattern, module).unwrap_or(self.r);
        let alpha = pattern(&self.alpha_pattern, module).unwrap_or(self.lora_alpha);
        let divisor = if self.use_rslora { (r as f32).sqrt() } else { r as f32 };
        Some(Rank { r, alpha, scale: alpha / divisor })
    }

    /// The inner width of the bottleneck this module gets.
    pub(crate) fn bottleneck(&self, module: &Module) -> Option<usize> {
        let wanted =
            self.kind == PeftKind::Bottleneck && self.targets(module, &[Role::AttentionOutput, Role::Down]);
        wanted.then_some(self.bottleneck_size)
    }

    /// Whether the weight of this module is trained itself.
    pub(crate) fn trains_weight(&self, module: &Module) -> bool {
        match module.role {
            Role::Classifier => self.trains_head(),
            _ => self.kind == PeftKind::Full,
        }
    }

    /// Whether this module has a trained bias, be it a new one.
    pub(crate) fn trains_bias(&self, module: &Module) -> bool {
        let has_bias =
            matches!(module.shape, Shape::Linear { bias: true, .. } | Shape::Norm { bias: true, .. });
        match (self.kind, module.role) {
            (_, Role::Classifier) => self.trains_head(),
            (PeftKind::Full, _) => has_bias,
            (PeftKind::Bitfit, _) => match module.shape {
                Shape::Linear { .. } => is_adaptable(module) && self.selects(module),
                Shape::Norm { bias, .. } => bias && self.in_layers(module) && self.target_modules.is_none(),
                Shape::Table { .. } => false,
            },
            _ => false,
        }
    }

    fn trains_head(&self) -> bool {
        match self.kind {
            PeftKind::Head => true,
            PeftKind::None => false,
            _ => self.train_head,
        }
    }

    /// Whether an adapter goes to this module; `roles` when the scenario names none.
    fn targets(&self, module: &Module, roles: &[Role]) -> bool {
        match self.target_modules {
            None => roles.contains(&module.role) && self.in_layers(module),
            Some(_) => is_adaptable(module) && self.selects(module),
        }
    }

    fn selects(&self, module: &Module) -> bool {
        self.in_layers(module)
            && match &self.target_modules {
                None | Some(TargetModules::Shorthand(Shorthand::AllLinear)) => true,
                Some(TargetModules::Names(names)) => names.iter().any(|name| ends(module, name)),
            }
    }

    fn in_layers(&self, module: &Module) -> bool {
        match (&self.layers_to_transform, module.place) {
            (Some(layers), Place::Block(layer)) => layers.contains(&layer),
            (Some(_), _) => false,
            (None, _) => true,
        }
    }
}

/// Linears inside the blocks: what PEFT calls linear layers that are no output layer.
fn is_adaptable(module: &Module) -> bool {
    matches!((module.shape, module.place), (Shape::Linear { .. }, Place::Block(_)))
}

/// PEFT's rule: the name itself, or its last dotted parts.
fn ends(module: &Module, ending: &str) -> bool {
    match module.name.strip_suffix(ending) {
        Some(before) => before.is_empty() || before.ends_with('.'),
        None => false,
    }
}

/// The longest matching pattern wins, so that `layers.0.self_attn.q_proj` overrules `q_proj`.
fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, module: &Module) -> Option<T> {
    let matching = patterns.iter().filter(|(ending, _)| ends(module, ending));
    matching.max_by_key(|(ending, _)| ending.len()).map(|(_, value)| *value)
}

fn endings(modules: &[Module]) -> String {
    let first = modules.iter().filter(|module| is_adaptable(module) && module.place == Place::Block(0));
    let names: Vec<String> = first.map(|module| format!("\"{}\"", short(&module.name))).collect();
    names.join(", ")
}

/// The last part of a name, or the last two where the last says nothing (`output.dense`).
fn short(name: &str) -> &str {
    let start = |parts: usize| name.rmatch_indices('.').nth(parts - 1).map_or(0, |(at, _)| at + 1);
    let last = &name[start(1)..];
    if last == "dense" { &name[start(2)..] } else { last }
}
