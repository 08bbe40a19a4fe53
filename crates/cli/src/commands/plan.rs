use super::{ScenarioArgs, print};
use crate::errors::{Exit, Outcome};
use crate::prepare::{Prepared, fits, need, prepare};
use crate::scenario::{Scenario, short};
use base::units;
use clap::Args;
use federation::Member;
use methods::{Quote, Workload};
use report::{Resident, Table};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    scenario: ScenarioArgs,
}

impl Plan {
    /// Exits with [`Exit::Fit`] if no device can hold its work.
    pub fn run(self) -> Outcome {
        let (scenario, given) = Scenario::read(&self.scenario.scenario, &self.scenario.sets)?;
        let prepared = prepare(scenario, 1, None)?;
        print(format_args!("{}\n", short(given.given())));
        if let Some(material) = &prepared.material {
            print(parameters(&material.work));
        }
        print(classes(&prepared));
        print(whole(&prepared));
        if let Some(kept) = &prepared.server_resident {
            print(server(kept));
        }
        prepared.unfit()?;
        Ok(Exit::Completed)
    }
}

fn parameters(work: &Workload) -> String {
    let (model, trained) = (&work.model, work.model.layout.total() as u64);
    format!(
        "model: {} frozen in memory, {trained} parameters trained ({})\nrows: {} for training, {} for testing\n\n",
        units::bytes(model.bytes()),
        units::bytes(4 * trained),
        work.train.len(),
        work.test.len()
    )
}

/// The devices of one class: the largest figures, since a class is as slow as its fullest device.
#[derive(Default)]
struct Class {
    devices: u32,
    unfit: u32,
    examples: u64,
    need: u64,
    has: u64,
    flops: u64,
    seconds: f64,
    up: u64,
    down: u64,
    /// What the method agreed on with each of them, without repetition.
    terms: BTreeSet<String>,
}

impl Class {
    fn add(&mut self, member: &Member, quote: &Quote, terms: Option<&String>) {
        self.terms.extend(terms.cloned());
        self.devices += 1;
        self.unfit += u32::from(!fits(member, quote));
        self.examples = self.examples.max(member.examples);
        self.need = self.need.max(need(quote));
        self.has = member.memory_bytes;
        self.flops = self.flops.max(quote.cost.flops);
        self.seconds = self.seconds.max(round_seconds(member, quote));
        self.up = self.up.max(quote.up_bytes);
        self.down = self.down.max(quote.down_bytes);
    }
}

/// One round of one device: download, compute, upload, one after another.
fn round_seconds(member: &Member, quote: &Quote) -> f64 {
    quote.down_bytes as f64 / member.down_bytes_per_s
        + quote.cost.flops as f64 / member.flops_per_s
        + quote.up_bytes as f64 / member.up_bytes_per_s
}

fn classes(prepared: &Prepared) -> String {
    let mut classes: BTreeMap<&str, Class> = BTreeMap::new();
    let terms = &prepared.assembly.terms;
    for ((member, quote), terms) in prepared.quoted().zip(terms) {
        classes.entry(&member.class).or_default().add(member, quote, terms.as_ref());
    }
    let mut head = vec!["class", "devices", "rows", "needs", "has", "fits", "work", "time", "up", "down"];
    head.extend(terms.iter().any(Option::is_some).then_some("terms"));
    let mut table = Table::new(1, head);
    for (name, class) in &classes {
        let fit = class.devices - class.unfit;
        table.row(vec![
            (*name).to_owned(),
            class.devices.to_string(),
            class.examples.to_string(),
            units::bytes(class.need),
            units::bytes(class.has),
            if class.unfit == 0 { "yes".into() } else { format!("{fit} of {}", class.devices) },
            units::flops(class.flops as f64),
            units::seconds(class.seconds),
            units::bytes(class.up),
            units::bytes(class.down),
            class.terms.iter().cloned().collect::<Vec<_>>().join(" | "),
        ]);
    }
    format!("the fullest device of each class, one round:\n{table}")
}

/// What the server keeps, as counted twice: by arithmetic, and by the allocator.
fn server(kept: &Resident) -> String {
    let Resident { models, model_bytes, adapter_bytes, measured_model_bytes } = *kept;
    format!(
        "the server keeps {} of models ({models}; the allocator says {}) and {} of adapters and optimisers\n",
        units::bytes(model_bytes),
        units::bytes(measured_model_bytes),
        units::bytes(adapter_bytes)
    )
}

fn whole(prepared: &Prepared) -> String {
    let (config, devices) = (&prepared.scenario, prepared.assembly.quotes.len());
    if devices == 0 {
        return "\nno device takes part: all work is the server's\n".into();
    }
    let rounds = f64::from(config.run.num_server_rounds);
    let drawn = (config.cohort.fraction_train * devices as f64).ceil();
    let mean = |get: fn(&Quote) -> u64| {
        prepared.assembly.quotes.iter().map(|quote| get(quote) as f64).sum::<f64>() / devices as f64
    };
    let slowest = prepared.quoted().map(|(member, quote)| round_seconds(member, quote)).fold(0.0, f64::max);
    format!(
        "\nthe run: {rounds} rounds of {drawn} devices, about {} up and {} down, at most {} of devices' time\n",
        units::bytes((rounds * drawn * mean(|quote| quote.up_bytes)) as u64),
        units::bytes((rounds * drawn * mean(|quote| quote.down_bytes)) as u64),
        units::seconds(rounds * slowest),
    )
}
