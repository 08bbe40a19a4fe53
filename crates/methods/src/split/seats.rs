//! On which terms each device takes part, and in which order the server takes them.

use super::parts::Part;
use super::serve::{Stage, price_of_serving};
use super::step::{price_of_forward, price_of_judging, price_of_learning};
use super::{Between, Choose, Half, Labels, Learning, Mixed, Options, Steps, Terms, Traffic, device};
use crate::schedule::{Policy, Turn, makespan, order};
use crate::{Lab, SetupError};
use base::{Blob, Node, Seed, units};
use federation::Member;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Up to this many devices cuts are chosen together, against one schedule of the server; beyond, each
/// as if all others were like it.
const TOGETHER: usize = 32;
/// Up to this many devices the exact order is found in no time.
const EXACT: usize = 12;
/// With `choose = "each-round"`, the most exact number format is taken whose time on the link is at most
/// this share of an iteration.
const LINK_SHARE: f64 = 0.25;
/// A higher rank than the lowest may lengthen a pass by this share.
const RANK_SHARE: f64 = 0.1;

/// One device's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seat {
    pub terms: Terms,
    /// Its place in the server's order: the first is served first.
    pub rank: u32,
}

/// Every device's place, or why it has none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seats {
    seats: BTreeMap<Node, Seat>,
    unfit: BTreeMap<Node, String>,
}

/// What can be seen to be wrong without a plan.
pub fn check(options: &Options, devices: usize) -> Result<(), SetupError> {
    if options.order == Policy::Optimal && devices > EXACT {
        return Err(SetupError(format!(
            "order = \"optimal\" is meant for up to {EXACT} devices, and there are {devices}; leave it out"
        )));
    }
    Ok(())
}

/// The lowest cut there may be.
pub fn at_least(options: &Options, lab: &Lab) -> Terms {
    let fixed = options.cuts.values().copied().chain(options.cut).min();
    let chosen = options.min_device_layers.min(lab.work.model.spec.layers - 1);
    let cut = match options.cut {
        Some(_) => fixed.unwrap_or(chosen),
        None => fixed.map_or(chosen, |fixed| fixed.min(chosen)),
    };
    let half = match options.backward {
        Learning::All(half) => half,
        Learning::Mixed(_) => Half::Frozen,
    };
    Terms { cut: cut as u32, rank: None, traffic: options.traffic, half, steps: Steps::Recipe }
}

impl Seats {
    /// Terms that no device's memory is exceeded by and that make an iteration short.
    pub fn assign(planner: &Planner, devices: &[Member]) -> Seats {
        let mut seats = Seats::default();
        let mut choices = Vec::new();
        for member in devices {
            match planner.choices(member) {
                Ok(turns) => choices.push((member, turns)),
                Err(reason) => drop(seats.unfit.insert(member.node, reason)),
            }
        }
        let chosen = together(&choices);
        let (terms, turns): (Vec<Terms>, Vec<Turn>) =
            chosen.iter().zip(&choices).map(|(&at, (_, turns))| turns[at]).unzip();
        let served = served(planner.options.order, &turns, planner.lab.seed);
        for (rank, index) in served.into_iter().enumerate() {
            let (member, _) = &choices[index];
            seats.seats.insert(member.node, Seat { terms: terms[index], rank: rank as u32 });
        }
        seats
    }

    /// The terms of a recorded round; everybody else was lost in it.
    pub fn recorded(terms: BTreeMap<Node, Terms>) -> Seats {
        let seats = terms.into_iter().map(|(node, terms)| (node, Seat { terms, rank: 0 }));
        Seats { seats: seats.collect(), unfit: BTreeMap::new() }
    }

    pub fn of(&self, node: Node) -> Result<&Seat, String> {
        let unknown = || "it is not part of this fleet".to_owned();
        self.seats.get(&node).ok_or_else(|| self.unfit.get(&node).cloned().unwrap_or_else(unknown))
    }

    /// The terms of a device, if it has a place.
    pub fn terms(&self, node: Node) -> Option<Terms> {
        self.seats.get(&node).map(|seat| seat.terms)
    }

    /// Every device that has a place, with its terms.
    pub fn terms_of_all(&self) -> impl Iterator<Item = (Node, Terms)> + '_ {
        self.seats.iter().map(|(node, seat)| (*node, seat.terms))
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

/// What a device could do, and what turn at the server that makes.
type Choices<'a> = (&'a Member, Vec<(Terms, Turn)>);

