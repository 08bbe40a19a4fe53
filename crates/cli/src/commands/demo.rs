use super::{StageArgs, print};
use crate::commands::predict::{ranked, said};
use crate::conduct::{Driver, Stage, conduct};
use crate::errors::{Exit, Failure, Outcome};
use crate::finished::{Finished, Tuned, write_report};
use crate::prepare::prepare;
use crate::run_dir::{self, RunDir};
use crate::scenario::Scenario;
use crate::settings::Settings;
use clap::Args;
use methods::METHODS;
use report::{Summary, comparison_table};
use std::path::{Path, PathBuf};

const SCENARIO: &str = include_str!("../../../../scenarios/demo.toml");

/// The method whose adapter the closing prediction uses.
const SHOWN: &str = "fedavg-lora";

const TEXTS: [&str; 3] = [
    "could you get me up at half past six tomorrow",
    "put some jazz on in the kitchen please",
    "do i need an umbrella this afternoon",
];

#[derive(Debug, Args)]
pub struct Demo {
    /// Override a setting of scenarios/demo.toml (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Keep the runs here; must be new or empty [default: runs/demo-<n>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    stage: StageArgs,
}

/// One run of the demo.
struct Show {
    name: &'static str,
    /// What differs from the scenario.
    sets: Vec<String>,
}

/// What a run needs to be at its best within the time.
const TUNED: &[(&str, &[&str])] = &[
    ("frozen", &["peft.kind=head", "train.learning_rate=0.02"]),
    ("centralized", &["run.num-server-rounds=3", "train.learning_rate=0.002"]),
    ("fedsgd", &["run.num-server-rounds=20", "train.eval_every=10"]),
    (
        "fwdllm",
        &[
            "peft.kind=lora-xs",
            "train.eval_every=5",
            "train.learning_rate=0.003",
            "method.head=closed-form",
            "method.perturbations=8",
        ],
    ),
    ("split-lora", &["run.num-server-rounds=8", "cohort.fraction-train=0.25", "train.learning_rate=0.012"]),
    ("sl", &["run.num-server-rounds=2"]),
    ("sfl", &["run.num-server-rounds=8", "cohort.fraction-train=0.125", "train.learning_rate=0.012"]),
    ("side-tuning", SIDE),
    ("mobillm", SIDE),
];

/// A side network in place of an adapter.
const SIDE: &[&str] = &[
    "run.num-server-rounds=3",
    "peft.kind=none",
    "train.learning_rate=0.002",
    "method.form={kind=\"mlp\",hidden=128}",
];

/// The frozen model with nothing but a head, and every method that trains.
fn shows() -> Vec<Show> {
    let methods = METHODS.iter().filter(|entry| entry.trains).map(|entry| (entry.name, entry.name));
    let show = |(name, method): (&'static str, &str)| {
        let tuned = TUNED.iter().filter(|(of, _)| *of == name).flat_map(|(_, sets)| *sets);
        let sets = tuned.map(|&set| set.to_owned()).chain([format!("method.name={method}")]).collect();
        Show { name, sets }
    };
    std::iter::once(("frozen", SHOWN)).chain(methods).map(show).collect()
}

impl Demo {
    pub fn run(self) -> Outcome {
        let whole = RunDir::create(self.out.as_deref(), "demo")?;
        let stage = self.stage.stage(Driver::Virtual);
        for show in shows() {
            let exit = self.one(&show, &whole, &stage)?;
            if exit != Exit::Completed {
                let dir = whole.keep()?.join(show.name);
                print(format_args!("go on with this run: undertone resume {}\n", dir.display()));
                return Ok(exit);
            }
        }
        let read = |show: &Show| Finished::read(&whole.file(show.name));
        let runs = shows().iter().map(read).collect::<Result<Vec<_>, _>>()?;
        write_report(
            &whole.file(run_dir::REPORT),
            "Undertone demo: generated data, simulated devices",
            &runs,
        )?;
        let dir = whole.keep()?;
        let summaries: Vec<&Summary> = runs.iter().map(|run| &run.summary).collect();
        self.stage.say(comparison_table(&summaries));
        self.stage.say(closing(&dir)?);
        Ok(Exit::Completed)
    }

    fn one(&self, show: &Show, whole: &RunDir, stage: &Stage) -> Result<Exit, Failure> {
        let sets = [show.sets.as_slice(), &[format!("run.name={}", show.name)], &self.sets].concat();
        let settings = Settings::parse("scenarios/demo.toml".into(), SCENARIO.into(), &sets)?;
        let (scenario, _) = Scenario::of(settings)?;
        let prepared = prepare(scenario, self.stage.threads(), None)?;
        prepared.unfit()?;
        let run = RunDir::create(Some(&whole.file(show.name)), show.name)?;
        let conducted = conduct(&prepared, run, stage, None)?;
        self.stage.say("\n");
        Ok(conducted.exit())
    }
}

/// Predictions of the tuned model, and what to try next.
fn closing(dir: &Path) -> Result<String, Failure> {
    let run = dir.join(SHOWN);
    let tuned = Tuned::open(&run, None)?;
    let texts = TEXTS.map(str::to_owned);
    let mut text = format!("\nthe model that {SHOWN} tuned says:\n");
    for (line, probabilities) in texts.iter().zip(said(&tuned, &texts)?) {
        let (label, probability) = ranked(&tuned.labels, &probabilities)[0];
        text += &format!("  {:>5.1} %  {label:<14}  {line}\n", 100.0 * probability);
    }
    text += &format!(
        "\nreport   {}\nadapter  {}\ntry      undertone predict {} \"turn the lights off\"\n         \
         undertone export {} --to peft\n",
        dir.join(run_dir::REPORT).display(),
        run.join(run_dir::ADAPTER).display(),
        run.display(),
        run.display()
    );
    Ok(text)
}
