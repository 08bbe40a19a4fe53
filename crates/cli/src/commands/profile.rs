use super::{ScenarioArgs, StageArgs, print};
use crate::errors::{Exit, Failure, Outcome};
use crate::prepare::prepare;
use crate::scenario::Scenario;
use base::{Meter, Seed};
use clap::Args;
use methods::{Workload, gather};
use model::optim::{Optim, Optimizer, OptimizerConfig};
use model::tangent::{self, Fan};
use model::{Activations, Draw, Seeded, Task};
use ops::Workspace;
use report::Table;

/// Directions beside one forward pass.
const AT_ONCE: u64 = 16;

/// FwdLLM's profiler (arXiv 2308.13894, section 3.2): how well forward gradients of each kind of adapter
/// agree with the true gradient, on the scenario's model and rows, which are taken to be public.
#[derive(Debug, Args)]
pub struct Profile {
    #[command(flatten)]
    scenario: ScenarioArgs,
    /// Training rows to take the gradients of
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows: u32,
    /// Perturbations to average
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    perturbations: u32,
    #[command(flatten)]
    stage: StageArgs,
}

/// The kinds that are compared. Heads are for classes only, and train along with any other kind.
const KINDS: [&str; 5] = ["head", "bitfit", "lora", "lora-xs", "bottleneck"];

/// Batches that a head is trained on first. A head begins at zero, and behind it no other gradient is any but
/// zero.
const WARM_UP: usize = 100;
const WARM_UP_RATE: f32 = 5e-3;

/// What one kind came to.
struct Row {
    kind: &'static str,
    parameters: usize,
    /// Length of the true gradient.
    length: f64,
    /// Between the mean forward gradient and the true one.
    cosine: f64,
    /// Over all batches.
    perturbations: usize,
}

impl Profile {
    pub fn run(self) -> Outcome {
        // The first to be read says what the rows are for, and is measured in its turn.
        let (lora, seed) = self.prepare("lora")?;
        let mut head = Vec::new();
        let mut rows = Vec::new();
        for kind in KINDS {
            if kind == "head" && lora.model.task == Task::CausalLm {
                continue;
            }
            let work = if kind == "lora" { lora.clone() } else { self.prepare(kind)?.0 };
            let failed = |error: model::Error| Failure::new(Exit::Failed, format!("{kind}: {error}"));
            let mut order: Vec<usize> = (0..work.train.len()).collect();
            seed.child("rows", 0).stream().shuffle(&mut order);
            let profiled = order.split_off(order.len().saturating_sub(self.rows as usize));
            if kind == "head" {
                head = warm_up(&work, &order).map_err(failed)?;
            }
            rows.push(self.measure(kind, &work, &head, &profiled, seed).map_err(failed)?);
        }
        print(self.table(&rows));
        Ok(Exit::Completed)
    }

    /// The scenario's model and rows, with this kind of adapter.
    fn prepare(&self, kind: &str) -> Result<(Workload, Seed), Failure> {
        // Whatever the scenario trains with need not go together with every kind.
        let sets = [format!("peft.kind={kind}"), "method={name=\"fwdllm\"}".to_owned()];
        let sets = [self.scenario.sets.clone(), sets.to_vec()].concat();
        let (scenario, _) = Scenario::read(&self.scenario.scenario, &sets)?;
        let seed = Seed(scenario.run.seed).child("profile", 0);
        let material = prepare(scenario, self.stage.threads(), None)?.material;
        let none = || Failure::new(Exit::Usage, "this method trains no model");
        Ok((material.ok_or_else(none)?.work.clone(), seed))
    }

