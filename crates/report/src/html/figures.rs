//! The figures of a report, made of summaries.

use crate::fold::{Fold, Point};
use crate::run_info::Clock;
use crate::summary::Summary;
use crate::svg::axis::Quantity;
use crate::svg::gantt;
use crate::svg::line::{Measure, Series, chart};
use crate::svg::rows::{Bars, Marks, bars, memory};
use crate::svg::{escape, series_class};
use crate::timeline::ROWS;
use base::{Time, units};

type Get = fn(&Point) -> Option<f64>;
type Position = fn(&Point) -> f64;

/// What curves run along.
fn along(clock: Clock) -> [(Measure, Position); 3] {
    let time = match clock {
        Clock::Virtual => "virtual time",
        Clock::Real => "time",
    };
    [
        (Measure { name: "round", quantity: Quantity::Count }, |point| f64::from(point.round)),
        (Measure { name: time, quantity: Quantity::Seconds }, |point| point.time_s),
        (Measure { name: "moved, up and down", quantity: Quantity::Bytes }, |point| {
            (point.bytes_up + point.bytes_down) as f64
        }),
    ]
}

const ACCURACY: (Measure, Get) =
    (Measure { name: "accuracy", quantity: Quantity::Share }, |point| point.accuracy);
const PERPLEXITY: (Measure, Get) =
    (Measure { name: "perplexity", quantity: Quantity::Plain }, |point| point.perplexity);
const PEARSON: (Measure, Get) =
    (Measure { name: "Pearson correlation", quantity: Quantity::Plain }, |point| point.pearson);
const LOSS: (Measure, Get) = (Measure { name: "loss", quantity: Quantity::Plain }, |point| point.loss);
const TRAIN_LOSS: (Measure, Get) =
    (Measure { name: "training loss", quantity: Quantity::Plain }, |point| point.train_loss);

/// Accuracy (or perplexity, or correlation) and loss of one run against rounds, time and bytes.
pub(super) fn curves(run: &Summary) -> String {
    if run.curve.is_empty() {
        return "<h2>Curves</h2>\n<p class=\"note\">No round ended.</p>\n".to_owned();
    }
    let mut text = "<h2>Curves</h2>\n".to_owned();
    let has = |get: Get| run.curve.iter().any(|point| get(point).is_some());
    if has(LOSS.1) && has(TRAIN_LOSS.1) {
        text += &legend(&[(line_key("s0", ""), "held-out"), (line_key("s1", " dashed"), "training")]);
    }
    text += "<div class=\"figures\">\n";
    for (y, get) in [ACCURACY, PERPLEXITY, PEARSON].into_iter().filter(|(_, get)| has(*get)) {
        for (x, position) in along(run.info.clock) {
            let series = vec![series("held-out", 0, false, &run.curve, position, get)];
            text += &figure(&chart(x, y, &series));
        }
    }
    for (x, position) in along(run.info.clock) {
        let held_out = series("held-out", 0, false, &run.curve, position, LOSS.1);
        let training = series("training", 1, true, &run.curve, position, TRAIN_LOSS.1);
        let series: Vec<Series> =
            [held_out, training].into_iter().filter(|curve| !curve.points.is_empty()).collect();
        if !series.is_empty() {
            text += &figure(&chart(x, LOSS.0, &series));
        }
    }
    text + "</div>\n"
}

/// Of a run that perturbs: how many perturbations each round took, how far they varied, and the share of
/// the devices asked that was counted. Empty for others.
pub(super) fn perturbations(run: &Summary) -> String {
    let charts: [(Measure, Get); 4] = [
        (Measure { name: "perturbations", quantity: Quantity::Count }, |point| {
            point.figures.get("perturbations").copied()
        }),
        (Measure { name: "D(g)", quantity: Quantity::Plain }, |point| {
            point.figures.get("variance").copied()
        }),
        (Measure { name: "noise to signal", quantity: Quantity::Plain }, |point| {
            point.figures.get("noise_to_signal").copied()
        }),
        (Measure { name: "devices counted", quantity: Quantity::Share }, |point| {
            Some(f64::from(point.counted) / f64::from(point.cohort.max(1)))
        }),
    ];
    if run.curve.iter().all(|point| !point.figures.contains_key("perturbations")) {
        return String::new();
    }
    let (round, position) = along(run.info.clock)[0];
    let mut text = "<h2>Perturbations</h2>\n<div class=\"figures\">\n".to_owned();
    for (y, get) in charts {
        text += &figure(&chart(round, y, &[series(y.name, 0, false, &run.curve, position, get)]));
    }
    text + "</div>\n"
}

/// The curves of several runs over each other, one colour a run.
pub(super) fn overlaid(runs: &[&Summary]) -> String {
    let keys: Vec<(String, String)> = runs
        .iter()
        .enumerate()
        .map(|(index, run)| (line_key(&series_class(index), dash(index)), run_name(runs, run)))
        .collect();
    let keys: Vec<(String, &str)> = keys.iter().map(|(key, name)| (key.clone(), name.as_str())).collect();
    let mut text = format!("<h2>Curves</h2>\n{}<div class=\"figures\">\n", legend(&keys));
    let virtual_time = runs.iter().all(|run| run.info.clock == Clock::Virtual);
    let clock = if virtual_time { Clock::Virtual } else { Clock::Real };
    for (y, get) in [ACCURACY, PERPLEXITY, LOSS, TRAIN_LOSS] {
        for (x, position) in along(clock) {
            let curves = runs.iter().enumerate().map(|(index, run)| {
                series(&run_name(runs, run), index, index >= 8, &run.curve, position, get)
            });
            let curves: Vec<Series> = curves.filter(|curve| !curve.points.is_empty()).collect();
            if !curves.is_empty() {
                text += &figure(&chart(x, y, &curves));
            }
        }
    }
    text + "</div>\n"
}