/// For each device which of its choices is taken: the shortest iteration that changing one device's
/// choice at a time leads to.
fn together(choices: &[Choices]) -> Vec<usize> {
    let alone = |turns: &[(Terms, Turn)]| {
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

/// Predicts what terms would mean to a device.
pub struct Planner<'a> {
    pub lab: &'a Lab,
    options: &'a Options,
    server: &'a Member,
    /// Starts of a usual batch, and of the largest there can be.
    usual: Vec<u32>,
    largest: Vec<u32>,
}

/// An iteration's time on a device, in seconds.
#[derive(Clone, Copy)]
pub struct Times {
    /// Its own work before what it sends is there, and after what it gets has come.
    pub forward: f64,
    pub backward: f64,
    /// What crosses, up and down.
    pub up: f64,
    pub down: f64,
    pub service: f64,
}

impl<'a> Planner<'a> {
    pub fn new(lab: &'a Lab, options: &'a Options, server: &'a Member) -> Planner<'a> {
        let rows = || lab.work.train.iter().chain(lab.work.test.iter()).map(|row| row.ids.len() as u32);
        let count = rows().count().max(1) as u32;
        let (mean, longest) = (rows().sum::<u32>().div_ceil(count).max(1), rows().max().unwrap_or(1));
        let batch = lab.work.recipe.per_device_train_batch_size.get() as u32;
        let starts = |length: u32| (0..=batch).map(|i| i * length).collect();
        Planner { lab, options, server, usual: starts(mean), largest: starts(longest) }
    }

    /// Tokens of a usual batch.
    pub fn rows(&self) -> usize {
        self.usual[self.usual.len() - 1] as usize
    }

    /// What this device can hold, each with its turn at the server.
    fn choices(&self, member: &Member) -> Result<Vec<(Terms, Turn)>, String> {
        let fixed = self.options.cuts.get(&member.class).copied().or(self.options.cut);
        let cuts = match fixed {
            Some(cut) => cut..cut + 1,
            None => self.options.min_device_layers..self.lab.work.model.spec.layers,
        };
        let halves: &[Half] = match &self.options.backward {
            Learning::All(half) => std::slice::from_ref(half),
            Learning::Mixed(Mixed::ByMemory) => &Half::ALL,
        };
        let choose = |half: &Half| {
            let fitting: Vec<Terms> =
                cuts.clone().filter_map(|cut| self.at_cut(*half, cut, member)).collect();
            (!fitting.is_empty()).then_some(fitting)
        };
        let Some(fitting) = halves.iter().find_map(choose) else {
            let blocks =
                if cuts.start == 1 { "one block".to_owned() } else { format!("{} blocks", cuts.start) };
            let smallest = |half: &Half| self.smallest(*half, cuts.start, member);
            let least = halves.iter().map(|half| self.need(&smallest(half))).min();
            let (need, has) = (units::bytes(least.unwrap_or(0)), units::bytes(member.memory_bytes));
            return Err(format!("{blocks} would take {need}, and it has {has}"));
        };
        Ok(fitting.into_iter().map(|terms| (terms, self.turn(&terms, member))).collect())
    }

    /// The most lower blocks that this device may be asked for.
    pub fn reach(&self, seats: &Seats, member: &Member) -> usize {
        let seated = seats.terms(member.node).unwrap_or_else(|| at_least(self.options, self.lab)).cut();
        match self.options.choose {
            Choose::Once => seated,
            Choose::EachRound => {
                let choices = self.choices(member).unwrap_or_default();
                choices.iter().map(|(terms, _)| terms.cut()).max().unwrap_or(seated)
            }
        }
    }

    /// The terms at this cut, if the device's memory holds any: with `choose = "each-round"` the most exact
    /// number format that its link carries in passing, and the highest rank that lengthens its pass little.
    fn at_cut(&self, half: Half, cut: usize, member: &Member) -> Option<Terms> {
        let with = |traffic| self.ranked(half, cut, traffic, member);
        let coarsest = self.options.traffic;
        let finer = Traffic::ALL.into_iter().take_while(|traffic| *traffic != coarsest);
        let finer = finer.filter(|_| self.options.choose == Choose::EachRound);
        finer.filter_map(with).find(|terms| self.in_passing(terms, member)).or_else(|| with(coarsest))
    }

    fn in_passing(&self, terms: &Terms, member: &Member) -> bool {
        let times = self.times(terms, member);
        let link = times.up + times.down;
        link <= LINK_SHARE * (link + times.forward + times.backward + times.service)
    }

    /// The highest rank that the device's memory holds, and that lengthens its pass little over the lowest one
    /// by what it computes and by what its adapters take on the link.
    fn ranked(&self, half: Half, cut: usize, traffic: Traffic, member: &Member) -> Option<Terms> {
        let terms = |rank| Terms { cut: cut as u32, rank, traffic, half, steps: Steps::Recipe };
        let fits = |terms: &Terms| self.need(terms) <= member.memory_bytes;
        let fitting: Vec<Terms> = self.ranks(member).into_iter().map(terms).filter(fits).collect();
        let shortest = self.pass(fitting.last()?, member);
        fitting.into_iter().find(|terms| self.pass(terms, member) <= (1.0 + RANK_SHARE) * shortest)
    }

    /// The ranks there are to choose from, the highest first: halved down to `min_rank`.
    fn ranks(&self, member: &Member) -> Vec<Option<u32>> {
        let most = self.lab.work.model.peft.r as u32;
        let own = self.options.ranks.get(&member.class).map_or(most, |rank| most.min(*rank));
        let least = match self.options.choose {
            Choose::EachRound if self.options.min_rank > 0 => self.options.min_rank,
            Choose::Once | Choose::EachRound => own,
        };
        let halved = |rank: &u32| Some(rank / 2).filter(|half| *half >= least);
        std::iter::successors(Some(own), halved)
            .map(|rank| Some(rank).filter(|rank| *rank < most))
            .collect()
    }

    fn smallest(&self, half: Half, cut: usize, member: &Member) -> Terms {
        let rank = self.ranks(member).last().copied().flatten();
        Terms { cut: cut as u32, rank, traffic: self.options.traffic, half, steps: Steps::Recipe }
    }

    /// The most bytes a device on these terms holds at once.
    fn need(&self, terms: &Terms) -> u64 {
        let (lab, options) = (self.lab, self.options);
        let mut most = price_of_forward(lab, options, terms, &self.largest).bytes;
        most = most.max(price_of_learning(lab, options, terms, &self.largest, false).bytes);
        if options.labels == Labels::Device {
            most = most.max(price_of_judging(lab, options, terms, &self.largest).bytes);
        }
        device::resident_bytes(lab, options, terms) + most
    }

    /// How long the parts of an iteration take.
    pub fn times(&self, terms: &Terms, member: &Member) -> Times {
        let (lab, options) = (self.lab, self.options);
        let crossing = terms.traffic.bytes(self.rows(), lab.work.model.spec.width) as f64;
        let own = |flops: u64| flops as f64 / member.flops_per_s;
        let serving = |stage: &Stage| {
            price_of_serving(lab, options, terms, stage, &self.usual).flops as f64 / self.server.flops_per_s
        };
        let (up, down) = (crossing / member.up_bytes_per_s, crossing / member.down_bytes_per_s);
        let mut times = Times {
            forward: own(price_of_forward(lab, options, terms, &self.usual).flops),
            backward: 0.0,
            up,
            down: 0.0,
            service: serving(&Stage::Whole),
        };
        if options.labels == Labels::Device {
            let lower = Stage::Lower { gradient: Blob::default(), loss: 0.0, count: 0, error: 0.0 };
            times.service = serving(&Stage::Lift) + serving(&lower);
            times.forward += own(price_of_judging(lab, options, terms, &self.usual).flops);
            (times.up, times.down) = (times.up + up, times.down + down);
        }
        if terms.half != Half::Frozen {
            let kept = options.between == Between::Keep;
            times.backward = own(price_of_learning(lab, options, terms, &self.usual, kept).flops);
            times.down += down;
        }
        times
    }

    fn turn(&self, terms: &Terms, member: &Member) -> Turn {
        let Times { forward, backward, up, down, service } = self.times(terms, member);
        let load = f64::from(terms.cut) / member.flops_per_s;
        Turn { arrival: forward + up, service, tail: down + backward, load }
    }

    /// Seconds of a whole pass when nobody is in its way: its steps, and its parameters on the way at the
    /// beginning and the end.
    fn pass(&self, terms: &Terms, member: &Member) -> f64 {
        let recipe = &self.lab.work.recipe;
        let batches = member.examples.div_ceil(recipe.per_device_train_batch_size.get() as u64);
        let steps = match recipe.max_steps {
            0 => batches * u64::from(recipe.local_epochs),
            most => u64::from(most),
        };
        let Turn { arrival, service, tail, .. } = self.turn(terms, member);
        let part = Part::of_device(&self.lab.work.model.layout, self.options.labels, terms);
        let both_ways = 1.0 / member.up_bytes_per_s + 1.0 / member.down_bytes_per_s;
        steps as f64 * (arrival + service + tail) + 4.0 * part.len() as f64 * both_ways
    }
}
