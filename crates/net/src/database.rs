//! The server's database: one SQLite file, which several processes may open at once.

use crate::store::StoreError;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An open database.
pub(crate) struct Database {
    pub connection: Connection,
    pub path: PathBuf,
}

/// The layout of the tables; a file of another one is refused.
const LAYOUT: i64 = 1;

const TABLES: &str = "
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS journal (id INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS sequences (node INTEGER PRIMARY KEY, sequence INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tokens (
    hash BLOB PRIMARY KEY, node INTEGER NOT NULL, role TEXT NOT NULL, expires INTEGER NOT NULL, key BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS certificates (
    hash BLOB PRIMARY KEY, node INTEGER NOT NULL, role TEXT NOT NULL, key BLOB NOT NULL,
    pem TEXT NOT NULL, expires INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS certificates_by_node ON certificates (node);
PRAGMA user_version = 1;
COMMIT;
";

impl Database {
    /// Open, or make, the database in this folder.
    pub fn open(folder: &Path) -> Result<Database, StoreError> {
        let path = folder.join("store.db");
        let failed = StoreError::sqlite(&path);
        let connection = Connection::open(&path).map_err(&failed)?;
        connection.busy_timeout(Duration::from_secs(20)).map_err(&failed)?;
        // Readers do not wait for writers (WAL), and a commit is on the disk when it returns (FULL).
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        let layout: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(&failed)?;
        match layout {
            0 => connection.execute_batch(TABLES).map_err(&failed)?,
            LAYOUT => {}
            other => {
                let what =
                    format!("its layout is {other}, this program knows {LAYOUT}: update the program");
                return Err(StoreError::damaged(&path, what));
            }
        }
        Ok(Database { connection, path })
    }

    /// For `map_err`.
    pub fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        StoreError::sqlite(&self.path)
    }
}
