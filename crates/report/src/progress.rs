//! A run as lines of text: its head, one small tree per round, its end.

use crate::fold::{OpenRound, Point};
use crate::run_info::RunInfo;
use crate::summary::{Summary, status_text};
use base::units;
use federation::Eval;
use std::time::Duration;

/// Reasons of a loss that a line names; they can be as many as there are devices.
const REASONS: usize = 4;

/// The run's id first, then what it is.
pub(crate) fn head(info: &RunInfo) -> String {
    let mut text = format!("run {}\n", info.run);
    text += &format!("  {} on {}, {}, seed {}\n", info.method, info.model, info.dataset, info.seed);
    let fleet: Vec<String> =
        info.fleet.iter().map(|row| format!("{} {}", row.devices, row.class)).collect();
    let fleet = if fleet.is_empty() { String::new() } else { format!(" ({})", fleet.join(", ")) };
    text += &format!("  {}{fleet}, {}\n", count(info.devices, "device"), count(info.rounds, "round"));
    for note in &info.notes {
        text += &format!("  note: {note}\n");
    }
    text
}

/// How much of the run an earlier process did.
pub(crate) fn resumed(rounds: u32) -> String {
    format!("resumed after {}\n", count(rounds, "round"))
}

/// `[ROUND i/N]` as a tree. `before` is the round before it, `took` its real time.
pub(crate) fn round(info: &RunInfo, before: Option<&Point>, point: &Point, took: Duration) -> String {
    let mut leaves = vec![train_leaf(point, took)];
    if let Some(eval) = eval_leaf(point) {
        leaves.push(eval);
    }
    if point.lost > 0 {
        leaves.push(format!("lost    {} of {}: {}", point.lost, point.cohort, reasons(point)));
    }
    leaves.extend(point.notes.iter().map(|note| format!("note    {note}")));
    let (up, down) = before.map_or((0, 0), |before| (before.bytes_up, before.bytes_down));
    let (up, down) = (point.bytes_up.saturating_sub(up), point.bytes_down.saturating_sub(down));
    leaves.push(format!(
        "moved   {} up, {} down, {} {}",
        units::bytes(up),
        units::bytes(down),
        units::seconds(point.time_s - point.opened_s),
        info.clock.name(),
    ));
    tree(&format!("[ROUND {}/{}]", point.round, info.rounds), &leaves)
}

fn reasons(point: &Point) -> String {
    let mut reasons: Vec<(&String, u32)> =
        point.lost_to.iter().map(|(reason, count)| (reason, *count)).collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let (named, others) = reasons.split_at(reasons.len().min(REASONS));
    let name = |(reason, count): &(&String, u32)| match count {
        1 => reason.to_string(),
        count => format!("{reason} ({count})"),
    };
    let mut named: Vec<String> = named.iter().map(name).collect();
    if !others.is_empty() {
        named.push(count(others.len() as u64, "other reason"));
    }
    named.join(", ")
}

fn train_leaf(point: &Point, took: Duration) -> String {
    let mut parts = Vec::new();
    if let Some(loss) = point.train_loss {
        parts.push(format!("loss {loss:.4}"));
    }
    if point.cohort > 0 {
        parts.push(format!("{}/{} counted", point.counted, point.cohort));
    }
    let steps = point.figures.get("steps").copied();
    let (work, unit) = steps.map_or((point.jobs as f64, "jobs"), |steps| (steps, "it"));
    let rate = work / took.as_secs_f64();
    if work > 0.0 && rate.is_finite() {
        parts.push(format!("{rate:.1} {unit}/s"));
    }
    if let Some(rate) = point.figures.get("learning_rate") {
        parts.push(format!("lr {rate:.2e}"));
    }
    if parts.is_empty() {
        parts.push("nothing".to_owned());
    }
    format!("train   {}", parts.join(", "))
}

