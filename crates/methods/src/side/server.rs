//! The server's half: collects what devices send, then trains from the cache with no device in the loop.

use super::arrivals::Arrivals;
use super::bench::SideBench;
use super::device_head::HeadKind;
use super::exact::{Asking, Proposal};
use super::options::{LossKind, Training};
use super::store::{self, Stored, Unstored};
use super::trainer::{Holding, Span, Volume};
use super::{Down, Up, Word};
use crate::evaluate::Due;
use crate::train::hold;
use base::{Blob, Cost, Meter, Node};
use federation::{Cx, Eval, Event, Fault, Side, Summary};
use model::optim::Optimizer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The run as the server knows it. What devices sent is in the cache, not here.
#[derive(Serialize, Deserialize)]
pub struct Server {
    theta: Blob,
    optimizer: Optimizer,
    rules: Rules,
    round: u32,
    /// Epochs of the run, and of this round, that are done.
    epochs: (u32, u32),
    arrivals: Arrivals,
    /// Devices of this round that are not lost.
    present: BTreeSet<Node>,
    /// Of these, those whose rows are not all there.
    waiting: BTreeSet<Node>,
    stage: Stage,
    /// What there was when it was last trained on.
    volume: Volume,
    summary: Summary,
    due: Due,
}

/// What of the options the half decides by.
#[derive(Clone, Serialize, Deserialize)]
pub struct Rules {
    loss: LossKind,
    head: HeadKind,
    training: Training,
    epochs: u32,
    rounds: u32,
    /// Samples of a step.
    batch: u32,
    guarantee: Option<(f64, f64)>,
}

#[derive(Serialize, Deserialize)]
enum Stage {
    Collecting,
    Training,
    /// Exact training: a step whose gradients come in.
    Asking(Asking),
    Weighing {
        asked: BTreeSet<Node>,
        said: BTreeMap<Node, Word>,
    },
    Evaluating,
}

#[derive(Clone, Serialize, Deserialize)]
pub enum ServerJob {
    Store(Unstored),
    Train {
        theta: Blob,
        optimizer: Optimizer,
        holdings: Vec<Holding>,
        span: Span,
    },
    Propose {
        theta: Blob,
        holdings: Vec<Holding>,
        step: u32,
    },
    Step {
        theta: Blob,
        optimizer: Optimizer,
        holdings: Vec<Holding>,
        step: (u32, u32),
        gradients: BTreeMap<Node, Blob>,
    },
    /// `trained` tells the network of a round's end from the one before the first round.
    Evaluate {
        theta: Blob,
        trained: bool,
    },
}

#[derive(Serialize, Deserialize)]
pub enum ServerDone {
    Stored(Stored),
    Trained {
        theta: Blob,
        optimizer: Optimizer,
        loss: f64,
        volume: Volume,
        epochs: u32,
    },
    Proposed(Vec<Proposal>, Volume),
    /// `refused` gave gradients that are none.
    Stepped {
        theta: Blob,
        optimizer: Optimizer,
        refused: Vec<(Node, String)>,
    },
    Evaluated {
        eval: Eval,
        trained: bool,
    },
}

impl Side for Server {
    type In = Up;
    type Out = Down;
    type Job = ServerJob;
    type Done = ServerDone;
    type Bench = SideBench;

    fn handle(&mut self, event: Event<Self>, cx: &mut Cx<Self>) {
        match event {
            Event::Open { round, cohort } => {
                let nodes = cohort.iter().map(|member| (member.node, member.examples)).collect();
                self.open(round, nodes, cx);
            }
            Event::Message { from, body } => self.message(from, body, cx),
            Event::Lost(node) => self.lost(node, cx),
            Event::Done(ServerDone::Stored(stored)) => self.stored(stored, cx),
            Event::Done(ServerDone::Trained { theta, optimizer, loss, volume, epochs }) => {
                (self.theta, self.optimizer) = (theta, optimizer);
                (self.summary.loss, self.volume) = (loss, volume);
                self.epochs = (self.epochs.0 + epochs, self.epochs.1 + epochs);
                self.trained(cx);
            }
            Event::Done(ServerDone::Proposed(proposals, volume)) => {
                self.volume = volume;
                self.proposed(proposals, cx);
            }
            Event::Done(ServerDone::Stepped { theta, optimizer, refused }) => {
                (self.theta, self.optimizer) = (theta, optimizer);
                refused.iter().for_each(|(node, reason)| self.refuse(*node, reason, cx));
                self.stepped(cx);
            }
            Event::Done(ServerDone::Evaluated { eval, trained: false }) => self.summary.before = Some(eval),
            Event::Done(ServerDone::Evaluated { eval, trained: true }) => {
                self.summary.eval = Some(eval);
                cx.close(std::mem::take(&mut self.summary));
            }
        }
    }

