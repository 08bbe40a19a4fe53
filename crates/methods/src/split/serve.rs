//! The server's kernels for one device's batch, and what they will take.

use super::parts::Part;
use super::step::{rows_of, shape, tread};
use super::traffic::Packed;
use super::work::ServerBench;
use super::{Activations, Answers, Half, Options, Terms, Traffic};
use crate::Lab;
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use federation::Fault;
use model::optim::Optimizer;
use model::{Below, Loss, Model, Place, Targets, Tokens, backbone, head_loss_and_gradient};
use ops::{Mat, Workspace};
use serde::{Deserialize, Serialize};

/// The upper blocks of one device for one batch.
#[derive(Clone, Serialize, Deserialize)]
pub struct Serve {
    pub node: Node,
    pub round: u32,
    pub terms: Terms,
    pub stage: Stage,
    /// What is trained above the cut.
    pub theta: Blob,
    pub optimizer: Option<Optimizer>,
    pub activations: Activations,
    /// The share of the step's time this job stands for is one in so many.
    pub of: u32,
    /// Bytes that the jobs of other devices hold at the same time, where they run beside this one.
    pub beside: u64,
}

/// What is to be done with a batch.
#[derive(Clone, Serialize, Deserialize)]
pub enum Stage {
    /// Forward, loss, backward and a step.
    Whole,
    /// Forward only: the device holds the labels.
    Lift,
    /// Forward once more, since keeping every device's activations is what the method avoids; backward
    /// from the gradient of the last hidden states, and a step.
    Lower { gradient: Blob, loss: f64, count: u64, error: f64 },
}

/// What serving leaves behind.
#[derive(Serialize, Deserialize)]
pub struct Served {
    pub theta: Blob,
    pub optimizer: Option<Optimizer>,
    /// Sum over `count` predictions.
    pub loss: f64,
    pub count: u64,
    /// What goes down: the last hidden states of [`Stage::Lift`], otherwise the gradient of the
    /// activations, which is empty for a device whose blocks are frozen.
    pub down: Blob,
    /// What the number format cost, upwards and downwards.
    pub errors: (f64, f64),
}

/// Whether the device wants a gradient back.
fn below_server(terms: &Terms) -> Below {
    match terms.half {
        Half::Backward | Half::ForwardGradient => Below::Trained,
        Half::Frozen => Below::Frozen,
    }
}

/// Do what the job's stage says.
pub fn serve(bench: &ServerBench, job: &Serve, meter: &Meter) -> Result<Served, Fault> {
    let (lab, terms) = (&*bench.lab, &job.terms);
    let model = bench.model(job.node);
    let Activations { step, steps, starts, hidden, error, .. } = &job.activations;
    let (rows, width) = (rows_of(starts), model.spec.width);
    let part = Part::of_server(&model.layout, bench.options.labels, terms);
    let _beside = hold(meter, job.beside)?;
    let _held = hold(meter, serve_bytes(lab, terms.traffic, rows, part.len()))?;
    let mut theta = part.spread(&job.theta)?;
    let workspace = Workspace::new(meter, lab.work.threads);
    let mut x = workspace.scratch(rows, width).map_err(|error| Fault(error.to_string()))?;
    terms.traffic.unpack(hidden, width, &mut x)?;
    let named = |error: model::Error| Fault(format!("step {step} of round {}: {error}", job.round));
    let mut grad = vec![0f32; theta.len()];
    let (loss, down, sent) = match &job.stage {
        Stage::Lift => {
            let layers = terms.cut()..model.spec.layers;
            let y = backbone::forward(&workspace, model, &theta, layers, x, starts, |_, _| {});
            let Packed { blob, error: sent } = terms.traffic.pack(&y.map_err(named)?, width);
            let (theta, optimizer) = (job.theta.clone(), job.optimizer.clone());
            return Ok(Served {
                theta,
                optimizer,
                loss: 0.0,
                count: 0,
                down: blob,
                errors: (*error, sent),
            });
        }
        Stage::Whole => {
            let (loss, dx) = whole(bench, job, &workspace, (&theta, &mut grad), x).map_err(named)?;
            ((loss.sum, loss.count as u64), dx, 0.0)
        }
        Stage::Lower { gradient, loss, count, error } => {
            let dx = lower(bench, job, &workspace, (&theta, &mut grad), x, gradient)?;
            ((*loss, *count), dx, *error)
        }
    };
    let packed = down.map(|dx| terms.traffic.pack(&dx, width));
    let packed = packed.unwrap_or(Packed { blob: Blob::default(), error: 0.0 });
    let rate = terms.rate(lab, job.round, *step, *steps);
    let optimizer = tread(lab, &part, &mut theta, &grad, job.optimizer.clone(), rate)?;
    Ok(Served {
        theta: Blob::from_f32(&part.gather(&theta)),
        optimizer: Some(optimizer),
        loss: loss.0,
        count: loss.1,
        down: packed.blob,
        errors: (error + sent, packed.error),
    })
}

