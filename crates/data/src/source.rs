//! Opening data files: format and compression by name, sizes bounded.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use crate::error::{DataError, cannot_open};

/// How a file writes rows down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// JSON Lines, or one JSON array: told apart by the first byte.
    Json,
    /// RFC 4180 with a header row, separated by this byte.
    Separated(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Zstd,
    Gzip,
}

/// What one file may cost: a small compressed file can unpack to any size.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of one line or record.
    pub line: u64,
    /// Most bytes of the whole file, unpacked. A packed file may come to [`INFLATION`] times its own size at
    /// most, and to [`ALLOWANCE`] beside that.
    pub total: u64,
}

/// No text of any use is packed as small as this.
pub const INFLATION: u64 = 200;
/// Bytes that any packed file may come to.
pub const ALLOWANCE: u64 = 4 << 20;

impl Default for Limits {
    /// 16 MiB a line, 16 GiB a file.
    fn default() -> Limits {
        Limits { line: 16 << 20, total: 16 << 30 }
    }
}

/// Format and compression from a file's name.
fn kind(path: &Path) -> Result<(Format, Compression), DataError> {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (stem, compression) = if let Some(stem) = name.strip_suffix(".zst") {
        (stem, Compression::Zstd)
    } else if let Some(stem) = name.strip_suffix(".gz") {
        (stem, Compression::Gzip)
    } else {
        (name.as_str(), Compression::None)
    };
    let format = match stem.rsplit_once('.').map(|(_, ending)| ending) {
        Some("jsonl" | "ndjson" | "json") => Format::Json,
        Some("csv") => Format::Separated(b','),
        Some("tsv") => Format::Separated(b'\t'),
        _ => return Err(DataError::Format { path: path.to_owned() }),
    };
    Ok((format, compression))
}

/// Open `path` for reading rows.
pub(crate) fn open(path: &Path, mut limits: Limits) -> Result<(Format, Gauge), DataError> {
    let (format, compression) = kind(path)?;
    let file = File::open(path).map_err(|error| cannot_open(path, error))?;
    if compression != Compression::None {
        let packed = file.metadata().map_err(|error| cannot_open(path, error))?.len();
        limits.total = limits.total.min(packed.saturating_mul(INFLATION).saturating_add(ALLOWANCE));
    }
    let read: Box<dyn Read> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).map_err(|error| cannot_open(path, error))?),
    };
    Ok((format, Gauge::new(read, limits)))
}

/// A reader that refuses to hand out more than its limits.
///
/// `BufRead` users bound their lines themselves; a CSV parser grows its record inside, so the gauge
/// counts what it handed out since [`Gauge::mark`] was last reset.
pub(crate) struct Gauge {
    inner: BufReader<Box<dyn Read>>,
    pub(crate) limits: Limits,
    total: u64,
    since_mark: Rc<Cell<u64>>,
}

/// A byte order mark.
const MARK: &[u8] = b"\xEF\xBB\xBF";

/// Why a [`Gauge`] stopped; travels inside an [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    #[error("record too long")]
    Line,
    #[error("file too large")]
    Total,
}

impl Stop {
    /// The stop inside an error, if a gauge made it.
    pub(crate) fn inside(error: &io::Error) -> Option<Stop> {
        error.get_ref()?.downcast_ref::<Stop>().copied()
    }
}

impl Gauge {
    fn new(read: Box<dyn Read>, limits: Limits) -> Gauge {
        let inner = BufReader::with_capacity(64 << 10, read);
        Gauge { inner, limits, total: 0, since_mark: Rc::default() }
    }

    /// The counter to set to 0 at the start of each record.
    pub(crate) fn mark(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.since_mark)
    }

    fn handed_out(&mut self, count: usize) -> io::Result<()> {
        self.total += count as u64;
        if self.total > self.limits.total {
            return Err(io::Error::other(Stop::Total));
        }
        self.since_mark.set(self.since_mark.get() + count as u64);
        Ok(())
    }

    /// The next line without its end, into `line`; `false` at the end of the file.
    pub(crate) fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        line.clear();
        let read = (&mut self.inner).take(self.limits.line + 2).read_until(b'\n', line)?;
        self.handed_out(read)?;
        while matches!(line.last(), Some(b'\n' | b'\r')) {
            line.pop();
        }
        if line.len() as u64 > self.limits.line {
            return Err(io::Error::other(Stop::Line));
        }
        Ok(read > 0)
    }

    /// The first byte that is not white space or a byte order mark, without consuming it.
    pub(crate) fn peek(&mut self) -> io::Result<Option<u8>> {
        let buffer = self.inner.fill_buf()?;
        let text = buffer.strip_prefix(MARK).unwrap_or(buffer);
        Ok(text.iter().copied().find(|byte| !byte.is_ascii_whitespace()))
    }

    /// Go past a byte order mark, if the file begins with one.
    pub(crate) fn skip_byte_order_mark(&mut self) -> io::Result<()> {
        if self.inner.fill_buf()?.starts_with(MARK) {
            self.inner.consume(MARK.len());
        }
        Ok(())
    }
}

impl Read for Gauge {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.since_mark.get() > self.limits.line {
            return Err(io::Error::other(Stop::Line));
        }
        let count = self.inner.read(out)?;
        self.handed_out(count)?;
        Ok(count)
    }
}