    /// Of all that is trained but the head, which is as it was trained before; of the head where it is all.
    fn measure(
        &self,
        kind: &'static str,
        work: &Workload,
        head: &[f32],
        rows: &[usize],
        seed: Seed,
    ) -> Result<Row, model::Error> {
        let workspace = Workspace::new(&Meter::unlimited(), work.threads);
        let mut theta = initial(work);
        let below = theta.len() - head.len();
        theta[below..].copy_from_slice(head);
        let moves = 0..if below == 0 { head.len() } else { below };
        let (mut gradient, mut forward) = (vec![0f32; theta.len()], vec![0f32; theta.len()]);
        let mut direction = vec![0f32; moves.len()];
        let size = work.recipe.per_device_train_batch_size.get();
        for (index, batch) in rows.chunks(size).enumerate() {
            let (tokens, targets) = gather(&work.train, batch.iter().copied());
            let (model, kept) = (&*work.model, Activations::Keep);
            let share = batch.len() as f32 / rows.len() as f32;
            let mut part = vec![0f32; theta.len()];
            model::loss_and_gradient(&workspace, model, &theta, &tokens, &targets, kept, &mut part)?;
            ops::slice::axpy(share, &part, &mut gradient);
            let place = seed.child("batch", index as u64);
            let seeds: Vec<Seed> =
                (0..u64::from(self.perturbations)).map(|i| place.child("direction", i)).collect();
            for seeds in seeds.chunks(AT_ONCE as usize) {
                let directions = Seeded { seeds, draw: Draw::Normal, moves: moves.clone() };
                let fan = Fan::batch(&directions);
                let found = tangent::loss(&workspace, model, &theta, &tokens, &targets, fan)?;
                for (seed, slope) in seeds.iter().zip(&found.slopes) {
                    Draw::Normal.write(*seed, 0, &mut direction);
                    let weight = share * *slope as f32 / self.perturbations as f32;
                    ops::slice::axpy(weight, &direction, &mut forward[moves.clone()]);
                }
            }
        }
        let perturbations = self.perturbations as usize * rows.len().div_ceil(size);
        let (gradient, forward) = (&gradient[moves.clone()], &forward[moves.clone()]);
        let length = ops::slice::norm2(gradient).sqrt();
        let cosine = ops::slice::dot(gradient, forward) / (length * ops::slice::norm2(forward).sqrt());
        Ok(Row { kind, parameters: moves.len(), length, cosine, perturbations })
    }

    fn table(&self, rows: &[Row]) -> String {
        let head = vec!["peft.kind", "parameters", "gradient", "cosine", "K / d alone gives", "descent"];
        let mut table = Table::new(1, head);
        for Row { kind, parameters, length, cosine, perturbations } in rows {
            let alone = *perturbations as f64 / (perturbations + parameters) as f64;
            table.row(vec![
                (*kind).to_owned(),
                parameters.to_string(),
                format!("{length:.4}"),
                format!("{cosine:.4}"),
                format!("{:.4}", alone.sqrt()),
                format!("{:.4}", cosine * length),
            ]);
        }
        let best = |of: fn(&Row) -> f64| {
            let of = |left: &&Row, right: &&Row| of(left).total_cmp(&of(right));
            rows.iter().filter(|row| row.cosine.is_finite()).max_by(of).map_or("none", |row| row.kind)
        };
        let (paper, descent) = (best(|row| row.cosine), best(|row| row.cosine * row.length));
        format!(
            "{table}\n{} perturbations of each batch, {} rows; a head is trained by {WARM_UP} batches first\nbest cosine (FwdLLM's choice): {paper}\nsteepest descent a \
             step of unit length: {descent}\n",
            self.perturbations, self.rows
        )
    }
}

fn initial(work: &Workload) -> Vec<f32> {
    work.initial.to_f32(work.model.layout.total()).expect("the parameters this model was loaded with")
}

/// A head, trained by its gradient on rows that are not profiled.
fn warm_up(work: &Workload, rows: &[usize]) -> Result<Vec<f32>, model::Error> {
    let workspace = Workspace::new(&Meter::unlimited(), work.threads);
    let mut head = initial(work);
    let config = OptimizerConfig { optim: Optim::AdamW, weight_decay: 0.0, ..work.recipe.optimizer() };
    let mut optimizer = Optimizer::new(&config, head.len());
    let batches = rows.chunks(work.recipe.per_device_train_batch_size.get());
    for batch in batches.cycle().take(if rows.is_empty() { 0 } else { WARM_UP }) {
        let (tokens, targets) = gather(&work.train, batch.iter().copied());
        let mut gradient = vec![0f32; head.len()];
        let kept = Activations::Keep;
        model::loss_and_gradient(&workspace, &work.model, &head, &tokens, &targets, kept, &mut gradient)?;
        optimizer.step(&mut head, &gradient, WARM_UP_RATE);
    }
    Ok(head)
}
