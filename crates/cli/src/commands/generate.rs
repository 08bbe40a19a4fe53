use super::print;
use crate::errors::{Exit, Failure, Outcome, context};
use crate::finished::Tuned;
use crate::scenario::TaskKind;
use base::{Meter, Seed};
use clap::Args;
use model::Sampling;
use ops::Workspace;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Generate {
    /// The directory of a completed run
    run: PathBuf,
    /// The text to continue
    prompt: String,
    /// The most tokens to add
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_new_tokens: usize,
    /// 0 always takes the most likely token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the most likely tokens that hold this much probability together
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    #[arg(long, default_value_t = 7)]
    seed: u64,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

impl Generate {
    pub fn run(self) -> Outcome {
        let tuned = Tuned::open(&self.run, None)?;
        if tuned.config.task != TaskKind::CausalLm {
            return Err(Failure::new(
                Exit::Usage,
                "this run trained a classifier, which continues no text",
            )
            .help(format!("undertone predict {} {:?}", self.run.display(), self.prompt)));
        }
        let tokenizer = &tuned.loaded.tokenizer;
        let data = |error| Failure::new(Exit::Data, error);
        let prompt = tokenizer.encode_prompt(&self.prompt).map_err(data)?;
        let sampling = if self.temperature > 0.0 {
            Sampling::Nucleus { temperature: self.temperature, top_p: self.top_p, seed: Seed(self.seed) }
        } else {
            Sampling::Greedy
        };
        let workspace = Workspace::new(&Meter::unlimited(), self.threads);
        let beside = tuned.side.as_ref();
        let beside = beside.map(|side| model::side::Beside {
            network: &side.network,
            theta: &side.theta,
            layers: side.layers(),
        });
        let added = model::generate_beside(
            &workspace,
            &tuned.loaded.model,
            &tuned.theta,
            beside,
            &prompt,
            (self.max_new_tokens, tokenizer.eos()),
            sampling,
        )
        .map_err(context(Exit::Failed, "the generation failed"))?;
        // Not every tokenizer marks the token that starts a text as a special one.
        let start = usize::from(prompt.first().copied() == tokenizer.bos());
        let text = tokenizer.decode(&[&prompt[start..], &added].concat()).map_err(data)?;
        print(format_args!("{text}\n"));
        Ok(Exit::Completed)
    }
}