    fn price(job: &ServerJob, bench: &SideBench) -> Cost {
        match job {
            ServerJob::Store(unstored) => store::price(bench, unstored),
            ServerJob::Train { holdings, span, .. } => bench.trainer().price(holdings, *span),
            ServerJob::Propose { holdings, .. } | ServerJob::Step { holdings, .. } => {
                bench.trainer().price_of_step(holdings)
            }
            ServerJob::Evaluate { .. } => bench.price_of_evaluation(),
        }
    }

    fn label(job: &ServerJob) -> &'static str {
        match job {
            ServerJob::Store(_) => "store",
            ServerJob::Train { .. } => "train",
            ServerJob::Propose { .. } => "propose",
            ServerJob::Step { .. } => "step",
            ServerJob::Evaluate { .. } => "evaluate",
        }
    }

    fn run(job: ServerJob, bench: &SideBench, meter: &Meter) -> Result<ServerDone, Fault> {
        match job {
            ServerJob::Store(unstored) => store::store(bench, unstored, meter).map(ServerDone::Stored),
            ServerJob::Train { theta, mut optimizer, holdings, span } => {
                let _held = hold(meter, theta.len() as u64 + optimizer_bytes(bench))?;
                let mut theta = bench.theta(&theta)?;
                let (loss, volume) =
                    bench.trainer().epochs(&mut theta, &mut optimizer, &holdings, span, meter)?;
                Ok(ServerDone::Trained {
                    theta: Blob::from_f32(&theta),
                    optimizer,
                    loss,
                    volume,
                    epochs: span.count,
                })
            }
            ServerJob::Propose { theta, holdings, step } => {
                let (proposals, volume) = bench.propose(&theta, &holdings, step, meter)?;
                Ok(ServerDone::Proposed(proposals, volume))
            }
            ServerJob::Step { theta, mut optimizer, holdings, step, gradients } => {
                let (theta, refused) =
                    bench.exact_step(&theta, &mut optimizer, &holdings, step, &gradients, meter)?;
                Ok(ServerDone::Stepped { theta, optimizer, refused })
            }
            ServerJob::Evaluate { theta, trained } => {
                let eval = bench.evaluate(&theta, meter)?;
                Ok(ServerDone::Evaluated { eval, trained })
            }
        }
    }
}

fn optimizer_bytes(bench: &SideBench) -> u64 {
    Optimizer::state_bytes(&bench.lab.work.recipe.optimizer(), bench.network.total())
}

impl Server {
    pub fn new(bench: &SideBench, rounds: u32) -> Server {
        let (options, recipe) = (&bench.options, &bench.lab.work.recipe);
        let rules = Rules {
            loss: options.loss,
            head: options.head,
            training: options.training,
            epochs: options.epochs,
            rounds,
            batch: options.server_batch_size.get() as u32,
            guarantee: options.privacy.guarantee(),
        };
        Server {
            theta: Blob::from_f32(&bench.network.initial(bench.lab.seed.child("side network", 0))),
            optimizer: Optimizer::new(&recipe.optimizer(), bench.network.total()),
            rules,
            round: 0,
            epochs: (0, 0),
            arrivals: Arrivals::new(options.head, bench.chunk_limit()),
            present: BTreeSet::new(),
            waiting: BTreeSet::new(),
            stage: Stage::Collecting,
            volume: Volume::default(),
            summary: Summary::default(),
            due: Due { every: recipe.eval_every, last: rounds },
        }
    }

    pub fn into_theta(self) -> Blob {
        self.theta
    }

    fn open(&mut self, round: u32, cohort: BTreeMap<Node, u64>, cx: &mut Cx<Self>) {
        (self.round, self.epochs.1, self.stage) = (round, 0, Stage::Collecting);
        self.summary = Summary::default();
        (self.present, self.waiting) = (BTreeSet::new(), BTreeSet::new());
        for (node, examples) in cohort {
            if examples == 0 {
                cx.finished(node);
                continue;
            }
            self.present.insert(node);
            if self.arrivals.is_complete(node) {
                self.complete(node, cx);
            } else {
                self.waiting.insert(node);
                let first = self.arrivals.begin(node);
                first.into_iter().for_each(|index| cx.send(node, Down::Chunk(index)));
            }
        }
        if round == 1 && self.rules.head == HeadKind::Zero {
            cx.run(ServerJob::Evaluate { theta: self.theta.clone(), trained: false });
        }
        self.go_on(cx);
    }

