//! The tables of a report.

use crate::comparison::comparison_table;
use crate::fold::{Point, Totals};
use crate::summary::Summary;
use crate::svg::escape;
use crate::table::{Table, grouped};
use base::{SERVER, units};
use federation::Eval;
use std::collections::BTreeMap;

type Column = (&'static str, fn(&Point) -> Option<f64>);

const MEASURES: [Column; 10] = [
    ("train loss", |point| point.train_loss),
    ("loss", |point| point.loss),
    ("accuracy", |point| point.accuracy),
    ("macro-F1", |point| point.macro_f1),
    ("perplexity", |point| point.perplexity),
    ("Pearson", |point| point.pearson),
    ("waves", |point| point.figures.get("waves").copied()),
    ("perturbations", |point| point.figures.get("perturbations").copied()),
    ("D(g)", |point| point.figures.get("variance").copied()),
    ("noise to signal", |point| point.figures.get("noise_to_signal").copied()),
];

/// Every round as a row, folded away.
pub(super) fn rounds(run: &Summary) -> String {
    let any = |get: fn(&Point) -> Option<f64>| run.curve.iter().any(|point| get(point).is_some());
    let columns: Vec<_> = MEASURES.into_iter().filter(|(_, get)| any(*get)).collect();
    let mut head = vec!["round", "ended at"];
    head.extend(columns.iter().map(|(name, _)| *name));
    head.extend(["counted", "lost", "jobs", "up so far", "down so far"]);
    let mut table = Table::new(0, head);
    for point in &run.curve {
        let mut row = vec![point.round.to_string(), units::seconds(point.time_s)];
        row.extend(columns.iter().map(|(_, get)| get(point).map_or(String::new(), |v| format!("{v:.4}"))));
        row.push(format!("{}/{}", point.counted, point.cohort));
        row.extend([point.lost.to_string(), grouped(point.jobs)]);
        row.extend([units::bytes(point.bytes_up), units::bytes(point.bytes_down)]);
        table.row(row);
    }
    format!("<details><summary>every round</summary>\n{}</details>\n", html(&table))
}

/// The model before and after training, on all held-out rows and on those of each device class.
pub(super) fn progress(run: &Summary) -> String {
    let (Some(before), Some(after)) = (&run.before, &run.eval) else { return String::new() };
    let mut table =
        Table::new(1, ["held-out rows of", "rows", "loss before", "after", "measure", "before", "after"]);
    let classes = after.by_class.iter().filter_map(|(class, after)| {
        before.by_class.get(class).map(|before| (class.as_str(), before, after))
    });
    for (name, before, after) in [("everyone", before, after)].into_iter().chain(classes) {
        let measure = |eval: &Eval| eval.accuracy.or(eval.perplexity).or(eval.pearson);
        let kind = match after {
            Eval { accuracy: Some(_), .. } => "accuracy",
            Eval { pearson: Some(_), .. } => "Pearson",
            _ => "perplexity",
        };
        let figure = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        table.row(vec![
            name.to_owned(),
            grouped(after.examples),
            figure(Some(before.loss)),
            figure(Some(after.loss)),
            kind.to_owned(),
            figure(measure(before)),
            figure(measure(after)),
        ]);
    }
    format!("<h2>Before and after</h2>\n{}", html(&table))
}

/// What only this method measures, as it was after the last round.
pub(super) fn own_figures(run: &Summary) -> String {
    let Some(last) = run.curve.last().filter(|last| !last.figures.is_empty()) else { return String::new() };
    let mut table = Table::new(1, ["figure of the method", "after the last round"]);
    for (name, value) in &last.figures {
        let value = if value.fract() == 0.0 { grouped(*value as u64) } else { format!("{value:.4}") };
        table.row(vec![name.replace('_', " "), value]);
    }
    html(&table)
}

/// What the method said of its rounds in words, and of how many.
pub(super) fn said(run: &Summary) -> String {
    let mut said: BTreeMap<&str, u64> = BTreeMap::new();
    for note in run.curve.iter().flat_map(|point| &point.notes) {
        *said.entry(note).or_default() += 1;
    }
    if said.is_empty() {
        return String::new();
    }
    let mut table = Table::new(1, ["the method said", "of rounds"]);
    said.iter().for_each(|(note, rounds)| table.row(vec![(*note).to_owned(), grouped(*rounds)]));
    html(&table)
}

/// What an audit recovered from the run's own traffic.
pub(super) fn leaks(run: &Summary) -> String {
    if run.leaks.is_empty() {
        return String::new();
    }
    let mut table = Table::new(1, ["attack", "recovered", "blind guess", "samples"]);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for leak in &run.leaks {
        let (recovered, chance) = (percent(leak.recovered), percent(leak.chance));
        table.row(vec![leak.attack.clone(), recovered, chance, grouped(leak.samples)]);
    }
    format!(
        "<h2>What the server recovers from what it was sent</h2>\n{}<p class=\"note\">Measured by attacking the \
         run's recorded traffic. An attack that fails here does not show that none succeeds.</p>\n",
        html(&table)
    )
}

/// What was lost and why.
pub(super) fn troubles(run: &Summary) -> String {
    if run.troubles.is_empty() {
        return String::new();
    }
    let mut table = Table::new(2, ["what", "why", "times", "first at", "first on"]);
    for row in &run.troubles {
        let (what, why) = (row.kind.name().to_owned(), row.reason.clone());
        let (first, node) = (units::seconds(row.first_s), row.first_node.to_string());
        table.row(vec![what, why, grouped(row.count), first, node]);
    }
    format!("<h2>What was lost and why</h2>\n{}", html(&table))
}

/// The device classes, one a row, and the server.
pub(super) fn fleet(run: &Summary) -> String {
    let mut table = Table::new(1, FLEET);
    run.classes.iter().for_each(|(class, totals)| table.row(class_row(run, class, totals)));
    let absent = run.info.fleet.iter().filter(|row| !run.classes.contains_key(&row.class));
    absent.for_each(|row| table.row(class_row(run, &row.class, &Totals::default())));
    table.row(server_row(run));
    let lost = run
        .messages_lost
        .map_or(String::new(), |lost| format!(", of which the network lost {}", grouped(lost)));
    format!(
        "{}<p class=\"note\">Peak: the most one node held at once. Busy: summed over nodes. {} messages{lost}.</p>\n",
        html(&table),
        grouped(run.messages)
    )
}

const FLEET: [&str; 16] = [
    "class",
    "devices",
    "examples",
    "speed",
    "memory",
    "peak",
    "up link",
    "down link",
    "jobs",
    "busy",
    "sent",
    "received",
    "counted",
    "lost",
    "refused",
    "killed",
];

fn class_row(run: &Summary, class: &str, totals: &Totals) -> Vec<String> {
    let mut row = vec![class.to_owned()];
    match run.info.class(class) {
        Some(known) => row.extend([
            grouped(u64::from(known.devices)),
            grouped(known.examples),
            format!("{}/s", units::flops(known.flops_per_s)),
            units::bytes(known.memory_bytes),
        ]),
        None => row.extend([totals.joined.to_string(), dash(), dash(), dash()]),
    }
    row.push(run.device_bytes(class).map_or_else(dash, |memory| units::bytes(memory.measured)));
    match run.info.class(class) {
        Some(known) => row.extend([rate(known.up_bytes_per_s), rate(known.down_bytes_per_s)]),
        None => row.extend([dash(), dash()]),
    }
    row.extend([grouped(totals.jobs), units::seconds(totals.busy_ns as f64 / 1e9)]);
    row.extend([units::bytes(totals.bytes_up), units::bytes(totals.bytes_down)]);
    row.extend([totals.counted, totals.lost, totals.refused, totals.killed].map(grouped));
    row
}

fn server_row(run: &Summary) -> Vec<String> {
    let totals = &run.server;
    let mut row = vec![SERVER.to_string()];
    row.extend((0..4).map(|_| String::new()));
    let kept =
        run.server_resident.map_or(String::new(), |kept| format!(" + {} kept", units::bytes(kept.total())));
    row.push(format!("{}{kept}", units::bytes(run.server_peak_bytes)));
    row.extend([String::new(), String::new()]);
    row.extend([grouped(totals.jobs), units::seconds(totals.busy_ns as f64 / 1e9)]);
    row.extend([units::bytes(run.bytes.down), units::bytes(run.bytes.up)]);
    row.extend([String::new(), String::new(), totals.refused.to_string(), totals.killed.to_string()]);
    row
}

fn dash() -> String {
    "–".to_owned()
}

/// Beyond any link: a rate that stands for none.
const UNLIMITED: f64 = 1e15;

fn rate(bytes_per_s: f64) -> String {
    if bytes_per_s < UNLIMITED {
        format!("{}/s", units::bytes(bytes_per_s as u64))
    } else {
        "no limit".to_owned()
    }
}

/// Runs side by side.
pub(super) fn comparison(runs: &[&Summary]) -> String {
    html(&comparison_table(runs))
}

fn html(table: &Table) -> String {
    let mut text = "<div class=\"scroll\"><table>\n".to_owned();
    for (index, row) in table.rows().iter().enumerate() {
        let element = if index == 0 { "th" } else { "td" };
        text += "<tr>";
        for (column, cell) in row.iter().enumerate() {
            let class = if column < table.words() { " class=\"words\"" } else { "" };
            text += &format!("<{element}{class}>{}</{element}>", escape(cell));
        }
        text += "</tr>\n";
    }
    text + "</table></div>\n"
}
