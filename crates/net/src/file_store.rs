//! A device's store: an append-only journal, replaced by a rename when a snapshot makes it short.

use crate::files;
use crate::store::{Batch, Past, Store, StoreError};
use federation::Journal;
use federation::journal::Entry;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One file, `journal`, in a folder of the device's own.
pub struct FileStore {
    path: PathBuf,
    /// Open at its end, once it was loaded.
    file: Option<File>,
}

impl FileStore {
    pub fn new(folder: &Path) -> FileStore {
        FileStore { path: folder.join("journal"), file: None }
    }

    fn open(&self) -> Result<File, StoreError> {
        OpenOptions::new().append(true).create(true).open(&self.path).map_err(StoreError::io(&self.path))
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Past, StoreError> {
        let bytes = files::read(&self.path)?.unwrap_or_default();
        let len = bytes.len() as u64;
        let recovered = Journal::from_bytes(bytes.into());
        let file = self.open()?;
        if recovered.discarded > 0 {
            // A write that was cut short. It was never acted upon: effects leave after the sync.
            tracing::warn!(bytes = recovered.discarded, "the journal's torn end is cut off");
            let whole = len - recovered.discarded as u64;
            file.set_len(whole).and_then(|()| file.sync_all()).map_err(StoreError::io(&self.path))?;
        }
        files::sync_folder_of(&self.path)?;
        self.file = Some(file);
        Ok(Past { journal: recovered.journal, sequences: BTreeMap::new() })
    }

    /// Records are the server's to keep, and sequence numbers too.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let snapshot = batch.entries.iter().rposition(|entry| matches!(entry, Entry::Snapshot(..)));
        let live = &batch.entries[snapshot.unwrap_or(0)..];
        let bytes: Vec<u8> = live.iter().flat_map(Entry::seal).collect();
        if snapshot.is_some() {
            files::write_atomically(&self.path, &bytes)?;
            self.file = Some(self.open()?);
            return Ok(());
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        written.map_err(StoreError::io(&self.path))?;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Packet, Time};
    use federation::Input;

    fn batch(entries: Vec<Entry>) -> Batch {
        Batch { entries, ..Batch::default() }
    }

    fn tick(at: u64) -> Entry {
        Entry::Input(Time(at), Input::Timer)
    }

    #[test]
    fn what_was_committed_is_there_and_a_torn_end_is_cut_off_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = FileStore::new(folder.path());
        assert!(store.load().unwrap().journal.is_empty());
        store.commit(&batch(vec![tick(1), tick(2)])).unwrap();
        store.commit(&batch(vec![tick(3), Entry::Snapshot(Time(4), Packet::default()), tick(5)])).unwrap();
        store.commit(&batch(vec![tick(6)])).unwrap();
        let path = folder.path().join("journal");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], &tick(7).seal()[..9]].concat()).unwrap();
        let mut store = FileStore::new(folder.path());
        let past = store.load().unwrap();
        assert_eq!((past.journal.len(), past.time()), (2, Time(6)));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        store.commit(&batch(vec![tick(8)])).unwrap();
        assert_eq!(FileStore::new(folder.path()).load().unwrap().journal.len(), 3);
    }
}
