//! Files that are whole or not there, whatever happens while they are written.

use crate::StoreError;
use std::fs::{self, OpenOptions};
use std::path::Path;

/// Write a file under another name, make it last, and rename it into place.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    place(path, bytes, &mut OpenOptions::new())
}

/// The same for what nobody else on this machine may read.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    place(path, bytes, &mut options)
}

fn place(path: &Path, bytes: &[u8], options: &mut OpenOptions) -> Result<(), StoreError> {
    base::files::place(path, bytes, options).map_err(StoreError::io(path))
}

/// A new name in a folder lasts only once the folder is synced.
pub fn sync_folder_of(path: &Path) -> Result<(), StoreError> {
    base::files::sync_folder_of(path).map_err(StoreError::io(path))
}

/// Make a folder that nobody else on this machine may look into.
pub fn create_private(path: &Path) -> Result<(), StoreError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(StoreError::io(path))
}

/// The bytes of a file, or `None` where there is none.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io(path)(error)),
    }
}
