//! Tables for the terminal: aligned columns, no frames.

use std::fmt;

/// Rows of text under a head; columns of words are aligned left, those of figures right.
#[derive(Clone, Debug, Default)]
pub struct Table {
    words: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose first `words` columns hold words.
    pub fn new(words: usize, head: impl IntoIterator<Item = impl Into<String>>) -> Table {
        Table { words, rows: vec![head.into_iter().map(Into::into).collect()] }
    }

    /// How many columns, from the left, hold words.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// The head, then the rows.
    pub(crate) fn rows(&self) -> &[Vec<String>] {
        &self.rows
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
                line += &if column < self.words {
                    format!("{gap}{cell:<width$}")
                } else {
                    format!("{gap}{cell:>width$}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `16,000`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
