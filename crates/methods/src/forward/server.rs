//! The server's half: who is asked for how much, and when it is enough.
//!
//! A round proceeds in *tiers*: first one wave of the first devices, then one wave of everybody, then a
//! second wave of everybody, and so on. A decision is taken on a complete tier and all before it, so it
//! depends on nothing but who counts; a device that is lost takes what it told with it, and the round is
//! decided anew. What devices told ahead of the decision is discarded.

use super::aggregate::{self, Aggregate, Aggregated, Asked, Piece, Spread, Step};
use super::directions;
use super::options::{Estimator, HeadRule, Options, Pacing, Uplink};
use super::{Bench, Order, Task, Told};
use crate::evaluate::{Due, evaluate, price_of_evaluation};
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use federation::{Cx, Eval, Event, Fault, Side, Summary};
use model::optim::Optimizer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Serialize, Deserialize)]
pub struct Server {
    theta: Blob,
    optimizers: Option<(Optimizer, Optimizer)>,
    moments: Blob,
    /// Devices whose moments are in there.
    known: BTreeSet<Node>,
    /// The mean forward gradient of the round before.
    gradient: Blob,
    totals: Totals,
    open: Open,
    options: Options,
    batch: u32,
    /// Whether there is anything to perturb.
    perturbs: bool,
    summary: Summary,
    due: Due,
}

/// Over the whole run.
#[derive(Default, Serialize, Deserialize)]
struct Totals {
    perturbations: u64,
    waves: u64,
    passes: u64,
    discarded: u64,
    /// Bytes that came up for what was perturbed, and for the head: also those that counted for nothing.
    perturbation_bytes: u64,
    head_bytes: u64,
}

/// The round that is open.
#[derive(Default, Serialize, Deserialize)]
struct Open {
    round: u32,
    moving: bool,
    /// As drawn: a device's rank is its place here, whoever is lost.
    ranks: Vec<Node>,
    /// Those that are asked first.
    first: usize,
    lost: BTreeSet<Node>,
    /// What each device has to try; empty without discriminative sampling.
    picks: BTreeMap<Node, Vec<Vec<u32>>>,
    told: BTreeMap<(Node, u32), Told>,
    tier: u32,
    /// Devices that were begun.
    begun: BTreeSet<Node>,
    at: Stage,
    /// Somebody was lost while the server computed: what it computes will not count.
    stale: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    #[default]
    Picking,
    Listening,
    Aggregating,
    Closing,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum ServerJob {
    Pick { round: u32, nodes: Vec<Node>, gradient: Blob },
    Aggregate(Box<Aggregate>),
    Evaluate { theta: Blob, trained: bool },
}

#[derive(Serialize, Deserialize)]
pub enum ServerDone {
    Picked(Vec<Vec<Vec<u32>>>),
    Aggregated(Aggregated),
    Evaluated { eval: Eval, trained: bool },
}

impl Server {
    pub fn new(theta: Blob, options: Options, batch: u32, perturbs: bool, due: Due) -> Server {
        Server {
            theta,
            optimizers: None,
            moments: Blob::default(),
            known: BTreeSet::new(),
            gradient: Blob::default(),
            totals: Totals::default(),
            open: Open::default(),
            options,
            batch,
            perturbs,
            summary: Summary::default(),
            due,
        }
    }

    pub fn trained(self) -> Blob {
        self.theta
    }

    fn opened(&mut self, round: u32, ranks: Vec<Node>, cx: &mut Cx<Self>) {
        if round == 1 {
            cx.run(ServerJob::Evaluate { theta: self.theta.clone(), trained: false });
        }
        let moving = self.perturbs && round > self.options.head_rounds;
        let first = (self.options.first_devices * ranks.len() as f64).ceil() as usize;
        let tier = match self.options.pacing {
            Pacing::Fixed => self.options.most_waves,
            Pacing::Variance | Pacing::TensorVariance | Pacing::NoiseToSignal => {
                u32::from(first >= ranks.len())
            }
        };
        self.open = Open { round, moving, ranks, first, tier, ..Open::default() };
        if moving && self.options.picks_in(round) && !self.gradient.is_empty() {
            let (nodes, gradient) = (self.open.ranks.clone(), self.gradient.clone());
            return cx.run(ServerJob::Pick { round, nodes, gradient });
        }
        self.open.at = Stage::Listening;
        self.proceed(cx);
    }

