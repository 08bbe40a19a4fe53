//! The kernels on either side of a cut, and what they will take.

use super::device::Pass;
use super::server::{Serve, Served, ServerBench};
use super::traffic::Packed;
use super::{Activations, Answers, Backward, Between, Options, Traffic};
use crate::lab::{Lab, gather, starts};
use crate::train::{hold, steps};
use base::{Blob, Cost, Meter};
use federation::Fault;
use model::backbone::{self, Trail};
use model::optim::{Optimizer, clip_norm};
use model::{Below, Place, Targets, Tokens, head_loss_and_gradient, price};
use ops::{Mat, Workspace};
use std::ops::Range;

/// What a device keeps between a step's forward and backward: gone when its process is.
pub struct Stash {
    round: u32,
    step: u32,
    /// Counts all of the step's memory: the trail is charged to it while it lives.
    meter: Meter,
    workspace: Workspace,
    trail: Trail,
}

impl Stash {
    pub fn is_of(&self, pass: &Pass, step: u32) -> bool {
        (self.round, self.step) == (pass.round, step)
    }
}

// -------------------------------------------------------------------------------------- the device's half

/// Whether a gradient has to come down to the embeddings.
fn below_device(lab: &Lab) -> Below {
    if lab.work.model.layout.cut(0) > 0 { Below::Trained } else { Below::Frozen }
}

/// The rows of one step, and how many steps the pass has.
fn batch(lab: &Lab, pass: &Pass, step: u32) -> Result<(Vec<u32>, u32), Fault> {
    let mut steps = steps(lab, lab.shard(pass.node), &pass.of_training());
    let count = steps.len() as u32;
    if step >= count {
        return Err(Fault(format!("step {step} of {count} was asked for")));
    }
    Ok((steps.swap_remove(step as usize).concat(), count))
}

fn indices(rows: &[u32]) -> impl Iterator<Item = usize> + Clone + '_ {
    rows.iter().map(|&row| row as usize)
}

/// Parameters of the whole model's length, of which only `range` is this half's own.
fn padded(lab: &Lab, part: &Blob, range: Range<usize>) -> Result<Vec<f32>, Fault> {
    let own = part.to_f32(range.len()).map_err(|error| Fault(error.to_string()))?;
    if !ops::slice::all_finite(&own) {
        return Err(Fault("parameters that are not finite".into()));
    }
    let mut theta = vec![0f32; lab.parameters()];
    theta[range].copy_from_slice(&own);
    Ok(theta)
}

/// One forward pass below the cut: what is sent, and what is kept.
pub fn forward(
    lab: &Lab,
    options: &Options,
    pass: &Pass,
    step: u32,
    meter: &Meter,
) -> Result<(Activations, Option<Stash>), Fault> {
    let (rows, count) = batch(lab, pass, step)?;
    let (tokens, targets) = gather(&lab.work.train, indices(&rows));
    let own = Meter::unlimited();
    let held = hold(&own, forward_bytes(lab, options.traffic, tokens.rows()))?;
    let theta = padded(lab, &pass.theta, 0..lab.work.model.layout.cut(pass.cut()))?;
    let workspace = Workspace::new(&own, 1);
    let (hidden, trail) = lower(lab, options, &workspace, &theta, pass.cut(), &tokens)
        .map_err(|error| Fault(format!("step {step} of round {}: {error}", pass.round)))?;
    let Packed { blob, error } = options.traffic.pack(&hidden, hidden.width());
    drop((hidden, held));
    drop(hold(meter, own.peak())?);
    let stash = trail.map(|trail| Stash { round: pass.round, step, meter: own, workspace, trail });
    let (starts, answers) = (tokens.starts.clone(), Answers::of(tokens, targets));
    Ok((Activations { step, steps: count, starts, answers, hidden: blob, error }, stash))
}

