//! In which order one server serves the devices of an iteration.
//!
//! Device `u` arrives with its activations at `arrival`, keeps the server busy for `service` and then
//! takes `tail` for its gradient to come down and its own backward pass. The iteration lasts until the
//! last device is done: `1 | r_j, q_j | C_max` of scheduling theory, strongly NP-hard in general.
//!
//! Sources: Jackson 1955 and Schrage 1971 (list rule with arrivals), Carlier 1982 (exact branch and
//! bound); the order by client layers over capability is that of memory-efficient split federated
//! learning (arXiv 2506.02940).

use base::Seed;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// One device's turn at the server. All times in seconds, from the start of the iteration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// When its activations are at the server.
    pub arrival: f64,
    /// How long the server works for it.
    pub service: f64,
    /// From the end of its service to the end of its own backward pass.
    pub tail: f64,
    /// Its layers over its capability, what the paper's rule sorts by.
    pub load: f64,
}

/// A rule for the server's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// First come, first served.
    Fifo,
    /// By seed.
    Random,
    /// Client layers over capability, largest first (arXiv 2506.02940).
    Paper,
    /// Among those that have arrived, the longest tail first (Schrage).
    LongestTail,
    /// Exact, by Carlier's branch and bound; meant for up to about a dozen devices.
    Optimal,
    /// The better of longest tail and first come, improved by moving single turns.
    #[default]
    Default,
}

impl Policy {
    pub const ALL: [Policy; 6] = [
        Policy::Fifo,
        Policy::Random,
        Policy::Paper,
        Policy::LongestTail,
        Policy::Optimal,
        Policy::Default,
    ];
}

/// The order in which the server takes these turns: indices into `turns`.
pub fn order(policy: Policy, turns: &[Turn], seed: Seed) -> Vec<usize> {
    match policy {
        Policy::Fifo => sorted(turns, |a, b| a.arrival.total_cmp(&b.arrival)),
        Policy::Paper => sorted(turns, |a, b| b.load.total_cmp(&a.load)),
        Policy::Random => {
            let mut order: Vec<usize> = (0..turns.len()).collect();
            seed.stream().shuffle(&mut order);
            order
        }
        Policy::LongestTail => longest_tail(turns),
        Policy::Optimal => optimal(turns),
        Policy::Default => improved(turns),
    }
}

/// When each turn of an order begins and ends at the server, and when the iteration is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Timetable {
    /// `(begin, end)` at the server, in the order served.
    pub served: Vec<(f64, f64)>,
    pub makespan: f64,
}

/// Carry out an order: each turn begins when it has arrived and the server is free.
pub fn timetable(turns: &[Turn], order: &[usize]) -> Timetable {
    let (mut free, mut makespan) = (0f64, 0f64);
    let mut served = Vec::with_capacity(order.len());
    for &index in order {
        let turn = &turns[index];
        let begin = free.max(turn.arrival);
        free = begin + turn.service;
        makespan = makespan.max(free + turn.tail);
        served.push((begin, free));
    }
    Timetable { served, makespan }
}

/// The length of an iteration in this order.
pub fn makespan(turns: &[Turn], order: &[usize]) -> f64 {
    timetable(turns, order).makespan
}

fn sorted(turns: &[Turn], by: impl Fn(&Turn, &Turn) -> Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..turns.len()).collect();
    order.sort_by(|&a, &b| by(&turns[a], &turns[b]).then(a.cmp(&b)));
    order
}

/// Schrage's rule: whenever the server is free, the longest tail among those that have arrived.
fn longest_tail(turns: &[Turn]) -> Vec<usize> {
    let mut left = sorted(turns, |a, b| b.tail.total_cmp(&a.tail));
    let mut order = Vec::with_capacity(turns.len());
    let mut free = 0f64;
    while !left.is_empty() {
        let next_arrival = left.iter().map(|&index| turns[index].arrival).fold(f64::INFINITY, f64::min);
        free = free.max(next_arrival);
        let place = left.iter().position(|&index| turns[index].arrival <= free).unwrap_or(0);
        let index = left.remove(place);
        free += turns[index].service;
        order.push(index);
    }
    order
}

