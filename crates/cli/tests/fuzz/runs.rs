//! Scenarios, what a server tells devices of them, and the files of a run's directory.

use crate::form::{PACKET, PLAIN, bundle, files};
use crate::models::TASK;
use crate::nodes::{dummy, golden};
use crate::target::{Decoder, Room, Said, Target, size, target};
use crate::wire::{json, text};
use base::{Node, Packet, Seed, Time};
use federation::{Acceptance, Eval, Fact, Record, Status};
use methods::schedule::{Policy, Turn, makespan, order};
use net::envelope::Beside;
use report::html::{self, Run};
use report::{Clock, DeviceClass, Ending, Fold, RunInfo, Summary, TraceReader};
use sim::{Checkpoint, Output, SimConfig};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use undertone_cli::brief::Brief;
use undertone_cli::errors::{Exit, Failure};
use undertone_cli::scenario::Scenario;
use undertone_cli::settings::Settings;

pub fn targets() -> Vec<Target> {
    vec![
        target("scenario", scenario),
        target("brief", brief),
        target("run directory", run_directory),
        target("acceptance log", acceptance),
        target("checkpoint", checkpoint),
        target("turns", turns),
    ]
}

/// A table of TOML takes a few hundred bytes a key, and a resolved fleet as much a device.
const ROOM: Room = Room { bytes: 32 << 20, factor: 512 };

/// The scenarios of this repository.
fn scenarios() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let entries = std::fs::read_dir(folder).expect("the folder of scenarios");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).expect("a readable file")).collect()
}

/// A content of this many bytes is not fetched here.
const LARGE: u64 = 64 << 10;

fn resolve(text: String) -> Result<Scenario, String> {
    let settings = Settings::parse("it".to_owned(), text, &[]).map_err(|error| error.to_string())?;
    Scenario::of(settings).map(|(scenario, _)| scenario).map_err(|error| error.to_string())
}

/// A scenario is read, and once more as it is written for devices and run directories.
fn scenario() -> Decoder {
    let decode = |bytes: &[u8]| -> Said {
        let scenario = resolve(text(bytes))?;
        let again = resolve(scenario.to_toml()).expect("a resolved scenario is one");
        Ok(format!("{}, devices {}", again.method.name, size(again.fleet.devices as usize)))
    };
    let seeds = scenarios().into_iter().map(String::into_bytes).collect();
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}

/// What a server says of the run, and the fetching of the models it offers, which touches no other file.
fn brief() -> Decoder {
    let (state, other) = (Path::new("state"), Path::new("other"));
    let mut fetch = |content: Beside, path: &Path| match content.len {
        0..LARGE => {
            let bytes = std::fs::read(golden("bert").join("config.json")).expect("a golden file");
            let zeros = vec![0; content.len as usize];
            let bytes = if path.ends_with("config.json") { bytes } else { zeros };
            std::fs::write(path, bytes).map_err(|error| Failure::new(Exit::Files, error))
        }
        _ => Err(Failure::new(Exit::Failed, "a large content")),
    };
    let decode = move |bytes: &[u8]| -> Said {
        let (brief, scenario) = Brief::open(bytes).map_err(|error| error.to_string())?;
        let checked = brief.check_model(0, "builtin").is_ok();
        let lower = brief.lower.values().next().copied();
        std::fs::write(other, "kept").expect("the scratch folder can be written");
        let _ = std::fs::remove_dir_all(state);
        for offer in brief.offers.iter().filter(|offer| !offer.is_empty()) {
            offer.fetch(state, (lower, &TASK), &mut fetch).map_err(|error| error.to_string())?;
        }
        assert!(other.is_file(), "a file beside the state is gone");
        Ok(format!("{}, {checked}, offers {}", scenario.method.name, size(brief.offers.len())))
    };
    let content = |bytes: u64| serde_json::json!({ "address": "0".repeat(64), "bytes": bytes });
    let tensor = |name: &str, shape: &[u64]| {
        let content = content(4 * shape.iter().product::<u64>());
        (name.to_owned(), serde_json::json!({ "dtype": "F32", "shape": shape, "content": content }))
    };
    let tensors = [
        tensor("embeddings.word_embeddings.weight", &[67, 24]),
        tensor("encoder.layer.0.attention.self.query.bias", &[24]),
    ];
    let tensors: serde_json::Map<_, _> = tensors.into_iter().collect();
    let offer = serde_json::json!({ "files": { "config.json": content(700) }, "tensors": tensors });
    let seed = |text: String| {
        let brief = serde_json::json!({
            "scenario": text, "labels": ["a", "b"], "models": [{ "builtin": env!("CARGO_PKG_VERSION") }],
            "offers": [offer], "lower": { "phone": { "blocks": 1, "head": false } },
        });
        brief.to_string().into_bytes()
    };
    let seeds = scenarios().into_iter().map(seed).collect();
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}

/// The trace of a run of the method without tensors, and a checkpoint from its middle.
fn ran() -> (Vec<Record>, Option<Checkpoint>) {
    let (mut records, mut checkpoint) = (Vec::new(), None);
    let config = SimConfig { checkpoint_rounds: 1, ..SimConfig::new(Seed(3), 1) };
    let mut sink = |output: Output| match output {
        Output::Record(record) => records.push(record.clone()),
        Output::Checkpoint(taken) => checkpoint = Some(taken),
    };
    sim::run(&dummy().federation, &config, &mut sink, &AtomicBool::new(false), None).expect("a sound run");
    let eval = Eval { loss: 0.5, examples: 9, accuracy: Some(0.75), ..Eval::default() };
    let others = [
        Fact::Lost { round: 1, device: Node(2), reason: "too late".into() },
        Fact::Fault { round: 1, job: 2, label: "train".into(), reason: "NaN".into() },
        Fact::Malformed { from: Node(3), reason: "<b>".into() },
        Fact::Killed { until: Some(Time(9)) },
        Fact::Offline { until: None },
        Fact::Decided { round: 2, decision: "{}".into() },
        Fact::RoundClosed {
            round: 2,
            counted: 3,
            summary: federation::Summary { eval: Some(eval), ..federation::Summary::default() },
        },
    ];
    let last = records.last().map_or(Time::ZERO, |record| record.t);
    records.extend(others.map(|fact| Record { t: last, node: base::SERVER, fact }));
    (records, checkpoint)
}

