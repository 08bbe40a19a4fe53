//! The frozen models that feed the side network, and which device has which.
//!
//! Backbones of different depth are aligned by cutting each into equally many blocks and tapping the last layer of
//! each; those of different width by a trained projection each (Fed MobiLLM, arXiv 2508.06765). Nothing else has to
//! match: each has its own tokens, and a row of a device is in those of its own backbone.

use super::options::{Options, tapped};
use super::trainer::{Differences, Sample, Shape};
use crate::lab::{Lab, parameters_of, starts};
use crate::{Setup, SetupError};
use base::{Blob, Cost, Node};
use data::Encoded;
use federation::Fault;
use model::side::{Pivot, Tapped, Width, tap};
use model::{Model, Pooling, Task, Tokens, price};
use ops::Workspace;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// One of the frozen models.
pub struct Backbone {
    /// In the side network.
    pub number: usize,
    pub model: Arc<Model>,
    /// Its trainable parameters, which nobody trains.
    initial: Blob,
    /// The test rows in its tokens.
    pub test: Arc<[Encoded]>,
    /// The tapped layers.
    pub layers: Vec<usize>,
    /// How a sequence is read; `None` for a language model, whose samples are positions.
    pub pooling: Option<Pooling>,
    /// What a device that has it sends.
    pub shape: Shape,
    /// The classes of these devices.
    pub classes: BTreeSet<String>,
    /// The taps of the test rows, rows x width each, once they were computed.
    pub(super) observed: OnceLock<Vec<Vec<f32>>>,
}

impl Backbone {
    /// Its trainable parameters.
    pub fn frozen(&self) -> Result<Vec<f32>, Fault> {
        parameters_of(&self.model, &self.initial)
    }

    /// Bytes of [`Backbone::frozen`].
    pub fn frozen_bytes(&self) -> u64 {
        self.initial.len() as u64
    }

    /// How a sequence is read that is classified.
    ///
    /// # Panics
    /// For a language model, which reads positions.
    pub fn pivot(&self) -> Pivot {
        Pivot::Pooled(self.pooling.expect("a classifier pools"))
    }

    /// Run it forward and keep the rows that `pivot` reads of the tapped layers.
    pub fn tap(
        &self,
        ws: &Workspace,
        frozen: &[f32],
        tokens: &Tokens,
        pivot: &Pivot,
    ) -> Result<Tapped, Fault> {
        tap(ws, &self.model, frozen, tokens, &self.layers, pivot)
            .map_err(|error| Fault(format!("the forward pass: {error}")))
    }

    /// What running forward over these rows takes, without what is kept of it.
    pub fn inference(&self, rows: &[Encoded], which: impl Iterator<Item = usize>) -> Cost {
        let Model { spec, task, layout, .. } = &*self.model;
        price::inference(spec, task, layout, &starts(rows, which))
    }

    /// The test rows in batches of this size.
    pub fn test_batches(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let total = self.test.len();
        (0..total.div_ceil(size)).map(move |i| i * size..((i + 1) * size).min(total))
    }
}

/// All of them.
pub struct Backbones {
    all: Vec<Backbone>,
    /// Devices that have another than the first.
    others: BTreeMap<Node, usize>,
}

impl Backbones {
    pub fn new(options: &Options, lab: &Lab, setup: &Setup) -> Result<Backbones, SetupError> {
        let work = &lab.work;
        let mut others = BTreeMap::new();
        for (number, other) in (1..).zip(work.others.iter()) {
            others.extend(other.nodes.iter().map(|&node| (node, number)));
        }
        let mut all = vec![backbone(options, &work.model, &work.initial, &work.test)?];
        for other in work.others.iter() {
            all.push(backbone(options, &other.model, &other.initial, &other.test)?);
        }
        options.check_alignment(&all)?;
        for member in &setup.devices {
            let number = others.get(&member.node).copied().unwrap_or(0);
            all[number].classes.insert(member.class.clone());
        }
        all.iter_mut().enumerate().for_each(|(number, backbone)| backbone.number = number);
        Ok(Backbones { all, others })
    }

    /// That of a device.
    pub fn of(&self, node: Node) -> &Backbone {
        &self.all[self.others.get(&node).copied().unwrap_or(0)]
    }

    /// That of most devices; the only one where there is one.
    pub fn first(&self) -> &Backbone {
        &self.all[0]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Backbone> + Clone {
        self.all.iter()
    }

    /// Whether devices differ in theirs.
    pub fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// Samples put together by the backbone they come from, their order kept otherwise.
    pub fn groups<'a>(
        &'a self,
        samples: &'a mut [Sample],
    ) -> impl Iterator<Item = (&'a Backbone, &'a [Sample])> {
        samples.sort_by_key(|sample| self.of(sample.node).number);
        let samples: &[Sample] = samples;
        let same = |a: &Sample, b: &Sample| self.of(a.node).number == self.of(b.node).number;
        samples.chunk_by(same).map(|group| (self.of(group[0].node), group))
    }

    /// The width that the side network works at, and how the states of each come to it.
    pub fn widths(&self, asked: Option<usize>) -> (usize, Vec<Width>) {
        let mut own: Vec<usize> = self.iter().map(|backbone| backbone.shape.width).collect();
        if let (&[width], None) = (own.as_slice(), asked) {
            return (width, vec![Width::Own]);
        }
        let projected = own.iter().map(|&width| Width::Projected(width)).collect();
        // The papers found the median best, and of two the larger one.
        own.sort_unstable();
        (asked.unwrap_or(own[own.len() / 2]), projected)
    }
}

fn backbone(
    options: &Options,
    model: &Arc<Model>,
    initial: &Blob,
    test: &Arc<[Encoded]>,
) -> Result<Backbone, SetupError> {
    let spec = &model.spec;
    let layers = tapped(options.layers.as_deref(), options.blocks, spec.layers)?;
    let (outputs, pooling, differences) = match model.task {
        Task::Classification { classes, pooling, .. } => (classes, Some(pooling), Differences::Dense),
        Task::Regression { pooling } => (1, Some(pooling), Differences::Dense),
        Task::CausalLm => {
            let entries = options.top_k.get().min(spec.vocab);
            (spec.vocab, None, Differences::Sparse { entries })
        }
    };
    let format = options.tap_format;
    Ok(Backbone {
        number: 0,
        shape: Shape { taps: layers.len(), width: spec.width, outputs, format, differences },
        model: model.clone(),
        initial: initial.clone(),
        test: test.clone(),
        layers,
        pooling,
        classes: BTreeSet::new(),
        observed: OnceLock::new(),
    })
}