/// The preemptive form of Schrage's rule: exact when turns may be interrupted, so a bound from below.
fn preemptive_bound(turns: &[Turn]) -> f64 {
    let mut arrivals = sorted(turns, |a, b| b.arrival.total_cmp(&a.arrival));
    let mut rest: Vec<f64> = turns.iter().map(|turn| turn.service).collect();
    let mut ready: Vec<usize> = Vec::new();
    let (mut now, mut bound) = (0f64, 0f64);
    loop {
        while arrivals.last().is_some_and(|&index| turns[index].arrival <= now) {
            ready.extend(arrivals.pop());
        }
        let Some(place) =
            (0..ready.len()).max_by(|&a, &b| turns[ready[a]].tail.total_cmp(&turns[ready[b]].tail))
        else {
            let Some(&next) = arrivals.last() else { return bound };
            now = turns[next].arrival;
            continue;
        };
        let index = ready[place];
        let interrupted = arrivals.last().map_or(f64::INFINITY, |&next| turns[next].arrival);
        if now + rest[index] <= interrupted {
            now += rest[index];
            bound = bound.max(now + turns[index].tail);
            ready.swap_remove(place);
        } else {
            rest[index] -= interrupted - now;
            now = interrupted;
        }
    }
}

/// The better of two rules, then single turns moved to wherever the iteration gets shorter.
fn improved(turns: &[Turn]) -> Vec<usize> {
    let (fifo, tail) = (order(Policy::Fifo, turns, Seed(0)), longest_tail(turns));
    let mut best = if makespan(turns, &tail) < makespan(turns, &fifo) { tail } else { fifo };
    let mut length = makespan(turns, &best);
    while let Some((shorter, order)) = best_move(turns, &best, length) {
        (length, best) = (shorter, order);
    }
    best
}

/// The move of one turn that shortens the iteration most, if any does.
fn best_move(turns: &[Turn], order: &[usize], length: f64) -> Option<(f64, Vec<usize>)> {
    let mut best: Option<(f64, Vec<usize>)> = None;
    for from in 0..order.len() {
        for to in (0..order.len()).filter(|&to| to != from) {
            let mut moved = order.to_vec();
            let index = moved.remove(from);
            moved.insert(to, index);
            let candidate = makespan(turns, &moved);
            if candidate < best.as_ref().map_or(length, |(shortest, _)| *shortest) - 1e-12 {
                best = Some((candidate, moved));
            }
        }
    }
    best
}

/// Carlier's branch and bound. Where Schrage's rule is not optimal, one critical turn must go before
/// or after a whole set of others; each case tightens its tail or its arrival.
fn optimal(turns: &[Turn]) -> Vec<usize> {
    let mut best = improved(turns);
    let mut shortest = makespan(turns, &best);
    let mut open = vec![turns.to_vec()];
    while let Some(node) = open.pop() {
        if preemptive_bound(&node) >= shortest - 1e-12 {
            continue;
        }
        let order = longest_tail(&node);
        let length = makespan(turns, &order);
        if length < shortest {
            (shortest, best) = (length, order.clone());
        }
        open.extend(branches(&node, &order).into_iter().flatten());
    }
    best
}

/// The two cases of Carlier's critical turn, or none where this order is optimal for `turns`.
fn branches(turns: &[Turn], order: &[usize]) -> Option<[Vec<Turn>; 2]> {
    let Timetable { served, makespan } = timetable(turns, order);
    let last = (0..order.len()).rfind(|&k| served[k].1 + turns[order[k]].tail >= makespan - 1e-12)?;
    let first = (1..=last).rfind(|&k| served[k].0 > served[k - 1].1 + 1e-12).unwrap_or(0);
    let end_tail = turns[order[last]].tail;
    let critical = (first..last).rfind(|&k| turns[order[k]].tail < end_tail)?;
    let set = &order[critical + 1..=last];
    let work: f64 = set.iter().map(|&index| turns[index].service).sum();
    let earliest = set.iter().map(|&index| turns[index].arrival).fold(f64::INFINITY, f64::min);
    let index = order[critical];
    let (mut before, mut after) = (turns.to_vec(), turns.to_vec());
    before[index].tail = before[index].tail.max(work + end_tail);
    after[index].arrival = after[index].arrival.max(earliest + work);
    Some([before, after])
}

