//! From records to figures, in one pass and in memory of the order of the number of devices.

use crate::timeline::{Activity, Opening, Timeline};
use crate::trouble::{Trouble, TroubleKind, Troubles};
use base::{Node, SERVER, Time, units};
use federation::{Eval, Fact, Record, Status, Summary};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One ended round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub round: u32,
    /// When it ended, in seconds since the run began.
    pub time_s: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pearson: Option<f64>,
    /// Of the global model on held-out data; absent where the round was not evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Mean over the examples counted; absent where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Sent by devices since the run began.
    pub bytes_up: u64,
    /// Sent to devices since the run began.
    pub bytes_down: u64,
    /// When it was opened, in seconds.
    pub opened_s: f64,
    pub cohort: u32,
    pub counted: u32,
    pub lost: u32,
    /// How many were lost to what.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost_to: BTreeMap<String, u32>,
    /// Jobs that devices ran in it.
    pub jobs: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
    /// What the method said of it in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What nodes of one class did and took, over the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Nodes that said hello.
    pub joined: u32,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub jobs: u64,
    pub flops: u64,
    /// Time spent on jobs, over all nodes.
    pub busy_ns: u64,
    /// The most one job held, as its meter saw it.
    pub job_peak_bytes: u64,
    /// The highest price of a job that ran.
    pub job_priced_bytes: u64,
    pub counted: u64,
    pub lost: u64,
    pub refused: u64,
    pub killed: u64,
}

impl Totals {
    /// Sums, and the larger of two peaks.
    fn add(&mut self, other: &Totals) {
        self.joined += other.joined;
        self.bytes_up = self.bytes_up.saturating_add(other.bytes_up);
        self.bytes_down = self.bytes_down.saturating_add(other.bytes_down);
        self.jobs += other.jobs;
        self.flops = self.flops.saturating_add(other.flops);
        self.busy_ns = self.busy_ns.saturating_add(other.busy_ns);
        self.job_peak_bytes = self.job_peak_bytes.max(other.job_peak_bytes);
        self.job_priced_bytes = self.job_priced_bytes.max(other.job_priced_bytes);
        self.counted += other.counted;
        self.lost += other.lost;
        self.refused += other.refused;
        self.killed += other.killed;
    }
}

/// A round that is open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpenRound {
    pub round: u32,
    pub opened: Time,
    pub cohort: u32,
    pub counted: u32,
    pub lost: u32,
    pub lost_to: BTreeMap<String, u32>,
    pub jobs: u64,
}

/// Reasons a round tells apart.
const REASONS: usize = 8;

impl OpenRound {
    fn lose(&mut self, reason: &str) {
        self.lost += 1;
        let full = self.lost_to.len() >= REASONS && !self.lost_to.contains_key(reason);
        let reason = if full { "other reasons" } else { reason };
        *self.lost_to.entry(reason.to_owned()).or_default() += 1;
    }
}

/// Everything that reports need, after any prefix of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    pub records: u64,
    /// The time of the latest record.
    pub now: Time,
    pub curve: Vec<Point>,
    pub open: Option<OpenRound>,
    /// The latest measurement of the global model.
    pub eval: Option<Eval>,
    /// The global model before the first round.
    pub before: Option<Eval>,
    /// Bytes sent by devices so far.
    pub bytes_up: u64,
    /// Bytes sent to devices so far.
    pub bytes_down: u64,
    /// The most that one job held on any device so far.
    pub job_peak_bytes: u64,
    pub server: Totals,
    pub timeline: Timeline,
    pub opening: Opening,
    pub messages: u64,
    /// Messages whose arrival is not in the trace: lost ones in simulation, all on a real network.
    pub unarrived: u64,
    pub status: Option<Status>,
    troubles: Troubles,
    devices: BTreeMap<Node, Device>,
}

/// Kept by device and summed by class at the end, since a device sends before its hello is heard.
#[derive(Clone, Debug, Default, PartialEq)]
struct Device {
    class: Option<String>,
    totals: Totals,
}

/// The class of a device that never said hello.
const UNKNOWN: &str = "unknown";

