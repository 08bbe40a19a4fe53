//! Which of a checkpoint's tensors a part of a model is made of.

use crate::spec::{Module, Role, Spec, Task};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The lower part of a model: the embeddings, the first blocks, and final norm and head where they are needed
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lower {
    pub blocks: usize,
    pub head: bool,
}

impl Lower {
    /// All of a model.
    pub fn whole(spec: &Spec) -> Lower {
        Lower { blocks: spec.layers, head: true }
    }

    /// What holds both.
    pub fn union(self, other: Lower) -> Lower {
        Lower { blocks: self.blocks.max(other.blocks), head: self.head || other.head }
    }

    /// The names of the tensors it is made of, in a checkpoint with these names. A parameter that the
    /// checkpoint lacks is left out: who loads the part finds that.
    pub fn tensors<'a>(self, spec: &Spec, task: &Task, names: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
        let mut modules = spec.modules(task, 0..self.blocks.min(spec.layers));
        if self.head {
            modules.extend(spec.modules(task, spec.layers..spec.layers));
        }
        let stored = |module: &Module, parameter| {
            let name = stored_name(spec, &module.name, parameter, &|name| names.contains(name));
            names.get(name.as_str()).copied()
        };
        let both = |module: &Module| ["weight", "bias"].map(|parameter| stored(module, parameter));
        modules.iter().filter(|module| module.role != Role::Classifier).flat_map(both).flatten().collect()
    }
}

/// The name under which a checkpoint has a parameter: as it is, behind the prefix of a task model (`bert.`),
/// without `model.`, as the tied head, or in the spelling of TensorFlow's BERT.
pub(crate) fn stored_name(
    spec: &Spec,
    module: &str,
    parameter: &str,
    has: &dyn Fn(&str) -> bool,
) -> String {
    let plain = format!("{module}.{parameter}");
    if has(&plain) {
        return plain;
    }
    let bare = plain.strip_prefix("model.").unwrap_or(&plain).to_owned();
    let prefixed = |name: &str| format!("{}{name}", spec.family.prefix);
    let old = format!("{module}.{}", if parameter == "weight" { "gamma" } else { "beta" });
    let mut names = vec![prefixed(&plain), bare, prefixed(&old), old];
    if spec.tied && plain == "model.embed_tokens.weight" {
        names.push("lm_head.weight".into());
    }
    names.into_iter().find(|name| has(name)).unwrap_or(plain)
}
