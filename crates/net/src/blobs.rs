//! Contents as files named by their BLAKE3 hash, and contents that are still arriving.

use crate::envelope::Beside;
use crate::files;
use crate::protocol::Address;
use crate::store::StoreError;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A content that nothing refers to is kept this long: its message may be on the way.
const UNCLAIMED: Duration = Duration::from_hours(1);
/// What is still arriving is kept this long after its last byte.
const UNFINISHED: Duration = Duration::from_hours(7 * 24);

/// A folder of contents.
#[derive(Clone, Debug)]
pub struct BlobStore {
    whole: PathBuf,
    partial: PathBuf,
}

impl BlobStore {
    /// Open, or make, the folder.
    pub fn open(folder: &Path) -> Result<BlobStore, StoreError> {
        let store = BlobStore { whole: folder.join("blobs"), partial: folder.join("uploads") };
        files::create_private(&store.whole)?;
        files::create_private(&store.partial)?;
        Ok(store)
    }

    fn path(&self, address: &Address) -> PathBuf {
        self.whole.join(address.to_string())
    }

    /// Keep a content, unless it is there.
    pub fn put(&self, part: &Beside, content: &[u8]) -> Result<(), StoreError> {
        if self.has(part) { Ok(()) } else { files::write_atomically(&self.path(&part.address), content) }
    }

    /// Whether this content is there, whole.
    pub fn has(&self, part: &Beside) -> bool {
        fs::metadata(self.path(&part.address)).is_ok_and(|file| file.len() == part.len)
    }

    /// A content, if it is there.
    pub fn read(&self, part: &Beside) -> Result<Option<Bytes>, StoreError> {
        let content = files::read(&self.path(&part.address))?;
        Ok(content.filter(|content| content.len() as u64 == part.len).map(Bytes::from))
    }

    /// A content that arrives in pieces from `sender`; nobody else can add to it.
    pub fn arriving(&self, sender: &str, part: Beside) -> Partial {
        Partial { path: self.partial.join(format!("{sender}-{}", part.address)), part }
    }

    /// Forget the contents of `sender` that were left longest, so that no more than `limit` are arriving.
    pub fn make_room(&self, sender: &str, limit: usize) {
        let prefix = format!("{sender}-");
        let entries = fs::read_dir(&self.partial).into_iter().flatten().flatten();
        let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        let aged = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
        let mut unfinished: Vec<(SystemTime, PathBuf)> = own.filter_map(aged).collect();
        unfinished.sort();
        for (_, path) in unfinished.iter().take((unfinished.len() + 1).saturating_sub(limit)) {
            // One that cannot be removed is removed when room is needed again.
            let _ = fs::remove_file(path);
        }
    }

    /// A content has arrived: check it and keep it. `false` when it is not what its address says; it is
    /// gone then.
    pub fn finish(&self, partial: &Partial) -> Result<bool, StoreError> {
        partial.settle(&self.path(&partial.part.address))
    }

    /// Forget contents that are not in `keep` and were not touched for a while.
    pub fn sweep(&self, keep: &BTreeSet<Address>) {
        let old = |path: &Path, age: Duration| {
            let touched = fs::metadata(path).and_then(|file| file.modified());
            touched.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|since| since > age))
        };
        for (folder, age) in [(&self.whole, UNCLAIMED), (&self.partial, UNFINISHED)] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let kept =
                    Address::parse(&entry.file_name().to_string_lossy()).is_some_and(|a| keep.contains(&a));
                if !kept && old(&entry.path(), age) {
                    // It is tried again at the next sweep.
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// A content that arrives in pieces, each made to last before the next is asked for.
#[derive(Clone, Debug)]
pub struct Partial {
    path: PathBuf,
    part: Beside,
}

impl Partial {
    pub fn new(path: PathBuf, part: Beside) -> Partial {
        Partial { path, part }
    }

    /// How many bytes are there; more are wanted from here on.
    pub fn offset(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// Open it to add a piece at its end, which is at `offset`.
    pub fn append(&self, offset: u64) -> Result<Piece, StoreError> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)
            .map_err(StoreError::io(&self.path))?;
        file.seek(SeekFrom::Start(offset)).map_err(StoreError::io(&self.path))?;
        let room = self.part.len.saturating_sub(offset);
        Ok(Piece { file, path: self.path.clone(), begin: offset, room, kept: false })
    }

    /// Whether all of it is there and is what its address says.
    fn is_whole(&self) -> Result<bool, StoreError> {
        if self.offset() != self.part.len {
            return Ok(false);
        }
        let failed = StoreError::io(&self.path);
        let mut hash = blake3::Hasher::new();
        let hashed = File::open(&self.path).and_then(|mut file| {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(count) => hash.update(&buffer[..count]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
            }
        });
        hashed.map_err(failed)?;
        Ok(*hash.finalize().as_bytes() == self.part.address.0)
    }

    /// It has arrived: check it and give it this name. `false` when it is not what its address says; it is
    /// gone then.
    pub fn settle(&self, path: &Path) -> Result<bool, StoreError> {
        if !self.is_whole()? {
            self.forget();
            return Ok(false);
        }
        fs::rename(&self.path, path).map_err(StoreError::io(path))?;
        files::sync_folder_of(path)?;
        Ok(true)
    }

    /// All of it, if it is there and is what its address says; a wrong one is gone then.
    pub fn take(&self) -> Result<Option<Bytes>, StoreError> {
        let content = files::read(&self.path)?.unwrap_or_default();
        self.forget();
        Ok((Address::of(&content) == self.part.address).then(|| Bytes::from(content)))
    }

    /// Begin anew.
    pub fn forget(&self) {
        // What cannot be removed is found wrong again when it is whole.
        let _ = fs::remove_file(&self.path);
    }
}

/// A piece being written. Dropped without [`Piece::keep`], it was never there: it was cut short, or is not
/// from whom it seemed to be.
pub struct Piece {
    file: File,
    path: PathBuf,
    begin: u64,
    room: u64,
    kept: bool,
}

/// A piece is longer than what is missing.
#[derive(Debug)]
pub struct TooLong;

impl Piece {
    pub fn write(&mut self, bytes: &[u8]) -> Result<Result<(), TooLong>, StoreError> {
        let Some(room) = self.room.checked_sub(bytes.len() as u64) else { return Ok(Err(TooLong)) };
        self.room = room;
        self.file.write_all(bytes).map(Ok).map_err(StoreError::io(&self.path))
    }

    /// It is whole and wanted.
    pub fn keep(mut self) -> Result<(), StoreError> {
        self.kept = true;
        self.file.sync_data().map_err(StoreError::io(&self.path))
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be cut off is found wrong when the content is whole.
            let _ = self.file.set_len(self.begin);
        }
    }
}