    fn picked(&mut self, picks: Vec<Vec<Vec<u32>>>, cx: &mut Cx<Self>) {
        self.open.picks = self.open.ranks.iter().copied().zip(picks).collect();
        self.open.at = Stage::Listening;
        self.proceed(cx);
    }

    /// Waves that a device owes in a tier.
    fn owed(&self, rank: usize, tier: u32) -> u32 {
        if tier == 0 { u32::from(rank < self.open.first) } else { tier }
    }

    /// The tier in which a wave is first owed.
    fn tier_of(&self, rank: usize, wave: u32) -> u32 {
        if self.options.pacing == Pacing::Fixed {
            return self.options.most_waves;
        }
        let early = wave == 1 && rank < self.open.first && self.open.first < self.open.ranks.len();
        if early { 0 } else { wave }
    }

    /// Those who were not lost, with their rank.
    fn present(&self) -> impl Iterator<Item = (usize, Node)> + '_ {
        let ranked = self.open.ranks.iter().copied().enumerate();
        ranked.filter(|(_, node)| !self.open.lost.contains(node))
    }

    fn asked(&self, node: Node) -> Asked {
        let Options { perturbations, perturb, uplink, head, estimator, .. } = self.options;
        let backward = estimator == Estimator::Backward;
        Asked {
            perturbations,
            perturb,
            uplink: if backward { Uplink::Dense } else { uplink },
            moving: self.open.moving,
            exact_head: head == HeadRule::Exact,
            moments: head == HeadRule::ClosedForm && !self.known.contains(&node),
            batch: self.batch,
        }
    }

    fn task(&self, node: Node) -> Task {
        Task {
            round: self.open.round,
            theta: self.theta.clone(),
            picks: self.open.picks.get(&node).cloned().unwrap_or_default(),
            moving: self.open.moving,
            moments: self.asked(node).moments,
        }
    }

    /// Ask for what the tier still lacks, or decide on it when it is complete.
    fn proceed(&mut self, cx: &mut Cx<Self>) {
        if self.open.at != Stage::Listening {
            return;
        }
        let present: Vec<(usize, Node)> = self.present().collect();
        if present.is_empty() {
            self.open.at = Stage::Closing;
            return cx.close(std::mem::take(&mut self.summary));
        }
        let mut complete = true;
        for (rank, node) in present {
            let owed = self.owed(rank, self.open.tier);
            if owed == 0 {
                continue;
            }
            complete &= (1..=owed).all(|wave| self.open.told.contains_key(&(node, wave)));
            let until = if self.options.run_ahead { self.options.most_waves } else { owed };
            if self.open.begun.insert(node) {
                cx.send(node, Order::Begin { task: self.task(node), until });
            }
        }
        if complete {
            self.open.at = Stage::Aggregating;
            cx.run(ServerJob::Aggregate(Box::new(self.aggregate())));
        }
    }

    fn aggregate(&self) -> Aggregate {
        let owing = self.present().map(|(rank, node)| (rank, node, self.owed(rank, self.open.tier)));
        let pieces = owing.flat_map(|(rank, node, owed)| (1..=owed).map(move |wave| (rank, node, wave)));
        let piece = |(rank, node, wave)| {
            let told = self.open.told.get(&(node, wave))?.clone();
            let picks = self.open.picks.get(&node).cloned().unwrap_or_default();
            Some(Piece { tier: self.tier_of(rank, wave), node, picks, told })
        };
        let mut told: Vec<Piece> = pieces.filter_map(piece).collect();
        told.sort_by_key(|piece| (piece.tier, piece.node, piece.told.wave));
        Aggregate {
            task: Task {
                round: self.open.round,
                theta: self.theta.clone(),
                moving: self.open.moving,
                ..Task::default()
            },
            optimizers: self.optimizers.clone(),
            moments: self.moments.clone(),
            told,
            last: self.open.tier >= self.options.most_waves,
        }
    }

