//! What a device sent, held against its shape and kept.

use super::bench::SideBench;
use super::cache::{self, Chunk};
use super::trainer::Shape;
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use federation::Fault;
use serde::{Deserialize, Serialize};

/// Parts of a device's contribution that are not kept yet.
#[derive(Clone, Serialize, Deserialize)]
pub struct Unstored {
    pub node: Node,
    pub parts: Vec<Part>,
}

/// A chunk, or what of it has come.
#[derive(Clone, Serialize, Deserialize)]
pub struct Part {
    pub index: u32,
    pub rows: u32,
    pub taps: Option<Blob>,
    pub differences: Option<Blob>,
}

/// What is kept now, or why it is not.
#[derive(Serialize, Deserialize)]
pub struct Stored {
    pub node: Node,
    /// The rows of each chunk.
    pub parts: Vec<(u32, u32)>,
    /// Whether the differences were there too.
    pub differences: bool,
    pub objection: Option<String>,
}

/// Check and keep. Doing it again changes nothing, so a server that died in between just does.
pub fn store(bench: &SideBench, unstored: Unstored, meter: &Meter) -> Result<Stored, Fault> {
    let Unstored { node, parts } = unstored;
    let shape = bench.backbones.of(node).shape;
    let _held = hold(meter, row_bytes(shape))?;
    let objection = parts.iter().find_map(|part| check(shape, part).err());
    let mut stored = Stored { node, parts: Vec::new(), differences: true, objection };
    if stored.objection.is_some() {
        return Ok(stored);
    }
    for part in &parts {
        let kinds = [(cache::Part::Taps, &part.taps), (cache::Part::Differences, &part.differences)];
        for (kind, blob) in kinds {
            let Some(blob) = blob else { continue };
            let chunk = Chunk { node, index: part.index, part: kind };
            for keeper in std::iter::once(&bench.cache).chain(&bench.traffic) {
                keeper
                    .put(chunk, &blob.0)
                    .map_err(|error| Fault(format!("the activation cache: {error}")))?;
            }
        }
        stored.parts.push((part.index, part.rows));
        stored.differences &= part.differences.is_some();
    }
    Ok(stored)
}

fn check(shape: Shape, part: &Part) -> Result<(), String> {
    let differences = part.differences.as_ref().map(|blob| &blob.0[..]);
    match &part.taps {
        Some(taps) => shape.check(part.rows, &taps.0, differences),
        None => shape.check_differences(part.rows, differences.unwrap_or_default()),
    }
}

fn row_bytes(shape: Shape) -> u64 {
    4 * (shape.taps * shape.width) as u64
}

/// What [`store`] takes.
pub fn price(bench: &SideBench, unstored: &Unstored) -> Cost {
    let bytes = unstored.parts.iter().flat_map(|part| [&part.taps, &part.differences]);
    let bytes: u64 = bytes.flatten().map(|blob| blob.len() as u64).sum();
    Cost { flops: bytes, bytes: row_bytes(bench.backbones.of(unstored.node).shape) }
}
