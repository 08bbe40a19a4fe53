//! Inputs worth keeping, a folder a target, each file named by the hash of its content.

use std::fs;
use std::path::{Path, PathBuf};

/// What the inputs of one target may come to, and one of them.
const ROOM: usize = 32 << 10;
const LARGEST: usize = 16 << 10;

fn folder(target: &str) -> PathBuf {
    let name: String = target.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

/// Every input kept of a target, in the order of their names.
pub fn load(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a readable file")).collect()
}

/// Whether one more input of this length has room.
pub fn has_room(held: usize, len: usize) -> bool {
    len <= LARGEST && held + len <= ROOM
}

/// Keep an input; where.
pub fn keep(target: &str, input: &[u8]) -> PathBuf {
    let folder = folder(target);
    fs::create_dir_all(&folder).expect("the corpus can be written");
    let path = folder.join(&blake3::hash(input).to_hex()[..16]);
    fs::write(&path, input).expect("the corpus can be written");
    path
}
