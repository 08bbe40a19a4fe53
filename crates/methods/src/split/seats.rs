//! On which terms each device takes part, and in which order the server takes them.

use super::parts::Part;
use super::serve::{Stage, price_of_serving};
use super::step::{price_of_forward, price_of_judging, price_of_learning};
use super::{Between, Choose, Half, Labels, Learning, Mixed, Options, Terms, Traffic, device};
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
/// The same of a rank, by the time its adapters take on the link, and a whole pass.
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
    Terms { cut: cut as u32, rank: None, traffic: options.traffic, half, steps: None }
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
        let mut places: Vec<Place> = (chosen.iter().zip(&choices))
            .map(|(&at, (member, turns))| (*member, turns[at].0, turns[at].1))
            .collect();
        if planner.options.choose == Choose::EachRound {
            planner.lower_ranks(&mut places);
            planner.share_steps(&mut places);
        }
        let turns: Vec<Turn> = places.iter().map(|(_, _, turn)| *turn).collect();
        let served = served(planner.options.order, &turns, planner.lab.seed);
        for (rank, index) in served.into_iter().enumerate() {
            let (member, terms, _) = places[index];
            seats.seats.insert(member.node, Seat { terms, rank: rank as u32 });
        }
        seats
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

/// A device, what it does, and what turn at the server that makes.
type Place<'a> = (&'a Member, Terms, Turn);

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
        let rank = self.options.ranks.get(&member.class).copied();
        let (peft, traffic) = (&self.lab.work.model.peft, self.options.traffic);
        let rank = rank.filter(|rank| (*rank as usize) < peft.r);
        let terms = |half, cut: usize| Terms { cut: cut as u32, rank, traffic, half, steps: None };
        let fits = |terms: &Terms| self.need(terms) <= member.memory_bytes;
        let choose = |half| {
            let fitting: Vec<Terms> = cuts.clone().map(|cut| terms(half, cut)).filter(fits).collect();
            (!fitting.is_empty()).then_some(fitting)
        };
        let Some(fitting) = halves.iter().copied().find_map(choose) else {
            let blocks =
                if cuts.start == 1 { "one block".to_owned() } else { format!("{} blocks", cuts.start) };
            let least = halves.iter().map(|half| self.need(&terms(*half, cuts.start))).min();
            let (need, has) = (units::bytes(least.unwrap_or(0)), units::bytes(member.memory_bytes));
            return Err(format!("{blocks} would take {need}, and it has {has}"));
        };
        Ok(fitting.into_iter().map(|terms| self.turn(self.exact(terms, member), member)).collect())
    }

    /// The same terms with the most exact number format that the link carries in passing.
    fn exact(&self, terms: Terms, member: &Member) -> Terms {
        if self.options.choose == Choose::Once {
            return terms;
        }
        let in_passing = |traffic: &Traffic| {
            let times = self.times(&Terms { traffic: *traffic, ..terms }, member);
            let link = times.up + times.down;
            link <= LINK_SHARE * (link + times.forward + times.backward + times.service)
        };
        let finer = Traffic::ALL.into_iter().take_while(|traffic| *traffic != terms.traffic);
        Terms { traffic: finer.into_iter().find(in_passing).unwrap_or(terms.traffic), ..terms }
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

    fn turn(&self, terms: Terms, member: &Member) -> (Terms, Turn) {
        let Times { forward, backward, up, down, service } = self.times(&terms, member);
        let load = f64::from(terms.cut) / member.flops_per_s;
        (terms, Turn { arrival: forward + up, service, tail: down + backward, load })
    }

    /// Give slow devices fewer steps and fast ones more, `[train] max_steps` on average, so that all are
    /// through at the same time. Without `max_steps` everybody goes over all of its rows.
    fn share_steps(&self, places: &mut [Place]) {
        let mean = f64::from(self.lab.work.recipe.max_steps);
        let batch = self.lab.work.recipe.per_device_train_batch_size.get() as u64;
        let epochs = u64::from(self.lab.work.recipe.local_epochs);
        let most = |(member, ..): &Place| (member.examples.div_ceil(batch) * epochs).max(1) as f64;
        let wanted: f64 = places.iter().map(|place| most(place).min(mean)).sum();
        if wanted == 0.0 {
            return;
        }
        let steps = |seconds: f64, place: &Place| {
            let (member, terms, turn) = place;
            let left = seconds - self.travel(member, terms);
            (left / iteration(turn)).floor().clamp(1.0, most(place))
        };
        let longest = |place: &Place| self.travel(place.0, &place.1) + most(place) * iteration(&place.2);
        let (mut low, mut high) = (0f64, places.iter().map(longest).fold(0.0, f64::max));
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            let enough = places.iter().map(|place| steps(middle, place)).sum::<f64>() >= wanted;
            (low, high) = if enough { (low, middle) } else { (middle, high) };
        }
        for place in places {
            place.1.steps = Some(steps(high, place) as u32);
        }
    }

    /// Seconds that a device's parameters are on the way at the beginning and the end of a pass.
    fn travel(&self, member: &Member, terms: &Terms) -> f64 {
        let part = Part::of_device(&self.lab.work.model.layout, self.options.labels, terms);
        4.0 * part.len() as f64 * (1.0 / member.up_bytes_per_s + 1.0 / member.down_bytes_per_s)
    }

    /// Halve the rank of those whose adapters would be long on the way, down to `min_rank`.
    fn lower_ranks(&self, places: &mut [Place]) {
        let (work, least) = (&self.lab.work, self.options.min_rank);
        if least == 0 {
            return;
        }
        for (member, terms, turn) in places {
            let pass = f64::from(work.recipe.max_steps.max(1)) * iteration(turn);
            let mut rank = terms.rank.unwrap_or(work.model.peft.r as u32);
            let travel = |rank| self.travel(member, &Terms { rank: Some(rank), ..*terms });
            while rank / 2 >= least && travel(rank) > RANK_SHARE * pass {
                rank /= 2;
            }
            terms.rank = Some(rank).filter(|rank| (*rank as usize) < work.model.peft.r);
        }
    }
}

/// How long a device takes for a step when nobody is in its way.
fn iteration(turn: &Turn) -> f64 {
    turn.arrival + turn.service + turn.tail
}