impl Fold {
    /// The fold of a whole trace.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Fold {
        let mut fold = Fold::default();
        records.into_iter().for_each(|record| fold.push(record));
        fold
    }

    /// Take the next record of the trace.
    pub fn push(&mut self, record: &Record) {
        let Record { t, node, ref fact } = *record;
        self.records += 1;
        self.now = self.now.max(t);
        match fact {
            Fact::Joined { device, class, .. } => self.join(*device, class),
            Fact::RoundOpened { round, cohort, .. } => {
                let cohort = cohort.len() as u32;
                self.open = Some(OpenRound { round: *round, opened: t, cohort, ..OpenRound::default() });
            }
            Fact::Counted { round, device } => {
                self.totals(*device).counted += 1;
                self.in_round(*round, |open| open.counted += 1);
            }
            Fact::Lost { round, device, reason } => {
                self.totals(*device).lost += 1;
                self.in_round(*round, |open| open.lose(reason));
                self.timeline.lose(*device, t);
                self.troubles.add(TroubleKind::Lost, reason, t, *device);
            }
            Fact::RoundClosed { round, counted, summary } => self.close(t, *round, *counted, summary),
            Fact::Malformed { from, reason } => self.troubles.add(TroubleKind::Malformed, reason, t, *from),
            Fact::Fault { label, reason, .. } => {
                self.troubles.add(TroubleKind::Fault, &format!("{label}: {reason}"), t, node);
            }
            Fact::Stopped { status } => self.status = Some(status.clone()),
            Fact::Ran { begin, flops, priced_bytes, peak_bytes, .. } => {
                self.ran(node, *begin, t, *flops, *priced_bytes, *peak_bytes);
            }
            Fact::Refused { label, need, budget, .. } => self.refuse(t, node, label, *need, *budget),
            Fact::Sent { to, bytes, arrives } => self.send(t, node, *to, *bytes, *arrives),
            Fact::Killed { until } => {
                self.totals(node).killed += 1;
                self.away(TroubleKind::Killed, t, node, *until);
            }
            // The kill that came before it is counted.
            Fact::Restored { .. } | Fact::Decided { .. } => {}
            Fact::Offline { until } => self.away(TroubleKind::Offline, t, node, *until),
        }
    }

    /// What went wrong, by kind and reason.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles.rows()
    }

    /// The class of a device, as it said itself.
    pub fn class(&self, device: Node) -> &str {
        self.devices.get(&device).and_then(|device| device.class.as_deref()).unwrap_or(UNKNOWN)
    }

    /// What devices did and took, by class.
    pub fn classes(&self) -> BTreeMap<String, Totals> {
        let mut classes: BTreeMap<String, Totals> = BTreeMap::new();
        for device in self.devices.values() {
            let class = device.class.as_deref().unwrap_or(UNKNOWN);
            classes.entry(class.to_owned()).or_default().add(&device.totals);
        }
        classes
    }

    /// A device that rejoins is counted once.
    fn join(&mut self, device: Node, class: &str) {
        let device = self.devices.entry(device).or_default();
        device.class = Some(class.to_owned());
        device.totals.joined = 1;
    }

    fn totals(&mut self, node: Node) -> &mut Totals {
        if node == SERVER { &mut self.server } else { &mut self.devices.entry(node).or_default().totals }
    }

    fn in_round(&mut self, round: u32, change: impl FnOnce(&mut OpenRound)) {
        if let Some(open) = self.open.as_mut().filter(|open| open.round == round) {
            change(open);
        }
    }

    fn close(&mut self, t: Time, round: u32, counted: u32, summary: &Summary) {
        let open = self.open.take().filter(|open| open.round == round);
        let open = open.unwrap_or(OpenRound { opened: t, cohort: counted, ..OpenRound::default() });
        // JSON has no NaN: a figure that is not finite is left out.
        let eval = summary.eval.as_ref().filter(|eval| eval.loss.is_finite());
        let mut figures = summary.figures.clone();
        figures.retain(|_, figure| figure.is_finite());
        self.curve.push(Point {
            round,
            time_s: t.seconds(),
            accuracy: eval.and_then(|eval| eval.accuracy),
            macro_f1: eval.and_then(|eval| eval.macro_f1),
            perplexity: eval.and_then(|eval| eval.perplexity),
            pearson: eval.and_then(|eval| eval.pearson),
            loss: eval.map(|eval| eval.loss),
            train_loss: Some(summary.loss).filter(|loss| loss.is_finite() && summary.examples > 0),
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            opened_s: open.opened.seconds(),
            cohort: open.cohort,
            counted,
            lost: open.lost,
            lost_to: open.lost_to,
            jobs: open.jobs,
            figures,
            notes: summary.notes.clone(),
        });
        if let Some(before) = &summary.before {
            self.before = Some(before.clone());
        }
        if eval.is_some() {
            self.eval = eval.cloned();
        }
    }

    fn ran(&mut self, node: Node, begin: Time, end: Time, flops: u64, priced: u64, peak: u64) {
        let totals = self.totals(node);
        totals.jobs += 1;
        totals.flops = totals.flops.saturating_add(flops);
        totals.busy_ns = totals.busy_ns.saturating_add(end.0.saturating_sub(begin.0));
        totals.job_priced_bytes = totals.job_priced_bytes.max(priced);
        totals.job_peak_bytes = totals.job_peak_bytes.max(peak);
        if node != SERVER {
            self.job_peak_bytes = self.job_peak_bytes.max(peak);
            self.open.iter_mut().for_each(|open| open.jobs += 1);
        }
        self.busy(node, Activity::Compute, begin, end);
    }

    fn refuse(&mut self, t: Time, node: Node, label: &str, need: u64, budget: u64) {
        self.totals(node).refused += 1;
        let owner = if node == SERVER { "the server" } else { self.class(node) };
        let (need, budget) = (units::bytes(need), units::bytes(budget));
        let reason = format!("{label} needs {need}, {owner} has {budget}");
        self.troubles.add(TroubleKind::Refused, &reason, t, node);
    }

    /// A device's end of a link carries the bytes; the server's end is shared by all.
    fn send(&mut self, t: Time, from: Node, to: Node, bytes: u64, arrives: Option<Time>) {
        self.messages += 1;
        self.unarrived += u64::from(arrives.is_none());
        if from == SERVER {
            self.bytes_down = self.bytes_down.saturating_add(bytes);
            self.totals(to).bytes_down += bytes;
        } else {
            self.bytes_up = self.bytes_up.saturating_add(bytes);
            self.totals(from).bytes_up += bytes;
        }
        if let Some(arrives) = arrives {
            self.busy(from, Activity::Send, t, arrives);
            self.busy(to, Activity::Receive, t, arrives);
        }
    }

    fn away(&mut self, kind: TroubleKind, t: Time, node: Node, until: Option<Time>) {
        let reason = if until.is_some() { "came back" } else { "for good" };
        self.troubles.add(kind, reason, t, node);
        self.busy(node, Activity::Away, t, until.unwrap_or(Time(u64::MAX)));
    }

    fn busy(&mut self, node: Node, activity: Activity, begin: Time, end: Time) {
        self.timeline.add(node, activity, begin, end);
        self.opening.add(node, activity, begin, end);
    }
}
