//! Who holds what: counts of rows by device and label, as numbers and as a table.

use std::fmt::Write;

use crate::example::{Dataset, Label};

/// Rows of each device by label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Names of the labels; one entry called `rows` where rows carry no label.
    pub labels: Vec<String>,
    /// Devices x labels.
    pub counts: Vec<Vec<u32>>,
}

/// Devices up to this number get a line each in the table.
const LINES: usize = 32;
/// Labels up to this number get a column each.
const COLUMNS: usize = 10;

impl Holdings {
    /// Count the rows that each device holds.
    ///
    /// # Panics
    /// If a row lies outside the set.
    pub fn count(dataset: &Dataset, shards: &[Vec<u32>]) -> Holdings {
        let labels =
            if dataset.labels.is_empty() { vec!["rows".to_owned()] } else { dataset.labels.clone() };
        let count = |shard: &Vec<u32>| {
            let mut counts = vec![0; labels.len()];
            for row in shard {
                counts
                    [dataset.examples[*row as usize].label.and_then(Label::class).unwrap_or(0) as usize] +=
                    1;
            }
            counts
        };
        Holdings { counts: shards.iter().map(count).collect(), labels }
    }

    /// Rows of each device.
    pub fn rows(&self) -> Vec<u32> {
        self.counts.iter().map(|counts| counts.iter().sum()).collect()
    }

    /// Rows of each label over all devices.
    pub fn totals(&self) -> Vec<u32> {
        let mut totals = vec![0; self.labels.len()];
        for counts in &self.counts {
            totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        }
        totals
    }

    /// How far devices' labels are from those of all rows: the total variation distance between the
    /// two, as the mean over rows. 0: every device is a small copy of the whole. Towards 1: what one
    /// device knows, the others do not.
    pub fn skew(&self) -> f64 {
        let totals = self.totals();
        let all: f64 = totals.iter().map(|total| f64::from(*total)).sum();
        let distance = |counts: &[u32], rows: f64| -> f64 {
            let differences = counts
                .iter()
                .zip(&totals)
                .map(|(count, total)| (f64::from(*count) / rows - f64::from(*total) / all).abs());
            differences.sum::<f64>() / 2.0
        };
        let weighted = self.counts.iter().zip(self.rows()).filter(|(_, rows)| *rows > 0);
        weighted.map(|(counts, rows)| distance(counts, f64::from(rows)) * f64::from(rows) / all).sum()
    }

    /// A table for the terminal: a line a device, or quantiles over devices when they are many.
    pub fn table(&self) -> String {
        let mut text = if self.counts.len() <= LINES { self.by_device() } else { self.quantiles() };
        if self.labels.len() > 1 {
            let _ =
                writeln!(text, "label skew {:.2} (0: all devices alike, 1: nothing shared)", self.skew());
        }
        text
    }

    fn by_device(&self) -> String {
        let mut lines = vec![vec!["device".to_owned(), "rows".to_owned()]];
        let columns = self.labels.len() > 1 && self.labels.len() <= COLUMNS;
        if columns {
            lines[0].extend(self.labels.iter().cloned());
        } else if self.labels.len() > 1 {
            lines[0].extend(["labels", "largest", "share"].map(str::to_owned));
        }
        let all = ("all".to_owned(), self.totals());
        let devices = (1..).zip(&self.counts).map(|(device, counts)| (format!("{device}"), counts.clone()));
        for (name, counts) in devices.chain([all]) {
            let rows: u32 = counts.iter().sum();
            let mut line = vec![name, rows.to_string()];
            if columns {
                line.extend(counts.iter().map(u32::to_string));
            } else if self.labels.len() > 1 {
                let held = counts.iter().filter(|count| **count > 0).count();
                line.push(held.to_string());
                line.push(largest(&counts).map_or("-".to_owned(), |label| self.labels[label].clone()));
                line.push(format!("{:.0} %", 100.0 * share(&counts)));
            }
            lines.push(line);
        }
        aligned(&lines)
    }

    fn quantiles(&self) -> String {
        let mut lines = vec![
            [&format!("{} devices", self.counts.len()), "min", "p10", "median", "p90", "max"]
                .map(str::to_owned)
                .to_vec(),
        ];
        let mut add = |name: &str, mut values: Vec<f64>, unit: &str| {
            values.sort_by(f64::total_cmp);
            let at = |p: f64| values[((values.len() - 1) as f64 * p).round() as usize];
            let cells = [0.0, 0.1, 0.5, 0.9, 1.0].map(|p| format!("{:.0}{unit}", at(p)));
            lines.push(std::iter::once(name.to_owned()).chain(cells).collect());
        };
        add("rows", self.rows().iter().map(|rows| f64::from(*rows)).collect(), "");
        if self.labels.len() > 1 {
            let held = |counts: &Vec<u32>| counts.iter().filter(|count| **count > 0).count() as f64;
            add("labels held", self.counts.iter().map(held).collect(), "");
            let shares = self.counts.iter().map(|counts| 100.0 * share(counts)).collect();
            add("largest label's share", shares, " %");
        }
        aligned(&lines)
    }
}

/// The label with the most rows, the first of several.
pub(crate) fn largest(counts: &[u32]) -> Option<usize> {
    let most = counts.iter().max().filter(|most| **most > 0)?;
    counts.iter().position(|count| count == most)
}

/// The part of the rows that carries the most frequent label.
pub(crate) fn share(counts: &[u32]) -> f64 {
    let rows: u32 = counts.iter().sum();
    counts.iter().max().map_or(0.0, |most| f64::from(*most) / f64::from(rows.max(1)))
}

/// Columns of equal width, the first to the left and the others to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut cells = line.iter().zip(&widths);
        if let Some((first, width)) = cells.next() {
            let _ = write!(text, "{first:<width$}");
        }
        for (cell, width) in cells {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
    }
    text
}