fn lines(records: &[Record]) -> Vec<u8> {
    let line = |record| serde_json::to_string(record).expect("a record is JSON") + "\n";
    records.iter().map(line).collect::<String>().into_bytes()
}

/// `summary.json` and `trace.jsonl`, and the page that is made of them.
fn run_directory() -> Decoder {
    let (records, _) = ran();
    let federation = dummy().federation;
    let (mut fold, info) = (
        Fold::default(),
        RunInfo {
            run: "dummy-1".into(),
            method: "dummy".into(),
            model: String::new(),
            dataset: String::new(),
            seed: 3,
            rounds: 2,
            devices: 3,
            clock: Clock::Virtual,
            fleet: DeviceClass::table(&federation.devices),
            notes: vec!["a note".into()],
        },
    );
    records.iter().for_each(|record| fold.push(record));
    let (status, trace_hash) = (Status::Completed, "00".into());
    let ending = Ending { status, time: Time(9), wall_s: 1.0, trace_hash, weights_hash: None };
    let summary = Summary::of(&info, &fold, &ending).to_json();
    let decode = |bytes: &[u8]| -> Said {
        let files = files(bytes).ok_or("no bundle of files")?;
        let (first, second) = (Path::new("summary.json"), Path::new("trace.jsonl"));
        std::fs::write(first, &files[0]).expect("the scratch folder can be written");
        std::fs::write(second, files.get(1).map_or(&[][..], Vec::as_slice)).expect("as above");
        let summary = Summary::read(first).map_err(|error| error.to_string())?;
        let (mut fold, mut count) = (Fold::default(), 0);
        for record in TraceReader::open(second).map_err(|error| error.to_string())? {
            fold.push(&record.map_err(|error| error.to_string())?);
            count += 1;
        }
        let (fold, scenario) = (Some(&fold), Some("<script>"));
        let page = html::report(&Run { summary: &summary, fold, scenario, partition_svg: None });
        assert!(!page.contains("<script>alert"), "a name became a part of the page");
        Ok(format!("records {}, page {}", size(count), size(page.len())))
    };
    let hostile = summary.replace("dummy", "<script>alert(1)</script>");
    let seeds = vec![bundle(&[summary.as_bytes(), &lines(&records)]), bundle(&[hostile.as_bytes(), b""])];
    Decoder { seeds, form: PACKET, room: ROOM, decode: Box::new(decode) }
}

/// What a replay reads, and the traces it is taken from.
fn acceptance() -> Decoder {
    let decode = |bytes: &[u8]| -> Said {
        let records = json::<Vec<Record>>(bytes).map(|records| Acceptance::from_records(&records));
        let log = json::<Acceptance>(bytes);
        let (kind, log) = match (records, log) {
            (Ok(log), _) => ("of records", log),
            (_, Ok(log)) => ("as it is", log),
            (Err(one), Err(other)) => return Err(format!("{one}; {other}")),
        };
        Ok(format!("{kind}, rounds {}", size(log.rounds.len())))
    };
    let (records, _) = ran();
    let log = serde_json::to_vec(&Acceptance::from_records(&records)).expect("a log is JSON");
    let seeds = vec![log, serde_json::to_vec(&records).expect("records are JSON")];
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}

/// A run at rest, gone on with as far as its next rest.
fn checkpoint() -> Decoder {
    let federation = dummy().federation;
    let decode = move |bytes: &[u8]| -> Said {
        let packet = Packet::from_bytes(bytes.to_vec().into()).map_err(|error| error.to_string())?;
        let checkpoint = Checkpoint::from_packet(&packet).map_err(|error| error.to_string())?;
        let (config, mut sink) = (SimConfig::new(Seed(3), 1), |_: Output| {});
        let interrupt = AtomicBool::new(true);
        let ended = sim::run(&federation, &config, &mut sink, &interrupt, Some(checkpoint));
        ended.map(|ended| format!("{:?}", ended.status)).map_err(|error| error.to_string())
    };
    let seeds = ran().1.map(|checkpoint| checkpoint.to_packet().to_bytes()).into_iter().collect();
    Decoder { seeds, form: PACKET, room: ROOM, decode: Box::new(decode) }
}

/// The list that `schedule` puts in order; exact orders are for a dozen turns.
fn turns() -> Decoder {
    let decode = |bytes: &[u8]| -> Said {
        let turns = json::<Vec<Turn>>(bytes)?;
        if turns.len() > 8 {
            return Ok("many".to_owned());
        }
        for policy in Policy::ALL {
            let order = order(policy, &turns, Seed(1));
            assert_eq!(order.len(), turns.len(), "every turn once");
            makespan(&turns, &order);
        }
        Ok(size(turns.len()))
    };
    let turn = |arrival: f64| Turn { arrival, service: 0.5, tail: 2.0 - arrival, load: 1.0 };
    let seeds = vec![serde_json::to_vec(&[turn(0.0), turn(0.25), turn(1.0)]).expect("turns are JSON")];
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}
