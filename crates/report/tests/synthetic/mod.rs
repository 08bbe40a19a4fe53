//! Synthetic traces: invented figures in the shape of a real run, for tests and for looking at pages.

use base::{Node, SERVER, Seed, Stream, Time};
use federation::{Eval, Fact, Member, Record, Status, Summary};
use undertone_report::{Clock, DeviceClass, RunInfo};

const CLASSES: [(&str, f64, u64, f64); 4] = [
    ("jetson-nano", 2.3e11, 4_000_000_000, 1.2e6),
    ("jetson-tx2", 6.6e11, 8_000_000_000, 2.5e6),
    ("pixel-7-pro", 1.1e12, 12_000_000_000, 2.5e6),
    ("apple-a17-pro", 2.1e12, 8_000_000_000, 6.2e6),
];

/// What an invented run looks like.
#[derive(Clone, Copy)]
pub struct Shape {
    pub method: &'static str,
    pub seed: u64,
    pub devices: u32,
    pub rounds: u32,
    /// Accuracy that the curve tends to.
    pub ceiling: f64,
    /// Bytes of one update.
    pub update: u64,
    pub causal: bool,
}

pub const EMOTION: Shape = Shape {
    method: "fedavg-lora",
    seed: 7,
    devices: 16,
    rounds: 10,
    ceiling: 0.89,
    update: 309_000,
    causal: false,
};

pub fn members(shape: &Shape) -> Vec<Member> {
    let member = |node: u32| {
        let (class, flops_per_s, memory_bytes, link) = CLASSES[(node as usize * 7 / 3) % CLASSES.len()];
        Member {
            node: Node(node),
            class: class.to_owned(),
            flops_per_s,
            memory_bytes,
            up_bytes_per_s: link,
            down_bytes_per_s: link * 4.0,
            examples: 300 + u64::from(node) * 53 % 1400,
        }
    };
    (1..=shape.devices).map(member).collect()
}

pub fn info(shape: &Shape) -> RunInfo {
    RunInfo {
        run: format!("synthetic-{}-{:04x}", shape.method, shape.seed * 40503 % 65536),
        method: shape.method.to_owned(),
        model: "all-MiniLM-L6-v2".to_owned(),
        dataset: "emotion (16,000 rows, dirichlet 0.5)".to_owned(),
        seed: shape.seed,
        rounds: shape.rounds,
        devices: shape.devices,
        clock: Clock::Virtual,
        fleet: DeviceClass::table(&members(shape)),
        notes: vec!["This trace is synthetic: every figure on this page is invented.".to_owned()],
    }
}

/// A whole run's trace in time order.
pub fn trace(shape: &Shape) -> Vec<Record> {
    let members = members(shape);
    let mut run =
        Run { shape, records: Vec::new(), draws: Seed(shape.seed).child("synthetic", 0).stream(), job: 0 };
    for member in &members {
        let at = Time::ZERO.after(0.01 * f64::from(member.node.0));
        run.put(at, member.node, Fact::Sent { to: SERVER, bytes: 96, arrives: Some(at.after(0.03)) });
        let (device, class, examples) = (member.node, member.class.clone(), member.examples);
        run.put(at.after(0.03), SERVER, Fact::Joined { device, class, examples });
    }
    let mut now = Time::ZERO.after(0.05 + 0.01 * f64::from(shape.devices));
    for round in 1..=shape.rounds {
        now = run.round(round, now, &members);
    }
    run.put(now, SERVER, Fact::Stopped { status: Status::Completed });
    run.records.sort_by_key(|record| record.t);
    run.records
}

struct Run<'a> {
    shape: &'a Shape,
    records: Vec<Record>,
    draws: Stream,
    job: u64,
}

