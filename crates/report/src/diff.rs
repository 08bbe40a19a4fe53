//! Where two runs part: the first record that differs, and the figures that differ in the end.

use crate::fold::Point;
use crate::summary::{Summary, status_text};
use base::Time;
use federation::{Fact, Record};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// The first place where two traces differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// Records that agree before it, so also the index of the two that do not.
    pub index: u64,
    /// The round that was open or had last been opened there; 0 before the first.
    pub round: u32,
    /// The time of the last record that agrees.
    pub agreed_until: Time,
    /// `None` where this trace has ended.
    pub left: Option<Record>,
    pub right: Option<Record>,
    /// Fields that differ, where both have a record of the same event on the same node.
    pub fields: Vec<Difference>,
}

/// One figure or field in which two things differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Such as `summary.loss`.
    pub field: String,
    pub left: String,
    pub right: String,
}

/// The first divergence of two traces, or how many records they share. Errors of either side end
/// the comparison.
pub fn diff_traces<E>(
    left: impl IntoIterator<Item = Result<Record, E>>,
    right: impl IntoIterator<Item = Result<Record, E>>,
) -> Result<Result<u64, Box<Divergence>>, E> {
    let (mut left, mut right) = (left.into_iter(), right.into_iter());
    let (mut index, mut round, mut agreed_until) = (0, 0, Time::ZERO);
    loop {
        let pair = (left.next().transpose()?, right.next().transpose()?);
        match pair {
            (None, None) => return Ok(Ok(index)),
            (Some(a), Some(b)) if a == b => {
                if let Fact::RoundOpened { round: opened, .. } = a.fact {
                    round = opened;
                }
                (index, agreed_until) = (index + 1, a.t);
            }
            (left, right) => {
                let fields = fields(left.as_ref(), right.as_ref());
                return Ok(Err(Box::new(Divergence { index, round, agreed_until, left, right, fields })));
            }
        }
    }
}

/// The figures of two summaries that differ: those of the run's set-up, then those of its end, then
/// those of the first round whose numbers (not times) differ.
pub fn diff_summaries(left: &Summary, right: &Summary) -> Vec<Difference> {
    let mut all = differing(&headline(left), &headline(right));
    let rounds = left.curve.iter().zip(&right.curve);
    let first =
        rounds.map(|(left, right)| differing(&numbers(left), &numbers(right))).find(|row| !row.is_empty());
    all.extend(first.into_iter().flatten());
    all
}

type Figures = Vec<(String, String)>;

/// The figures in which two lists of the same names differ.
fn differing(left: &Figures, right: &Figures) -> Vec<Difference> {
    let pairs = left.iter().zip(right).filter(|(left, right)| left != right);
    pairs
        .map(|((field, left), (_, right))| Difference {
            field: field.clone(),
            left: left.clone(),
            right: right.clone(),
        })
        .collect()
}

fn number(value: Option<f64>) -> String {
    value.map_or("none".to_owned(), |value| value.to_string())
}

/// What a round's weights decide.
fn numbers(point: &Point) -> Figures {
    let name = |field: &str| format!("round {} {field}", point.round);
    vec![
        (name("counted"), format!("{} of {}", point.counted, point.cohort)),
        (name("train_loss"), number(point.train_loss)),
        (name("loss"), number(point.loss)),
        (name("accuracy"), number(point.accuracy)),
    ]
}

/// What of a summary is worth comparing; the run's id and its real time always differ.
fn headline(run: &Summary) -> Figures {
    let info = &run.info;
    let hash = run.weights_hash.clone().unwrap_or("none".to_owned());
    let eval = run.eval.clone().unwrap_or_default();
    let figures = [
        ("method", info.method.clone()),
        ("model", info.model.clone()),
        ("dataset", info.dataset.clone()),
        ("seed", info.seed.to_string()),
        ("rounds", info.rounds.to_string()),
        ("devices", info.devices.to_string()),
        ("status", status_text(&run.status)),
        ("rounds ended", run.curve.len().to_string()),
        ("eval.accuracy", number(eval.accuracy)),
        ("eval.macro_f1", number(eval.macro_f1)),
        ("eval.perplexity", number(eval.perplexity)),
        ("eval.pearson", number(eval.pearson)),
        ("eval.loss", number(run.eval.as_ref().map(|eval| eval.loss))),
        ("time_s", run.time_s.to_string()),
        ("bytes.up", run.bytes.up.to_string()),
        ("bytes.down", run.bytes.down.to_string()),
        ("device_peak_bytes.max", run.device_peak_bytes.max.to_string()),
        ("server_peak_bytes", run.server_peak_bytes.to_string()),
        ("weights_hash", hash),
        ("trace_hash", run.trace_hash.clone()),
    ];
    figures.map(|(name, figure)| (name.to_owned(), figure)).to_vec()
}