fn lower(
    lab: &Lab,
    options: &Options,
    workspace: &Workspace,
    theta: &[f32],
    cut: usize,
    tokens: &Tokens,
) -> Result<(Mat, Option<Trail>), model::Error> {
    let model = &lab.work.model;
    let x = backbone::embed(workspace, model, theta, tokens)?;
    if !keeps(options) {
        let y = backbone::forward(workspace, model, theta, 0..cut, x, &tokens.starts, |_, _| {})?;
        return Ok((y, None));
    }
    let (y, trail) = for_backward(lab, workspace, theta, cut, x, tokens)?;
    Ok((y, Some(trail)))
}

fn for_backward(
    lab: &Lab,
    workspace: &Workspace,
    theta: &[f32],
    cut: usize,
    x: Mat,
    tokens: &Tokens,
) -> Result<(Mat, Trail), model::Error> {
    let (model, kept, below) = (&lab.work.model, lab.work.recipe.activations, below_device(lab));
    backbone::forward_for_backward(workspace, model, theta, 0..cut, x, &tokens.starts, kept, below)
}

/// Whether a forward pass leaves something behind for its backward.
fn keeps(options: &Options) -> bool {
    options.backward == Backward::Backward && options.between == Between::Keep
}

/// One backward pass below the cut, and a step of the optimiser. Where the stash is gone, the forward
/// runs again.
pub fn backward(
    lab: &Lab,
    options: &Options,
    pass: &Pass,
    (step, gradient): (u32, &Blob),
    stash: Option<Stash>,
    meter: &Meter,
) -> Result<(Blob, Optimizer), Fault> {
    let (model, recipe) = (&lab.work.model, &lab.work.recipe);
    let (rows, count) = batch(lab, pass, step)?;
    let (tokens, _) = gather(&lab.work.train, indices(&rows));
    let at = model.layout.cut(pass.cut());
    let named = |error: model::Error| Fault(format!("step {step} of round {}: {error}", pass.round));
    let mut theta = padded(lab, &pass.theta, 0..at)?;
    let (own, workspace, trail) = match stash {
        Some(Stash { meter, workspace, trail, .. }) => (meter, workspace, trail),
        None => {
            let own = Meter::unlimited();
            let workspace = Workspace::new(&own, 1);
            let _held = hold(&own, forward_bytes(lab, options.traffic, tokens.rows()))?;
            let x = backbone::embed(&workspace, model, &theta, &tokens).map_err(named)?;
            let (_, trail) =
                for_backward(lab, &workspace, &theta, pass.cut(), x, &tokens).map_err(named)?;
            (own, workspace, trail)
        }
    };
    let held = hold(&own, backward_bytes(lab, options.traffic, tokens.rows(), at))?;
    let mut grad = vec![0f32; theta.len()];
    let mut dy = workspace.scratch(tokens.rows(), model.spec.width).map_err(|error| named(error.into()))?;
    options.traffic.unpack(gradient, model.spec.width, &mut dy)?;
    let dx = backbone::backward(&workspace, model, &theta, trail, &tokens.starts, dy, &mut grad)
        .map_err(named)?;
    if let Some(dx) = dx {
        backbone::embed_backward(&workspace, model, &theta, &tokens, dx, &mut grad).map_err(named)?;
    }
    let mut optimizer = pass.optimizer.clone().unwrap_or_else(|| Optimizer::new(&recipe.optimizer(), at));
    let rate = recipe.rate(lab.rounds, pass.round, step, count);
    tread(&mut theta[..at], &mut grad[..at], &mut optimizer, recipe.max_grad_norm, rate)?;
    drop(held);
    drop(hold(meter, own.peak())?);
    Ok((Blob::from_f32(&theta[..at]), optimizer))
}

/// Clip, step, and see that numbers came out.
fn tread(
    theta: &mut [f32],
    grad: &mut [f32],
    optimizer: &mut Optimizer,
    max_norm: f32,
    rate: f32,
) -> Result<(), Fault> {
    if max_norm > 0.0 {
        clip_norm(grad, max_norm);
    }
    optimizer.step(theta, grad, rate);
    if ops::slice::all_finite(theta) {
        Ok(())
    } else {
        Err(Fault("the adapters are not finite after this step".into()))
    }
}

