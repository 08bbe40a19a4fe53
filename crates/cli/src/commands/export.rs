use super::print;
use crate::errors::{Exit, Failure, Outcome};
use crate::finished::Tuned;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Export {
    /// The directory of a completed run
    run: PathBuf,
    /// For which program
    #[arg(long, value_enum)]
    to: Target,
    /// The directory to write; must not exist [default: <run>-<target>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Hugging Face PEFT: adapter_config.json and adapter_model.safetensors
    Peft,
}

impl Export {
    pub fn run(self) -> Outcome {
        let tuned = Tuned::open(&self.run, None)?;
        if tuned.side.is_some() {
            return Err(Failure::new(Exit::Usage, "this run trained a side network, which is no PEFT adapter")
                .help("its files are side_network.safetensors and side_network_config.json in the run's directory"));
        }
        let out = self.out.clone().unwrap_or_else(|| self.beside());
        if out.exists() {
            return Err(Failure::new(Exit::Usage, format!("{} exists", out.display()))
                .help("name a new directory with --out"));
        }
        match self.to {
            Target::Peft => {
                let Tuned { config, labels, loaded, theta, .. } = &tuned;
                model::peft::save(&out, &loaded.model, theta, &config.path, labels)
                    .map_err(|error| Failure::new(Exit::Files, error))?;
            }
        }
        print(format_args!("{}\n", out.display()));
        Ok(Exit::Completed)
    }

    fn beside(&self) -> PathBuf {
        let Target::Peft = self.to;
        let mut name = self.run.file_name().unwrap_or_default().to_owned();
        name.push("-peft");
        self.run.with_file_name(name)
    }
}
