//! The keys of `[method]` for side-tuning, and what goes together.

use super::backbone::Backbone;
use super::device_head::HeadKind;
use super::format::TapFormat;
use super::privacy::Privacy;
use crate::{Draws, Setup, SetupError};
use federation::Pace;
use model::side::{AddedTo, Form, SideConfig, SideNetwork, Width, even_layers};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// `[method]` beside `name`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    pub form: Form,
    /// The tapped layers, counted from 0; all of them when neither this nor `blocks` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Cut the backbone into this many equal blocks and tap the last layer of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// Where devices have different backbones: the width that the side network works at; the median of
    /// theirs when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    pub tap_format: TapFormat,
    pub loss: LossKind,
    pub head: HeadKind,
    pub privacy: Privacy,
    pub training: Training,
    /// Passes of the server over its cache in each round.
    pub epochs: u32,
    /// Samples of a step of the server.
    pub server_batch_size: NonZeroUsize,
    /// Samples that a device sends at a time.
    pub chunk_rows: NonZeroUsize,
    /// Share of a device's rows that it keeps back, to choose the weight of the side network by. Used
    /// where it has a head of its own.
    pub validation_fraction: f64,
    pub head_epochs: u32,
    pub head_learning_rate: f32,
    /// The logits of the device's own head are divided by this. It changes none of its answers, and leaves the
    /// side network more to say where the head is too sure of itself.
    pub head_temperature: f32,
    /// Of a language model: how many entries of a prediction difference are sent.
    pub top_k: NonZeroUsize,
}

/// What the server minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// The squared distance to the prediction difference; needs no device.
    #[default]
    Residual,
    /// Cross-entropy of the sum of logits: at each step the devices answer the side network's logits
    /// with the gradient.
    Exact,
}

/// When the server trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Training {
    /// When all that is asked for in a round is there.
    #[default]
    AfterArrival,
    /// Also on what is there while the rest still comes.
    WhileArriving,
}

impl LossKind {
    /// What the trained output is added to.
    pub fn added_to(self) -> AddedTo {
        match self {
            LossKind::Residual => AddedTo::Probabilities,
            LossKind::Exact => AddedTo::Logits,
        }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            form: Form::Cascade { r: 64 },
            layers: None,
            blocks: None,
            width: None,
            tap_format: TapFormat::default(),
            loss: LossKind::default(),
            head: HeadKind::default(),
            privacy: Privacy::default(),
            training: Training::default(),
            epochs: 5,
            server_batch_size: const { NonZeroUsize::new(32).unwrap() },
            chunk_rows: const { NonZeroUsize::new(256).unwrap() },
            validation_fraction: 0.1,
            head_epochs: 30,
            head_learning_rate: 5e-3,
            head_temperature: 4.0,
            top_k: const { NonZeroUsize::new(16).unwrap() },
        }
    }
}

impl Options {
    /// Refuse what a language model does not have: its head is the backbone's own, its labels are the text.
    pub fn check_language(&self) -> Result<(), SetupError> {
        let plain = self.privacy == Privacy::Plain && self.head == HeadKind::Zero;
        if plain && self.loss == LossKind::Residual {
            return Ok(());
        }
        Err(SetupError(
            "a language model is side-tuned with loss = \"residual\", head = \"zero\" and privacy.mode = \"plain\"".into(),
        ))
    }

    /// Refuse what a number does not have: its squared loss is what differences are for, and it has no classes.
    pub fn check_regression(&self) -> Result<(), SetupError> {
        if self.privacy == Privacy::Plain && self.loss == LossKind::Residual {
            return Ok(());
        }
        Err(SetupError(
            "a number is learned with loss = \"residual\" and privacy.mode = \"plain\": the other modes are for classes".into(),
        ))
    }

    /// Refuse backbones that cannot feed one side network.
    pub fn check_alignment(&self, backbones: &[Backbone]) -> Result<(), SetupError> {
        let refuse = |reason: &str| Err(SetupError(reason.into()));
        if backbones.len() > 1 && backbones.iter().any(|backbone| backbone.pooling.is_none()) {
            return refuse(
                "a side network adds to the tokens of one vocabulary: language models of several kinds cannot share it",
            );
        }
        if backbones.len() > 1 && self.blocks.is_none() {
            return refuse(
                "the devices have different backbones: say with method.blocks into how many equal blocks each is \
                 cut, at most as many as the shallowest has layers",
            );
        }
        Ok(())
    }

