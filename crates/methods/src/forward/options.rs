//! `[method]` of `fwdllm`, and what is refused of it.

use crate::{Lab, SetupError};
use federation::{CohortConfig, Pace};
use model::{Draw, Place, Task};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The keys of `[method]`. (No field is ever skipped: they also stand in snapshots, in a format that does not
/// name its fields.)
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How a device finds the derivative of its loss along a direction.
    pub estimator: Estimator,
    /// The step `h` of `estimator = "difference"`.
    pub step_size: f32,
    /// How the elements of a direction are drawn.
    pub draw: Draw,
    /// Directions of a device in a wave: K tangents beside one forward pass.
    pub perturbations: u32,
    /// What of it goes up.
    pub uplink: Uplink,
    /// How the classification head learns.
    pub head: HeadRule,
    /// Learning rate of the head where it learns by its exact gradient; that of `[train]` by default.
    pub head_learning_rate: Option<f32>,
    /// The first rounds, in which the head alone learns, by its exact gradient.
    pub head_rounds: u32,
    /// When a round has perturbations enough.
    pub pacing: Pacing,
    /// What D(g), or the noise-to-signal ratio, has to come below.
    pub threshold: f64,
    /// The share of the cohort that is asked first; the others where that is not enough.
    pub first_devices: f64,
    /// Waves of a round at most: each device gives so many batches' perturbations. With
    /// `pacing = "fixed"` it is how many there are.
    pub most_waves: u32,
    /// Devices go on with the next wave until told to halt, instead of waiting to be asked.
    pub run_ahead: bool,
    /// The share of candidate directions that is kept: those with the largest cosine, whatever its sign,
    /// to the gradient of the round before. 1 keeps all.
    pub keep: f64,
    /// Multiply the learning rate by P / (P + d) for P perturbations of d parameters, since the relative
    /// error of their mean is about d / P.
    pub scale_rate: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Estimator {
    /// Exact, by tangents beside the forward pass.
    #[default]
    Tangent,
    /// `(f(theta + h v) - f(theta - h v)) / 2h`: two forward passes a direction.
    Difference,
    /// Not a forward gradient at all: the whole gradient by a backward pass, for comparison.
    Backward,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Uplink {
    /// A number for each direction; the server draws the directions again.
    #[default]
    Scalars,
    /// The mean of the device's forward gradients, as in the paper.
    Dense,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadRule {
    /// Perturbed with the rest, as in the paper.
    #[default]
    Perturbed,
    /// By its exact gradient, which needs the forward pass alone. It reveals the labels of a batch.
    Exact,
    /// Fitted by the server to class means and second moments that each device sends once. They disclose
    /// how many rows of each class a device has, and their mean features.
    ClosedForm,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pacing {
    /// `most_waves`, always.
    #[default]
    Fixed,
    /// The paper's D(g): waves until it is below `threshold`.
    Variance,
    /// The estimated noise of the mean over its signal, which has no scale.
    NoiseToSignal,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            estimator: Estimator::default(),
            step_size: 0.01,
            draw: Draw::default(),
            perturbations: 1,
            uplink: Uplink::default(),
            head: HeadRule::default(),
            head_learning_rate: None,
            head_rounds: 0,
            pacing: Pacing::default(),
            threshold: 1.0,
            first_devices: 1.0,
            most_waves: 1,
            run_ahead: false,
            keep: 1.0,
            scale_rate: false,
        }
    }
}

/// Where in `theta`, and from which block on, something is perturbed.
#[derive(Clone, Debug, PartialEq)]
pub struct Scope {
    /// What the directions move.
    pub moves: Range<usize>,
    /// The classification head; empty at the end of `theta` where it is frozen or absent.
    pub head: Range<usize>,
    /// The first block with anything trained: what is below it is the same for ever.
    pub first: usize,
}

impl Scope {
    pub fn of(lab: &Lab, options: &Options) -> Scope {
        let layout = &lab.work.model.layout;
        let head =
            layout.sites.iter().find(|site| site.is_head()).map_or(layout.total(), |site| site.offset);
        let first = match layout.sites.first().map(|site| site.place) {
            Some(Place::Block(layer)) => layer,
            Some(Place::Last) => lab.work.model.spec.layers,
            Some(Place::Embedding) | None => 0,
        };
        let moves = if options.head == HeadRule::Perturbed { layout.total() } else { head };
        Scope { moves: 0..moves, head: head..layout.total(), first }
    }
}

/// Refuse what cannot be meant.
pub fn check(lab: &Lab, options: &Options, cohort: &CohortConfig) -> Result<(), SetupError> {
    let fails = |what: &str| Err(SetupError(what.into()));
    let share = |share: f64| share > 0.0 && share <= 1.0;
    let head = Scope::of(lab, options).head;
    if lab.parameters() == 0 {
        return fails("nothing is trainable: [peft] kind = \"none\" leaves no adapter");
    }
    if options.head != HeadRule::Perturbed && head.is_empty() {
        return fails("head: only \"perturbed\" is possible without a classification head that is trained");
    }
    if options.perturbations == 0 || options.most_waves == 0 {
        return fails("perturbations and most_waves must be at least 1");
    }
    if options.head_rounds > 0 && options.head != HeadRule::Exact {
        return fails("head_rounds needs head = \"exact\"");
    }
    if !(options.step_size > 0.0 && options.step_size.is_finite() && options.threshold > 0.0) {
        return fails("step_size and threshold must be positive numbers");
    }
    if !share(options.first_devices) || !share(options.keep) {
        return fails("first_devices and keep are shares above 0 and at most 1");
    }
    if options.pacing != Pacing::Fixed && cohort.pace != Pace::Synchronous {
        return fails(
            "pacing by variance decides on complete waves: it needs [cohort] pace = \"synchronous\"",
        );
    }
    if options.pacing == Pacing::Fixed && (options.run_ahead || options.first_devices < 1.0) {
        return fails("run_ahead and first_devices have no meaning with pacing = \"fixed\"");
    }
    if options.estimator == Estimator::Backward
        && (options.keep < 1.0 || options.head != HeadRule::Perturbed)
    {
        return fails("estimator = \"backward\" has no directions to choose and no separate head");
    }
    if options.head == HeadRule::ClosedForm && lab.work.model.task == Task::CausalLm {
        return fails("head = \"closed-form\" needs a classification task");
    }
    Ok(())
}
