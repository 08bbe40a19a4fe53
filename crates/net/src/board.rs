//! Where a run stands, folded from its records: who is waited for, who was left out, and why.

use base::{Node, SERVER, Time, units};
use federation::{Fact, Record, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The state of a run after any prefix of its records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Board {
    /// Devices the run waits for before it can begin.
    pub expected: u32,
    pub rounds: u32,
    /// The newest round; 0 before the first.
    pub round: u32,
    pub open: bool,
    pub opened: Time,
    pub deadline: Option<Time>,
    pub now: Time,
    pub ended: Option<Status>,
    pub seats: BTreeMap<Node, Seat>,
}

/// A device as the server sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seat {
    pub class: String,
    pub examples: u64,
    pub joined: bool,
    pub standing: Standing,
    /// Rounds it was counted in, and left out of.
    pub counted: u32,
    pub lost: u32,
    /// The last thing that went wrong there, in its own words or the server's.
    pub trouble: Option<Trouble>,
}

/// What went wrong, when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    pub at: Time,
    pub what: String,
}

/// A device's part in the newest round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    #[default]
    NotDrawn,
    Awaited,
    Counted,
    LeftOut(String),
}

impl Board {
    pub fn new(expected: u32, rounds: u32) -> Board {
        Board { expected, rounds, ..Board::default() }
    }

    /// Take the next record in.
    pub fn push(&mut self, record: &Record) {
        let Record { t, node, fact } = record;
        self.now = self.now.max(*t);
        match fact {
            Fact::Joined { device, class, examples } => {
                let seat = self.seat(*device);
                (seat.class, seat.examples, seat.joined) = (class.clone(), *examples, true);
            }
            Fact::RoundOpened { round, cohort, deadline } => {
                (self.round, self.open, self.opened, self.deadline) = (*round, true, *t, *deadline);
                self.seats.values_mut().for_each(|seat| seat.standing = Standing::NotDrawn);
                cohort.iter().for_each(|device| self.seat(*device).standing = Standing::Awaited);
            }
            Fact::Counted { device, .. } => {
                let seat = self.seat(*device);
                seat.standing = Standing::Counted;
                seat.counted += 1;
            }
            Fact::Lost { device, reason, .. } => {
                let seat = self.seat(*device);
                seat.counted -= u32::from(seat.standing == Standing::Counted);
                seat.standing = Standing::LeftOut(reason.clone());
                seat.lost += 1;
            }
            Fact::RoundClosed { .. } => self.open = false,
            Fact::Stopped { status } => self.ended = Some(status.clone()),
            Fact::Malformed { from, reason } if *node == SERVER => self.trouble(*from, *t, reason.clone()),
            Fact::Malformed { reason, .. } => self.trouble(*node, *t, reason.clone()),
            Fact::Fault { label, reason, .. } => self.trouble(*node, *t, format!("{label}: {reason}")),
            Fact::Refused { label, need, budget, .. } => {
                let (need, budget) = (units::bytes(*need), units::bytes(*budget));
                self.trouble(*node, *t, format!("{label} needs {need} of memory and {budget} are there"));
            }
            Fact::Decided { .. }
            | Fact::Ran { .. }
            | Fact::Sent { .. }
            | Fact::Killed { .. }
            | Fact::Restored { .. }
            | Fact::Offline { .. } => {}
        }
    }

    /// The board of a whole trace.
    pub fn of<'a>(expected: u32, rounds: u32, records: impl IntoIterator<Item = &'a Record>) -> Board {
        let mut board = Board::new(expected, rounds);
        records.into_iter().for_each(|record| board.push(record));
        board
    }

    fn seat(&mut self, node: Node) -> &mut Seat {
        self.seats.entry(node).or_default()
    }

    fn trouble(&mut self, node: Node, at: Time, what: String) {
        self.seat(node).trouble = Some(Trouble { at, what });
    }

    /// Devices the newest round waits for.
    pub fn awaited(&self) -> Vec<Node> {
        self.with(|seat| seat.standing == Standing::Awaited)
    }

    /// Devices that were never heard.
    pub fn missing(&self) -> Vec<Node> {
        (1..=self.expected)
            .map(Node)
            .filter(|node| !self.seats.get(node).is_some_and(|seat| seat.joined))
            .collect()
    }

    fn with(&self, is: impl Fn(&Seat) -> bool) -> Vec<Node> {
        self.seats.iter().filter(|(_, seat)| is(seat)).map(|(node, _)| *node).collect()
    }

    /// One sentence: what the run waits for.
    pub fn headline(&self) -> String {
        let round = format!("round {} of {}", self.round, self.rounds);
        match &self.ended {
            Some(Status::Completed) => format!("completed after {} rounds", self.round),
            Some(Status::Interrupted) => format!("interrupted in {round}"),
            Some(Status::Failed(reason)) => format!("failed in {round}: {reason}"),
            None if self.open && !self.awaited().is_empty() => {
                let counted = self.with(|seat| seat.standing == Standing::Counted).len();
                format!("{round} is open: {counted} counted, waiting for {}", names(&self.awaited()))
            }
            None if self.open => format!("{round} is open: every device has answered, the server works"),
            None if !self.missing().is_empty() => {
                format!("waiting for {} to join", names(&self.missing()))
            }
            None => format!("between rounds, after {round}"),
        }
    }
}

/// `device 1, 2, 3 and 17 more`
pub fn names(nodes: &[Node]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = nodes.iter().take(SHOWN).map(|node| node.0.to_string()).collect();
    let more = nodes.len().saturating_sub(SHOWN);
    let noun = if nodes.len() == 1 { "device" } else { "devices" };
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{noun} {}{rest}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_says_who_is_waited_for_and_who_was_left_out() {
        let mut board = Board::new(3, 5);
        let mut push = |t, node, fact| board.push(&Record { t: Time(t), node, fact });
        for device in [Node(1), Node(2)] {
            push(1, SERVER, Fact::Joined { device, class: "phone".into(), examples: 4 });
        }
        push(2, SERVER, Fact::RoundOpened { round: 1, cohort: vec![Node(1), Node(2)], deadline: None });
        push(3, SERVER, Fact::Counted { round: 1, device: Node(1) });
        push(4, Node(2), Fact::Fault { round: 1, job: 0, label: "train".into(), reason: "NaN".into() });
        assert_eq!(board.headline(), "round 1 of 5 is open: 1 counted, waiting for device 2");
        assert_eq!((board.awaited(), board.missing()), (vec![Node(2)], vec![Node(3)]));
        let mut push = |t, node, fact| board.push(&Record { t: Time(t), node, fact });
        push(5, SERVER, Fact::Lost { round: 1, device: Node(1), reason: "not finite".into() });
        let seat = &board.seats[&Node(1)];
        assert_eq!(
            (seat.counted, seat.lost, &seat.standing),
            (0, 1, &Standing::LeftOut("not finite".into()))
        );
        assert_eq!(board.seats[&Node(2)].trouble.as_ref().unwrap().what, "train: NaN");
    }
}
