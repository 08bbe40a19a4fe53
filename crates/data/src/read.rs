//! Reading a file of rows into a [`Dataset`].

use std::cell::Cell;
use std::fmt;
use std::io;
use std::path::Path;
use std::rc::Rc;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use crate::columns::{Columns, Row, Shape, cell, wrong_type};
use crate::error::{At, DataError};
use crate::example::{Dataset, Example};
use crate::labels::Labels;
use crate::source::{Format, Gauge, Limits, Stop, open};

/// Read a `.jsonl`, `.json`, `.csv` or `.tsv` file, also `.zst` or `.gz`, every row of it.
///
/// # Errors
/// Names the file and line, what is wrong, and what to do.
pub fn read(path: &Path, columns: &Columns) -> Result<Dataset, DataError> {
    read_within(path, columns, Limits::default())
}

/// [`read`] with other limits on the size of lines and of the unpacked file.
///
/// # Errors
/// As [`read`].
pub fn read_within(path: &Path, columns: &Columns, limits: Limits) -> Result<Dataset, DataError> {
    let (format, mut gauge) = open(path, limits)?;
    let limits = gauge.limits;
    let untyped = matches!(format, Format::Separated(_));
    let mut rows = Rows { path, limits, columns, untyped, plan: None, examples: Vec::new() };
    match format {
        Format::Json if rows.io(1, gauge.peek())? == Some(b'[') => rows.json_array(gauge)?,
        Format::Json => rows.json_lines(gauge)?,
        Format::Separated(separator) => rows.separated(gauge, separator)?,
    }
    let Some(plan) = rows.plan.filter(|_| !rows.examples.is_empty()) else {
        return Err(DataError::Empty { path: path.to_owned() });
    };
    let mut examples = rows.examples;
    let labels = plan.labels.resolve(&mut examples, path)?;
    Ok(Dataset { examples, labels, path: path.to_owned() })
}

/// What the first row decided for all.
struct Plan {
    shape: Shape,
    label: Option<String>,
    client: Option<String>,
    labels: Labels,
}

/// Rows read so far.
struct Rows<'a> {
    path: &'a Path,
    limits: Limits,
    columns: &'a Columns,
    /// Cells are all text, integers included.
    untyped: bool,
    plan: Option<Plan>,
    examples: Vec<Example>,
}