impl Run<'_> {
    fn put(&mut self, t: Time, node: Node, fact: Fact) {
        self.records.push(Record { t, node, fact });
    }

    fn round(&mut self, round: u32, opened: Time, members: &[Member]) -> Time {
        let mut order: Vec<usize> = (0..members.len()).collect();
        self.draws.shuffle(&mut order);
        let mut cohort: Vec<usize> = order[..members.len().div_ceil(2)].to_vec();
        cohort.sort_unstable();
        let deadline = opened.after(75.0);
        let nodes: Vec<Node> = cohort.iter().map(|index| members[*index].node).collect();
        self.put(opened, SERVER, Fact::RoundOpened { round, cohort: nodes, deadline: Some(deadline) });
        let (mut last, mut counted, mut examples) = (opened, 0, 0);
        for index in cohort {
            let member = &members[index];
            let done = self.device(round, opened, member);
            if let Some(done) = done.filter(|done| *done <= deadline) {
                self.put(done, SERVER, Fact::Counted { round, device: member.node });
                counted += 1;
                examples += member.examples;
                last = last.max(done);
            } else {
                let reason = if done.is_some() { "deadline" } else { "gone for good" }.to_owned();
                self.put(deadline, SERVER, Fact::Lost { round, device: member.node, reason });
                last = deadline;
            }
        }
        let closed = self.server(last);
        let summary = self.summary(round, examples);
        self.put(closed, SERVER, Fact::RoundClosed { round, counted, summary });
        closed
    }

    /// One device's part in a round; `None` if it never answers.
    fn device(&mut self, round: u32, opened: Time, member: &Member) -> Option<Time> {
        let bytes = self.shape.update;
        let begin = opened.after(bytes as f64 / member.down_bytes_per_s + 0.04);
        self.put(opened, SERVER, Fact::Sent { to: member.node, bytes, arrives: Some(begin) });
        let chance = self.draws.unit();
        if chance < 0.02 {
            let fact = Fact::Refused {
                job: self.job,
                label: "train".into(),
                need: member.memory_bytes / 8 * 9,
                budget: member.memory_bytes,
            };
            self.put(begin, member.node, fact);
            return None;
        }
        if chance < 0.05 {
            self.put(begin.after(3.0), member.node, Fact::Offline { until: Some(begin.after(60.0)) });
            return None;
        }
        let flops = member.examples * 17_000_000_000;
        let mut end = begin.after(flops as f64 / member.flops_per_s * (0.9 + 0.3 * self.draws.unit()));
        if chance < 0.12 {
            let killed = begin.after(2.0);
            self.put(killed, member.node, Fact::Killed { until: Some(killed.after(9.0)) });
            self.put(killed.after(9.0), member.node, Fact::Restored { replayed: 2 });
            end = end.after(11.0);
        }
        let priced_bytes = 190_000_000 + member.examples * 40_000;
        let peak_bytes = priced_bytes - priced_bytes / 31;
        self.job += 1;
        let ran =
            Fact::Ran { job: self.job, label: "train".into(), begin, flops, priced_bytes, peak_bytes };
        self.put(end, member.node, ran);
        let arrives = end.after(bytes as f64 / member.up_bytes_per_s + 0.04);
        self.put(end, member.node, Fact::Sent { to: SERVER, bytes, arrives: Some(arrives) });
        if round == 3 && chance > 0.97 {
            let reason = "loss is not finite (NaN) in step 12".to_owned();
            self.put(end, member.node, Fact::Fault { round, job: self.job, label: "train".into(), reason });
        }
        Some(arrives)
    }

    fn server(&mut self, begin: Time) -> Time {
        self.job += 1;
        let end = begin.after(4.0);
        let (flops, priced_bytes, peak_bytes) = (9_000_000_000_000, 410_000_000, 402_000_000);
        let ran =
            Fact::Ran { job: self.job, label: "evaluate".into(), begin, flops, priced_bytes, peak_bytes };
        self.put(end, SERVER, ran);
        end
    }

    fn summary(&mut self, round: u32, examples: u64) -> Summary {
        let progress = 1.0 - (-f64::from(round) / (0.28 * f64::from(self.shape.rounds))).exp();
        let noise = 0.012 * self.draws.normal();
        let accuracy = (0.33 + (self.shape.ceiling - 0.33) * progress + noise).clamp(0.0, 1.0);
        let loss = 1.62 - 1.62 * 0.82 * accuracy;
        let mut eval = Eval { loss, examples: 2000, ..Eval::default() };
        if self.shape.causal {
            eval.perplexity = Some((loss + 1.0).exp());
        } else {
            (eval.accuracy, eval.macro_f1) = (Some(accuracy), Some(accuracy - 0.06));
        }
        Summary { loss: loss * 0.94 + 0.01, examples, eval: Some(eval), ..Summary::default() }
    }
}
