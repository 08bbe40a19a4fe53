//! What has come of each device's rows, and what to ask for next.

use super::device_head::HeadKind;
use super::store::{Part, Stored, Unstored};
use super::trainer::Holding;
use base::{Blob, Node};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The account of a run. What is in it is in the cache.
#[derive(Serialize, Deserialize)]
pub struct Arrivals {
    held: BTreeMap<Node, Held>,
    head: HeadKind,
    /// The most samples of a chunk.
    chunk_limit: u32,
}

/// What is there of a device.
#[derive(Default, Serialize, Deserialize)]
struct Held {
    /// How many chunks there are, once the device has said so.
    chunks: Option<u32>,
    /// Rows of the stored chunks.
    stored: BTreeMap<u32, u32>,
    differences: bool,
    /// The next chunk to ask for in this round.
    next: u32,
    /// All of it came while the device was waited for. What a late device left behind is not trained on
    /// until it is drawn again, so that a recorded run can be repeated from who was counted.
    counted: bool,
}

/// A chunk as a device sends it.
#[derive(Serialize, Deserialize)]
pub struct Taps {
    pub index: u32,
    /// How many chunks there are.
    pub chunks: u32,
    pub rows: u32,
    pub taps: Blob,
    /// Absent where the device's head is still to be trained.
    pub differences: Option<Blob>,
}

impl Held {
    fn is_complete(&self) -> bool {
        self.differences && self.chunks.is_some_and(|chunks| self.stored.len() as u32 == chunks)
    }
}

impl Arrivals {
    pub fn new(head: HeadKind, chunk_limit: u32) -> Arrivals {
        Arrivals { held: BTreeMap::new(), head, chunk_limit }
    }

    /// Whether all of a device is there.
    pub fn is_complete(&self, node: Node) -> bool {
        self.held.get(&node).is_some_and(Held::is_complete)
    }

    /// Ask a device from the first chunk that is missing.
    pub fn begin(&mut self, node: Node) -> Option<u32> {
        self.held.entry(node).or_default().next = 0;
        self.next(node)
    }

    /// The next chunk to ask a device for, if there is one that is neither there nor asked for.
    pub fn next(&mut self, node: Node) -> Option<u32> {
        let held = self.held.entry(node).or_default();
        while held.stored.contains_key(&held.next) {
            held.next += 1;
        }
        let index = held.next;
        let there_is_more = held.chunks.is_none_or(|chunks| index < chunks);
        there_is_more.then(|| {
            held.next += 1;
            index
        })
    }

    /// A chunk has come: what is to be stored, or what is wrong with it.
    pub fn taps(&mut self, node: Node, taps: Taps) -> Result<Unstored, &'static str> {
        let held = self.held.entry(node).or_default();
        let Taps { index, chunks, rows, taps, differences } = taps;
        let known = held.chunks.is_none_or(|known| known == chunks);
        if !known || index >= held.next || index >= chunks || rows > self.chunk_limit {
            return Err("it sent a chunk that it was not asked for");
        }
        if differences.is_some() != (self.head == HeadKind::Zero) {
            return Err("it sent prediction differences at the wrong time");
        }
        held.chunks = Some(chunks);
        Ok(Unstored { node, parts: vec![Part { index, rows, taps: Some(taps), differences }] })
    }

    /// The differences of all chunks have come.
    pub fn differences(&mut self, node: Node, blobs: Vec<Blob>) -> Result<Unstored, &'static str> {
        let held = self.held.entry(node).or_default();
        if held.chunks != Some(blobs.len() as u32) || held.next < blobs.len() as u32 {
            return Err("it sent prediction differences at the wrong time");
        }
        let part = |(index, differences): (u32, Blob)| {
            let rows = differences.len() as u32 / 4;
            let rows = held.stored.get(&index).copied().unwrap_or(rows);
            Part { index, rows, taps: None, differences: Some(differences) }
        };
        Ok(Unstored { node, parts: (0..).zip(blobs).map(part).collect() })
    }

    /// Something is stored: whether all of the device is there now.
    pub fn stored(&mut self, stored: &Stored) -> bool {
        let held = self.held.entry(stored.node).or_default();
        held.stored.extend(stored.parts.iter().copied());
        held.differences |= stored.differences;
        held.is_complete()
    }

    /// From now on a device's rows are trained on.
    pub fn count(&mut self, node: Node) {
        self.held.entry(node).or_default().counted = true;
    }

    /// A device begins anew.
    pub fn forget(&mut self, node: Node) {
        self.held.remove(&node);
    }

    /// Everything of the devices that were counted, in node order.
    pub fn holdings(&self) -> Vec<Holding> {
        let counted = self.held.iter().filter(|(_, held)| held.counted);
        counted
            .map(|(&node, held)| Holding { node, rows: held.stored.values().copied().collect() })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taps(index: u32, chunks: u32) -> Taps {
        Taps { index, chunks, rows: 2, taps: Blob::default(), differences: Some(Blob::default()) }
    }

    #[test]
    fn every_chunk_is_asked_for_until_it_is_stored() {
        let (node, mut arrivals) = (Node(3), Arrivals::new(HeadKind::Zero, 4));
        assert_eq!(arrivals.begin(node), Some(0));
        assert!(arrivals.taps(node, taps(1, 3)).is_err(), "nobody asked for chunk 1");
        assert!(arrivals.taps(node, taps(0, 3)).is_ok());
        assert_eq!(
            (arrivals.next(node), arrivals.next(node), arrivals.next(node)),
            (Some(1), Some(2), None)
        );
        assert!(arrivals.taps(node, taps(1, 4)).is_err(), "it said there were 3 chunks");
        let stored = |index| Stored { node, parts: vec![(index, 2)], differences: true, objection: None };
        assert!(!arrivals.stored(&stored(1)));
        // A new round: what is missing is asked for again, and nothing else.
        assert_eq!(
            (arrivals.begin(node), arrivals.next(node), arrivals.next(node)),
            (Some(0), Some(2), None)
        );
        assert!(!arrivals.stored(&stored(0)) && arrivals.holdings().is_empty());
        assert!(
            arrivals.stored(&stored(2)) && arrivals.is_complete(node) && arrivals.holdings().is_empty()
        );
        arrivals.count(node);
        assert_eq!(arrivals.holdings(), [Holding { node, rows: vec![2, 2, 2] }]);
    }
}