impl Rows<'_> {
    fn at(&self, line: u64) -> At {
        At { path: self.path.to_owned(), line }
    }

    /// Say what an I/O error at this line means.
    fn io<T>(&self, line: u64, result: io::Result<T>) -> Result<T, DataError> {
        result.map_err(|source| match Stop::inside(&source) {
            Some(Stop::Line) => DataError::LineTooLong { at: self.at(line), limit: self.limits.line },
            Some(Stop::Total) => {
                DataError::TooLarge { path: self.path.to_owned(), limit: self.limits.total }
            }
            None => DataError::Io { path: self.path.to_owned(), source },
        })
    }

    fn json_lines(&mut self, mut gauge: Gauge) -> Result<(), DataError> {
        let mut bytes = Vec::new();
        let mut line = 0;
        loop {
            line += 1;
            let read = gauge.read_line(&mut bytes);
            if !self.io(line, read)? {
                return Ok(());
            }
            let mut text =
                std::str::from_utf8(&bytes).map_err(|_| DataError::Utf8 { at: self.at(line) })?;
            if line == 1 {
                text = text.trim_start_matches('\u{FEFF}');
            }
            if text.trim().is_empty() {
                continue;
            }
            let row: Value = serde_json::from_str(text).map_err(|error| self.not_json(line, &error))?;
            self.push_value(row, line)?;
        }
    }

    fn json_array(&mut self, mut gauge: Gauge) -> Result<(), DataError> {
        let skipped = gauge.skip_byte_order_mark();
        self.io(1, skipped)?;
        let (mark, mut wrong) = (gauge.mark(), None);
        let mut file = serde_json::Deserializer::from_reader(gauge);
        let array = Array { rows: self, mark, wrong: &mut wrong };
        let read = file.deserialize_seq(array).and_then(|()| file.end());
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let Err(error) = read else { return Ok(()) };
        let line = error.line().try_into().unwrap_or(u64::MAX);
        if error.is_io() { self.io(line, Err(error.into())) } else { Err(self.not_json(line, &error)) }
    }

    fn not_json(&self, line: u64, error: &serde_json::Error) -> DataError {
        let at = self.at(line);
        DataError::Syntax { at, what: format!("not JSON ({error}); each line must be one {{...}} object") }
    }

    fn push_value(&mut self, row: Value, line: u64) -> Result<(), DataError> {
        match row {
            Value::Object(row) => self.push(&row, line),
            _ => {
                let what = "a row must be an object, as in {\"text\": \"...\", \"label\": 0}".to_owned();
                Err(DataError::Syntax { at: self.at(line), what })
            }
        }
    }

    fn separated(&mut self, gauge: Gauge, separator: u8) -> Result<(), DataError> {
        let mark = gauge.mark();
        let mut reader = csv::ReaderBuilder::new().delimiter(separator).from_reader(gauge);
        let headers = reader.headers().map_err(|error| self.not_csv(1, error))?.clone();
        for (column, name) in headers.iter().enumerate() {
            if headers.iter().take(column).any(|before| before == name) {
                let what = format!("two columns are called {name:?}; rename one in the header");
                return Err(DataError::Syntax { at: self.at(1), what });
            }
        }
        let mut record = csv::StringRecord::new();
        loop {
            mark.set(0);
            let line = reader.position().line();
            if !reader.read_record(&mut record).map_err(|error| self.not_csv(line, error))? {
                return Ok(());
            }
            let line = record.position().map_or(line, csv::Position::line);
            let cells = record.iter().map(|cell| Value::String(cell.to_owned()));
            let row: Row = headers.iter().map(str::to_owned).zip(cells).collect();
            self.push(&row, line)?;
        }
    }

    fn not_csv(&self, line: u64, error: csv::Error) -> DataError {
        let at =
            |position: &Option<csv::Position>| self.at(position.as_ref().map_or(line, csv::Position::line));
        match error.into_kind() {
            csv::ErrorKind::Io(source) => match self.io::<()>(line, Err(source)) {
                Err(error) => error,
                Ok(()) => DataError::Empty { path: self.path.to_owned() },
            },
            csv::ErrorKind::Utf8 { pos, .. } => DataError::Utf8 { at: at(&pos) },
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => DataError::Syntax {
                at: at(&pos),
                what: format!(
                    "{len} cells under {expected_len} headings; quote cells that contain the separator or line ends"
                ),
            },
            other => DataError::Syntax { at: self.at(line), what: format!("{other:?}") },
        }
    }

    /// Take one row in.
    fn push(&mut self, row: &Row, line: u64) -> Result<(), DataError> {
        let at = self.at(line);
        if self.plan.is_none() {
            self.plan = Some(self.plan(row, &at)?);
        }
        let Some(plan) = &mut self.plan else { return Ok(()) };
        let input = plan.shape.input(row, &at)?;
        if let Some(column) = &plan.label {
            plan.labels.push(cell(row, column, &at)?, column, &at)?;
        }
        let client = plan.client.as_ref().map(|column| client(row, column, &at)).transpose()?;
        self.examples.push(Example { input, label: None, client, line });
        Ok(())
    }

    fn plan(&self, first: &Row, at: &At) -> Result<Plan, DataError> {
        let optional = |named: &Option<String>, usual: &str| {
            named.clone().or_else(|| first.contains_key(usual).then(|| usual.to_owned()))
        };
        Ok(Plan {
            shape: self.columns.shape(first, at)?,
            label: optional(&self.columns.label, "label"),
            client: optional(&self.columns.client, "client"),
            labels: Labels::new(self.columns, self.untyped),
        })
    }
}

/// Takes the rows of a JSON array in as they come, so that one is in memory at a time.
struct Array<'a, 'b> {
    rows: &'a mut Rows<'b>,
    mark: Rc<Cell<u64>>,
    /// What is wrong with a row, for which serde has no place.
    wrong: &'a mut Option<DataError>,
}

impl<'de> Visitor<'de> for Array<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(row) = list.next_element::<Value>()? {
            number += 1;
            self.mark.set(0);
            if let Err(error) = self.rows.push_value(row, number) {
                *self.wrong = Some(error);
                return Err(A::Error::custom("a row that is no good"));
            }
        }
        Ok(())
    }
}

/// The natural key: a string, or a number as written.
fn client(row: &Row, column: &str, at: &At) -> Result<String, DataError> {
    match cell(row, column, at)? {
        Value::String(key) => Ok(key.clone()),
        Value::Number(key) => Ok(key.to_string()),
        other => Err(wrong_type(at, column, "a string or a number", other)),
    }
}
