//! Runs side by side: the same columns on the terminal and in a page.

use crate::fold::Point;
use crate::summary::{Summary, status_text};
use crate::table::Table;
use base::units;

/// Runs side by side, one a row.
pub fn comparison_table(runs: &[&Summary]) -> Table {
    let measure = Measure::of(runs);
    let target = target(runs);
    let mut head = ["method", "run", measure.name(), "loss", "time", "devices busy", "up", "down"]
        .map(str::to_owned)
        .to_vec();
    if let Some(target) = target {
        head.extend([format!("time to {target:.2}"), format!("bytes to {target:.2}")]);
    }
    head.extend(["device peak", "rounds", "status"].map(str::to_owned));
    let private: Vec<_> =
        PRIVACY.iter().filter(|(_, get)| runs.iter().any(|run| get(run).is_some())).collect();
    head.extend(private.iter().map(|(name, _)| (*name).to_owned()));
    let mut table = Table::new(2, head);
    for run in runs {
        let mut cells = row(run, measure, target);
        cells.extend(private.iter().map(|(_, get)| get(run).unwrap_or_else(|| "–".to_owned())));
        table.row(cells);
    }
    table
}

type Cell = fn(&Summary) -> Option<String>;

/// Columns of runs that bound or measure what labels give away.
const PRIVACY: [(&str, Cell); 2] = [
    ("label epsilon", |run| {
        run.curve
            .last()
            .and_then(|point| point.figures.get("label_epsilon"))
            .map(|epsilon| format!("{epsilon}"))
    }),
    ("labels recovered", |run| run.labels_recovered().map(|share| format!("{:.1} %", 100.0 * share))),
];

fn row(run: &Summary, measure: Measure, target: Option<f64>) -> Vec<String> {
    let dash = || "–".to_owned();
    let eval = run.eval.as_ref();
    let mut row = vec![
        run.info.method.clone(),
        run.info.run.clone(),
        measure.text(run).unwrap_or_else(dash),
        eval.map_or_else(dash, |eval| format!("{:.4}", eval.loss)),
        units::seconds(run.time_s),
        units::seconds(run.device_busy_s()),
        units::bytes(run.bytes.up),
        units::bytes(run.bytes.down),
    ];
    if let Some(target) = target {
        let there =
            run.curve.iter().find(|point| point.accuracy.is_some_and(|accuracy| accuracy >= target));
        row.push(there.map_or_else(dash, |point| units::seconds(point.time_s)));
        row.push(there.map_or_else(dash, |point| units::bytes(point.bytes_up + point.bytes_down)));
    }
    row.extend([
        units::bytes(run.device_peak_bytes.max),
        format!("{}/{}", run.curve.len(), run.info.rounds),
        status_text(&run.status),
    ]);
    row
}

/// An accuracy to hold runs against: the highest whole hundredth that each of them reached.
fn target(runs: &[&Summary]) -> Option<f64> {
    let best = |curve: &[Point]| {
        let accuracies = curve.iter().filter_map(|point| point.accuracy);
        accuracies.fold(f64::NEG_INFINITY, f64::max)
    };
    let least = runs.iter().map(|run| best(&run.curve)).fold(f64::INFINITY, f64::min);
    let target = (least * 100.0).floor() / 100.0;
    Some(target).filter(|target| target.is_finite() && runs.len() > 1)
}

/// The measure that a set of runs is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Accuracy,
    Perplexity,
    Pearson,
}

impl Measure {
    /// The first that one of the runs has.
    fn of(runs: &[&Summary]) -> Measure {
        let any = |get: fn(&Summary) -> Option<f64>| runs.iter().any(|run| get(run).is_some());
        let accuracy = any(|run| run.eval.as_ref()?.accuracy);
        let perplexity = any(|run| run.eval.as_ref()?.perplexity);
        let pearson = any(|run| run.eval.as_ref()?.pearson);
        match (accuracy, perplexity, pearson) {
            (false, true, _) => Measure::Perplexity,
            (false, false, true) => Measure::Pearson,
            _ => Measure::Accuracy,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Measure::Accuracy => "accuracy",
            Measure::Perplexity => "perplexity",
            Measure::Pearson => "Pearson",
        }
    }

    fn text(self, run: &Summary) -> Option<String> {
        let eval = run.eval.as_ref()?;
        match self {
            Measure::Accuracy => eval.accuracy.map(|value| format!("{value:.4}")),
            Measure::Perplexity => eval.perplexity.map(|value| format!("{value:.3}")),
            Measure::Pearson => eval.pearson.map(|value| format!("{value:.4}")),
        }
    }
}
