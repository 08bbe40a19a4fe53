//! `[method]` of `fwdllm`, and what is refused of it.

use crate::{Lab, SetupError};
use federation::{CohortConfig, Pace};
use model::tangent::Over;
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
    /// Whether a direction moves what a whole batch sees, or each sequence is moved along directions of its
    /// own. The latter takes as many derivatives from a pass as the batch has sequences: less noise for the
    /// same computing, and so many times the numbers go up.
    pub perturb: Over,
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
    /// What a further wave of a round is over.
    pub waves: Waves,
    /// The tensor whose variance counts with `pacing = "tensor-variance"`, by its Hugging Face name.
    pub checked: Option<String>,
    /// Devices go on with the next wave until told to halt, instead of waiting to be asked.
    pub run_ahead: bool,
    /// The share of candidate directions that is kept: those with the largest cosine to the gradient of the
    /// round before. 1 keeps all.
    pub keep: f64,
    /// What is kept or dropped, and by which cosine.
    pub candidates: Candidates,
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
    /// The public code's: waves until the variance of one tensor is below `threshold`.
    TensorVariance,
    /// The estimated noise of the mean over its signal, which has no scale.
    NoiseToSignal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waves {
    /// The device's next batch.
    #[default]
    Batches,
    /// The same batch again along other directions, as in the public code.
    OneBatch,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidates {
    /// Whole directions, by |cosine|; each device has candidates of its own.
    #[default]
    Directions,
    /// Each tensor on its own, by signed cosine among candidates that all devices share, in every other
    /// round: as in the public code.
    Tensors,
}

impl Options {
    /// Directions of a wave over a batch of so many sequences.
    pub fn directions(&self, sequences: usize) -> usize {
        self.perturb.directions(self.perturbations as usize, sequences)
    }

    /// What a device computes for a wave, in forward passes: a tangent is worth one, a backward pass two.
    pub fn passes(&self, moving: bool) -> u64 {
        let directions = if moving { u64::from(self.perturbations) } else { 0 };
        let plain = u64::from(self.head == HeadRule::Exact || !moving);
        match self.estimator {
            Estimator::Tangent if moving => 1 + directions + plain,
            Estimator::Tangent => plain,
            Estimator::Difference => 2 * directions + plain,
            Estimator::Backward => 3,
        }
    }

    /// Whether the directions of a round are chosen among candidates.
    pub fn picks_in(&self, round: u32) -> bool {
        self.keep < 1.0 && (self.candidates == Candidates::Directions || round.is_multiple_of(2))
    }

    /// Why a round asked for no more perturbations, where that was to be decided.
    pub fn stop(&self, enough: bool) -> Option<String> {
        let Options { pacing, threshold, most_waves, .. } = self;
        let measure = match pacing {
            Pacing::Fixed => return None,
            Pacing::Variance => "D(g)",
            Pacing::TensorVariance => "the variance of the checked tensor",
            Pacing::NoiseToSignal => "noise to signal",
        };
        Some(match enough {
            true => format!("enough perturbations: {measure} came below {threshold}"),
            false => format!("stopped by the cap of {most_waves} waves, {measure} still above {threshold}"),
        })
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            estimator: Estimator::default(),
            step_size: 0.01,
            draw: Draw::default(),
            perturbations: 1,
            perturb: Over::default(),
            uplink: Uplink::default(),
            head: HeadRule::default(),
            head_learning_rate: None,
            head_rounds: 0,
            pacing: Pacing::default(),
            threshold: 1.0,
            first_devices: 1.0,
            most_waves: 1,
            waves: Waves::default(),
            checked: None,
            run_ahead: false,
            keep: 1.0,
            candidates: Candidates::default(),
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
    /// The tensor that `pacing = "tensor-variance"` looks at; empty for any other.
    pub checked: Range<usize>,
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
        let named = |name: &String| layout.sites.iter().find(|site| site.name == *name);
        let checked = options.checked.as_ref().and_then(named).map_or(0..0, |site| site.range());
        Scope { moves: 0..moves, head: head..layout.total(), checked, first }
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
    if (options.pacing == Pacing::TensorVariance) != options.checked.is_some() {
        return fails(
            "pacing = \"tensor-variance\" needs checked = the name of a tensor, and nothing else takes it",
        );
    }
    if let (Some(name), Scope { moves, checked, .. }) = (&options.checked, Scope::of(lab, options))
        && (checked.is_empty() || checked.end > moves.end)
    {
        let names = lab.work.model.layout.sites.iter().filter(|site| site.range().end <= moves.end);
        let names: Vec<&str> = names.map(|site| site.name.as_str()).collect();
        return fails(&format!("checked: {name:?} is not perturbed; these are: {}", names.join(", ")));
    }
    if options.pacing == Pacing::Fixed && (options.run_ahead || options.first_devices < 1.0) {
        return fails("run_ahead and first_devices have no meaning with pacing = \"fixed\"");
    }
    if options.perturb == Over::Sequences && (options.estimator != Estimator::Tangent || options.keep < 1.0)
    {
        return fails("perturb = \"sequences\" needs estimator = \"tangent\" and keeps every direction");
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
