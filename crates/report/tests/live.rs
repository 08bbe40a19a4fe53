//! What a run looks like on the terminal.

mod synthetic;

use base::Time;
use federation::{Fact, Status};
use indicatif::{InMemoryTerm, ProgressDrawTarget};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synthetic::{EMOTION, Shape};
use undertone_report::{Ending, Fold, Format, Live, RunInfo, Style, Summary, comparison_table};

/// A shared buffer to write to.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const TWO_ROUNDS: Shape = Shape { rounds: 2, ..EMOTION };

/// Shows a run; every record takes half a real second.
fn show(live: &mut Live, shape: &Shape, records: usize) -> Fold {
    let mut fold = Fold::default();
    for (index, record) in synthetic::trace(shape).iter().take(records).enumerate() {
        fold.push(record);
        live.update(record, &fold, Duration::from_millis(500 * index as u64)).unwrap();
    }
    fold
}

fn summary(info: &RunInfo, fold: &Fold, status: Status) -> Summary {
    let (trace_hash, weights_hash) = ("7e57".to_owned(), Some("5eed".to_owned()));
    Summary::of(info, fold, &Ending { status, time: fold.now, wall_s: 12.5, trace_hash, weights_hash })
}

#[test]
fn bars_need_a_terminal_and_json_wins() {
    assert_eq!(Style::choose(Format::Text, true), Style::Bars);
    assert_eq!(Style::choose(Format::Text, false), Style::Plain);
    assert_eq!(Style::choose(Format::Json, true), Style::Json);
}

#[test]
fn plain_lines() {
    let (paper, info) = (Paper::default(), synthetic::info(&TWO_ROUNDS));
    let mut live = Live::new(Style::Plain, &info, Box::new(paper.clone())).unwrap();
    let fold = show(&mut live, &TWO_ROUNDS, usize::MAX);
    live.end(&summary(&info, &fold, Status::Completed)).unwrap();
    assert_eq!(paper.text(), PLAIN, "{}", paper.text());
}

const PLAIN: &str = "\
run synthetic-fedavg-lora-5381
  fedavg-lora on all-MiniLM-L6-v2, emotion (16,000 rows, dirichlet 0.5), seed 7
  16 devices (4 apple-a17-pro, 4 jetson-nano, 4 jetson-tx2, 4 pixel-7-pro), 2 rounds
  note: This trace is synthetic: every figure on this page is invented.
[ROUND 1/2]
├─ train   loss 0.5161, 7/8 counted, 0.5 jobs/s
├─ eval    loss 0.5384, accuracy 0.8142, macro-F1 0.7542
├─ lost    1 of 8: deadline
└─ moved   2.5 MB up, 2.5 MB down, 1m 19s virtual
[ROUND 2/2]
├─ train   loss 0.4402, 8/8 counted, 0.5 jobs/s
├─ eval    loss 0.4577, accuracy 0.8750, macro-F1 0.8150
└─ moved   2.5 MB up, 2.5 MB down, 35.6s virtual
completed after 2 rounds
├─ eval    loss 0.4577, accuracy 0.8750, macro-F1 0.8150 (2000 examples)
├─ time    1m 55s virtual, 12.5s on this machine
├─ moved   4.9 MB up, 4.9 MB down
├─ memory  device peak 228.3 MB, server peak 402.0 MB
├─ lost    1 lost to a round (deadline)
└─ weights 5eed
";

#[test]
fn json_lines_begin_with_the_run_and_end_with_its_end() {
    let (paper, info) = (Paper::default(), synthetic::info(&TWO_ROUNDS));
    let mut live = Live::new(Style::Json, &info, Box::new(paper.clone())).unwrap();
    let fold = show(&mut live, &TWO_ROUNDS, usize::MAX);
    live.end(&summary(&info, &fold, Status::Failed("no device is left".into()))).unwrap();
    let text = paper.text();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<&str> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["run", "round", "round", "end"]);
    assert_eq!(lines[0]["run"], info.run.as_str());
    assert_eq!(lines[2]["accuracy"], fold.curve[1].accuracy.unwrap());
    assert_eq!((&lines[3]["status"], &lines[3]["reason"]), (&"failed".into(), &"no device is left".into()));
}