/// What a forward job holds outside its workspace: parameters, and what is sent.
fn forward_bytes(lab: &Lab, traffic: Traffic, rows: usize) -> u64 {
    4 * lab.parameters() as u64 + traffic.bytes(rows, lab.work.model.spec.width) as u64
}

/// The same of a backward job, with gradient and optimiser for `trained` parameters.
fn backward_bytes(lab: &Lab, traffic: Traffic, rows: usize, trained: usize) -> u64 {
    forward_bytes(lab, traffic, rows)
        + 4 * lab.parameters() as u64
        + Optimizer::state_bytes(&lab.work.recipe.optimizer(), trained)
}

/// A step at this cut on a batch of these sequences, for its prices.
fn shape<'a>(lab: &'a Lab, cut: usize, starts: &'a [u32]) -> price::Split<'a> {
    let model = &*lab.work.model;
    let (spec, task, layout) = (&model.spec, &model.task, &*model.layout);
    price::Split { spec, task, layout, at: cut, starts, activations: lab.work.recipe.activations }
}

fn rows_of(starts: &[u32]) -> usize {
    starts.last().map_or(0, |&end| end as usize)
}

/// Where the sequences of a step begin.
pub fn starts_of(lab: &Lab, pass: &Pass, step: u32) -> Vec<u32> {
    batch(lab, pass, step).map_or(vec![0], |(rows, _)| starts(&lab.work.train, indices(&rows)))
}

/// What [`forward`] will take.
pub fn price_of_forward(lab: &Lab, options: &Options, cut: usize, starts: &[u32]) -> Cost {
    let shape = shape(lab, cut, starts);
    let cost = if keeps(options) { shape.lower_forward() } else { shape.lower_inference() };
    Cost { bytes: cost.bytes + forward_bytes(lab, options.traffic, rows_of(starts)), ..cost }
}

/// What [`backward`] will take, with what it found kept or without.
pub fn price_of_backward(lab: &Lab, options: &Options, cut: usize, starts: &[u32], kept: bool) -> Cost {
    let (shape, rows) = (shape(lab, cut, starts), rows_of(starts));
    let forward = shape.lower_forward();
    let forward = Cost {
        flops: if kept { 0 } else { forward.flops },
        bytes: forward.bytes + forward_bytes(lab, options.traffic, rows),
    };
    let backward = shape.lower_backward();
    let held = backward_bytes(lab, options.traffic, rows, lab.work.model.layout.cut(cut));
    forward + Cost { bytes: backward.bytes + held, ..backward }
}

// -------------------------------------------------------------------------------------- the server's half

/// Whether the device wants a gradient back.
fn below_server(options: &Options) -> Below {
    match options.backward {
        Backward::Backward => Below::Trained,
        Backward::Frozen => Below::Frozen,
    }
}

/// The blocks above the cut for one batch: forward, loss, backward, a step, and the gradient that the
/// device is waiting for.
pub fn serve(bench: &ServerBench, job: &Serve, meter: &Meter) -> Result<Served, Fault> {
    let (lab, options) = (&*bench.lab, &*bench.options);
    let (model, recipe) = (bench.model(job.node), &lab.work.recipe);
    let Activations { step, steps, starts, hidden, error, .. } = &job.activations;
    let (at, total, rows) = (model.layout.cut(job.cut()), lab.parameters(), rows_of(starts));
    let _held = hold(meter, serve_bytes(lab, options.traffic, rows, total - at))?;
    let mut theta = padded(lab, &job.theta, at..total)?;
    let mut grad = vec![0f32; total];
    let workspace = Workspace::new(meter, lab.work.threads);
    let mut x = workspace.scratch(rows, model.spec.width).map_err(|error| Fault(error.to_string()))?;
    options.traffic.unpack(hidden, model.spec.width, &mut x)?;
    let (tokens, targets) = job.activations.batch();
    let (loss, dx) = upper(bench, job, &workspace, (&theta[..], &mut grad[..]), x, (&tokens, &targets))
        .map_err(|error| Fault(format!("step {step} of round {}: {error}", job.round)))?;
    let packed = dx.map(|dx| options.traffic.pack(&dx, model.spec.width));
    let packed = packed.unwrap_or(Packed { blob: Blob::default(), error: 0.0 });
    let fresh = || Optimizer::new(&recipe.optimizer(), total - at);
    let mut optimizer = job.optimizer.clone().unwrap_or_else(fresh);
    let rate = recipe.rate(lab.rounds, job.round, *step, *steps);
    tread(&mut theta[at..], &mut grad[at..], &mut optimizer, recipe.max_grad_norm, rate)?;
    Ok(Served {
        theta: Blob::from_f32(&theta[at..]),
        optimizer,
        loss: loss.sum,
        count: loss.count as u64,
        gradient: packed.blob,
        errors: (*error, packed.error),
    })
}

