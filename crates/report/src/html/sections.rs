//! The words and tables of a report.

use crate::fold::{Point, Totals};
use crate::run_info::{Clock, RunInfo};
use crate::summary::{Summary, status_text};
use crate::svg::escape;
use crate::table::Measure;
use base::{SERVER, units};
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
        let on = format!("on {} held-out examples", eval.examples);
        let f1 = eval.macro_f1.map_or(on.clone(), |f1| format!("macro-F1 {f1:.4}"));
        if let Some(accuracy) = eval.accuracy {
            facts.push(("accuracy", format!("{accuracy:.4}"), f1));
        }
        if let Some(perplexity) = eval.perplexity {
            facts.push(("perplexity", format!("{perplexity:.3}"), on.clone()));
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
    facts.push(("rounds", rounds, format!("{counted} of {cohorts} updates counted")));
    let mut text = format!("<p class=\"sub\">{}{}</p>\n<dl class=\"facts\">\n", escape(&what), status(run));
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
    format!("<br><strong class=\"bad\">{}</strong>", escape(&status_text(&run.status)))
}

/// What a reader must know to judge the figures.
pub(super) fn notes(run: &Summary) -> String {
    let mut notes: Vec<String> = run.info.notes.clone();
    if run.info.clock == Clock::Virtual {
        notes.push(
            "Simulated: times come from device profiles (flops/s, link rates), computing and bytes are real."
                .to_owned(),
        );
    }
    notes.iter().map(|note| format!("<p class=\"note\">{}</p>\n", escape(note))).collect()
}

type Column = (&'static str, fn(&Point) -> Option<f64>);

const MEASURES: [Column; 5] = [
    ("train loss", |point| point.train_loss),
    ("loss", |point| point.loss),
    ("accuracy", |point| point.accuracy),
    ("macro-F1", |point| point.macro_f1),
    ("perplexity", |point| point.perplexity),
];

/// Every round as a row, folded away.
pub(super) fn rounds(run: &Summary) -> String {
    let any = |get: fn(&Point) -> Option<f64>| run.curve.iter().any(|point| get(point).is_some());
    let columns: Vec<_> = MEASURES.into_iter().filter(|(_, get)| any(*get)).collect();
    let mut head = vec!["round".to_owned(), "ended at".to_owned()];
    head.extend(columns.iter().map(|(name, _)| (*name).to_owned()));
    head.extend(["counted", "lost", "jobs", "up so far", "down so far"].map(str::to_owned));
    let rows = run.curve.iter().map(|point| {
        let mut row = vec![point.round.to_string(), units::seconds(point.time_s)];
        row.extend(columns.iter().map(|(_, get)| get(point).map_or(String::new(), |v| format!("{v:.4}"))));
        row.push(format!("{}/{}", point.counted, point.cohort));
        row.extend([point.lost.to_string(), point.jobs.to_string()]);
        row.extend([units::bytes(point.bytes_up), units::bytes(point.bytes_down)]);
        row
    });
    format!("<details><summary>every round</summary>\n{}</details>\n", table(&head, rows))
}

/// What was lost and why.
pub(super) fn troubles(run: &Summary) -> String {
    if run.troubles.is_empty() {
        return String::new();
    }
    let mut text = "<h2>What was lost and why</h2>\n<div class=\"scroll\"><table>\n<tr><th>what</th>\
        <th class=\"words\">why</th><th>times</th><th>first at</th><th>first on</th></tr>\n"
        .to_owned();
    for row in &run.troubles {
        text += &format!(
            "<tr><td>{}</td><td class=\"words\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            row.kind.name(),
            escape(&row.reason),
            row.count,
            units::seconds(row.first_s),
            row.first_node
        );
    }
    text + "</table></div>\n"
}

/// The device classes, one a row, and the server.
pub(super) fn fleet(run: &Summary) -> String {
    let head = [
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
    let mut rows: Vec<Vec<String>> =
        run.classes.iter().map(|(class, totals)| class_row(run, class, totals)).collect();
    let absent = run.info.fleet.iter().filter(|row| !run.classes.contains_key(&row.class));
    rows.extend(absent.map(|row| class_row(run, &row.class, &Totals::default())));
    rows.push(server_row(run));
    format!(
        "{}<p class=\"note\">Peak: the most one device held at once. Busy: summed over devices.</p>\n",
        table(&head.map(str::to_owned), rows.into_iter())
    )
}

fn class_row(run: &Summary, class: &str, totals: &Totals) -> Vec<String> {
    let mut row = vec![class.to_owned()];
    match run.info.class(class) {
        Some(known) => row.extend([
            known.devices.to_string(),
            known.examples.to_string(),
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
    row.extend([totals.jobs.to_string(), units::seconds(totals.busy_ns as f64 / 1e9)]);
    row.extend([units::bytes(totals.bytes_up), units::bytes(totals.bytes_down)]);
    row.extend([totals.counted, totals.lost, totals.refused, totals.killed].map(|count| count.to_string()));
    row
}

fn server_row(run: &Summary) -> Vec<String> {
    let totals = &run.server;
    let mut row = vec![SERVER.to_string()];
    row.extend((0..4).map(|_| String::new()));
    row.push(units::bytes(run.server_peak_bytes));
    row.extend([String::new(), String::new()]);
    row.extend([totals.jobs.to_string(), units::seconds(totals.busy_ns as f64 / 1e9)]);
    row.extend([units::bytes(run.bytes.down), units::bytes(run.bytes.up)]);
    row.extend([String::new(), String::new(), totals.refused.to_string(), totals.killed.to_string()]);
    row
}

fn dash() -> String {
    "–".to_owned()
}

fn rate(bytes_per_s: f64) -> String {
    if bytes_per_s.is_finite() {
        format!("{}/s", units::bytes(bytes_per_s as u64))
    } else {
        "no limit".to_owned()
    }
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

/// Runs side by side.
pub(super) fn comparison(runs: &[&Summary]) -> String {
    let measure = Measure::of(runs);
    let head = [
        "method",
        "run",
        measure.name(),
        "loss",
        "time",
        "up",
        "down",
        "device peak",
        "server peak",
        "rounds",
        "status",
    ];
    let rows = runs.iter().map(|run| {
        let info = &run.info;
        vec![
            info.method.clone(),
            info.run.clone(),
            measure.text(run),
            run.eval.as_ref().map_or_else(dash, |eval| format!("{:.4}", eval.loss)),
            units::seconds(run.time_s),
            units::bytes(run.bytes.up),
            units::bytes(run.bytes.down),
            units::bytes(run.device_peak_bytes.max),
            units::bytes(run.server_peak_bytes),
            format!("{}/{}", run.curve.len(), info.rounds),
            status_text(&run.status),
        ]
    });
    table(&head.map(str::to_owned), rows)
}

fn table(head: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: String = head.iter().map(|cell| format!("<th>{}</th>", escape(cell))).collect();
    let mut text = format!("<div class=\"scroll\"><table>\n<tr>{head}</tr>\n");
    for row in rows {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        text += &format!("<tr>{cells}</tr>\n");
    }
    text + "</table></div>\n"
}
