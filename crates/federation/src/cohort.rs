//! One round's devices: drawn by seed, then counted or lost one by one.

use base::{Node, Seed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Draw `count` of the available devices for a round. A device's place in the draw depends on the seed,
/// the round and its own number alone, never on who else is there or in which order they came.
pub(crate) fn draw(
    seed: Seed,
    round: u32,
    available: impl Iterator<Item = Node>,
    count: usize,
) -> Vec<Node> {
    let path = seed.child("cohort", u64::from(round));
    let mut places: Vec<(u64, Node)> =
        available.map(|node| (path.child("pick", u64::from(node.0)).0, node)).collect();
    places.sort_unstable();
    let mut drawn: Vec<Node> = places.into_iter().take(count).map(|(_, node)| node).collect();
    drawn.sort_unstable();
    drawn
}

/// Where a device of the cohort stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Progress {
    Waiting,
    Counted,
    Lost,
}

/// The devices of the current round.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cohort {
    progress: BTreeMap<Node, Progress>,
    /// When this many are counted, the others are not needed any more.
    needed: usize,
    waiting: usize,
    counted: usize,
}

impl Cohort {
    pub fn new(nodes: &[Node], needed: usize) -> Cohort {
        let progress = nodes.iter().map(|node| (*node, Progress::Waiting)).collect();
        Cohort { progress, needed, waiting: nodes.len(), counted: 0 }
    }

    pub fn progress(&self, node: Node) -> Option<Progress> {
        self.progress.get(&node).copied()
    }

    /// The device is counted; false when it was not waited for.
    pub fn count(&mut self, node: Node) -> bool {
        self.turn(node, Progress::Waiting, Progress::Counted)
    }

    /// The device is lost; false when it was not waited for.
    pub fn lose(&mut self, node: Node) -> bool {
        self.turn(node, Progress::Waiting, Progress::Lost)
    }

    /// What the device gave turned out to be no good; false when it was lost before or is a stranger.
    pub fn refuse(&mut self, node: Node) -> bool {
        self.lose(node) || self.turn(node, Progress::Counted, Progress::Lost)
    }

    fn turn(&mut self, node: Node, from: Progress, to: Progress) -> bool {
        let Some(progress) = self.progress.get_mut(&node).filter(|progress| **progress == from) else {
            return false;
        };
        *progress = to;
        self.waiting -= usize::from(from == Progress::Waiting);
        self.counted -= usize::from(from == Progress::Counted);
        self.counted += usize::from(to == Progress::Counted);
        true
    }

    /// Enough devices have finished; those still waited for are not needed.
    pub fn is_full(&self) -> bool {
        self.counted >= self.needed && self.waiting > 0 && self.needed > 0
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    pub fn counted(&self) -> usize {
        self.counted
    }

    /// Every device of a cohort that had some is lost.
    pub fn is_lost(&self) -> bool {
        !self.progress.is_empty() && self.waiting == 0 && self.counted == 0
    }

    /// Those still waited for, in node order.
    pub fn still_waiting(&self) -> Vec<Node> {
        let waiting = self.progress.iter().filter(|(_, progress)| **progress == Progress::Waiting);
        waiting.map(|(node, _)| *node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_draw_knows_neither_order_nor_absent_others() {
        let nodes: Vec<Node> = (1..=100).map(Node).collect();
        let drawn = draw(Seed(7), 3, nodes.iter().copied(), 30);
        assert_eq!(drawn, draw(Seed(7), 3, nodes.iter().rev().copied(), 30));
        assert!(drawn.is_sorted() && drawn.len() == 30);
        assert_ne!(drawn, draw(Seed(7), 4, nodes.iter().copied(), 30));
        assert_ne!(drawn, draw(Seed(8), 3, nodes.iter().copied(), 30));
        let gone = drawn[0];
        let without = draw(Seed(7), 3, nodes.iter().copied().filter(|node| *node != gone), 30);
        assert_eq!(without.iter().filter(|node| !drawn.contains(node)).count(), 1);
    }

    #[test]
    fn everyone_is_drawn_about_equally_often() {
        let mut times = [0; 20];
        for round in 0..2000 {
            draw(Seed(1), round, (0..20).map(Node), 5).iter().for_each(|node| times[node.0 as usize] += 1);
        }
        assert!(times.iter().all(|times| (400..600).contains(times)), "{times:?}");
    }
}
