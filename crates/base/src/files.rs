//! Files that are whole or not there, whatever happens while they are written.
//!
//! What is acknowledged has to outlive a power failure, so [`place`] returns when its file does. The order of its
//! steps is why; the test below takes the power away after each of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What a draft's name has beyond its file's.
pub const DRAFT: &str = "new";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Write the content under the name of a draft.
    Draft,
    /// Make the content last.
    SyncContent,
    /// Give it its name, in place of what had it.
    Rename,
    /// Make the name last.
    SyncFolder,
}

const ORDER: [Step; 4] = [Step::Draft, Step::SyncContent, Step::Rename, Step::SyncFolder];

impl Step {
    fn take(self, path: &Path, bytes: &[u8], options: &mut OpenOptions) -> io::Result<()> {
        let draft = draft_of(path);
        match self {
            Step::Draft => {
                // A leftover of a killed process may have other permissions.
                let _ = fs::remove_file(&draft);
                options.write(true).create_new(true).open(&draft)?.write_all(bytes)
            }
            Step::SyncContent => OpenOptions::new().write(true).open(&draft)?.sync_all(),
            Step::Rename => fs::rename(&draft, path),
            Step::SyncFolder => sync_folder_of(path),
        }
    }
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(DRAFT);
    path.with_file_name(name)
}

/// Put a file in place so that a reader, or a machine that starts again, sees what stood there before or all of
/// this. `options` say who may read it.
pub fn place(path: &Path, bytes: &[u8], options: &mut OpenOptions) -> io::Result<()> {
    ORDER.iter().try_for_each(|step| step.take(path, bytes, options))
}

/// [`place`] for whom the system lets read new files.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    place(path, bytes, &mut OpenOptions::new())
}

/// A new name in a folder lasts only once the folder is synced.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = b"before";
    const NEW: &[u8] = b"behind it";

    /// Everything that a disk may hold of the file at `path` when the power fails after these steps: what was not
    /// synced may be lost, names and content apart.
    fn after_power_failure(done: &[Step], folder: &Path) -> Vec<Option<Vec<u8>>> {
        let (path, mut found) = (folder.join("file"), Vec::new());
        let lengths = if done.contains(&Step::SyncContent) { NEW.len()..=NEW.len() } else { 0..=NEW.len() };
        for length in lengths {
            for renamed in [false, true] {
                fs::write(&path, OLD).unwrap();
                for step in done {
                    step.take(&path, NEW, &mut OpenOptions::new()).unwrap();
                }
                let named = if done.contains(&Step::Rename) { path.clone() } else { draft_of(&path) };
                if let Ok(file) = OpenOptions::new().write(true).open(&named) {
                    file.set_len(length as u64).unwrap();
                }
                if !renamed && done.contains(&Step::Rename) && !done.contains(&Step::SyncFolder) {
                    fs::rename(&path, draft_of(&path)).unwrap();
                    fs::write(&path, OLD).unwrap();
                }
                found.push(fs::read(&path).ok());
            }
        }
        found
    }

    #[test]
    fn a_power_failure_after_any_step_leaves_the_old_file_or_the_new_one() {
        let folder = std::env::temp_dir().join(format!("undertone-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut survived = 0;
        for steps in 0..=ORDER.len() {
            for found in after_power_failure(&ORDER[..steps], &folder) {
                let found = found.expect("the old file is not removed before the new one is there");
                assert!(found == OLD || found == NEW, "after {:?}: {found:?}", &ORDER[..steps]);
                assert!(steps < ORDER.len() || found == NEW, "what was acknowledged is lost");
                survived += usize::from(found == NEW);
            }
        }
        assert!(survived > 2, "the new file is seen before it is sure to last, too");
        // Renamed before it is synced, a file can be there and be torn.
        let hasty = after_power_failure(&[Step::Draft, Step::Rename, Step::SyncFolder], &folder);
        assert!(hasty.contains(&Some(NEW[..3].to_vec())));
        fs::remove_dir_all(folder).unwrap();
    }
}