fn fields(left: Option<&Record>, right: Option<&Record>) -> Vec<Difference> {
    let (Some(left), Some(right)) = (left, right) else { return Vec::new() };
    let (left, right) = (flatten(left), flatten(right));
    if left.get("event") != right.get("event") || left.get("node") != right.get("node") {
        return Vec::new();
    }
    let absent = || "absent".to_owned();
    let mut names: Vec<&String> = left.keys().chain(right.keys()).collect();
    names.sort();
    names.dedup();
    let differs = names.into_iter().filter(|name| left.get(*name) != right.get(*name));
    differs
        .map(|name| Difference {
            field: name.clone(),
            left: left.get(name).cloned().unwrap_or_else(absent),
            right: right.get(name).cloned().unwrap_or_else(absent),
        })
        .collect()
}

fn flatten(record: &Record) -> BTreeMap<String, String> {
    let mut into = BTreeMap::new();
    let value = serde_json::to_value(record).expect("a record is plain data with string keys");
    place("", &value, &mut into);
    into
}

fn place(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                place(&path, value, into);
            }
        }
        Value::Null => {}
        _ => {
            into.insert(path.to_owned(), value.to_string());
        }
    }
}

impl Divergence {
    /// What the difference means, in a sentence.
    pub fn explain(&self) -> String {
        let (Some(left), Some(right)) = (&self.left, &self.right) else {
            let (ended, other) = if self.left.is_none() { ("left", "right") } else { ("right", "left") };
            return format!("the {ended} trace ends here, the {other} one goes on");
        };
        if self.fields.is_empty() {
            return format!(
                "another thing happens next: {} on {} instead of {} on {}",
                event(right),
                right.node,
                event(left),
                left.node
            );
        }
        let names: Vec<&str> = self.fields.iter().map(|row| row.field.as_str()).collect();
        let only = |allowed: &[&str]| names.iter().all(|name| allowed.contains(name));
        let meaning = if only(&["t", "begin", "arrives", "deadline", "until"]) {
            "the same thing happens at another time: speeds, links or weather differ, the numbers do not (yet)"
        } else if only(&["peak_bytes", "priced_bytes"]) {
            "the same job takes another amount of memory; its result may still agree"
        } else if names.iter().any(|name| name.starts_with("summary.")) {
            "the same round ends with other numbers: weights, data or kernels differ"
        } else if names.contains(&"cohort") {
            "another cohort is drawn: the seed or the membership differs"
        } else {
            "the same event, with other contents"
        };
        meaning.to_owned()
    }
}

fn event(record: &Record) -> String {
    flatten(record).get("event").map_or(String::new(), |name| name.trim_matches('"').to_owned())
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when =
            if self.round == 0 { "before round 1".to_owned() } else { format!("round {}", self.round) };
        writeln!(
            f,
            "{} records agree, up to {:.6} s; record {} ({when}) is the first that differs:",
            self.index,
            self.agreed_until.seconds(),
            self.index + 1,
        )?;
        for (name, record) in [("left ", &self.left), ("right", &self.right)] {
            match record {
                Some(record) => {
                    let text = serde_json::to_string(record).map_err(|_| fmt::Error)?;
                    writeln!(f, "  {name}  {text}")?;
                }
                None => writeln!(f, "  {name}  (end of trace)")?,
            }
        }
        for row in &self.fields {
            writeln!(f, "  {}: {} != {}", row.field, row.left, row.right)?;
        }
        writeln!(f, "  {}", self.explain())
    }
}