    /// All of a device is there, and it was not lost before: from now on its rows are trained on.
    fn complete(&mut self, node: Node, cx: &mut Cx<Self>) {
        self.arrivals.count(node);
        if !self.stays() {
            cx.finished(node);
        }
    }

    /// Whether devices are needed after their rows are there.
    fn stays(&self) -> bool {
        let last_word = self.rules.head == HeadKind::Trained && self.round == self.rules.rounds;
        last_word || self.rules.loss == LossKind::Exact
    }

    fn message(&mut self, from: Node, body: Up, cx: &mut Cx<Self>) {
        let waited_for = self.waiting.contains(&from);
        let unstored = match body {
            Up::Taps(taps) if waited_for => self.arrivals.taps(from, taps),
            Up::Differences(blobs) if waited_for => self.arrivals.differences(from, blobs),
            Up::Taps(_) | Up::Differences(_) => return,
            Up::Gradient { step, gradient, loss } => return self.gradient(from, step, gradient, loss, cx),
            Up::Weighed(word) => return self.weighed(from, word, cx),
        };
        match unstored {
            Err(reason) => self.refuse(from, reason, cx),
            Ok(unstored) => {
                cx.run(ServerJob::Store(unstored));
                let next = self.arrivals.next(from);
                next.into_iter().for_each(|index| cx.send(from, Down::Chunk(index)));
            }
        }
    }

    fn refuse(&mut self, node: Node, reason: &str, cx: &mut Cx<Self>) {
        cx.refuse(node, reason);
        self.lost(node, cx);
    }

    fn lost(&mut self, node: Node, cx: &mut Cx<Self>) {
        self.present.remove(&node);
        let was_waited_for = self.waiting.remove(&node);
        if was_waited_for && self.rules.head == HeadKind::Trained {
            // Its head would be another one.
            self.arrivals.forget(node);
        }
        let was_asked = match &mut self.stage {
            Stage::Asking(asking) => asking.lose(node),
            Stage::Weighing { asked, .. } => asked.remove(&node),
            Stage::Collecting | Stage::Training | Stage::Evaluating => false,
        };
        if was_asked {
            self.step_when_complete(cx);
            self.close_when_weighed(cx);
        }
        if was_waited_for {
            self.go_on(cx);
        }
    }

    fn stored(&mut self, stored: Stored, cx: &mut Cx<Self>) {
        let node = stored.node;
        if let Some(reason) = stored.objection {
            if self.waiting.contains(&node) {
                self.refuse(node, &reason, cx);
            }
            return;
        }
        if self.arrivals.stored(&stored) && self.waiting.remove(&node) {
            self.complete(node, cx);
            self.go_on(cx);
        }
    }

    /// Train, if the time has come.
    fn go_on(&mut self, cx: &mut Cx<Self>) {
        if !matches!(self.stage, Stage::Collecting) {
            return;
        }
        let mut holdings = self.arrivals.holdings();
        if !self.waiting.is_empty() {
            let early = self.rules.training == Training::WhileArriving && self.epochs.1 < self.rules.epochs;
            if early && !holdings.is_empty() {
                self.train(holdings, 1, cx);
            }
            return;
        }
        if self.rules.loss == LossKind::Exact {
            holdings.retain(|holding| self.present.contains(&holding.node));
        }
        if holdings.is_empty() {
            return cx.close(std::mem::take(&mut self.summary));
        }
        match self.rules.loss {
            LossKind::Residual => {
                self.train(holdings, self.rules.epochs.saturating_sub(self.epochs.1).max(1), cx)
            }
            LossKind::Exact => self.propose(holdings, 0, cx),
        }
    }

    fn train(&mut self, holdings: Vec<Holding>, count: u32, cx: &mut Cx<Self>) {
        self.stage = Stage::Training;
        let span = Span { first: self.epochs.0, count, total: self.rules.epochs * self.rules.rounds };
        cx.run(ServerJob::Train {
            theta: self.theta.clone(),
            optimizer: self.optimizer.clone(),
            holdings,
            span,
        });
    }

    fn trained(&mut self, cx: &mut Cx<Self>) {
        if !self.waiting.is_empty() || self.epochs.1 < self.rules.epochs {
            self.stage = Stage::Collecting;
            return self.go_on(cx);
        }
        self.last_word(cx);
    }

    // ---- Exact training

    fn propose(&mut self, holdings: Vec<Holding>, step: u32, cx: &mut Cx<Self>) {
        let rows: u32 = holdings.iter().flat_map(|holding| &holding.rows).sum();
        let steps = self.rules.epochs * rows.div_ceil(self.rules.batch);
        let run_step = (self.round - 1) * steps + step;
        let theta = self.theta.clone();
        cx.run(ServerJob::Propose { theta, holdings: holdings.clone(), step: run_step });
        self.stage = Stage::Asking(Asking::new(step, steps, holdings));
    }

