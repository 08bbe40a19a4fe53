//! The device's kernels, and what they will take.

use super::device::Pass;
use super::parts::Part;
use super::tangents;
use super::traffic::Packed;
use super::{Activations, Answers, Between, Half, Judged, Labels, Options, Steps, Terms, Traffic};
use crate::lab::{Lab, gather, starts};
use crate::train::{all_steps, hold};
use base::{Blob, Cost, Meter};
use federation::Fault;
use model::backbone::{self, Trail};
use model::optim::{Optimizer, clip_norm};
use model::{Below, Targets, Tokens, head_loss_and_gradient, price};
use ops::{Mat, Workspace};

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

/// Whether a gradient has to come down to the embeddings.
fn below_device(lab: &Lab) -> Below {
    if lab.work.model.layout.cut(0) > 0 { Below::Trained } else { Below::Frozen }
}

/// The rows of every step of a pass.
pub fn batches(lab: &Lab, pass: &Pass) -> Vec<Vec<u32>> {
    let mut steps = all_steps(lab, lab.shard(pass.node), &pass.of_training());
    match (pass.terms.steps, lab.work.recipe.max_steps) {
        (Steps::Open, _) | (Steps::Recipe, 0) => {}
        (Steps::Exactly(most), _) | (Steps::Recipe, most) => steps.truncate(most as usize),
    }
    steps.into_iter().map(|group| group.concat()).collect()
}

/// The rows of one step, and how many steps the pass has.
pub fn batch(lab: &Lab, pass: &Pass, step: u32) -> Result<(Vec<u32>, u32), Fault> {
    let mut steps = batches(lab, pass);
    let count = steps.len() as u32;
    if step >= count {
        return Err(Fault(format!("step {step} of {count} was asked for")));
    }
    Ok((steps.swap_remove(step as usize), count))
}

pub fn indices(rows: &[u32]) -> impl Iterator<Item = usize> + Clone + '_ {
    rows.iter().map(|&row| row as usize)
}

pub fn named(pass: &Pass, step: u32) -> impl Fn(model::Error) -> Fault + '_ {
    move |error| Fault(format!("step {step} of round {}: {error}", pass.round))
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
    let traffic = pass.terms.traffic;
    let held = hold(&own, forward_bytes(lab, traffic, tokens.rows()))?;
    let theta = Part::of_device(&lab.work.model.layout, options.labels, &pass.terms).spread(&pass.theta)?;
    let workspace = Workspace::new(&own, 1);
    let (hidden, trail) =
        lower(lab, options, &workspace, &theta, &pass.terms, &tokens).map_err(named(pass, step))?;
    let Packed { blob, error } = traffic.pack(&hidden, hidden.width());
    drop((hidden, held));
    drop(hold(meter, own.peak())?);
    let stash = trail.map(|trail| Stash { round: pass.round, step, meter: own, workspace, trail });
    let starts = tokens.starts.clone();
    let answers = match options.labels {
        Labels::Server => Answers::of(tokens, targets),
        Labels::Device => Answers::Kept,
    };
    Ok((Activations { step, steps: count, starts, answers, hidden: blob, error, seconds: 0.0 }, stash))
}