/// Forward, loss and backward; the gradient of `x` where the device wants it.
fn whole(
    bench: &ServerBench,
    job: &Serve,
    workspace: &Workspace,
    (theta, grad): (&[f32], &mut [f32]),
    x: Mat,
) -> Result<(Loss, Option<Mat>), model::Error> {
    let (model, below) = (bench.model(job.node), below_server(&job.terms));
    let (tokens, targets) = job.activations.batch();
    let layers = job.terms.cut()..model.spec.layers;
    let below_head = if reaches(model, job.terms.cut(), below) { Below::Trained } else { Below::Frozen };
    let (kept, starts) = (bench.lab.work.recipe.activations, &tokens.starts);
    let (x, trail) =
        backbone::forward_for_backward(workspace, model, theta, layers, x, starts, kept, below)?;
    let batch = (&tokens, &targets);
    let (loss, dx) = head_loss_and_gradient(workspace, model, theta, x, batch, below_head, grad)?;
    let dx = dx.map(|dx| backbone::backward(workspace, model, theta, trail, starts, dx, grad));
    Ok((loss, dx.transpose()?.flatten()))
}

/// Forward again, and backward from the gradient that the device gave.
fn lower(
    bench: &ServerBench,
    job: &Serve,
    workspace: &Workspace,
    (theta, grad): (&[f32], &mut [f32]),
    x: Mat,
    gradient: &Blob,
) -> Result<Option<Mat>, Fault> {
    let (model, below) = (bench.model(job.node), below_server(&job.terms));
    let named = |error: model::Error| Fault(format!("round {}: {error}", job.round));
    if !reaches(model, job.terms.cut(), below) {
        return Ok(None);
    }
    let (layers, starts) = (job.terms.cut()..model.spec.layers, &job.activations.starts);
    let kept = bench.lab.work.recipe.activations;
    let (y, trail) =
        backbone::forward_for_backward(workspace, model, theta, layers, x, starts, kept, below)
            .map_err(named)?;
    let mut dy = y;
    job.terms.traffic.unpack(gradient, model.spec.width, &mut dy)?;
    backbone::backward(workspace, model, theta, trail, starts, dy, grad).map_err(named)
}

/// Whether a gradient of the last hidden states has anywhere to go.
fn reaches(model: &Model, cut: usize, below: Below) -> bool {
    let inside = |place: Place| matches!(place, Place::Block(layer) if layer >= cut);
    below == Below::Trained || model.layout.sites.iter().any(|site| inside(site.place))
}

/// What a serving job holds outside its workspace: parameters, gradient and their copies, optimiser, and
/// what crosses.
fn serve_bytes(lab: &Lab, traffic: Traffic, rows: usize, trained: usize) -> u64 {
    8 * lab.parameters() as u64
        + 8 * trained as u64
        + Optimizer::state_bytes(&lab.work.recipe.optimizer(), trained)
        + 2 * traffic.bytes(rows, lab.work.model.spec.width) as u64
}

/// What [`serve`] will take.
pub fn price_of_serving(
    lab: &Lab,
    options: &Options,
    terms: &Terms,
    stage: &Stage,
    starts: &[u32],
) -> Cost {
    let (model, below) = (&*lab.work.model, below_server(terms));
    let shape = shape(lab, terms.cut(), starts);
    let cost = match stage {
        Stage::Whole => shape.upper(below),
        Stage::Lift => shape.upper_inference(),
        Stage::Lower { .. } if reaches(model, terms.cut(), below) => shape.upper_blocks(below),
        Stage::Lower { .. } => Cost { flops: 0, ..shape.upper_inference() },
    };
    let trained = Part::of_server(&model.layout, options.labels, terms).len();
    Cost { bytes: cost.bytes + serve_bytes(lab, terms.traffic, rows_of(starts), trained), ..cost }
}

impl Activations {
    /// The batch as the head reads it; a classifier reads no tokens.
    fn batch(&self) -> (Tokens, Targets) {
        let (ids, targets) = match &self.answers {
            Answers::Classes(classes) => (None, Targets::Classes(classes.clone())),
            Answers::Tokens { ids, from } => (Some(ids.clone()), Targets::Completion(from.clone())),
            Answers::Kept => (None, Targets::Classes(Vec::new())),
        };
        let ids = ids.unwrap_or_else(|| vec![0; rows_of(&self.starts)]);
        (Tokens { ids, starts: self.starts.clone(), second_from: Vec::new() }, targets)
    }
}