    /// Refuse what cannot be meant, or would promise what it does not keep.
    pub fn check(&self, setup: &Setup) -> Result<(), SetupError> {
        self.privacy.check().map_err(SetupError)?;
        let refuse = |reason: &str| Err(SetupError(reason.into()));
        let plain = self.privacy == Privacy::Plain;
        if self.head == HeadKind::Trained && setup.devices.len() > 1 {
            return refuse(
                "head = \"trained\" gives each device a head of its own, and the differences of many heads \
                 contradict each other: it is for one device; take head = \"zero\"",
            );
        }
        if self.head == HeadKind::Trained && matches!(self.privacy, Privacy::Noise { .. }) {
            return refuse(
                "with privacy.mode = \"noise\" the device's head must be zero: one trained on the true labels \
                 would carry them into the difference, and epsilon would not hold",
            );
        }
        if self.privacy == (Privacy::Mixed {}) && setup.keep.draws != Draws::Run {
            return refuse(
                "privacy.mode = \"mixed\" needs a secret that all devices share and their server does not know, and \
                 nothing brings real devices one: it can be simulated, to see how little it hides",
            );
        }
        if self.loss == LossKind::Exact && !plain {
            return refuse(
                "loss = \"exact\" answers every step with a gradient that shows the label again: it goes with \
                 no privacy.mode but \"plain\"",
            );
        }
        if self.loss == LossKind::Exact && setup.plan.cohort.pace != Pace::Synchronous {
            return refuse(
                "loss = \"exact\" needs every device at every step: it goes with cohort.pace = \"synchronous\"",
            );
        }
        if self.training == Training::WhileArriving && setup.plan.replay.is_some() {
            return refuse(
                "training = \"while-arriving\" trains on what has come when it has come: who was counted does not \
                 tell that, and such a run cannot be replayed",
            );
        }
        if self.training == Training::WhileArriving && setup.plan.cohort.pace == Pace::Synchronous {
            return refuse(
                "training = \"while-arriving\" depends on who came first: it goes with cohort.pace = \"deadline\"",
            );
        }
        if self.epochs == 0 || self.head_epochs == 0 {
            return refuse("epochs and head_epochs must be at least 1");
        }
        if !(self.head_temperature.is_finite() && self.head_temperature > 0.0) {
            return refuse("head_temperature must be above 0");
        }
        if !(0.0..0.9).contains(&self.validation_fraction) {
            return refuse("validation_fraction must be at least 0 and below 0.9");
        }
        Ok(())
    }
}

/// The tapped layers of a backbone of this depth: those given, the last of each of `blocks` equal blocks,
/// or all.
pub fn tapped(
    layers: Option<&[usize]>,
    blocks: Option<usize>,
    depth: usize,
) -> Result<Vec<usize>, SetupError> {
    match (layers, blocks) {
        (Some(_), Some(_)) => Err(SetupError("give layers or blocks, not both".into())),
        (None, None) => Ok((0..depth).collect()),
        (None, Some(blocks)) => even_layers(depth, blocks).map_err(SetupError),
        (Some(layers), None) => {
            let rising = layers.windows(2).all(|pair| pair[0] < pair[1]);
            if rising && layers.last().is_some_and(|&last| last < depth) {
                return Ok(layers.to_vec());
            }
            Err(SetupError(format!("layers must rise within 0..{depth}, and one at least be given")))
        }
    }
}

/// A side network over this many taps, that works at a width to which the states of each backbone come.
pub fn network(
    form: Form,
    taps: usize,
    (width, backbones): (usize, Vec<Width>),
    outputs: usize,
) -> Result<SideNetwork, SetupError> {
    let config = SideConfig { form, taps, width, outputs, backbones };
    SideNetwork::new(config).map_err(SetupError)
}
