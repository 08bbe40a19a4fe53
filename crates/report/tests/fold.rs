//! A hand-made trace against figures worked out by hand, and what must hold for any trace.

mod synthetic;

use base::{Node, SERVER, Time};
use federation::{Eval, Fact, Record, Status};
use proptest::prelude::*;
use synthetic::{EMOTION, Shape};
use undertone_report::{
    Clock, DeviceClass, Ending, Fold, Peaks, RunInfo, Summary, TraceReader, TraceWriter, TroubleKind,
};

fn at(seconds: f64, node: Node, fact: Fact) -> Record {
    Record { t: Time::ZERO.after(seconds), node, fact }
}

fn sent(seconds: f64, node: Node, to: Node, bytes: u64) -> Record {
    let arrives = Some(Time::ZERO.after(seconds + 0.5));
    at(seconds, node, Fact::Sent { to, bytes, arrives })
}

fn ran(begin: f64, end: f64, node: Node, priced_bytes: u64, peak_bytes: u64) -> Record {
    let begin = Time::ZERO.after(begin);
    at(end, node, Fact::Ran { job: 1, label: "train".into(), begin, flops: 1000, priced_bytes, peak_bytes })
}

/// Two classes, three devices, one round: one is counted, one is late, one refuses.
fn by_hand() -> Vec<Record> {
    let joined =
        |device, class: &str| at(0.1, SERVER, Fact::Joined { device, class: class.into(), examples: 10 });
    let lost = |seconds, device, reason: &str| {
        at(seconds, SERVER, Fact::Lost { round: 1, device, reason: reason.into() })
    };
    let eval = Eval { loss: 0.5, examples: 40, accuracy: Some(0.75), ..Eval::default() };
    let summary = federation::Summary { loss: 0.6, examples: 10, eval: Some(eval), ..Default::default() };
    vec![
        // The hello of device 1 leaves before its class is known.
        sent(0.0, Node(1), SERVER, 7),
        joined(Node(1), "phone"),
        joined(Node(2), "phone"),
        joined(Node(3), "board"),
        at(
            1.0,
            SERVER,
            Fact::RoundOpened { round: 1, cohort: vec![Node(1), Node(2), Node(3)], deadline: None },
        ),
        sent(1.0, SERVER, Node(1), 100),
        sent(1.0, SERVER, Node(2), 100),
        sent(1.0, SERVER, Node(3), 100),
        at(1.5, Node(3), Fact::Refused { job: 1, label: "train".into(), need: 3_000, budget: 2_000 }),
        lost(1.6, Node(3), "refused"),
        ran(1.5, 3.5, Node(1), 600, 500),
        sent(3.5, Node(1), SERVER, 50),
        at(4.0, SERVER, Fact::Counted { round: 1, device: Node(1) }),
        lost(5.0, Node(2), "deadline"),
        ran(1.5, 5.5, Node(2), 800, 790),
        ran(5.0, 6.0, SERVER, 4_000, 3_000),
        at(6.0, SERVER, Fact::RoundClosed { round: 1, counted: 1, summary }),
        at(6.0, SERVER, Fact::Stopped { status: Status::Completed }),
    ]
}

fn info() -> RunInfo {
    let class = |class: &str, devices, resident_bytes| DeviceClass {
        class: class.into(),
        devices,
        examples: 10,
        flops_per_s: 1e9,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 1e6,
        memory_bytes: 2_000,
        resident_bytes,
    };
    RunInfo {
        run: "by-hand".into(),
        method: "fedavg-lora".into(),
        model: "tiny".into(),
        dataset: "none".into(),
        seed: u64::MAX,
        rounds: 1,
        devices: 3,
        clock: Clock::Virtual,
        fleet: vec![class("board", 1, 0), class("phone", 2, 1_000)],
        notes: vec![],
    }
}

fn ending(fold: &Fold, status: Status) -> Ending {
    let (trace_hash, weights_hash) = ("aa".to_owned(), Some("bb".to_owned()));
    Ending { status, time: fold.now, wall_s: 0.25, trace_hash, weights_hash }
}

