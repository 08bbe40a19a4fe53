//! Where the model is cut for each device, and in which order the server takes them.

use super::step::{price_of_backward, price_of_forward, price_of_serving};
use super::{Backward, Between, Options, device};
use crate::schedule::{Policy, Turn, makespan, order};
use crate::{Lab, Setup, SetupError};
use base::{Node, Seed, units};
use federation::Member;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Up to this many devices cuts are chosen together, against one schedule of the server; beyond, each
/// as if all others were like it.
const TOGETHER: usize = 32;
/// Up to this many devices the exact order is found in no time.
const EXACT: usize = 12;

/// One device's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seat {
    /// Blocks on the device.
    pub cut: u32,
    /// Where its part of `theta` ends.
    pub at: u64,
    /// Its place in the server's order: the first is served first.
    pub rank: u32,
}

/// Every device's place, or why it has none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seats {
    seats: BTreeMap<Node, Seat>,
    unfit: BTreeMap<Node, String>,
}

impl Seats {
    /// Cuts that no device's memory is exceeded by and that make an iteration short.
    pub fn assign(lab: &Lab, options: &Options, setup: &Setup) -> Result<Seats, SetupError> {
        let planner = Planner::new(lab, options, setup);
        if options.order == Policy::Optimal && setup.devices.len() > EXACT {
            let many = setup.devices.len();
            return Err(SetupError(format!(
                "order = \"optimal\" is meant for up to {EXACT} devices, and there are {many}; leave it out"
            )));
        }
        let mut seats = Seats::default();
        let mut choices = Vec::new();
        for member in &setup.devices {
            match planner.choices(member) {
                Ok(turns) => choices.push((member.node, turns)),
                Err(reason) => drop(seats.unfit.insert(member.node, reason)),
            }
        }
        let chosen = together(&choices);
        let turns: Vec<Turn> = chosen.iter().zip(&choices).map(|(&at, (_, turns))| turns[at].1).collect();
        for (rank, index) in served(options.order, &turns, setup.seed).into_iter().enumerate() {
            let (node, turns) = &choices[index];
            let cut = turns[chosen[index]].0;
            let at = lab.work.model.layout.cut(cut) as u64;
            seats.seats.insert(*node, Seat { cut: cut as u32, at, rank: rank as u32 });
        }
        Ok(seats)
    }

    pub fn of(&self, node: Node) -> Result<&Seat, String> {
        let unknown = || "it is not part of this fleet".to_owned();
        self.seats.get(&node).ok_or_else(|| self.unfit.get(&node).cloned().unwrap_or_else(unknown))
    }

    /// The cut of a device; 1 for one that can hold none.
    pub fn cut(&self, node: Node) -> usize {
        self.seats.get(&node).map_or(1, |seat| seat.cut as usize)
    }

    /// Every device that has a place, with its cut.
    pub fn cuts(&self) -> impl Iterator<Item = (Node, usize)> + '_ {
        self.seats.iter().map(|(node, seat)| (*node, seat.cut as usize))
    }
}

/// The order of these turns. What needs predicted times gets a rule that scales where there are many.
fn served(policy: Policy, turns: &[Turn], seed: Seed) -> Vec<usize> {
    let policy = match policy {
        Policy::Default if turns.len() > TOGETHER => Policy::LongestTail,
        other => other,
    };
    order(policy, turns, seed.child("order", 0))
}

/// For each device which of its choices is taken: the shortest iteration that changing one device's
/// choice at a time leads to.
fn together(choices: &[(Node, Vec<(usize, Turn)>)]) -> Vec<usize> {
    let alone = |turns: &[(usize, Turn)]| {
        let length = |turn: &Turn| turn.arrival + choices.len() as f64 * turn.service + turn.tail;
        (0..turns.len()).min_by(|&a, &b| length(&turns[a].1).total_cmp(&length(&turns[b].1))).unwrap_or(0)
    };
    let mut chosen: Vec<usize> = choices.iter().map(|(_, turns)| alone(turns)).collect();
    if choices.len() > TOGETHER {
        return chosen;
    }
    let length = |chosen: &[usize]| {
        let turns: Vec<Turn> = chosen.iter().zip(choices).map(|(&at, (_, turns))| turns[at].1).collect();
        makespan(&turns, &order(Policy::LongestTail, &turns, Seed(0)))
    };
    let mut shortest = length(&chosen);
    loop {
        let before = shortest;
        for device in 0..choices.len() {
            for at in 0..choices[device].1.len() {
                let mut other = chosen.clone();
                other[device] = at;
                let candidate = length(&other);
                if candidate < shortest - 1e-12 {
                    (shortest, chosen) = (candidate, other);
                }
            }
        }
        if shortest >= before {
            return chosen;
        }
    }
}

