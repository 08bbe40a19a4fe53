//! `trace.jsonl`: one record a line, written as it happens and read back with errors that say where.

use federation::Record;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A trace cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}:{line}: not a trace record: {error}", path.display())]
    Line { path: PathBuf, line: u64, error: serde_json::Error },
    #[error("{}: only {found} whole records, {wanted} were expected; the file was cut short", path.display())]
    Short { path: PathBuf, found: u64, wanted: u64 },
}

/// A last line without its end: the process died while writing it. It is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    pub line: u64,
    pub bytes: usize,
}

/// The records of a trace file, in order.
pub struct TraceReader {
    path: PathBuf,
    input: BufReader<File>,
    text: Vec<u8>,
    line: u64,
    offset: u64,
    torn: Option<Torn>,
}

impl TraceReader {
    pub fn open(path: &Path) -> Result<TraceReader, TraceError> {
        let file = File::open(path).map_err(|error| TraceError::Io { path: path.to_owned(), error })?;
        let input = BufReader::new(file);
        Ok(TraceReader { path: path.to_owned(), input, text: Vec::new(), line: 0, offset: 0, torn: None })
    }

    /// The unfinished last line, once the end has been reached.
    pub fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// The next whole line's record.
    fn read(&mut self) -> Result<Option<Record>, TraceError> {
        loop {
            self.text.clear();
            let bytes = self
                .input
                .read_until(b'\n', &mut self.text)
                .map_err(|error| TraceError::Io { path: self.path.clone(), error })?;
            if bytes == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self.text.last() != Some(&b'\n') {
                self.torn = Some(Torn { line: self.line, bytes });
                return Ok(None);
            }
            self.offset += bytes as u64;
            if !self.text.iter().all(u8::is_ascii_whitespace) {
                let line = self.line;
                return serde_json::from_slice(&self.text).map(Some).map_err(|error| TraceError::Line {
                    path: self.path.clone(),
                    line,
                    error,
                });
            }
        }
    }
}

impl Iterator for TraceReader {
    type Item = Result<Record, TraceError>;
    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Writes records as lines; every line is whole once [`TraceWriter::flush`] returns.
pub struct TraceWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl TraceWriter {
    /// A new file; one that exists is an error.
    pub fn create(path: &Path) -> Result<TraceWriter, TraceError> {
        let file =
            File::create_new(path).map_err(|error| TraceError::Io { path: path.to_owned(), error })?;
        Ok(TraceWriter { path: path.to_owned(), out: BufWriter::new(file) })
    }

    /// Go on after the first `keep` records of an existing file: they are given to `each` in order,
    /// and what follows them is cut off.
    pub fn resume(
        path: &Path,
        keep: u64,
        each: &mut dyn FnMut(&Record),
    ) -> Result<TraceWriter, TraceError> {
        let mut reader = TraceReader::open(path)?;
        for found in 0..keep {
            let record = reader.read()?;
            let short = || TraceError::Short { path: path.to_owned(), found, wanted: keep };
            each(&record.ok_or_else(short)?);
        }
        let io = |error| TraceError::Io { path: path.to_owned(), error };
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        file.set_len(reader.offset).map_err(io)?;
        Ok(TraceWriter { path: path.to_owned(), out: BufWriter::new(file) })
    }

    pub fn write(&mut self, record: &Record) -> Result<(), TraceError> {
        serde_json::to_writer(&mut self.out, record)
            .map_err(io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(|error| TraceError::Io { path: self.path.clone(), error })
    }

    pub fn flush(&mut self) -> Result<(), TraceError> {
        self.out.flush().map_err(|error| TraceError::Io { path: self.path.clone(), error })
    }
}