#[test]
fn the_figures_of_a_trace_made_by_hand() {
    let fold = Fold::of(&by_hand());
    let [point] = fold.curve.as_slice() else { panic!("one round: {:?}", fold.curve) };
    assert_eq!((point.round, point.opened_s, point.time_s), (1, 1.0, 6.0));
    assert_eq!((point.accuracy, point.loss, point.train_loss), (Some(0.75), Some(0.5), Some(0.6)));
    assert_eq!((point.bytes_up, point.bytes_down), (57, 300));
    assert_eq!((point.cohort, point.counted, point.lost, point.jobs), (3, 1, 2, 2));

    let classes = fold.classes();
    let phone = &classes["phone"];
    assert_eq!((phone.joined, phone.bytes_up, phone.bytes_down), (2, 57, 200));
    assert_eq!((phone.jobs, phone.flops, phone.busy_ns), (2, 2000, 6_000_000_000));
    assert_eq!((phone.job_peak_bytes, phone.job_priced_bytes), (790, 800));
    assert_eq!((phone.counted, phone.lost, classes["board"].refused), (1, 1, 1));
    assert_eq!((fold.server.jobs, fold.server.job_peak_bytes), (1, 3000));
    assert_eq!((fold.messages, fold.status.clone()), (5, Some(Status::Completed)));

    let summary = Summary::of(&info(), &fold, &ending(&fold, Status::Completed));
    // Phones keep 1,000 bytes between jobs; the board ran nothing.
    assert_eq!(summary.device_peak_bytes, Peaks { max: 1_790, by_class: [("phone".into(), 1_790)].into() });
    let troubles: Vec<_> = summary
        .troubles
        .iter()
        .map(|row| (row.kind, row.reason.as_str(), row.count, row.first_node))
        .collect();
    assert_eq!(
        troubles,
        [
            (TroubleKind::Lost, "deadline", 1, Node(2)),
            (TroubleKind::Lost, "refused", 1, Node(3)),
            (TroubleKind::Refused, "train needs 3.0 kB, board has 2.0 kB", 1, Node(3)),
        ]
    );
}

#[test]
fn a_summary_reads_back_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("summary.json");
    let fold = Fold::of(&synthetic::trace(&EMOTION));
    for status in [Status::Completed, Status::Interrupted, Status::Failed("no device is left".into())] {
        let summary = Summary::of(&info(), &fold, &ending(&fold, status));
        summary.write(&path).unwrap();
        assert!(Summary::read(&path).unwrap() == summary);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no part is left behind");
    std::fs::write(&path, "{\"run\": 3}").unwrap();
    let error = Summary::read(&path).unwrap_err().to_string();
    assert!(error.contains("summary.json") && error.contains("not a summary"), "{error}");
}

/// Programs read these names.
#[test]
fn the_shape_of_summary_json() {
    let fold = Fold::of(&by_hand());
    let summary = Summary::of(&info(), &fold, &ending(&fold, Status::Failed("why".into())));
    let json: serde_json::Value = serde_json::from_str(&summary.to_json()).unwrap();
    assert_eq!(json["seed"], u64::MAX);
    assert_eq!((&json["method"], &json["devices"]), (&"fedavg-lora".into(), &3.into()));
    assert_eq!(json["eval"], serde_json::json!({"loss": 0.5, "examples": 40, "accuracy": 0.75}));
    let point = serde_json::json!({
        "round": 1, "time_s": 6.0, "accuracy": 0.75, "loss": 0.5, "train_loss": 0.6, "bytes_up": 57,
        "bytes_down": 300, "opened_s": 1.0, "cohort": 3, "counted": 1, "lost": 2,
        "lost_to": {"deadline": 1, "refused": 1}, "jobs": 2
    });
    assert_eq!(json["curve"], serde_json::json!([point]));
    assert_eq!(json["bytes"], serde_json::json!({"up": 57, "down": 300}));
    assert_eq!(json["device_peak_bytes"], serde_json::json!({"max": 1790, "by_class": {"phone": 1790}}));
    assert_eq!((&json["server_peak_bytes"], &json["time_s"]), (&3000.into(), &6.0.into()));
    assert_eq!((&json["wall_s"], &json["trace_hash"]), (&0.25.into(), &"aa".into()));
    assert_eq!((&json["status"], &json["reason"]), (&"failed".into(), &"why".into()));
}

