//! The activation cache: what devices sent, kept so that no device has to run again.
//!
//! A device's rows lie in chunks as they were sent. Rows of a chunk are of one length, so any of them
//! is read alone and memory is that of a batch however much is kept. On disk a chunk is a file under the
//! device's own directory: listing a device and erasing it are directory operations.
//!
//! A chunk is synced, with its name and the names of the directories above it, before [`Cache::put`] returns, and
//! only then does the server half count it as stored. Until then the message it came in is in the server's
//! journal, which is synced before the device is told that it arrived. So what was acknowledged is there after a
//! kill and after a power failure, and a chunk that was not finished is a draft, which nobody reads.

use base::{Node, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// A part of a device's contribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Chunk {
    pub node: Node,
    pub index: u32,
    pub part: Part,
}

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    Taps,
    Differences,
}

impl Part {
    fn suffix(self) -> &'static str {
        match self {
            Part::Taps => "taps",
            Part::Differences => "differences",
        }
    }
}

/// What is kept of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub chunks: u64,
    pub bytes: u64,
}

/// Where chunks are kept: in memory until a directory is given, which is done before the first of them
/// comes or not at all.
#[derive(Debug, Default)]
pub struct Cache {
    directory: OnceLock<PathBuf>,
    memory: Mutex<BTreeMap<Chunk, Vec<u8>>>,
}

impl Cache {
    /// A cache in this directory, which need not exist yet.
    pub fn at(directory: &Path) -> Cache {
        let cache = Cache::default();
        cache.settle(directory);
        cache
    }

    /// Keep chunks in this directory. What an earlier process kept there is there.
    pub fn settle(&self, directory: &Path) {
        let _ = self.directory.set(directory.to_owned());
    }

