use super::print;
use crate::errors::{Exit, Outcome};
use crate::site;
use clap::Args;
use net::board::{Board, Standing, names};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct Why {
    /// The folder of a served run, or a run
    run: PathBuf,
}

impl Why {
    pub fn run(self) -> Outcome {
        print(explanation(&site::board(&self.run)?));
        Ok(Exit::Completed)
    }
}

/// What a reason that devices were left out for asks of the operator; the first that is found in it.
const ADVICE: &[(&str, &str)] = &[
    ("of memory", "choose smaller batches, train.activations = \"recompute\", or leave such devices out"),
    ("deadline", "raise cohort.deadline-seconds, or invite more with cohort.over-selection"),
    ("not needed", "enough others had finished; lower cohort.over-selection to waste less"),
    ("gone for good", "it was revoked; `undertone enroll` makes a new token for its place"),
    ("finite", "lower train.learning_rate, or set train.max_grad_norm"),
    ("lost its storage", "its folder was deleted or put back; keep --state where it lasts"),
    ("cannot be read", "update the older of the two programs"),
];

fn explanation(board: &Board) -> String {
    let mut text = format!("{}\n", board.headline());
    if board.ended.is_none() && !board.missing().is_empty() {
        let missing = names(&board.missing());
        text += &format!(
            "\nnever heard: {missing}\n  do: run `undertone join` there, with a token of `undertone enroll`\n"
        );
    }
    if board.ended.is_none() && board.open && !board.awaited().is_empty() {
        let awaited = names(&board.awaited());
        text += &format!(
            "\nwaited for: {awaited}\n  do: look whether they are switched on and reach this server (`undertone status`)\n"
        );
        if board.deadline.is_none() {
            text += "  or: set cohort.pace = \"deadline\", and no round waits for ever\n";
        }
    }
    let mut reasons: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (node, seat) in &board.seats {
        if let Standing::LeftOut(reason) = &seat.standing {
            reasons.entry(reason).or_default().push(*node);
        }
    }
    for (reason, nodes) in reasons {
        text += &format!("\nleft out of round {}: {}\n  why: {reason}\n", board.round, names(&nodes));
        if let Some((_, advice)) = ADVICE.iter().find(|(word, _)| reason.contains(word)) {
            text += &format!("  do: {advice}\n");
        }
    }
    for (node, seat) in &board.seats {
        if let Some(trouble) = &seat.trouble {
            text += &format!("\n{node}, after {:.1} s: {}\n", trouble.at.seconds(), trouble.what);
        }
    }
    text
}
