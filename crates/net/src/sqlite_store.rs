//! A server's store: journal and records in SQLite, large contents as files beside it.

use crate::blobs::BlobStore;
use crate::database::Database;
use crate::envelope::{Envelope, Packed};
use crate::store::{Batch, Past, Store, StoreError};
use base::{CodecError, Node, decode, encode};
use federation::journal::Entry;
use federation::{Journal, Record};
use rusqlite::{Transaction, params};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The database of a server's folder, and its blobs.
pub struct SqliteStore {
    database: Database,
    blobs: BlobStore,
    /// What the journal refers to.
    referred: BTreeSet<crate::protocol::Address>,
}

impl SqliteStore {
    pub fn open(folder: &Path) -> Result<SqliteStore, StoreError> {
        let (database, blobs) = (Database::open(folder)?, BlobStore::open(folder)?);
        Ok(SqliteStore { database, blobs, referred: BTreeSet::new() })
    }

    fn entry(&self, bytes: Vec<u8>) -> Result<(Envelope, Entry), StoreError> {
        let damaged = |error: CodecError| StoreError::damaged(&self.database.path, error);
        let envelope = Envelope::from_bytes(bytes.into()).map_err(damaged)?;
        let packet = envelope.unpack(|part| {
            let content = self.blobs.read(part).map_err(Unread::Store)?;
            let missing = || Unread::Codec(CodecError(format!("the content {} is missing", part.address)));
            content.ok_or_else(missing)
        });
        let packet = packet.map_err(|unread| match unread {
            Unread::Store(error) => error,
            Unread::Codec(error) => damaged(error),
        })?;
        Ok((envelope, decode(&packet).map_err(damaged)?))
    }

    fn sequences(&self) -> rusqlite::Result<BTreeMap<Node, u64>> {
        let mut query = self.database.connection.prepare("SELECT node, sequence FROM sequences")?;
        let rows = query.query_map([], |row| Ok((Node(row.get(0)?), row.get::<_, i64>(1)? as u64)))?;
        rows.collect()
    }
}

fn insert(transaction: &Transaction, batch: &Batch, rows: &[Vec<u8>]) -> rusqlite::Result<()> {
    let mut add = transaction.prepare_cached("INSERT INTO journal (entry) VALUES (?1)")?;
    rows.iter().try_for_each(|row| add.execute([row]).map(drop))?;
    let mut add = transaction.prepare_cached("INSERT INTO records (record) VALUES (?1)")?;
    for record in &batch.records {
        add.execute([serde_json::to_string(record).expect("records are plain data")])?;
    }
    let raise = "INSERT OR REPLACE INTO sequences (node, sequence) VALUES (?1, ?2)";
    let mut raise = transaction.prepare_cached(raise)?;
    for (node, sequence) in &batch.sequences {
        raise.execute(params![node.0, *sequence as i64])?;
    }
    Ok(())
}

enum Unread {
    Store(StoreError),
    Codec(CodecError),
}

impl From<CodecError> for Unread {
    fn from(error: CodecError) -> Unread {
        Unread::Codec(error)
    }
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Past, StoreError> {
        let failed = self.database.failed();
        let rows = || -> rusqlite::Result<Vec<Vec<u8>>> {
            let mut query = self.database.connection.prepare("SELECT entry FROM journal ORDER BY id")?;
            query.query_map([], |row| row.get(0))?.collect()
        };
        let (mut entries, mut referred) = (Vec::new(), BTreeSet::new());
        for bytes in rows().map_err(&failed)? {
            let (envelope, entry) = self.entry(bytes)?;
            referred.extend(envelope.beside().map(|part| part.address));
            entries.push(entry);
        }
        self.referred = referred;
        let sequences = self.sequences().map_err(&failed)?;
        Ok(Past { journal: Journal::from_entries(entries), sequences })
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let snapshot = batch.entries.iter().rposition(|entry| matches!(entry, Entry::Snapshot(..)));
        let mut rows = Vec::new();
        if snapshot.is_some() {
            self.referred.clear();
        }
        for entry in &batch.entries[snapshot.unwrap_or(0)..] {
            let Packed { envelope, beside } = Envelope::pack(&encode(entry));
            for (part, content) in beside {
                self.blobs.put(&part, &content)?;
                self.referred.insert(part.address);
            }
            rows.push(envelope.to_bytes());
        }
        let failed = self.database.failed();
        let write = || -> rusqlite::Result<()> {
            let transaction = self.database.connection.unchecked_transaction()?;
            if snapshot.is_some() {
                transaction.execute("DELETE FROM journal", [])?;
            }
            insert(&transaction, batch, &rows)?;
            transaction.commit()
        };
        write().map_err(&failed)?;
        if snapshot.is_some() {
            self.blobs.sweep(&self.referred);
        }
        Ok(())
    }
}

/// The records of the run that a server's folder holds, oldest first, from the one numbered `from` (0 is the
/// first).
pub fn read_records(folder: &Path, from: u64) -> Result<Vec<Record>, StoreError> {
    let database = Database::open(folder)?;
    let read = || -> rusqlite::Result<Vec<String>> {
        let query = "SELECT record FROM records ORDER BY id LIMIT -1 OFFSET ?1";
        let mut query = database.connection.prepare(query)?;
        query.query_map([from as i64], |row| row.get(0))?.collect()
    };
    let lines = read().map_err(database.failed())?;
    let parse = |line: &String| {
        serde_json::from_str(line).map_err(|error| StoreError::damaged(&database.path, error))
    };
    lines.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Blob, Packet, SERVER, Time};
    use federation::{Fact, Input};

    fn message(at: u64, bytes: usize) -> Entry {
        let packet = Packet { body: vec![1].into(), blobs: vec![Blob(vec![at as u8; bytes].into())] };
        Entry::Input(Time(at), Input::Message { from: Node(1), packet })
    }

    #[test]
    fn what_was_committed_is_there_with_its_large_contents() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record { t: Time(3), node: SERVER, fact: Fact::Restored { replayed: 1 } };
        let batch = Batch {
            entries: vec![message(1, 10), message(2, 1 << 20)],
            records: vec![record.clone()],
            sequences: BTreeMap::from([(Node(1), 9)]),
        };
        SqliteStore::open(folder.path()).unwrap().commit(&batch).unwrap();
        let mut store = SqliteStore::open(folder.path()).unwrap();
        let past = store.load().unwrap();
        let expected = Journal::from_entries([message(1, 10), message(2, 1 << 20)]);
        assert_eq!(past.journal.to_bytes(), expected.to_bytes());
        assert_eq!((past.time(), past.sequences), (Time(2), batch.sequences));
        assert_eq!(read_records(folder.path(), 0).unwrap(), [record]);
        let entries = vec![Entry::Snapshot(Time(5), Packet::default()), message(6, 10)];
        store.commit(&Batch { entries, ..Batch::default() }).unwrap();
        assert_eq!(store.load().unwrap().journal.len(), 1);
        assert!(store.referred.is_empty());
    }

    #[test]
    fn a_missing_content_or_a_layout_of_the_future_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(folder.path()).unwrap();
        store.commit(&Batch { entries: vec![message(2, 1 << 20)], ..Batch::default() }).unwrap();
        let address = store.referred.first().unwrap().to_string();
        std::fs::remove_file(folder.path().join("blobs").join(&address)).unwrap();
        assert!(store.load().err().unwrap().to_string().contains(&address));
        store.database.connection.pragma_update(None, "user_version", 9).unwrap();
        assert!(SqliteStore::open(folder.path()).err().unwrap().to_string().contains("layout is 9"));
    }
}
