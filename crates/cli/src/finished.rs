//! A run read back from its directory: for reports, and to use what it trained.

use crate::errors::{Exit, Failure, context};
use crate::prepare::{Loaded, load, task};
use crate::run_dir;
use crate::scenario::{ModelConfig, Scenario};
use base::Seed;
use model::peft::Adapter;
use model::side::{self, SideCard, SideNetwork};
use model::{PeftConfig, PeftKind};
use report::html::{self, Run};
use report::{Fold, Summary, TraceReader, write_atomically};
use std::path::Path;

/// What a report needs of a run.
pub struct Finished {
    pub summary: Summary,
    fold: Fold,
    scenario: String,
    partition_svg: Option<String>,
}

impl Finished {
    pub fn read(dir: &Path) -> Result<Finished, Failure> {
        let dir = run_dir::existing(dir)?;
        let files = |error: &dyn std::fmt::Display| Failure::new(Exit::Files, error);
        let summary = Summary::read(&dir.join(run_dir::SUMMARY)).map_err(|error| files(&error))?;
        let trace = TraceReader::open(&dir.join(run_dir::TRACE)).map_err(|error| files(&error))?;
        let mut fold = Fold::default();
        for record in trace {
            fold.push(&record.map_err(|error| files(&error))?);
        }
        let path = dir.join(run_dir::SCENARIO);
        let scenario = std::fs::read_to_string(&path).map_err(context(Exit::Files, path.display()))?;
        let partition_svg = std::fs::read_to_string(dir.join(run_dir::PARTITION)).ok();
        Ok(Finished { summary, fold, scenario, partition_svg })
    }

    fn page(&self) -> Run<'_> {
        Run {
            summary: &self.summary,
            fold: Some(&self.fold),
            scenario: Some(&self.scenario),
            partition_svg: self.partition_svg.as_deref(),
        }
    }
}

/// One page of one run or several.
pub fn write_report(out: &Path, title: &str, runs: &[Finished]) -> Result<(), Failure> {
    let page = match runs {
        [run] => html::report(&run.page()),
        runs => html::comparison(title, &runs.iter().map(Finished::page).collect::<Vec<_>>()),
    };
    write_atomically(out, page.as_bytes()).map_err(context(Exit::Files, out.display()))
}

/// A run's tuned model, ready to use.
pub struct Tuned {
    pub config: ModelConfig,
    /// Class names; empty for a language model.
    pub labels: Vec<String>,
    pub loaded: Loaded,
    pub theta: Vec<f32>,
    /// Where the run trained a side network: it is added to the backbone's prediction.
    pub side: Option<Beside>,
}

/// A side network and how it stands beside the backbone.
pub struct Beside {
    pub card: SideCard,
    pub network: SideNetwork,
    pub theta: Vec<f32>,
    /// Which of its backbones it stands beside.
    pub backbone: usize,
}

impl Beside {
    /// The layers of the backbone that it reads.
    pub fn layers(&self) -> &[usize] {
        &self.card.layers[self.backbone]
    }
}

impl Tuned {
    /// The model as devices of a class have it; without one, as most have it.
    pub fn open(dir: &Path, class: Option<&str>) -> Result<Tuned, Failure> {
        let dir = run_dir::existing(dir)?;
        let (scenario, _) = Scenario::read(&dir.join(run_dir::SCENARIO), &[])?;
        if dir.join(side::CONFIG_FILE).is_file() {
            return Tuned::beside(dir, &scenario, class);
        }
        let path = dir.join(run_dir::ADAPTER);
        let (Some(config), true) = (scenario.model, path.is_dir()) else {
            return Err(Failure::new(Exit::Model, format!("{} holds no adapter", dir.display()))
                .help("only a completed run of a method that trains has one"));
        };
        let failed = |error| Failure::new(Exit::Model, error);
        let adapter = Adapter::open(&path).map_err(failed)?;
        let loaded = load(&config.path, &adapter.task(), &adapter.peft, Seed(scenario.run.seed), None)?;
        let theta = adapter.theta(&loaded.model).map_err(failed)?;
        let labels = adapter.head.map(|head| head.labels).unwrap_or_default();
        Ok(Tuned { config, labels, loaded, theta, side: None })
    }

    /// A backbone as it was, and the side network that the run trained.
    fn beside(dir: &Path, scenario: &Scenario, class: Option<&str>) -> Result<Tuned, Failure> {
        let failed = |error| Failure::new(Exit::Model, error);
        let (card, network, theta) = side::load(dir).map_err(failed)?;
        let Some(config) = scenario.model.clone() else {
            return Err(Failure::new(Exit::Model, format!("{} names no model", dir.display())));
        };
        let backbone = class.map_or(0, |class| config.number(class));
        let config = config.all().swap_remove(backbone);
        if backbone >= card.layers.len() {
            let what = format!("the side network in {} does not know {}", dir.display(), config.path);
            return Err(Failure::new(Exit::Model, what));
        }
        let labels = card.labels.clone();
        let frozen = PeftConfig::new(PeftKind::None);
        let loaded = load(&config.path, &task(&config, &labels)?, &frozen, Seed(scenario.run.seed), None)?;
        let initial = loaded.initial.clone();
        let side = Some(Beside { card, network, theta, backbone });
        Ok(Tuned { config, labels, loaded, theta: initial, side })
    }
}