fn eval_leaf(point: &Point) -> Option<String> {
    let loss = point.loss?;
    let of = [point.accuracy, point.macro_f1, point.perplexity, point.pearson];
    Some(format!("eval    {}", measures(loss, of)))
}

fn measures(loss: f64, values: [Option<f64>; 4]) -> String {
    let mut text = format!("loss {loss:.4}");
    for (name, value) in ["accuracy", "macro-F1", "perplexity", "Pearson"].into_iter().zip(values) {
        if let Some(value) = value {
            text += &format!(", {name} {value:.4}");
        }
    }
    text
}

/// A measurement on one line.
pub(crate) fn eval(eval: &Eval) -> String {
    measures(eval.loss, [eval.accuracy, eval.macro_f1, eval.perplexity, eval.pearson])
}

/// What is going on inside a round, beside its bar.
pub(crate) fn pulse(open: &OpenRound) -> String {
    let mut text = format!("round {}: {}/{} counted", open.round, open.counted, open.cohort);
    if open.lost > 0 {
        text += &format!(", {} lost", open.lost);
    }
    if open.jobs > 0 {
        text += &format!(", {}", count(open.jobs, "job"));
    }
    text
}

/// How the run ended, and its figures.
pub(crate) fn end(summary: &Summary) -> String {
    let rounds = count(summary.curve.len() as u32, "round");
    let mut leaves = Vec::new();
    if let Some(before) = &summary.before {
        leaves.push(format!("before  {}", eval(before)));
    }
    if let Some(measured) = &summary.eval {
        leaves.push(format!("eval    {} ({} examples)", eval(measured), measured.examples));
        for (class, after) in &measured.by_class {
            let untuned = summary.before.as_ref().and_then(|before| before.by_class.get(class));
            let untuned = untuned.map_or(String::new(), |before| format!(", before {}", eval(before)));
            leaves.push(format!("  {class}: {}{untuned}", eval(after)));
        }
    }
    let (clock, bytes) = (summary.info.clock.name(), summary.bytes);
    let (time, wall) = (units::seconds(summary.time_s), units::seconds(summary.wall_s));
    leaves.push(format!("time    {time} {clock}, {wall} on this machine"));
    leaves.push(format!("moved   {} up, {} down", units::bytes(bytes.up), units::bytes(bytes.down)));
    let (device, server) = (summary.device_peak_bytes.max, summary.server_peak_bytes);
    let kept = summary.server_resident.map_or(String::new(), |kept| {
        let (models, adapters) = (units::bytes(kept.model_bytes), units::bytes(kept.adapter_bytes));
        format!(" beside {models} of models ({}) and {adapters} of adapters", kept.models)
    });
    leaves.push(format!(
        "memory  device peak {}, server peak {}{kept}",
        units::bytes(device),
        units::bytes(server)
    ));
    let troubles: Vec<String> = summary
        .troubles
        .iter()
        .map(|row| format!("{} {} ({})", row.count, row.kind.name(), row.reason))
        .collect();
    if !troubles.is_empty() {
        let (named, others) = troubles.split_at(troubles.len().min(REASONS));
        let others = match others.len() {
            0 => String::new(),
            more => format!("; and for {}: see the report", count(more as u64, "other reason")),
        };
        leaves.push(format!("lost    {}{others}", named.join("; ")));
    }
    if let Some(hash) = &summary.weights_hash {
        leaves.push(format!("weights {hash}"));
    }
    tree(&format!("{} after {rounds}", status_text(&summary.status)), &leaves)
}

fn tree(head: &str, leaves: &[String]) -> String {
    let mut text = format!("{head}\n");
    for (i, leaf) in leaves.iter().enumerate() {
        let branch = if i + 1 == leaves.len() { "└─" } else { "├─" };
        text += &format!("{branch} {leaf}\n");
    }
    text
}

/// `1 round`, `2 rounds`.
pub(crate) fn count(number: impl Into<u64>, noun: &str) -> String {
    let number = number.into();
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