    fn heard(&mut self, from: Node, told: Told, cx: &mut Cx<Self>) {
        let expected = self.open.begun.contains(&from) && !self.open.lost.contains(&from);
        let next = (1..).find(|wave| !self.open.told.contains_key(&(from, *wave))).unwrap_or(1);
        if !expected || told.wave > self.options.most_waves {
            return;
        }
        let asked = Asked { moments: self.asked(from).moments && told.wave == 1, ..self.asked(from) };
        let shaped = aggregate::shape(asked, &told);
        let objection = if told.wave == next { shaped.err() } else { Some("a wave out of turn".into()) };
        if let Some(reason) = objection {
            cx.refuse(from, reason);
            return self.gone(from, cx);
        }
        let wave = told.wave;
        self.totals.perturbation_bytes += (4 * told.slopes.len() + told.dense.len()) as u64;
        self.totals.head_bytes += (told.head.len() + told.moments.len()) as u64;
        self.open.told.insert((from, wave), told);
        if self.options.pacing == Pacing::Fixed && wave == self.options.most_waves {
            cx.finished(from);
        }
        self.proceed(cx);
    }

    fn gone(&mut self, node: Node, cx: &mut Cx<Self>) {
        self.open.lost.insert(node);
        self.open.told.retain(|(of, _), _| *of != node);
        self.open.stale |= self.open.at == Stage::Aggregating;
        self.proceed(cx);
    }

    fn aggregated(&mut self, outcome: Aggregated, cx: &mut Cx<Self>) {
        self.open.at = Stage::Listening;
        let stale = std::mem::take(&mut self.open.stale);
        match outcome {
            Aggregated::Objections(objections) => {
                for (node, reason) in objections {
                    cx.refuse(node, reason);
                    self.open.lost.insert(node);
                    self.open.told.retain(|(of, _), _| *of != node);
                }
                self.proceed(cx);
            }
            _ if stale => self.proceed(cx),
            Aggregated::More(spread) => {
                self.note(spread);
                self.open.tier += 1;
                let begun: Vec<Node> = self.open.begun.iter().copied().collect();
                for node in begun.into_iter().filter(|_| !self.options.run_ahead) {
                    cx.send(node, Order::Until(self.open.tier));
                }
                self.proceed(cx);
            }
            Aggregated::Stepped(step) => self.stepped(*step, cx),
        }
    }

    fn stepped(&mut self, step: Step, cx: &mut Cx<Self>) {
        self.open.at = Stage::Closing;
        let counted: Vec<(usize, Node)> = self.present().collect();
        let (mut waves, mut devices) = (0, 0u32);
        for (rank, node) in counted {
            let owed = match self.options.pacing {
                Pacing::Fixed => self.options.most_waves,
                Pacing::Variance | Pacing::TensorVariance | Pacing::NoiseToSignal => {
                    self.owed(rank, step.tier)
                }
            };
            if owed == 0 {
                continue;
            }
            (waves, devices) = (waves + u64::from(owed), devices + 1);
            self.known.insert(node);
            if self.options.pacing != Pacing::Fixed {
                cx.finished(node);
            }
            if self.options.run_ahead {
                cx.send(node, Order::Until(0));
            }
        }
        self.totals.waves += waves;
        self.totals.passes += waves * self.options.passes(self.open.moving);
        self.totals.discarded += self.open.told.len() as u64 - waves;
        self.totals.perturbations += step.spread.perturbations;
        self.note(step.spread);
        let enough = step.spread.perturbations > 0 && step.tier < self.options.most_waves;
        let figures = [
            ("learning_rate", step.learning_rate),
            ("devices", f64::from(devices)),
            ("waves", f64::from(step.tier.max(1))),
            ("perturbations_total", self.totals.perturbations as f64),
            ("waves_total", self.totals.waves as f64),
            ("forward_passes_total", self.totals.passes as f64),
            ("waves_discarded", self.totals.discarded as f64),
            ("perturbation_bytes_up", self.totals.perturbation_bytes as f64),
            ("head_bytes_up", self.totals.head_bytes as f64),
        ];
        self.summary.notes.extend(self.options.stop(enough));
        self.summary.figures.extend(figures.map(|(name, figure)| (name.to_owned(), figure)));
        (self.summary.loss, self.summary.examples) = (step.loss, step.examples);
        (self.theta, self.optimizers, self.moments) =
            (step.theta.clone(), Some(step.optimizers), step.moments);
        if self.open.moving {
            self.gradient = step.gradient;
        }
        if self.due.at(self.open.round) {
            cx.run(ServerJob::Evaluate { theta: step.theta, trained: true });
        } else {
            cx.close(std::mem::take(&mut self.summary));
        }
    }

