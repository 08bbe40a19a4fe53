//! What is trained in a block, read from a layout.

use crate::layout::Layout;
use crate::spec::{Activation, Role, Shape, Spec, Task};

/// What is trained at a linear, and its shape.
#[derive(Clone, Copy, Default)]
pub(super) struct Linear {
    pub out: u64,
    pub width_in: u64,
    pub rank: u64,
    /// Side of a LoRA-XS core.
    pub core: u64,
    pub bottleneck: u64,
    pub weight: bool,
    pub bias: bool,
}

/// What is trained in a block.
pub(super) struct Block {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    pub gate: Option<Linear>,
    pub up: Linear,
    pub down: Linear,
    pub attention_norm: bool,
    pub mlp_norm: bool,
}

impl Linear {
    pub fn needs_input(&self) -> bool {
        self.rank > 0 || self.weight
    }

    /// Whether its input is read once more when a block is run again.
    pub fn recomputes(&self) -> bool {
        self.needs_input() || self.core > 0 || self.bottleneck > 0
    }

    pub fn is_trained(&self) -> bool {
        self.recomputes() || self.bias
    }
}

impl Block {
    pub fn of(spec: &Spec, task: &Task, layout: &Layout, layer: usize) -> Block {
        let modules = spec.modules(task, layer..layer + 1);
        let has = |name: &str, parameter: &str| layout.site(&format!("{name}.{parameter}"));
        let here = |role: Role| modules.iter().find(|module| module.role == role);
        let linear = |role: Role| {
            let module = here(role)?;
            let Shape::Linear { out, width_in, .. } = module.shape else { return None };
            let side = |parameter: &str| has(&module.name, parameter).map_or(0, |site| site.rows as u64);
            Some(Linear {
                out: out as u64,
                width_in: width_in as u64,
                rank: side("lora_A.weight"),
                core: side("lora_core.weight"),
                bottleneck: side("adapter_down.weight"),
                weight: has(&module.name, "weight").is_some(),
                bias: has(&module.name, "bias").is_some(),
            })
        };
        let trained_norm = |role: Role| {
            here(role).is_some_and(|module| {
                has(&module.name, "weight").is_some() || has(&module.name, "bias").is_some()
            })
        };
        let gated = spec.activation == Activation::SiluGate;
        Block {
            query: linear(Role::Query).unwrap_or_default(),
            key: linear(Role::Key).unwrap_or_default(),
            value: linear(Role::Value).unwrap_or_default(),
            output: linear(Role::AttentionOutput).unwrap_or_default(),
            gate: linear(Role::Gate).filter(|_| gated),
            up: linear(Role::Up).unwrap_or_default(),
            down: linear(Role::Down).unwrap_or_default(),
            attention_norm: trained_norm(Role::AttentionNorm),
            mlp_norm: trained_norm(Role::MlpNorm),
        }
    }

    pub fn projections(&self) -> [&Linear; 3] {
        [&self.query, &self.key, &self.value]
    }

    pub fn attention_needs_input(&self) -> bool {
        self.projections().iter().any(|linear| linear.needs_input())
    }

    pub fn attention_is_trained(&self) -> bool {
        self.output.is_trained() || self.projections().iter().any(|linear| linear.is_trained())
    }

    pub fn mlp_needs_input(&self) -> bool {
        self.up.needs_input() || self.gate.is_some_and(|gate| gate.needs_input())
    }

    pub fn mlp_entry_is_trained(&self) -> bool {
        self.up.is_trained() || self.gate.is_some_and(|gate| gate.is_trained())
    }
}