/// Predicts what a cut would mean to a device.
struct Planner<'a> {
    lab: &'a Lab,
    options: &'a Options,
    server: &'a Member,
    /// Starts of a usual batch, and of the largest there can be.
    usual: Vec<u32>,
    largest: Vec<u32>,
}

impl Planner<'_> {
    fn new<'a>(lab: &'a Lab, options: &'a Options, setup: &'a Setup) -> Planner<'a> {
        let rows = || lab.work.train.iter().chain(lab.work.test.iter()).map(|row| row.ids.len() as u32);
        let count = rows().count().max(1) as u32;
        let (mean, longest) = (rows().sum::<u32>().div_ceil(count).max(1), rows().max().unwrap_or(1));
        let batch = lab.work.recipe.per_device_train_batch_size.get() as u32;
        let starts = |length: u32| (0..=batch).map(|i| i * length).collect();
        Planner { lab, options, server: &setup.server, usual: starts(mean), largest: starts(longest) }
    }

    /// The cuts this device can hold, each with its turn at the server.
    fn choices(&self, member: &Member) -> Result<Vec<(usize, Turn)>, String> {
        let fixed = self.options.cuts.get(&member.class).copied().or(self.options.cut);
        let cuts = match fixed {
            Some(cut) => cut..cut + 1,
            None => self.options.min_device_layers..self.lab.work.model.spec.layers,
        };
        let least = self.need(cuts.start);
        let fits = |cut: &usize| self.need(*cut) <= member.memory_bytes;
        let choices: Vec<_> = cuts.clone().filter(fits).map(|cut| (cut, self.turn(cut, member))).collect();
        if choices.is_empty() {
            let blocks =
                if cuts.start == 1 { "one block".to_owned() } else { format!("{} blocks", cuts.start) };
            let (need, has) = (units::bytes(least), units::bytes(member.memory_bytes));
            return Err(format!("{blocks} would take {need}, and it has {has}"));
        }
        Ok(choices)
    }

    /// The most bytes a device of this cut holds at once.
    fn need(&self, cut: usize) -> u64 {
        let (lab, options) = (self.lab, self.options);
        let forward = price_of_forward(lab, options, cut, &self.largest).bytes;
        let backward = match options.backward {
            Backward::Backward => price_of_backward(lab, options, cut, &self.largest, false).bytes,
            Backward::Frozen => 0,
        };
        device::resident_bytes(lab, cut) + forward.max(backward)
    }

    fn turn(&self, cut: usize, member: &Member) -> Turn {
        let (lab, options) = (self.lab, self.options);
        let kept = options.between == Between::Keep;
        let rows = self.usual[self.usual.len() - 1] as usize;
        let crossing = options.traffic.bytes(rows, lab.work.model.spec.width) as f64;
        let own = |flops: u64| flops as f64 / member.flops_per_s;
        let forward = own(price_of_forward(lab, options, cut, &self.usual).flops);
        let (down, backward) = match options.backward {
            Backward::Backward => (
                crossing / member.down_bytes_per_s,
                own(price_of_backward(lab, options, cut, &self.usual, kept).flops),
            ),
            Backward::Frozen => (0.0, 0.0),
        };
        let service = price_of_serving(lab, options, cut, &self.usual).flops as f64;
        Turn {
            arrival: forward + crossing / member.up_bytes_per_s,
            service: service / self.server.flops_per_s,
            tail: down + backward,
            load: cut as f64 / member.flops_per_s,
        }
    }
}