#[test]
fn a_causal_model_reports_perplexity_and_no_accuracy() {
    let shape = Shape { causal: true, rounds: 2, ..EMOTION };
    let fold = Fold::of(&synthetic::trace(&shape));
    let summary = Summary::of(&synthetic::info(&shape), &fold, &ending(&fold, Status::Completed));
    let json: serde_json::Value = serde_json::from_str(&summary.to_json()).unwrap();
    assert!(json["eval"]["perplexity"].is_number() && json["eval"].get("accuracy").is_none());
    assert!(json["curve"][1]["perplexity"].is_number() && json["curve"][1].get("accuracy").is_none());
}

#[test]
fn a_torn_last_line_is_said_and_a_broken_one_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.jsonl");
    let records = by_hand();
    let mut writer = TraceWriter::create(&path).unwrap();
    records.iter().for_each(|record| writer.write(record).unwrap());
    writer.flush().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();

    std::fs::write(&path, &text[..text.len() - 9]).unwrap();
    let mut reader = TraceReader::open(&path).unwrap();
    let read: Vec<Record> = reader.by_ref().map(Result::unwrap).collect();
    assert_eq!(read, records[..records.len() - 1]);
    assert_eq!(reader.torn().map(|torn| torn.line), Some(records.len() as u64));

    std::fs::write(&path, text.replacen("\"event\":\"counted\"", "\"event\":\"mounted\"", 1)).unwrap();
    let error = TraceReader::open(&path).unwrap().find_map(Result::err).expect("a broken line");
    let error = error.to_string();
    assert!(error.contains("trace.jsonl:13: ") && error.contains("mounted"), "{error}");
}

#[test]
fn the_timeline_is_bounded_and_does_not_depend_on_who_came_first() {
    let shape = Shape { devices: 500, rounds: 3, ..EMOTION };
    let trace = synthetic::trace(&shape);
    let fold = Fold::of(&trace);
    assert!(fold.timeline.sampled && fold.timeline.devices().len() == 60);
    let backwards = Fold::of(trace.iter().rev());
    let nodes = |fold: &Fold| fold.timeline.devices().iter().map(|(node, _)| *node).collect::<Vec<_>>();
    assert_eq!(nodes(&fold), nodes(&backwards));

    // A hundred thousand short jobs on one device.
    let jobs: Vec<Record> =
        (0..100_000).map(|i| ran(f64::from(i), f64::from(i) + 0.5, Node(1), 1, 1)).collect();
    let fold = Fold::of(&jobs);
    let row = fold.timeline.devices()[0].1;
    let spans = row.lanes[&undertone_report::Activity::Compute].spans();
    assert!(spans.len() <= 1024, "{}", spans.len());
    assert_eq!(spans.iter().map(|span| span.joined).sum::<u32>(), 100_000);
    assert_eq!((spans[0].begin.seconds(), spans[spans.len() - 1].end.seconds()), (0.0, 99_999.5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A run that is cut anywhere, read back from its file and continued has the fold of the whole.
    #[test]
    fn folding_goes_on_where_a_trace_was_cut(seed in 0u64..1000, devices in 1u32..80, cut in 0.0..1.0f64) {
        let records = synthetic::trace(&Shape { seed, devices, rounds: 3, ..EMOTION });
        let keep = (records.len() as f64 * cut) as usize;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.jsonl");
        let mut writer = TraceWriter::create(&path).unwrap();
        // The first life wrote further than what is kept of it.
        let written = (keep + 5).min(records.len());
        records[..written].iter().for_each(|record| writer.write(record).unwrap());
        writer.flush().unwrap();

        let mut fold = Fold::default();
        let mut writer = TraceWriter::resume(&path, keep as u64, &mut |record| fold.push(record)).unwrap();
        for record in &records[keep..] {
            writer.write(record).unwrap();
            fold.push(record);
        }
        writer.flush().unwrap();
        let whole: Vec<Record> = TraceReader::open(&path).unwrap().map(Result::unwrap).collect();
        prop_assert!(whole == records);
        prop_assert!(fold == Fold::of(&whole));
    }
}