    fn proposed(&mut self, proposals: Vec<Proposal>, cx: &mut Cx<Self>) {
        let Stage::Asking(asking) = &mut self.stage else { return };
        for Proposal { node, ask } in proposals {
            if self.present.contains(&node) {
                asking.ask(node);
                cx.send(node, Down::Logits { step: asking.step, ask });
            }
        }
        self.step_when_complete(cx);
    }

    fn gradient(&mut self, from: Node, step: u32, gradient: Blob, loss: f64, cx: &mut Cx<Self>) {
        if !loss.is_finite() {
            return self.refuse(from, "its loss is not finite", cx);
        }
        if let Stage::Asking(asking) = &mut self.stage
            && asking.answer(from, step, gradient, loss)
        {
            self.step_when_complete(cx);
        }
    }

    fn step_when_complete(&mut self, cx: &mut Cx<Self>) {
        let Stage::Asking(asking) = &mut self.stage else { return };
        if !asking.is_complete() {
            return;
        }
        let gradients = std::mem::take(&mut asking.gradients);
        if gradients.is_empty() {
            // Everyone who could answer is gone.
            return self.last_word(cx);
        }
        let step = ((self.round - 1) * asking.steps + asking.step, self.rules.rounds * asking.steps);
        let loss: f64 = gradients.values().map(|(_, loss)| loss).sum();
        self.summary.loss = loss / f64::from(self.rules.batch);
        let gradients = gradients.into_iter().map(|(node, (gradient, _))| (node, gradient)).collect();
        let (theta, optimizer) = (self.theta.clone(), self.optimizer.clone());
        let holdings = asking.holdings.clone();
        cx.run(ServerJob::Step { theta, optimizer, holdings, step, gradients });
    }

    fn stepped(&mut self, cx: &mut Cx<Self>) {
        let Stage::Asking(asking) = &mut self.stage else { return };
        let (next, steps) = (asking.step + 1, asking.steps);
        if next < steps && !self.present.is_empty() {
            let holdings = std::mem::take(&mut asking.holdings);
            return self.propose(holdings, next, cx);
        }
        self.epochs.0 += self.rules.epochs;
        self.last_word(cx);
    }

    // ---- The end of a round

    fn last_word(&mut self, cx: &mut Cx<Self>) {
        self.figures();
        let asks = self.rules.head == HeadKind::Trained && self.round == self.rules.rounds;
        if asks && !self.present.is_empty() {
            for &node in &self.present {
                cx.send(node, Down::Side(self.theta.clone()));
            }
            self.stage = Stage::Weighing { asked: self.present.clone(), said: BTreeMap::new() };
            return;
        }
        if self.stays() {
            self.present.iter().for_each(|&node| cx.finished(node));
        }
        if self.due.at(self.round) && self.rules.head == HeadKind::Zero {
            self.stage = Stage::Evaluating;
            return cx.run(ServerJob::Evaluate { theta: self.theta.clone(), trained: true });
        }
        cx.close(std::mem::take(&mut self.summary));
    }

    fn weighed(&mut self, from: Node, word: Word, cx: &mut Cx<Self>) {
        let Stage::Weighing { asked, said } = &mut self.stage else { return };
        if asked.remove(&from) {
            said.insert(from, word);
            cx.finished(from);
            self.close_when_weighed(cx);
        }
    }

    fn close_when_weighed(&mut self, cx: &mut Cx<Self>) {
        let Stage::Weighing { asked, said } = &self.stage else { return };
        if !asked.is_empty() {
            return;
        }
        if let Some(Word { weight, eval, alone }) = said.values().next() {
            self.summary.figures.insert("side_weight".into(), f64::from(*weight));
            let (figure, alone) = match alone.accuracy {
                Some(accuracy) => ("head_accuracy", accuracy),
                None => ("head_loss", alone.loss),
            };
            self.summary.figures.insert(figure.into(), alone);
            self.summary.eval = Some(eval.clone());
        }
        cx.close(std::mem::take(&mut self.summary));
    }

    fn figures(&mut self) {
        self.summary.examples = self.volume.samples;
        let mut figure = |name: &str, value: f64| self.summary.figures.insert(name.into(), value);
        figure("cached_samples", self.volume.samples as f64);
        figure("cache_bytes", self.volume.bytes as f64);
        figure("server_epochs", f64::from(self.epochs.0));
        if let Some((epsilon, delta)) = self.rules.guarantee {
            figure("label_epsilon", epsilon);
            figure("label_delta", delta);
        }
    }
}
