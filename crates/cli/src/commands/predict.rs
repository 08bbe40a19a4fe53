use super::{Shown, print};
use crate::errors::{Exit, Failure, Outcome, context};
use crate::finished::{Beside, Tuned};
use crate::scenario::TaskKind;
use base::Meter;
use clap::Args;
use data::{Example, Input};
use model::Tokens;
use model::side::{AddedTo, Pivot, Reads, joint, tap};
use ops::Workspace;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Predict {
    /// The directory of a completed run
    run: PathBuf,
    /// Texts to classify
    #[arg(required = true)]
    texts: Vec<String>,
    /// Predict as devices of this class do, where classes have different models
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    #[arg(long, value_enum, default_value_t = Shown::Text)]
    format: Shown,
}

impl Predict {
    pub fn run(self) -> Outcome {
        let tuned = Tuned::open(&self.run, self.class.as_deref())?;
        if tuned.config.task == TaskKind::CausalLm {
            return Err(Failure::new(
                Exit::Usage,
                "this run trained a language model, which has no classes",
            )
            .help(format!("undertone generate {} \"Once upon\"", self.run.display())));
        }
        if tuned.config.task == TaskKind::Regression {
            let numbers = said(&tuned, &self.texts)?;
            self.texts.iter().zip(numbers).for_each(|(text, number)| self.show_number(text, number[0]));
            return Ok(Exit::Completed);
        }
        for (text, probabilities) in self.texts.iter().zip(said(&tuned, &self.texts)?) {
            self.show(text, &ranked(&tuned.labels, &probabilities));
        }
        Ok(Exit::Completed)
    }

    fn show_number(&self, text: &str, number: f64) {
        if self.format == Shown::Json {
            return print(format_args!("{}\n", serde_json::json!({ "text": text, "number": number })));
        }
        print(format_args!("{text}\n  {number:.4}\n"));
    }

    fn show(&self, text: &str, ranked: &[(&str, f64)]) {
        if self.format == Shown::Json {
            let probabilities: serde_json::Map<_, _> =
                ranked.iter().map(|&(label, p)| (label.to_owned(), p.into())).collect();
            let line =
                serde_json::json!({ "text": text, "label": ranked[0].0, "probabilities": probabilities });
            return print(format_args!("{line}\n"));
        }
        print(format_args!("{text}\n"));
        for (label, probability) in ranked.iter().take(3) {
            print(format_args!("  {:>5.1} %  {label}\n", 100.0 * probability));
        }
    }
}

/// What the tuned model says of each text: the probability of each class, or a number.
pub fn said(tuned: &Tuned, texts: &[String]) -> Result<Vec<Vec<f64>>, Failure> {
    let workspace = Workspace::new(&Meter::unlimited(), 1);
    let encode = |text: &String| {
        let example = Example { input: Input::Text(text.clone()), label: None, client: None, line: 0 };
        let encoded = tuned.loaded.tokenizer.encode(&example, tuned.config.max_seq_length);
        encoded.map(|encoded| encoded.ids).map_err(|error| Failure::new(Exit::Data, error))
    };
    let sequences = texts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let tokens = Tokens::of(&sequences);
    if let Some(side) = &tuned.side {
        return with_side_network(&workspace, tuned, side, &tokens)
            .map_err(context(Exit::Failed, "the prediction failed"));
    }
    let logits = model::logits(&workspace, &tuned.loaded.model, &tuned.theta, &tokens)
        .map_err(context(Exit::Failed, "the prediction failed"))?;
    Ok((0..logits.rows()).map(|row| softmax(logits.row(row))).collect())
}

/// A head of zeros says every class is equally likely, or the number 0; the side network's output is added to
/// that.
fn with_side_network(
    workspace: &Workspace,
    tuned: &Tuned,
    side: &Beside,
    tokens: &Tokens,
) -> Result<Vec<Vec<f64>>, model::Error> {
    let (model, pooled) = (&tuned.loaded.model, Pivot::Pooled(tuned.config.pooling));
    let read = |pivot: &Pivot| {
        let tapped = tap(workspace, model, &tuned.theta, tokens, side.layers(), pivot)?;
        side.network.forward(workspace, &side.theta, side.backbone, &tapped.taps)
    };
    let output = match side.card.reads {
        Reads::Pivot => read(&pooled)?,
        Reads::EveryToken => pooled.select(workspace, &read(&Pivot::Every)?, &tokens.starts)?,
    };
    let own = match side.card.added_to {
        AddedTo::Number => vec![0.0],
        AddedTo::Probabilities | AddedTo::Logits => vec![1.0 / output.width() as f32; output.width()],
    };
    let joint =
        |row| joint(side.card.added_to, &own, output.row(row), 1.0).into_iter().map(f64::from).collect();
    Ok((0..output.rows()).map(joint).collect())
}

/// Labels by falling probability.
pub fn ranked<'a>(labels: &'a [String], probabilities: &[f64]) -> Vec<(&'a str, f64)> {
    let mut ranked: Vec<(&str, f64)> =
        labels.iter().map(String::as_str).zip(probabilities.iter().copied()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
