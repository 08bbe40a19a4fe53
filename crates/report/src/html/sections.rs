//! The words of a report.

use crate::run_info::{Clock, RunInfo};
use crate::summary::{Summary, status_text};
use crate::svg::escape;
use crate::table::grouped;
use base::units;
use federation::Status;

/// Title, what the run was, and the headline figures.
pub(super) fn head(run: &Summary) -> String {
    format!("<h1>{}</h1>\n{}", escape(&run.info.run), facts(run))
}

pub(super) fn facts(run: &Summary) -> String {
    let info = &run.info;
    let what = format!("{} on {}, {}, seed {}", info.method, info.model, info.dataset, info.seed);
    let mut facts = Vec::new();
    if let Some(eval) = &run.eval {
        let on = format!("{} held-out examples", grouped(eval.examples));
        let f1 = eval.macro_f1.map_or(on.clone(), |f1| format!("macro-F1 {f1:.4}"));
        if let Some(accuracy) = eval.accuracy {
            facts.push(("accuracy", format!("{accuracy:.4}"), f1));
        }
        if let Some(perplexity) = eval.perplexity {
            facts.push(("perplexity", format!("{perplexity:.3}"), "exp(loss)".to_owned()));
        }
        if let Some(pearson) = eval.pearson {
            facts.push((
                "Pearson",
                format!("{pearson:.4}"),
                "the loss is the mean squared error".to_owned(),
            ));
        }
        facts.push(("loss", format!("{:.4}", eval.loss), on));
    }
    let wall = format!("{} on this machine", units::seconds(run.wall_s));
    facts.push(match info.clock {
        Clock::Virtual => ("virtual time", units::seconds(run.time_s), wall),
        Clock::Real => ("time", units::seconds(run.time_s), wall),
    });
    let moved = format!("{} up, {} down", units::bytes(run.bytes.up), units::bytes(run.bytes.down));
    facts.push(("moved", units::bytes(run.bytes.up + run.bytes.down), moved));
    let server = format!("server {}", units::bytes(run.server_peak_bytes));
    facts.push(("device peak memory", units::bytes(run.device_peak_bytes.max), server));
    let counted: u64 = run.curve.iter().map(|point| u64::from(point.counted)).sum();
    let cohorts: u64 = run.curve.iter().map(|point| u64::from(point.cohort)).sum();
    let rounds = format!("{}/{}", run.curve.len(), info.rounds);
    facts.push(("rounds", rounds, format!("{} of {} updates", grouped(counted), grouped(cohorts))));
    let mut text = format!("<p class=\"sub\">{}</p>\n{}<dl class=\"facts\">\n", escape(&what), status(run));
    for (name, value, small) in facts {
        let (value, small) = (escape(&value), escape(&small));
        text += &format!("<div><dt>{name}</dt><dd>{value}<small>{small}</small></dd></div>\n");
    }
    text + "</dl>\n"
}

fn status(run: &Summary) -> String {
    if run.status == Status::Completed {
        return String::new();
    }
    format!("<p class=\"bad\">{}</p>\n", escape(&status_text(&run.status)))
}

/// What a reader must know to judge the figures of some runs, each note once.
pub(super) fn notes(runs: &[&Summary]) -> String {
    let mut notes: Vec<&str> = Vec::new();
    for run in runs {
        for note in &run.info.notes {
            if !notes.contains(&note.as_str()) {
                notes.push(note);
            }
        }
    }
    notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))).collect()
}

/// Seeds and hashes: what must agree for the run to be the same.
pub(super) fn sameness(run: &Summary) -> String {
    let RunInfo { seed, .. } = run.info;
    let weights = run.weights_hash.as_deref().unwrap_or("none");
    format!(
        "<footer>seed {seed} · weights <span class=\"mono\">{}</span> · trace <span class=\"mono\">{}</span></footer>\n",
        escape(weights),
        escape(&run.trace_hash)
    )
}