fn lower(
    lab: &Lab,
    options: &Options,
    workspace: &Workspace,
    theta: &[f32],
    terms: &Terms,
    tokens: &Tokens,
) -> Result<(Mat, Option<Trail>), model::Error> {
    let model = &lab.work.model;
    let x = backbone::embed(workspace, model, theta, tokens)?;
    if !keeps(options, terms) {
        let y = backbone::forward(workspace, model, theta, 0..terms.cut(), x, &tokens.starts, |_, _| {})?;
        return Ok((y, None));
    }
    let (y, trail) = for_backward(lab, workspace, theta, terms.cut(), x, tokens)?;
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
pub fn keeps(options: &Options, terms: &Terms) -> bool {
    terms.half == Half::Backward && options.between == Between::Keep
}

/// What the labels, which the device holds, say about the last hidden states: their gradient, the loss,
/// and the device's parameters with a step of the head in them.
pub fn judge(
    lab: &Lab,
    options: &Options,
    pass: &Pass,
    (step, hidden): (u32, &Blob),
    meter: &Meter,
) -> Result<(Judged, Blob, Optimizer), Fault> {
    let model = &lab.work.model;
    let (rows, count) = batch(lab, pass, step)?;
    let (tokens, targets) = gather(&lab.work.train, indices(&rows));
    let traffic = pass.terms.traffic;
    let (own, head) = own_parts(lab, options, &pass.terms);
    let _held = hold(meter, backward_bytes(lab, traffic, tokens.rows(), head.len()))?;
    let mut theta = own.spread(&pass.theta)?;
    let mut grad = vec![0f32; theta.len()];
    let workspace = Workspace::new(meter, 1);
    let width = model.spec.width;
    let mut x = workspace.scratch(tokens.rows(), width).map_err(|error| Fault(error.to_string()))?;
    traffic.unpack(hidden, width, &mut x)?;
    let batch = (&tokens, &targets);
    let (loss, dx) = head_loss_and_gradient(&workspace, model, &theta, x, batch, Below::Trained, &mut grad)
        .map_err(named(pass, step))?;
    let Packed { blob, error } = match dx {
        Some(dx) => traffic.pack(&dx, width),
        None => return Err(Fault("the head gives no gradient".into())),
    };
    let rate = pass.terms.rate(lab, pass.round, step, count);
    let optimizer = tread(lab, &head, &mut theta, &grad, pass.head_optimizer.clone(), rate)?;
    let judged = Judged { step, gradient: blob, loss: loss.sum, count: loss.count as u64, error };
    Ok((judged, Blob::from_f32(&own.gather(&theta)), optimizer))
}

/// All that the device trains, and of that the head's.
fn own_parts(lab: &Lab, options: &Options, terms: &Terms) -> (Part, Part) {
    let layout = &lab.work.model.layout;
    (Part::of_device(layout, options.labels, terms), Part::of_head(layout, options.labels, terms))
}

/// A step of the device's blocks as its terms have it, from the gradient of its activations.
pub fn learn(
    lab: &Lab,
    options: &Options,
    pass: &Pass,
    gradient: (u32, &Blob),
    stash: Option<Stash>,
    meter: &Meter,
) -> Result<(Blob, Optimizer), Fault> {
    match pass.terms.half {
        Half::Backward => backward(lab, options, pass, gradient, stash, meter),
        Half::ForwardGradient => tangents::step(lab, options, pass, gradient, meter),
        Half::Frozen => Err(Fault("a gradient came for blocks that are frozen".into())),
    }
}

/// What [`learn`] will take; for a backward pass with what it found kept or without.
pub fn price_of_learning(lab: &Lab, options: &Options, terms: &Terms, starts: &[u32], kept: bool) -> Cost {
    match terms.half {
        Half::Backward => price_of_backward(lab, options, terms, starts, kept),
        Half::ForwardGradient => tangents::price(lab, options, terms, starts),
        Half::Frozen => Cost::FREE,
    }
}

/// One backward pass below the cut, and a step of the optimiser. Where the stash is gone, the forward
/// runs again.
fn backward(
    lab: &Lab,
    options: &Options,
    pass: &Pass,
    (step, gradient): (u32, &Blob),
    stash: Option<Stash>,
    meter: &Meter,
) -> Result<(Blob, Optimizer), Fault> {
    let (model, traffic) = (&lab.work.model, pass.terms.traffic);
    let (rows, count) = batch(lab, pass, step)?;
    let (tokens, _) = gather(&lab.work.train, indices(&rows));
    let part = Part::of_device(&model.layout, options.labels, &pass.terms);
    let blocks = Part::of_blocks(&model.layout, options.labels, &pass.terms);
    let mut theta = part.spread(&pass.theta)?;
    let (own, workspace, trail) = match stash {
        Some(Stash { meter, workspace, trail, .. }) => (meter, workspace, trail),
        None => {
            let own = Meter::unlimited();
            let workspace = Workspace::new(&own, 1);
            let _held = hold(&own, forward_bytes(lab, traffic, tokens.rows()))?;
            let x = backbone::embed(&workspace, model, &theta, &tokens).map_err(named(pass, step))?;
            let (_, trail) =
                for_backward(lab, &workspace, &theta, pass.cut(), x, &tokens).map_err(named(pass, step))?;
            (own, workspace, trail)
        }
    };
    let held = hold(&own, backward_bytes(lab, traffic, tokens.rows(), blocks.len()))?;
    let mut grad = vec![0f32; theta.len()];
    let mut dy = workspace
        .scratch(tokens.rows(), model.spec.width)
        .map_err(|error| named(pass, step)(error.into()))?;
    traffic.unpack(gradient, model.spec.width, &mut dy)?;
    let dx = backbone::backward(&workspace, model, &theta, trail, &tokens.starts, dy, &mut grad)
        .map_err(named(pass, step))?;
    if let Some(dx) = dx {
        backbone::embed_backward(&workspace, model, &theta, &tokens, dx, &mut grad)
            .map_err(named(pass, step))?;
    }
    let rate = pass.terms.rate(lab, pass.round, step, count);
    let optimizer = tread(lab, &blocks, &mut theta, &grad, pass.optimizer.clone(), rate)?;
    drop(held);
    drop(hold(meter, own.peak())?);
    Ok((Blob::from_f32(&part.gather(&theta)), optimizer))
}

/// Clip the gradient of `part`, step, and see that numbers came out. A part has an optimiser of its own.
pub fn tread(
    lab: &Lab,
    part: &Part,
    theta: &mut [f32],
    grad: &[f32],
    optimizer: Option<Optimizer>,
    rate: f32,
) -> Result<Optimizer, Fault> {
    let recipe = &lab.work.recipe;
    let mut optimizer = optimizer.unwrap_or_else(|| Optimizer::new(&recipe.optimizer(), part.len()));
    let (mut own, mut grad) = (part.gather(theta), part.gather(grad));
    if recipe.max_grad_norm > 0.0 {
        clip_norm(&mut grad, recipe.max_grad_norm);
    }
    optimizer.step(&mut own, &grad, rate);
    if !ops::slice::all_finite(&own) {
        return Err(Fault("the adapters are not finite after this step".into()));
    }
    part.scatter(&own, theta);
    Ok(optimizer)
}

/// What a forward job holds outside its workspace: parameters, and what is sent.
fn forward_bytes(lab: &Lab, traffic: Traffic, rows: usize) -> u64 {
    4 * lab.parameters() as u64 + traffic.bytes(rows, lab.work.model.spec.width) as u64
}

/// The same of a job that steps, with gradient, their copies and optimiser for `trained` parameters.
pub fn backward_bytes(lab: &Lab, traffic: Traffic, rows: usize, trained: usize) -> u64 {
    forward_bytes(lab, traffic, rows)
        + 4 * lab.parameters() as u64
        + 8 * trained as u64
        + Optimizer::state_bytes(&lab.work.recipe.optimizer(), trained)
}

/// A step at this cut on a batch of these sequences, for its prices.
pub fn shape<'a>(lab: &'a Lab, cut: usize, starts: &'a [u32]) -> price::Split<'a> {
    let model = &*lab.work.model;
    let (spec, task, layout) = (&model.spec, &model.task, &*model.layout);
    price::Split { spec, task, layout, at: cut, starts, activations: lab.work.recipe.activations }
}

pub fn rows_of(starts: &[u32]) -> usize {
    starts.last().map_or(0, |&end| end as usize)
}

/// Where the sequences of a step begin.
pub fn starts_of(lab: &Lab, pass: &Pass, step: u32) -> Vec<u32> {
    batch(lab, pass, step).map_or(vec![0], |(rows, _)| starts(&lab.work.train, indices(&rows)))
}

/// What [`forward`] will take.
pub fn price_of_forward(lab: &Lab, options: &Options, terms: &Terms, starts: &[u32]) -> Cost {
    let shape = shape(lab, terms.cut(), starts);
    let cost = if keeps(options, terms) { shape.lower_forward() } else { shape.lower_inference() };
    Cost { bytes: cost.bytes + forward_bytes(lab, terms.traffic, rows_of(starts)), ..cost }
}

/// What [`judge`] will take.
pub fn price_of_judging(lab: &Lab, options: &Options, terms: &Terms, starts: &[u32]) -> Cost {
    let cost = shape(lab, terms.cut(), starts).head();
    let head = Part::of_head(&lab.work.model.layout, options.labels, terms).len();
    Cost { bytes: cost.bytes + backward_bytes(lab, terms.traffic, rows_of(starts), head), ..cost }
}

/// What [`backward`] will take, with what it found kept or without.
fn price_of_backward(lab: &Lab, options: &Options, terms: &Terms, starts: &[u32], kept: bool) -> Cost {
    let (shape, rows) = (shape(lab, terms.cut(), starts), rows_of(starts));
    let forward = shape.lower_forward();
    let forward = Cost {
        flops: if kept { 0 } else { forward.flops },
        bytes: forward.bytes + forward_bytes(lab, terms.traffic, rows),
    };
    let backward = shape.lower_backward();
    let trained = Part::of_blocks(&lab.work.model.layout, options.labels, terms).len();
    let held = backward_bytes(lab, terms.traffic, rows, trained);
    forward + Cost { bytes: backward.bytes + held, ..backward }
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
