//! The trained parameters as one flat vector.
//!
//! Adapters live outside the weights: `theta` is a slice of f32, and a [`Layout`] says which range of
//! it is what. Averaging, stepping, perturbing, clipping, masking and sending are slice operations.
//! Sites stand in forward order, so that a cut between two blocks cuts `theta` in two as well.

use crate::peft_config::PeftConfig;
use crate::spec::{Module, Place, Role, Shape, Spec, Task};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// A trained parameter: a row-major `rows` x `cols` matrix at `offset` of `theta`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Site {
    /// As Hugging Face or PEFT names it: `encoder.layer.0.attention.self.query.lora_A.weight`.
    pub name: String,
    pub kind: SiteKind,
    pub place: Place,
    pub rows: usize,
    pub cols: usize,
    pub offset: usize,
}

/// What a site is, and thereby how it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteKind {
    /// `r` x `width_in`, uniform.
    LoraA,
    /// `out` x `r`, zero.
    LoraB,
    /// `r` x `r`, zero: the core of a LoRA-XS.
    LoraCore,
    /// A matrix of the model itself, as loaded.
    Own,
    /// A bias or norm weight of the model itself, as loaded.
    OwnVector,
    /// A bias the model did not have, zero.
    NewBias,
    /// `size` x `width`, normal; its bias starts at zero.
    BottleneckDown,
    /// `width` x `size`, zero, so that the adapter starts as the identity.
    BottleneckUp,
    BottleneckBias,
    /// Of the classification head: weight normal, bias zero.
    HeadWeight,
    HeadBias,
}

/// Every site of a model, or of a part of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layout {
    pub sites: Vec<Site>,
    /// The blocks this layout covers.
    pub layers: Range<usize>,
    #[serde(skip)]
    by_name: BTreeMap<String, usize>,
    total: usize,
}

impl Site {
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }

    /// Its shape as a tensor in a file: biases and norm weights have one side.
    pub fn shape(&self) -> Vec<usize> {
        match self.kind {
            SiteKind::OwnVector | SiteKind::NewBias | SiteKind::BottleneckBias | SiteKind::HeadBias => {
                vec![self.cols]
            }
            SiteKind::LoraA
            | SiteKind::LoraB
            | SiteKind::LoraCore
            | SiteKind::Own
            | SiteKind::BottleneckDown
            | SiteKind::BottleneckUp
            | SiteKind::HeadWeight => vec![self.rows, self.cols],
        }
    }

    /// Whether it belongs to the classification head.
    pub fn is_head(&self) -> bool {
        matches!(self.kind, SiteKind::HeadWeight | SiteKind::HeadBias)
    }
}

impl Layout {
    /// The sites of a whole model.
    pub fn new(spec: &Spec, task: &Task, peft: &PeftConfig) -> Layout {
        Layout::of_part(spec, task, peft, 0..spec.layers)
    }

    /// The sites of the blocks `layers`, with embeddings and head as [`Spec::modules`] puts them.
    pub fn of_part(spec: &Spec, task: &Task, peft: &PeftConfig, layers: Range<usize>) -> Layout {
        let empty = Vec::new();
        let mut layout =
            Layout { sites: empty, layers: layers.clone(), by_name: BTreeMap::new(), total: 0 };
        for module in spec.modules(task, layers) {
            layout.add_module(&module, peft);
        }
        layout
    }

    fn add_module(&mut self, module: &Module, peft: &PeftConfig) {
        let (rows, cols, has_bias) = match module.shape {
            Shape::Linear { out, width_in, bias } => (out, width_in, bias),
            Shape::Norm { width, bias } => (1, width, bias),
            Shape::Table { rows, width } => (rows, width, false),
        };
        let head = module.role == Role::Classifier;
        if peft.trains_weight(module) {
            let kind = match (head, module.shape) {
                (true, _) => SiteKind::HeadWeight,
                (false, Shape::Norm { .. }) => SiteKind::OwnVector,
                (false, _) => SiteKind::Own,
            };
            self.add(module, "weight", kind, (rows, cols));
        }
        if peft.trains_bias(module) {
            let width = if matches!(module.shape, Shape::Norm { .. }) { cols } else { rows };
            let kind = match (head, has_bias) {
                (true, _) => SiteKind::HeadBias,
                (false, true) => SiteKind::OwnVector,
                (false, false) => SiteKind::NewBias,
            };
            self.add(module, "bias", kind, (1, width));
        }
        if let Some(rank) = peft.rank(module) {
            self.add(module, "lora_A.weight", SiteKind::LoraA, (rank.r, cols));
            self.add(module, "lora_B.weight", SiteKind::LoraB, (rows, rank.r));
        }
        if let Some(rank) = peft.core(module) {
            self.add(module, "lora_core.weight", SiteKind::LoraCore, (rank.r, rank.r));
        }
        if let Some(size) = peft.bottleneck(module) {
            self.add(module, "adapter_down.weight", SiteKind::BottleneckDown, (size, rows));
            self.add(module, "adapter_down.bias", SiteKind::BottleneckBias, (1, size));
            self.add(module, "adapter_up.weight", SiteKind::BottleneckUp, (rows, size));
            self.add(module, "adapter_up.bias", SiteKind::BottleneckBias, (1, rows));
        }
    }

    fn add(&mut self, module: &Module, suffix: &str, kind: SiteKind, (rows, cols): (usize, usize)) {
        let name = format!("{}.{suffix}", module.name);
        self.by_name.insert(name.clone(), self.sites.len());
        self.sites.push(Site { name, kind, place: module.place, rows, cols, offset: self.total });
        self.total += rows * cols;
    }

    /// Trained parameters: the length of `theta`.
    pub fn total(&self) -> usize {
        self.total
    }

    pub fn site(&self, name: &str) -> Option<&Site> {
        self.by_name.get(name).map(|&index| &self.sites[index])
    }

    /// Where in `theta` the sites of the first `blocks` blocks (and the embeddings) end, and those of
    /// the later blocks and the head begin.
    pub fn cut(&self, blocks: usize) -> usize {
        let above = self.sites.iter().find(|site| site.place >= Place::Block(blocks));
        above.map_or(self.total, |site| site.offset)
    }

    /// The sites inside of `range` alone, where they stand.
    pub(crate) fn within(&self, range: &Range<usize>) -> Layout {
        let inside = |site: &&Site| range.start <= site.offset && site.range().end <= range.end;
        let sites: Vec<Site> = self.sites.iter().filter(inside).cloned().collect();
        let by_name = sites.iter().enumerate().map(|(index, site)| (site.name.clone(), index)).collect();
        Layout { sites, layers: self.layers.clone(), by_name, total: self.total }
    }

    /// Whether anything before `place` is trained: whether a gradient has to come down to it.
    pub(crate) fn trains_below(&self, place: Place) -> bool {
        self.sites.first().is_some_and(|site| site.place < place)
    }
}
