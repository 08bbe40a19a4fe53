//! Tables for the terminal: aligned columns, no frames.

use crate::summary::{Summary, status_text};
use base::units;
use std::fmt;

/// Rows of text; the first column is aligned left, the others right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let gap = if column == 0 { "" } else { "  " };
                line +=
                    &if column == 0 { format!("{cell:<width$}") } else { format!("{gap}{cell:>width$}") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Runs side by side, one a row.
pub fn comparison_table(runs: &[&Summary]) -> Table {
    let measure = Measure::of(runs);
    let mut table = Table::new(&[
        "run",
        "method",
        measure.name(),
        "loss",
        "rounds",
        "time",
        "up",
        "down",
        "device peak",
        "status",
    ]);
    for run in runs {
        table.row(vec![
            run.info.run.clone(),
            run.info.method.clone(),
            measure.text(run),
            run.eval.as_ref().map_or("-".to_owned(), |eval| format!("{:.4}", eval.loss)),
            format!("{}/{}", run.curve.len(), run.info.rounds),
            units::seconds(run.time_s),
            units::bytes(run.bytes.up),
            units::bytes(run.bytes.down),
            units::bytes(run.device_peak_bytes.max),
            status_text(&run.status),
        ]);
    }
    table
}

/// The measure that a set of runs is compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Accuracy,
    Perplexity,
}

impl Measure {
    /// Perplexity where no run has an accuracy and one has a perplexity.
    pub(crate) fn of(runs: &[&Summary]) -> Measure {
        let any = |get: fn(&Summary) -> Option<f64>| runs.iter().any(|run| get(run).is_some());
        let accuracy = any(|run| run.eval.as_ref()?.accuracy);
        let perplexity = any(|run| run.eval.as_ref()?.perplexity);
        if perplexity && !accuracy { Measure::Perplexity } else { Measure::Accuracy }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Measure::Accuracy => "accuracy",
            Measure::Perplexity => "perplexity",
        }
    }

    pub(crate) fn text(self, run: &Summary) -> String {
        let eval = run.eval.as_ref();
        match self {
            Measure::Accuracy => eval.and_then(|eval| eval.accuracy).map(|value| format!("{value:.4}")),
            Measure::Perplexity => eval.and_then(|eval| eval.perplexity).map(|value| format!("{value:.3}")),
        }
        .unwrap_or("-".to_owned())
    }
}
