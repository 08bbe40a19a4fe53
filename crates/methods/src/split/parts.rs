//! Which of the trained parameters are whose: the device's, below its cut (and the head's, where it keeps
//! the labels), and the server's.
//!
//! A device of a lower LoRA rank has the first rows of every A and the first columns of every B. The
//! others are zero on both halves while it trains, and stay so: the gradient of either factor is a
//! product with the other.

use super::{Labels, Terms};
use base::Blob;
use federation::Fault;
use model::{Layout, Place, SiteKind};
use std::ops::Range;

/// One half's share of the trained parameters: ranges of the whole model's `theta`, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    runs: Vec<Range<usize>>,
    /// The length of the whole `theta`.
    total: usize,
}

impl Part {
    /// What a device on these terms trains.
    pub fn of_device(layout: &Layout, labels: Labels, terms: &Terms) -> Part {
        let (at, head) = bounds(layout, labels, terms);
        Part::of(layout, &[0..at, head..layout.total()], terms.rank)
    }

    /// Of that, what stands below the cut.
    pub fn of_blocks(layout: &Layout, labels: Labels, terms: &Terms) -> Part {
        let (at, _) = bounds(layout, labels, terms);
        Part::of(layout, std::slice::from_ref(&(0..at)), terms.rank)
    }

    /// Of that, the head's: nothing where the server holds the labels.
    pub fn of_head(layout: &Layout, labels: Labels, terms: &Terms) -> Part {
        let (_, head) = bounds(layout, labels, terms);
        Part::of(layout, std::slice::from_ref(&(head..layout.total())), terms.rank)
    }

    /// What the server trains for it.
    pub fn of_server(layout: &Layout, labels: Labels, terms: &Terms) -> Part {
        let (at, head) = bounds(layout, labels, terms);
        Part::of(layout, std::slice::from_ref(&(at..head)), terms.rank)
    }

    fn of(layout: &Layout, ranges: &[Range<usize>], rank: Option<u32>) -> Part {
        let mut part = Part { runs: Vec::new(), total: layout.total() };
        let Some(rank) = rank.map(|rank| rank as usize) else {
            ranges.iter().for_each(|range| part.push(range.clone()));
            return part;
        };
        let inside = |offset: &usize| ranges.iter().any(|range| range.contains(offset));
        for site in layout.sites.iter().filter(|site| inside(&site.offset)) {
            match site.kind {
                SiteKind::LoraA => part.push(site.offset..site.offset + rank.min(site.rows) * site.cols),
                SiteKind::LoraB => (0..site.rows).for_each(|row| {
                    let first = site.offset + row * site.cols;
                    part.push(first..first + rank.min(site.cols));
                }),
                _ => part.push(site.range()),
            }
        }
        part
    }

    fn push(&mut self, range: Range<usize>) {
        match self.runs.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.runs.push(range),
        }
    }

    /// How many parameters it has.
    pub fn len(&self) -> usize {
        self.runs.iter().map(ExactSizeIterator::len).sum()
    }

    /// This part of a vector as long as `theta`.
    pub fn gather(&self, whole: &[f32]) -> Vec<f32> {
        self.runs.iter().flat_map(|run| &whole[run.clone()]).copied().collect()
    }

    /// Put this part into a vector as long as `theta`.
    pub fn scatter(&self, part: &[f32], whole: &mut [f32]) {
        let mut rest = part;
        for run in &self.runs {
            let (own, others) = rest.split_at(run.len());
            whole[run.clone()].copy_from_slice(own);
            rest = others;
        }
    }

    /// A received part: the right number of finite values, or a fault that says so.
    pub fn read(&self, part: &Blob) -> Result<Vec<f32>, Fault> {
        let own = part.to_f32(self.len()).map_err(|error| Fault(error.to_string()))?;
        if ops::slice::all_finite(&own) {
            Ok(own)
        } else {
            Err(Fault("parameters that are not finite".into()))
        }
    }

    /// A received part within a vector as long as `theta`, which is zero elsewhere.
    pub fn spread(&self, part: &Blob) -> Result<Vec<f32>, Fault> {
        let mut whole = vec![0f32; self.total];
        self.scatter(&self.read(part)?, &mut whole);
        Ok(whole)
    }
}

/// Where the device's own blocks end, and where what stands behind the server's blocks begins.
fn bounds(layout: &Layout, labels: Labels, terms: &Terms) -> (usize, usize) {
    let head = match labels {
        Labels::Server => layout.total(),
        Labels::Device => layout
            .sites
            .iter()
            .find(|site| site.place == Place::Last)
            .map_or(layout.total(), |site| site.offset),
    };
    (layout.cut(terms.cut()).min(head), head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::{Half, Steps, Traffic};
    use model::{PeftConfig, Pooling, Spec, Task};

    fn layout() -> Layout {
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/bert/config.json");
        let spec = Spec::from_config(&std::fs::read_to_string(config).unwrap()).unwrap();
        let task = Task::Classification { classes: 3, pooling: Pooling::Mean, squash: None };
        Layout::new(&spec, &task, &PeftConfig::lora(4, 8.0, &["query", "value"]))
    }

    #[test]
    fn the_two_parts_are_the_whole_and_share_nothing() {
        let layout = layout();
        let whole: Vec<f32> = (1..=layout.total()).map(|i| i as f32).collect();
        for labels in [Labels::Server, Labels::Device] {
            for rank in [None, Some(1), Some(3), Some(4), Some(9)] {
                let terms = Terms {
                    cut: 1,
                    rank,
                    traffic: Traffic::F32,
                    half: Half::Backward,
                    steps: Steps::Recipe,
                };
                let device = Part::of_device(&layout, labels, &terms);
                let server = Part::of_server(&layout, labels, &terms);
                let mut joined = vec![0f32; layout.total()];
                device.scatter(&device.gather(&whole), &mut joined);
                let both = joined.iter().filter(|value| **value != 0.0).count();
                server.scatter(&server.gather(&whole), &mut joined);
                assert_eq!(both, device.len());
                let filled = joined.iter().filter(|value| **value != 0.0).count();
                assert_eq!(filled, device.len() + server.len(), "{labels:?} {rank:?}");
                if rank.is_none_or(|rank| rank >= 4) {
                    assert_eq!(joined, whole, "{labels:?} {rank:?}");
                }
            }
        }
    }
}
