//! Who did what when, for a chart: a bounded number of rows, each with a bounded number of spans.

use base::{Node, SERVER, Seed, Time};
use std::collections::BTreeMap;

/// Devices that get a row of their own.
pub const ROWS: usize = 60;

/// Spans and marks kept in one lane; beyond it, neighbours are joined.
const SPANS: usize = 1024;

/// Jobs of the server in the [`Opening`].
const OPENING: u32 = 24;

/// The first steps of a run close up, for methods whose server works between the steps of devices: at the
/// scale of a whole run they are all one bar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    pub timeline: Timeline,
    /// From the first job of a device ...
    begin: Option<Time>,
    /// ... to the end of the server's last job that is shown.
    end: Option<Time>,
    jobs: u32,
}

/// What a node was busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    Compute,
    /// Bytes on their way to the node.
    Receive,
    /// Bytes on their way from the node.
    Send,
    /// Killed or gone, until it came back; to the end of time if it did not.
    Away,
}

/// One stretch of one activity; joined neighbours count more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub begin: Time,
    pub end: Time,
    pub joined: u32,
}

/// Spans of one activity in order of recording, joined where the gap is at most `grain`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    spans: Vec<Span>,
    grain: u64,
}

/// The activities of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub lanes: BTreeMap<Activity, Lane>,
    /// When this device was lost to a round.
    pub lost: Vec<Time>,
}

/// The server and a uniform sample of the devices that did anything.
///
/// Of more than [`ROWS`] active devices those with the smallest hash stay (bottom-k sampling), so
/// that one pass over a trace suffices and the sample does not depend on who came first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    pub server: Row,
    devices: BTreeMap<(u64, Node), Row>,
    /// Whether an active device had to go without a row.
    pub sampled: bool,
}

impl Timeline {
    /// The sampled devices in node order.
    pub fn devices(&self) -> Vec<(Node, &Row)> {
        let mut rows: Vec<_> = self.devices.iter().map(|((_, node), row)| (*node, row)).collect();
        rows.sort_by_key(|(node, _)| *node);
        rows
    }

    pub(crate) fn add(&mut self, node: Node, activity: Activity, begin: Time, end: Time) {
        if let Some(row) = self.row(node) {
            row.lanes.entry(activity).or_default().add(Span { begin, end, joined: 1 });
        }
    }

    pub(crate) fn lose(&mut self, node: Node, at: Time) {
        if let Some(row) = self.row(node)
            && row.lost.len() < SPANS
        {
            row.lost.push(at);
        }
    }

    /// The row of a node, if it has one. A device once turned away stays so: the largest hash kept
    /// only ever falls.
    fn row(&mut self, node: Node) -> Option<&mut Row> {
        if node == SERVER {
            return Some(&mut self.server);
        }
        let key = (Seed(0).child("timeline", u64::from(node.0)).0, node);
        if !self.devices.contains_key(&key) && self.devices.len() >= ROWS {
            self.sampled = true;
            let last = *self.devices.last_key_value()?.0;
            if key > last {
                return None;
            }
            self.devices.remove(&last);
        }
        Some(self.devices.entry(key).or_default())
    }
}

impl Opening {
    /// From when until when, once it is complete.
    pub fn window(&self) -> Option<(Time, Time)> {
        Some((self.begin?, self.end?))
    }

    pub(crate) fn add(&mut self, node: Node, activity: Activity, begin: Time, end: Time) {
        if self.end.is_some_and(|last| begin >= last) {
            return;
        }
        if activity == Activity::Compute && begin < end {
            if node != SERVER {
                self.begin.get_or_insert(begin);
            } else if self.begin.is_some_and(|first| begin >= first) {
                self.jobs += 1;
                if self.jobs == OPENING {
                    self.end = Some(end);
                }
            }
        }
        self.timeline.add(node, activity, begin, end);
    }
}

impl Lane {
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The spans with gaps of at most `grain` nanoseconds closed.
    pub fn joined(&self, grain: u64) -> Vec<Span> {
        let mut joined = Lane { spans: Vec::new(), grain };
        self.spans.iter().for_each(|span| joined.place(*span));
        joined.spans
    }

    fn add(&mut self, span: Span) {
        self.place(span);
        while self.spans.len() > SPANS {
            let extent = span.end.0.saturating_sub(self.spans[0].begin.0);
            self.grain = (self.grain * 2).max(extent / SPANS as u64 + 1);
            self.spans = self.joined(self.grain);
        }
    }

    fn place(&mut self, span: Span) {
        match self.spans.last_mut() {
            Some(last) if self.grain > 0 && span.begin.0 <= last.end.0.saturating_add(self.grain) => {
                last.begin = last.begin.min(span.begin);
                last.end = last.end.max(span.end);
                last.joined += span.joined;
            }
            _ => self.spans.push(span),
        }
    }
}