/// The generator of the sweep that the rules are compared on: `devices` turns whose service adds up to
/// `load` times the mean of the devices' own time.
pub fn instance(devices: usize, load: f64, seed: Seed) -> Vec<Turn> {
    let mut stream = seed.stream();
    let mut turns: Vec<Turn> = (0..devices)
        .map(|_| {
            let speed = 0.3 + 3.0 * stream.unit();
            let layers = 1.0 + stream.below(5) as f64;
            let (up, down) = (0.1 + 0.4 * stream.unit(), 0.1 + 0.4 * stream.unit());
            let forward = layers / speed;
            Turn {
                arrival: forward + up,
                service: 12.0 - layers,
                tail: down + 1.5 * forward,
                load: forward,
            }
        })
        .collect();
    let own = turns.iter().map(|turn| turn.arrival + turn.tail).sum::<f64>() / devices as f64;
    let work: f64 = turns.iter().map(|turn| turn.service).sum();
    turns.iter_mut().for_each(|turn| turn.service *= load * own / work);
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shortest iteration over all orders (Heap's algorithm).
    fn brute_force(turns: &[Turn]) -> f64 {
        fn permute(k: usize, order: &mut [usize], turns: &[Turn], best: &mut f64) {
            if k <= 1 {
                *best = best.min(makespan(turns, order));
                return;
            }
            for i in 0..k {
                permute(k - 1, order, turns, best);
                order.swap(if k.is_multiple_of(2) { i } else { 0 }, k - 1);
            }
        }
        let mut order: Vec<usize> = (0..turns.len()).collect();
        let mut best = f64::INFINITY;
        permute(turns.len(), &mut order, turns, &mut best);
        best
    }

    fn sweep(count: u64, most: usize) -> impl Iterator<Item = (Vec<Turn>, Seed)> {
        (0..count).map(move |i| {
            let seed = Seed(5).child("instance", i);
            let load = 0.1 + 1.9 * (i as f64 / count as f64);
            (instance(2 + (i as usize) % (most - 1), load, seed), seed)
        })
    }

    #[test]
    fn optimal_is_what_brute_force_finds() {
        let eight = |i: u64| (instance(8, 0.2 * (i + 1) as f64, Seed(i)), Seed(i));
        for (turns, seed) in sweep(300, 7).chain((0..10).map(eight)) {
            let found = makespan(&turns, &order(Policy::Optimal, &turns, seed));
            let best = brute_force(&turns);
            assert!((found - best).abs() < 1e-9, "{found} against {best} on {turns:?}");
        }
    }

    #[test]
    fn every_rule_is_an_order_above_the_bound_and_default_is_never_worse_than_fifo() {
        let mut over = 0.0;
        for (turns, seed) in sweep(1000, 10) {
            let length = |policy| makespan(&turns, &order(policy, &turns, seed));
            let best = length(Policy::Optimal);
            assert!(preemptive_bound(&turns) <= best + 1e-9);
            for policy in Policy::ALL {
                let mut served = order(policy, &turns, seed);
                assert!(length(policy) >= best - 1e-9, "{policy:?}");
                served.sort_unstable();
                assert!(served.into_iter().eq(0..turns.len()), "{policy:?}");
            }
            assert!(length(Policy::Default) <= length(Policy::Fifo) + 1e-12);
            over += length(Policy::Default) / best - 1.0;
        }
        assert!(over / 1000.0 <= 0.02, "default is {:.2} % over optimal", over / 10.0);
    }

    #[test]
    fn with_equal_arrivals_the_longest_tail_first_is_optimal() {
        let turn = |service, tail| Turn { arrival: 1.0, service, tail, load: 0.0 };
        let turns = [turn(2.0, 1.0), turn(1.0, 5.0), turn(3.0, 3.0)];
        assert_eq!(order(Policy::LongestTail, &turns, Seed(0)), [1, 2, 0]);
        assert_eq!(makespan(&turns, &[1, 2, 0]), brute_force(&turns));
    }
}
