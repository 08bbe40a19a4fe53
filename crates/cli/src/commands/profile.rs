use super::{ScenarioArgs, StageArgs, print};
use crate::errors::{Exit, Failure, Outcome};
use crate::prepare::prepare;
use crate::scenario::Scenario;
use base::{Meter, Seed};
use clap::Args;
use methods::{Workload, gather};
use model::tangent::{self, Fan};
use model::{Activations, Draw, Seeded};
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

/// The kinds that are compared, as settings over the scenario.
const KINDS: &[(&str, &[&str])] = &[
    ("head", &["peft.kind=head"]),
    ("bitfit", &["peft.kind=bitfit", "peft.train_head=false"]),
    ("lora", &["peft.kind=lora", "peft.train_head=false"]),
    ("lora-xs", &["peft.kind=lora-xs", "peft.train_head=false"]),
    ("bottleneck", &["peft.kind=bottleneck", "peft.train_head=false"]),
];

/// What one kind came to.
struct Row {
    kind: &'static str,
    parameters: usize,
    /// Length of the true gradient.
    length: f64,
    /// Between the mean forward gradient and the true one.
    cosine: f64,
}

impl Profile {
    pub fn run(self) -> Outcome {
        let mut rows = Vec::new();
        for (kind, sets) in KINDS {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            let sets = [self.scenario.sets.as_slice(), &sets].concat();
            let (scenario, _) = Scenario::read(&self.scenario.scenario, &sets)?;
            let seed = Seed(scenario.run.seed).child("profile", 0);
            let prepared = prepare(scenario, self.stage.threads(), None)?;
            let Some(material) = &prepared.material else {
                return Err(Failure::new(Exit::Usage, "this method trains no model"));
            };
            let failed = |error: model::Error| Failure::new(Exit::Failed, format!("{kind}: {error}"));
            rows.push(self.measure(kind, &material.work, seed).map_err(failed)?);
        }
        print(self.table(&rows));
        Ok(Exit::Completed)
    }

    fn measure(&self, kind: &'static str, work: &Workload, seed: Seed) -> Result<Row, model::Error> {
        let (workspace, parameters) =
            (Workspace::new(&Meter::unlimited(), work.threads), work.model.layout.total());
        let theta = work.initial.to_f32(parameters).expect("the parameters this model was loaded with");
        let mut order: Vec<usize> = (0..work.train.len()).collect();
        seed.child("rows", 0).stream().shuffle(&mut order);
        order.truncate(self.rows as usize);
        let (mut gradient, mut forward) = (vec![0f32; parameters], vec![0f32; parameters]);
        let mut direction = vec![0f32; parameters];
        let size = work.recipe.per_device_train_batch_size.get();
        for (index, batch) in order.chunks(size).enumerate() {
            let (tokens, targets) = gather(&work.train, batch.iter().copied());
            let (model, kept) = (&*work.model, Activations::Keep);
            let share = batch.len() as f32 / order.len() as f32;
            let mut part = vec![0f32; parameters];
            model::loss_and_gradient(&workspace, model, &theta, &tokens, &targets, kept, &mut part)?;
            ops::slice::axpy(share, &part, &mut gradient);
            let place = seed.child("batch", index as u64);
            let seeds: Vec<Seed> =
                (0..u64::from(self.perturbations)).map(|i| place.child("direction", i)).collect();
            for seeds in seeds.chunks(AT_ONCE as usize) {
                let directions = Seeded { seeds, draw: Draw::Normal, moves: 0..parameters };
                let fan = Fan::batch(&directions);
                let found = tangent::loss(&workspace, model, &theta, &tokens, &targets, fan)?;
                for (seed, slope) in seeds.iter().zip(&found.slopes) {
                    Draw::Normal.write(*seed, 0, &mut direction);
                    let weight = share * *slope as f32 / self.perturbations as f32;
                    ops::slice::axpy(weight, &direction, &mut forward);
                }
            }
        }
        let length = ops::slice::norm2(&gradient).sqrt();
        let cosine = ops::slice::dot(&gradient, &forward) / (length * ops::slice::norm2(&forward).sqrt());
        Ok(Row { kind, parameters, length, cosine })
    }

    fn table(&self, rows: &[Row]) -> String {
        let head = vec!["peft.kind", "parameters", "gradient", "cosine", "K / d alone gives", "descent"];
        let mut table = Table::new(1, head);
        for Row { kind, parameters, length, cosine } in rows {
            let alone =
                f64::from(self.perturbations) / (f64::from(self.perturbations) + *parameters as f64);
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
            "{table}\n{} perturbations of each batch, {} rows\nbest cosine (FwdLLM's choice): {paper}\nsteepest descent a \
             step of unit length: {descent}\n",
            self.perturbations, self.rows
        )
    }
}