fn upper(
    bench: &ServerBench,
    job: &Serve,
    workspace: &Workspace,
    (theta, grad): (&[f32], &mut [f32]),
    x: Mat,
    (tokens, targets): (&Tokens, &Targets),
) -> Result<(model::Loss, Option<Mat>), model::Error> {
    let (model, below) = (bench.model(job.node), below_server(&bench.options));
    let layers = job.cut()..model.spec.layers;
    let inside = |place: Place| matches!(place, Place::Block(layer) if layers.contains(&layer));
    let reaches = below == Below::Trained || model.layout.sites.iter().any(|site| inside(site.place));
    let below_head = if reaches { Below::Trained } else { Below::Frozen };
    let (kept, starts) = (bench.lab.work.recipe.activations, &tokens.starts);
    let (x, trail) =
        backbone::forward_for_backward(workspace, model, theta, layers.clone(), x, starts, kept, below)?;
    let batch = (tokens, targets);
    let (loss, dx) = head_loss_and_gradient(workspace, model, theta, x, batch, below_head, grad)?;
    let dx = dx.map(|dx| backbone::backward(workspace, model, theta, trail, starts, dx, grad));
    Ok((loss, dx.transpose()?.flatten()))
}

/// What a serving job holds outside its workspace: parameters, gradient, optimiser, and what crosses.
fn serve_bytes(lab: &Lab, traffic: Traffic, rows: usize, trained: usize) -> u64 {
    8 * lab.parameters() as u64
        + Optimizer::state_bytes(&lab.work.recipe.optimizer(), trained)
        + 2 * traffic.bytes(rows, lab.work.model.spec.width) as u64
}

/// What [`serve`] will take.
pub fn price_of_serving(lab: &Lab, options: &Options, cut: usize, starts: &[u32]) -> Cost {
    let cost = shape(lab, cut, starts).upper(below_server(options));
    let trained = lab.parameters() - lab.work.model.layout.cut(cut);
    Cost { bytes: cost.bytes + serve_bytes(lab, options.traffic, rows_of(starts), trained), ..cost }
}

impl Answers {
    fn of(tokens: Tokens, targets: Targets) -> Answers {
        match targets {
            Targets::Classes(classes) => Answers::Classes(classes),
            Targets::Completion(from) => Answers::Tokens { ids: tokens.ids, from },
            Targets::NextToken => Answers::Tokens { from: vec![0; tokens.sequences()], ids: tokens.ids },
        }
    }
}

impl Activations {
    /// The batch as the head reads it; a classifier reads no tokens.
    fn batch(&self) -> (Tokens, Targets) {
        let starts = self.starts.clone();
        match &self.answers {
            Answers::Classes(classes) => (
                Tokens { ids: vec![0; rows_of(&starts)], starts, second_from: Vec::new() },
                Targets::Classes(classes.clone()),
            ),
            Answers::Tokens { ids, from } => (
                Tokens { ids: ids.clone(), starts, second_from: Vec::new() },
                Targets::Completion(from.clone()),
            ),
        }
    }
}