#[test]
fn a_bar_says_how_far_the_run_is() {
    let (paper, info) = (Paper::default(), synthetic::info(&TWO_ROUNDS));
    let term = InMemoryTerm::new(6, 90);
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(term.clone()), 255);
    let mut live = Live::with_bar_on(target, Style::Bars, &info, Box::new(paper.clone())).unwrap();
    let trace = synthetic::trace(&TWO_ROUNDS);
    let closed = trace.iter().position(|record| matches!(record.fact, Fact::RoundClosed { .. })).unwrap();
    assert!(term.contents().contains(" 0/2  eta ?"), "{}", term.contents());
    show(&mut live, &TWO_ROUNDS, closed + 1);
    let bar = term.contents();
    assert!(bar.contains(" 1/2  eta ") && bar.contains("round 1: 7/8 counted, 1 lost, 8 jobs"), "{bar}");
    assert!(paper.text().contains("[ROUND 1/2]") && !paper.text().contains("[ROUND 2/2]"));
}

#[test]
fn runs_are_compared_in_columns() {
    let shapes = [TWO_ROUNDS, Shape { method: "centralized", update: 0, ceiling: 0.95, ..TWO_ROUNDS }];
    let summaries: Vec<Summary> = shapes
        .iter()
        .map(|shape| {
            summary(&synthetic::info(shape), &Fold::of(&synthetic::trace(shape)), Status::Completed)
        })
        .collect();
    let table = comparison_table(&summaries.iter().collect::<Vec<_>>()).to_string();
    assert_eq!(table, COMPARED, "{table}");
}

const COMPARED: &str = "\
method       run                         accuracy    loss    time  devices busy      up    down  time to 0.87  bytes to 0.87  device peak  rounds     status
fedavg-lora  synthetic-fedavg-lora-5381    0.8750  0.4577  1m 55s        5m 01s  4.9 MB  4.9 MB        1m 55s         9.9 MB     228.3 MB     2/2  completed
centralized  synthetic-centralized-5381    0.9333  0.3802  1m 55s        5m 01s  1.5 kB     0 B        1m 55s         1.5 kB     228.3 MB     2/2  completed
";

/// A round that nobody survives is shown and does not divide by nothing.
#[test]
fn an_empty_round() {
    let (paper, info) = (Paper::default(), synthetic::info(&TWO_ROUNDS));
    let mut live = Live::new(Style::Plain, &info, Box::new(paper.clone())).unwrap();
    let mut fold = Fold::default();
    let summary = federation::Summary { loss: f64::NAN, ..Default::default() };
    let closed = Fact::RoundClosed { round: 1, counted: 0, summary };
    let record = federation::Record { t: Time::ZERO, node: base::SERVER, fact: closed };
    fold.push(&record);
    live.update(&record, &fold, Duration::ZERO).unwrap();
    assert!(
        paper
            .text()
            .ends_with("[ROUND 1/2]\n├─ train   nothing\n└─ moved   0 B up, 0 B down, 0.0s virtual\n"),
        "{}",
        paper.text()
    );
}

#[test]
fn a_resumed_run_goes_on_counting() {
    let (paper, info) = (Paper::default(), synthetic::info(&TWO_ROUNDS));
    let mut live = Live::new(Style::Plain, &info, Box::new(paper.clone())).unwrap();
    let trace = synthetic::trace(&TWO_ROUNDS);
    let cut = trace.iter().position(|record| matches!(record.fact, Fact::RoundClosed { .. })).unwrap() + 1;
    let mut fold = Fold::of(&trace[..cut]);
    live.resumed(&fold).unwrap();
    for record in &trace[cut..] {
        fold.push(record);
        live.update(record, &fold, Duration::from_secs(1)).unwrap();
    }
    let (before, after) =
        paper.text().split_once("resumed after 1 round\n").map(|(a, b)| (a.len(), b.to_owned())).unwrap();
    assert!(
        before > 0 && after.starts_with("[ROUND 2/2]\n") && after.contains("moved   2.5 MB up"),
        "{after}"
    );
}
