//! The server's book of members: who has said hello, and the link to each.

use crate::frame::{Frame, Letter, printable};
use crate::link::Link;
use crate::{Effects, Member};
use base::{Node, SERVER, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest numbers a device may claim: beyond them it is mistaken or hostile, and sums would overflow.
const EXAMPLES_LIMIT: u64 = 1 << 40;
const MEMORY_LIMIT: u64 = 1 << 50;
const SPEED_LIMIT: f64 = 1e24;
const CLASS_LIMIT: usize = 64;

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Roster {
    members: BTreeMap<Node, Entry>,
    /// Members the driver has not given up on.
    present: BTreeSet<Node>,
    /// Nodes the driver has given up on before they ever said hello.
    absent: BTreeSet<Node>,
    /// When each link is to be looked at; rebuilt after a restore.
    #[serde(skip)]
    dues: BTreeSet<(Time, Node)>,
    /// Links with something to send at the end of this turn.
    #[serde(skip)]
    touched: BTreeSet<Node>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    member: Member,
    link: Link,
    /// The link's place in `dues`.
    #[serde(skip)]
    due: Option<Time>,
}

/// What a hello changed.
pub(crate) enum Hello {
    /// A new member.
    Joined,
    /// A member whose storage was lost: its half of the method begins anew.
    Reborn,
    /// A member repeats itself, tells that it has more memory or less, or speaks from a former life.
    Known,
}

impl Roster {
    pub fn member(&self, node: Node) -> Option<&Member> {
        self.members.get(&node).map(|entry| &entry.member)
    }

    /// Those the driver has not given up on, in node order.
    pub fn present(&self) -> &BTreeSet<Node> {
        &self.present
    }

    /// How many devices have said hello or are known never to.
    pub fn known(&self) -> usize {
        self.members.len() + self.absent.len()
    }

    pub fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.members.keys().copied()
    }

    /// Enter a device, and queue the answer.
    pub fn hello(&mut self, life: u64, member: Member, fx: &mut Effects) -> Hello {
        let node = member.node;
        let known = self.members.get(&node).map(|entry| entry.link.life);
        let hello = match known {
            None => Hello::Joined,
            Some(current) if life > current => Hello::Reborn,
            Some(_) => Hello::Known,
        };
        if let Some(entry) = self.members.get_mut(&node).filter(|entry| entry.link.life == life) {
            entry.member.memory_bytes = member.memory_bytes;
        }
        if !matches!(hello, Hello::Known) {
            self.forget_due(node);
            let link = Link::new(life, member.down_bytes_per_s);
            self.members.insert(node, Entry { member, link, due: None });
        }
        self.present.insert(node);
        self.absent.remove(&node);
        let life = life.max(known.unwrap_or(0));
        fx.sends.push((node, Frame::Welcome { life }.seal()));
        hello
    }

    /// The driver gave up on this node. It may come back with a hello.
    pub fn gone(&mut self, node: Node) {
        self.present.remove(&node);
        if !self.members.contains_key(&node) {
            self.absent.insert(node);
        }
        self.abandon(node);
    }

    /// The link with `node`, if it speaks in its present life. It is flushed at the end of this turn.
    pub fn link(&mut self, node: Node, life: u64) -> Option<&mut Link> {
        let entry = self.members.get_mut(&node).filter(|entry| entry.link.life == life)?;
        self.touched.insert(node);
        Some(&mut entry.link)
    }

    pub fn post(&mut self, node: Node, letter: Letter) {
        if let Some(entry) = self.members.get_mut(&node) {
            entry.link.post(letter);
            self.touched.insert(node);
        }
    }

    /// Give up what `node` has not acknowledged.
    pub fn abandon(&mut self, node: Node) {
        if let Some(entry) = self.members.get_mut(&node) {
            entry.link.abandon();
            self.touched.insert(node);
        }
    }

    /// Carry out this turn's sends, and repeat what is due.
    pub fn flush(&mut self, now: Time, fx: &mut Effects) {
        while let Some((_, node)) = self.dues.first().copied().filter(|(due, _)| *due <= now) {
            self.forget_due(node);
            let Some(entry) = self.members.get_mut(&node) else { continue };
            entry.link.repeat(now, node, fx);
            self.touched.insert(node);
        }
        for node in std::mem::take(&mut self.touched) {
            let Some(entry) = self.members.get_mut(&node) else { continue };
            entry.link.flush(now, node, fx);
            let due = entry.link.due();
            if due != entry.due {
                self.forget_due(node);
                self.remember_due(node, due);
            }
        }
    }

    /// When the next letter is to be repeated.
    pub fn next_due(&self) -> Option<Time> {
        self.dues.first().map(|(due, _)| *due)
    }

    /// This process began anew: what was on its way is sent again.
    pub fn begin_anew(&mut self, now: Time) {
        self.members.values_mut().for_each(|entry| entry.link.begin_anew(now));
    }

    /// After a restore: the index is not part of a snapshot.
    pub fn rebuild(&mut self) {
        let dues: Vec<_> =
            self.members.iter().filter_map(|(node, entry)| Some((*node, entry.link.due()?))).collect();
        for (node, due) in dues {
            self.remember_due(node, Some(due));
        }
    }

    fn remember_due(&mut self, node: Node, due: Option<Time>) {
        if let Some(entry) = self.members.get_mut(&node) {
            entry.due = due;
            self.dues.extend(due.map(|due| (due, node)));
        }
    }

    fn forget_due(&mut self, node: Node) {
        if let Some(due) = self.members.get_mut(&node).and_then(|entry| entry.due.take()) {
            self.dues.remove(&(due, node));
        }
    }
}

/// Take what a device says of itself, or say what is wrong with it.
pub(crate) fn vet(from: Node, member: &Member, devices_expected: u32) -> Result<(), String> {
    if from == SERVER || member.node != from {
        return Err(format!("{from} says it is {}", member.node));
    }
    if from.0 > devices_expected {
        return Err(format!("{from} is not among the {devices_expected} devices of this run"));
    }
    if member.class.len() > CLASS_LIMIT || printable(&member.class) != member.class {
        return Err("its class is not a short printable name".to_owned());
    }
    let speeds = [
        ("flops/s", member.flops_per_s),
        ("uplink", member.up_bytes_per_s),
        ("downlink", member.down_bytes_per_s),
    ];
    for (name, speed) in speeds {
        if !(speed > 0.0 && speed <= SPEED_LIMIT) {
            return Err(format!("its {name} is {speed}"));
        }
    }
    for (name, count, limit) in
        [("examples", member.examples, EXAMPLES_LIMIT), ("memory", member.memory_bytes, MEMORY_LIMIT)]
    {
        if count > limit {
            return Err(format!("it claims {count} for {name}"));
        }
    }
    Ok(())
}