    fn note(&mut self, spread: Spread) {
        if spread.perturbations == 0 {
            return;
        }
        let figures = [
            ("perturbations", spread.perturbations as f64),
            ("variance", spread.variance),
            ("noise_to_signal", spread.noise_to_signal()),
            (
                "tensor_variance",
                if self.options.checked.is_some() { spread.tensor_variance } else { f64::MAX },
            ),
        ];
        // Where only one half has anything, or nothing but noise is left, there is no figure.
        let known = figures.into_iter().filter(|(_, figure)| *figure < 1e12);
        self.summary.figures.extend(known.map(|(name, figure)| (name.to_owned(), figure)));
    }
}

impl Side for Server {
    type In = Told;
    type Out = Order;
    type Job = ServerJob;
    type Done = ServerDone;
    type Bench = Bench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { round, cohort } => {
                self.opened(round, cohort.iter().map(|member| member.node).collect(), cx);
            }
            Event::Message { from, body } => self.heard(from, body, cx),
            Event::Lost(node) => self.gone(node, cx),
            Event::Done(ServerDone::Picked(picks)) => self.picked(picks, cx),
            Event::Done(ServerDone::Aggregated(outcome)) => self.aggregated(outcome, cx),
            Event::Done(ServerDone::Evaluated { eval, trained: false }) => self.summary.before = Some(eval),
            Event::Done(ServerDone::Evaluated { eval, trained: true }) => {
                self.summary.eval = Some(eval);
                cx.close(std::mem::take(&mut self.summary));
            }
        }
    }

    fn price(job: &ServerJob, bench: &Bench) -> Cost {
        match job {
            ServerJob::Pick { nodes, .. } => {
                let draws =
                    nodes.len() as f64 * f64::from(bench.options.most_waves * bench.options.perturbations);
                let elements = draws / bench.options.keep * bench.scope.moves.len() as f64;
                Cost { flops: 20 * elements as u64, bytes: 8 * bench.scope.moves.len() as u64 }
            }
            ServerJob::Aggregate(job) => aggregate::price(bench, job),
            ServerJob::Evaluate { .. } => price_of_evaluation(&bench.lab),
        }
    }

    fn label(job: &ServerJob) -> &'static str {
        match job {
            ServerJob::Pick { .. } => "pick",
            ServerJob::Aggregate { .. } => "aggregate",
            ServerJob::Evaluate { .. } => "evaluate",
        }
    }

    fn run(job: ServerJob, bench: &Bench, meter: &Meter) -> Result<ServerDone, Fault> {
        match job {
            ServerJob::Pick { round, nodes, gradient } => {
                let _held = hold(meter, 8 * bench.scope.moves.len() as u64)?;
                directions::pick(bench, round, &nodes, &gradient).map(ServerDone::Picked)
            }
            ServerJob::Aggregate(job) => aggregate::run(bench, *job, meter).map(ServerDone::Aggregated),
            ServerJob::Evaluate { theta, trained } => {
                let eval = evaluate(&bench.lab, &theta, meter)?;
                Ok(ServerDone::Evaluated { eval, trained })
            }
        }
    }
}