fn dash(index: usize) -> &'static str {
    if index >= 8 { " dashed" } else { "" }
}

/// The method, and the run where the method does not tell runs apart.
fn run_name(runs: &[&Summary], run: &Summary) -> String {
    let same = runs.iter().filter(|other| other.info.method == run.info.method).count();
    if same > 1 { format!("{} ({})", run.info.method, run.info.run) } else { run.info.method.clone() }
}

fn series(
    name: &str,
    colour: usize,
    dashed: bool,
    curve: &[Point],
    position: Position,
    get: Get,
) -> Series {
    let points = curve.iter().filter_map(|point| Some((position(point), get(point)?))).collect();
    Series { name: name.to_owned(), colour, dashed, points }
}

/// Who trained when.
pub(super) fn timeline(run: &Summary, fold: &Fold) -> String {
    let end = Time::ZERO.after(run.time_s);
    let svg = gantt::chart(fold, end, run.info.clock.name());
    let keys = [
        (box_key("bar compute"), "computing"),
        (box_key("bar receive"), "receiving"),
        (box_key("bar send"), "sending"),
        (box_key("away"), "killed or offline"),
        (cross_key(), "lost to its round"),
    ];
    let sample = if fold.timeline.sampled {
        format!("<p class=\"note\">{ROWS} of the devices that did anything, drawn at random.</p>\n")
    } else {
        String::new()
    };
    let legend = legend(&keys);
    let opening = gantt::opening(fold, run.info.clock.name()).map_or(String::new(), |svg| {
        format!("<h3>The first steps, close up</h3>\n<figure class=\"wide\">{svg}</figure>\n")
    });
    format!("<h2>Who trained when</h2>\n{sample}{legend}<figure class=\"wide\">{svg}</figure>\n{opening}")
}

/// Memory, bytes and time by device class.
pub(super) fn classes(run: &Summary) -> String {
    let names: Vec<&String> =
        run.classes.iter().filter(|(_, row)| row.jobs > 0).map(|(name, _)| name).collect();
    if names.is_empty() {
        return "<h2>Devices</h2>\n".to_owned();
    }
    let marks: Vec<Marks> = names
        .iter()
        .filter_map(|name| {
            let memory = run.device_bytes(name)?;
            let (measured, priced, budget) = (memory.measured, memory.priced, memory.budget);
            Some(Marks { name: (*name).clone(), measured, priced, budget })
        })
        .collect();
    let moved: Vec<Bars> = run
        .classes
        .iter()
        .map(|(name, row)| {
            let values = [row.bytes_up, row.bytes_down].map(|bytes| (bytes as f64, units::bytes(bytes)));
            Bars { name: name.clone(), values: values.to_vec() }
        })
        .collect();
    let busy: Vec<Bars> = names
        .iter()
        .map(|name| {
            let row = &run.classes[*name];
            let mean = row.busy_ns as f64 / 1e9 / row.jobs as f64;
            Bars { name: (*name).clone(), values: vec![(mean, units::seconds(mean))] }
        })
        .collect();
    let memory_keys = [
        (dot_key(), "measured"),
        (ring_key(), "priced beforehand"),
        (box_key("budget"), "budget of the smallest device"),
    ];
    let moved_keys = [(box_key("bar s0"), "sent"), (box_key("bar s1"), "received")];
    format!(
        "<h2>Devices</h2>\n<div class=\"figures\">\n{}{}{}</div>\n",
        keyed(&memory("peak memory of a device", &marks), &memory_keys),
        keyed(&bars("bytes by class", Quantity::Bytes, &["sent", "received"], &moved), &moved_keys),
        figure(&bars("mean time of a job", Quantity::Seconds, &["mean"], &busy)),
    )
}

fn figure(svg: &str) -> String {
    format!("<figure>{svg}</figure>\n")
}

fn keyed(svg: &str, keys: &[(String, &str)]) -> String {
    format!("<figure>{svg}{}</figure>\n", legend(keys))
}

fn legend(keys: &[(String, &str)]) -> String {
    let keys: String = keys.iter().map(|(key, name)| format!("<li>{key}{}</li>", escape(name))).collect();
    format!("<ul class=\"legend\">{keys}</ul>\n")
}

fn line_key(class: &str, dash: &str) -> String {
    key(&format!("<line class=\"curve {class}{dash}\" x1=\"1\" y1=\"5\" x2=\"19\" y2=\"5\"/>"))
}

fn box_key(class: &str) -> String {
    key(&format!("<rect class=\"{class}\" x=\"5\" y=\"1\" width=\"10\" height=\"8\"/>"))
}

fn dot_key() -> String {
    key("<circle class=\"dot s0\" cx=\"10\" cy=\"5\" r=\"3\"/>")
}

fn ring_key() -> String {
    key("<circle class=\"ring s1\" cx=\"10\" cy=\"5\" r=\"4.2\"/>")
}

fn cross_key() -> String {
    key("<path class=\"lost\" d=\"M6 1l8 8M6 9l8-8\"/>")
}

fn key(shape: &str) -> String {
    format!("<svg class=\"plot\" viewBox=\"0 0 20 10\" aria-hidden=\"true\">{shape}</svg>")
}
