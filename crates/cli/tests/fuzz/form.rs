//! How inputs are framed: taken apart, so that their parts are mutated, and put together again with lengths and
//! checksums that are right.

use base::{Blob, Packet};

/// A framing. `split` gives nothing where bytes are not framed like that.
#[derive(Clone, Copy)]
pub struct Form {
    pub split: fn(&[u8]) -> Option<Vec<Vec<u8>>>,
    pub join: fn(Vec<Vec<u8>>) -> Vec<u8>,
}

/// Bytes without a frame.
pub const PLAIN: Form = Form { split: |_| None, join: |parts| parts.concat() };

/// A byte that chooses among several readings, and what is read.
pub const CHOICE: Form = Form {
    split: |bytes| bytes.split_first().map(|(first, rest)| vec![vec![*first], rest.to_vec()]),
    join: |parts| parts.concat(),
};

/// A body and its blobs. Several files that belong together are packed like that too.
pub const PACKET: Form = Form { split: split_packet, join: join_packet };

/// A byte that chooses the moment, and the packet that arrives at it: a sealed frame.
pub const FRAME: Form = Form { split: split_frame, join: join_frame };

/// A byte that chooses the node, and the packet that is its snapshot.
pub const SNAPSHOT: Form = Form {
    split: |bytes| {
        let (node, packet) = bytes.split_first()?;
        Some([vec![vec![*node]], split_packet(packet)?].concat())
    },
    join: |mut parts| {
        let packet = parts.split_off(1.min(parts.len()));
        [parts.concat(), join_packet(packet)].concat()
    },
};

/// Entries of a journal, each with its length and checksum.
pub const JOURNAL: Form = Form { split: split_journal, join: join_journal };

/// A header with its length before it, and the tensors.
pub const SAFETENSORS: Form = Form { split: split_safetensors, join: join_safetensors };

/// Files as one input: the first is the body of a packet, the others its blobs.
pub fn bundle(files: &[&[u8]]) -> Vec<u8> {
    join_packet(files.iter().map(|file| file.to_vec()).collect())
}

/// The files of a [`bundle`].
pub fn files(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    split_packet(bytes)
}

fn split_packet(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let Packet { body, blobs } = Packet::from_bytes(bytes.to_vec().into()).ok()?;
    Some(std::iter::once(body.to_vec()).chain(blobs.iter().map(|blob| blob.0.to_vec())).collect())
}

fn packet(parts: Vec<Vec<u8>>) -> Packet {
    let mut parts = parts.into_iter();
    let body = parts.next().unwrap_or_default().into();
    Packet { body, blobs: parts.map(|part| Blob(part.into())).collect() }
}

fn join_packet(parts: Vec<Vec<u8>>) -> Vec<u8> {
    packet(parts).to_bytes()
}

const SEAL: usize = 8;

fn split_frame(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (moment, bytes) = bytes.split_first()?;
    let mut parts = split_packet(bytes)?;
    let end = parts[0].len().checked_sub(SEAL)?;
    parts[0].truncate(end);
    parts.insert(0, vec![*moment]);
    Some(parts)
}

/// Seals as `federation` does: over the body and the lengths of the blobs.
fn join_frame(mut parts: Vec<Vec<u8>>) -> Vec<u8> {
    let rest = parts.split_off(1.min(parts.len()));
    let Packet { body, blobs } = packet(rest);
    let mut hash = blake3::Hasher::new();
    hash.update(&body);
    for blob in &blobs {
        hash.update(&(blob.len() as u64).to_le_bytes());
    }
    let body = [&body[..], &hash.finalize().as_bytes()[..SEAL]].concat();
    [parts.concat(), Packet { body: body.into(), blobs }.to_bytes()].concat()
}

const CHECK: usize = 16;

fn split_journal(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(8 + CHECK) {
        let len = u64::from_le_bytes(header[..8].try_into().ok()?);
        let (entry, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        entries.push(entry.to_vec());
        bytes = rest;
    }
    Some(entries).filter(|entries| !entries.is_empty())
}

fn join_journal(entries: Vec<Vec<u8>>) -> Vec<u8> {
    let seal = |entry: &Vec<u8>| {
        let len = (entry.len() as u64).to_le_bytes();
        let check = blake3::Hasher::new().update(&len).update(entry).finalize();
        [&len, &check.as_bytes()[..CHECK], entry].concat()
    };
    entries.iter().flat_map(seal).collect()
}

pub fn split_safetensors(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (len, rest) = bytes.split_at_checked(8)?;
    let len = u64::from_le_bytes(len.try_into().ok()?);
    let (header, data) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some(vec![header.to_vec(), data.to_vec()])
}

pub fn join_safetensors(parts: Vec<Vec<u8>>) -> Vec<u8> {
    let len = parts.first().map_or(0, Vec::len) as u64;
    [len.to_le_bytes().to_vec(), parts.concat()].concat()
}