    /// Keep a chunk: when this returns it outlives a power failure. Doing it again changes nothing.
    pub fn put(&self, chunk: Chunk, bytes: &[u8]) -> io::Result<()> {
        let Some(path) = self.path(chunk) else {
            self.memory().insert(chunk, bytes.to_vec());
            return Ok(());
        };
        let parent = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent)?;
        files::write_atomically(&path, bytes)?;
        // The device's directory, and the cache's own.
        parent.ancestors().take(2).try_for_each(files::sync_folder_of)
    }

    /// The length of a chunk; `None` when it is not kept, or kept no more.
    pub fn len(&self, chunk: Chunk) -> Option<u64> {
        match self.path(chunk) {
            Some(path) => fs::metadata(path).ok().map(|data| data.len()),
            None => self.memory().get(&chunk).map(|bytes| bytes.len() as u64),
        }
    }

    /// A whole chunk.
    pub fn whole(&self, chunk: Chunk) -> io::Result<Vec<u8>> {
        match self.path(chunk) {
            Some(path) => fs::read(path),
            None => self.memory().get(&chunk).cloned().ok_or_else(missing),
        }
    }

    /// What is kept, by device.
    pub fn list(&self) -> io::Result<BTreeMap<Node, Kept>> {
        let mut kept: BTreeMap<Node, Kept> = BTreeMap::new();
        let mut count = |node, bytes| {
            let entry = kept.entry(node).or_default();
            (entry.chunks, entry.bytes) = (entry.chunks + 1, entry.bytes + bytes);
        };
        let Some(directory) = self.directory.get() else {
            self.memory().iter().for_each(|(chunk, bytes)| count(chunk.node, bytes.len() as u64));
            return Ok(kept);
        };
        for device in entries(directory)? {
            let Some(node) = device.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            for file in entries(&device.path())? {
                if file.path().extension().is_none_or(|extension| extension != files::DRAFT) {
                    count(Node(node), file.metadata()?.len());
                }
            }
        }
        Ok(kept)
    }

    /// Forget everything of a device. Training goes on without its rows.
    pub fn erase(&self, node: Node) -> io::Result<()> {
        let Some(directory) = self.directory.get() else {
            self.memory().retain(|chunk, _| chunk.node != node);
            return Ok(());
        };
        match fs::remove_dir_all(directory.join(node.0.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, chunk: Chunk) -> Option<PathBuf> {
        let device = self.directory.get()?.join(chunk.node.0.to_string());
        Some(device.join(format!("{}.{}", chunk.index, chunk.part.suffix())))
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<Chunk, Vec<u8>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn missing() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the chunk is not in the cache")
}

/// Reads single rows. Keeps a bounded number of files open.
pub struct RowReader<'a> {
    cache: &'a Cache,
    open: BTreeMap<Chunk, File>,
}

/// Files that a reader holds open at most.
const OPEN_FILES: usize = 256;

impl<'a> RowReader<'a> {
    pub fn new(cache: &'a Cache) -> RowReader<'a> {
        RowReader { cache, open: BTreeMap::new() }
    }

    /// Row `row` of a chunk whose rows are as long as `out`.
    pub fn read(&mut self, chunk: Chunk, row: u32, out: &mut [u8]) -> io::Result<()> {
        let start = u64::from(row) * out.len() as u64;
        let Some(path) = self.cache.path(chunk) else {
            let memory = self.cache.memory();
            let bytes = memory.get(&chunk).ok_or_else(missing)?;
            let end = start as usize + out.len();
            let row = bytes.get(start as usize..end);
            out.copy_from_slice(row.ok_or(io::ErrorKind::UnexpectedEof)?);
            return Ok(());
        };
        if !self.open.contains_key(&chunk) {
            if self.open.len() == OPEN_FILES {
                self.open.pop_first();
            }
            self.open.insert(chunk, File::open(path)?);
        }
        let file = self.open.get_mut(&chunk).ok_or_else(missing)?;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(node: u32, index: u32, part: Part) -> Chunk {
        Chunk { node: Node(node), index, part }
    }

    /// The same in memory and on disk, and on disk after the process is gone.
    #[test]
    fn rows_are_read_listed_and_erased_by_device() {
        let directory = std::env::temp_dir().join(format!("undertone-cache-{}", std::process::id()));
        let on_disk = Cache::at(&directory);
        for cache in [&Cache::default(), &on_disk] {
            for (node, index) in [(1, 0), (1, 1), (20, 0)] {
                cache.put(chunk(node, index, Part::Taps), &[node as u8 + index as u8; 12]).unwrap();
                cache.put(chunk(node, index, Part::Taps), &[node as u8 + index as u8; 12]).unwrap();
            }
            cache.put(chunk(20, 0, Part::Differences), &[1, 2, 3, 4]).unwrap();
        }
        // A server that lost its power while it wrote: nobody was told that this chunk is there.
        fs::write(directory.join("1/9.taps.new"), "to").unwrap();
        for cache in [&on_disk, &Cache::at(&directory)] {
            let kept = cache.list().unwrap();
            assert_eq!(kept[&Node(1)], Kept { chunks: 2, bytes: 24 });
            assert_eq!(kept[&Node(20)], Kept { chunks: 2, bytes: 16 });
            let (mut reader, mut row) = (RowReader::new(cache), [0; 2]);
            reader.read(chunk(20, 0, Part::Differences), 1, &mut row).unwrap();
            assert_eq!(row, [3, 4]);
            assert!(reader.read(chunk(20, 0, Part::Differences), 2, &mut row).is_err());
            assert!(reader.read(chunk(2, 0, Part::Taps), 0, &mut row).is_err());
            assert_eq!(cache.len(chunk(1, 9, Part::Taps)), None);
        }
        on_disk.put(chunk(1, 9, Part::Taps), &[9; 12]).unwrap();
        assert_eq!(Cache::at(&directory).whole(chunk(1, 9, Part::Taps)).unwrap(), [9; 12]);
        on_disk.erase(Node(20)).unwrap();
        on_disk.erase(Node(20)).unwrap();
        assert_eq!(on_disk.list().unwrap().keys().collect::<Vec<_>>(), [&Node(1)]);
        assert_eq!(on_disk.len(chunk(20, 0, Part::Taps)), None);
        assert_eq!(on_disk.whole(chunk(1, 1, Part::Taps)).unwrap(), [2; 12]);
        fs::remove_dir_all(directory).unwrap();
    }
}
