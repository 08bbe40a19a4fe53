//! Runs of the binary as a user types them: the same twice, on any threads, interrupted and resumed,
//! replayed, reported and compared.

use crate::scratch::Scratch;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// No tensors: many rounds in no time.
const DUMMY: &str = r#"
[run]
name = "dummy"
num-server-rounds = 3000
[fleet]
devices = 20
[cohort]
fraction-train = 0.5
[method]
name = "dummy"
"#;

pub fn summary(run: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(run.join("summary.json")).unwrap()).unwrap()
}

fn scratch() -> Scratch {
    let scratch = Scratch::tiny();
    scratch.write("dummy.toml", DUMMY);
    scratch
}

#[test]
fn the_same_scenario_gives_the_same_run_on_any_threads_and_any_driver() {
    let scratch = scratch();
    let run = |name: &str, more: &[&str]| {
        let out = format!("out/{name}");
        scratch.undertone(&[&["sim", "tiny.toml", "--out", &out], more].concat()).assert().success();
        summary(&scratch.path().join(out))
    };
    let (one, two) = (run("one", &["--threads", "1"]), run("two", &["--threads", "2"]));
    assert_eq!(one["trace_hash"], two["trace_hash"]);
    assert_eq!(one["weights_hash"], two["weights_hash"]);
    assert_eq!(one["status"], "completed");
    let local = run("local", &["--driver", "local"]);
    assert_eq!(one["weights_hash"], local["weights_hash"]);
    let other = run("other", &["--set", "run.seed=8"]);
    assert_ne!(one["weights_hash"], other["weights_hash"]);

    scratch.undertone(&["diff", "out/one", "out/two"]).assert().code(0);
    scratch.undertone(&["diff", "out/one", "out/other"]).assert().code(1);
    for file in ["scenario.toml", "trace.jsonl", "report.html", "adapter/adapter_config.json"] {
        assert!(scratch.path().join("out/one").join(file).is_file(), "{file}");
    }
    scratch.undertone(&["sim", "out/one/scenario.toml", "--out", "out/again"]).assert().success();
    assert_eq!(one["trace_hash"], summary(&scratch.path().join("out/again"))["trace_hash"]);
    scratch.undertone(&["report", "out/one", "out/other", "--out", "both.html"]).assert().success();
    scratch.undertone(&["predict", "out/one", "a b c 1"]).assert().success();
    scratch.undertone(&["export", "out/one", "--to", "peft"]).assert().success();
    assert!(scratch.path().join("out/one-peft/adapter_model.safetensors").is_file());
}

/// Begin a run, send it a signal after two rounds, and return its exit code.
#[cfg(unix)]
fn run_and_signal(scratch: &Scratch, signal: &str) -> Option<i32> {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let mut child = Command::new(env!("CARGO_BIN_EXE_undertone"))
        .current_dir(scratch.path())
        .args(["sim", "dummy.toml", "--out", "cut", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        lines.next().unwrap().unwrap();
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert!(lines.all(|line| line.is_ok()));
    child.wait().unwrap().code()
}

#[cfg(unix)]
fn assert_resumed_like_whole(scratch: &Scratch) {
    let (whole, cut) = (summary(&scratch.path().join("whole")), summary(&scratch.path().join("cut")));
    for figure in ["status", "weights_hash", "trace_hash", "curve", "bytes", "time_s"] {
        assert_eq!(whole[figure], cut[figure], "{figure}");
    }
    scratch.undertone(&["resume", "cut"]).assert().code(2);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_a_run_that_resume_brings_to_the_same_end() {
    let scratch = scratch();
    scratch.undertone(&["sim", "dummy.toml", "--out", "whole"]).assert().success();
    assert_eq!(run_and_signal(&scratch, "-INT"), Some(130));
    assert_eq!(summary(&scratch.path().join("cut"))["status"], "interrupted");
    scratch.undertone(&["resume", "cut"]).assert().success();
    assert_resumed_like_whole(&scratch);
}

#[cfg(unix)]
#[test]
fn a_killed_run_goes_on_from_its_last_round_to_the_same_end() {
    let scratch = scratch();
    scratch.undertone(&["sim", "dummy.toml", "--out", "whole"]).assert().success();
    assert_eq!(run_and_signal(&scratch, "-KILL"), None);
    scratch.undertone(&["resume", "cut.partial"]).assert().success();
    assert_resumed_like_whole(&scratch);
}

#[test]
fn a_run_with_deadlines_is_replayed_to_its_weights() {
    let scratch = scratch();
    let rushed = [
        "--set",
        "cohort.pace=deadline",
        "--set",
        "cohort.deadline-seconds=20",
        "--set",
        "cohort.over-selection=1.5",
        "--set",
        "weather.rate-jitter=1.0",
        "--driver",
        "local",
    ];
    scratch.undertone(&[&["sim", "tiny.toml", "--out", "real"], &rushed[..]].concat()).assert().success();
    scratch.undertone(&["sim", "--replay", "real", "--out", "replayed"]).assert().success();
    let (real, replayed) =
        (summary(&scratch.path().join("real")), summary(&scratch.path().join("replayed")));
    assert_eq!(real["weights_hash"], replayed["weights_hash"]);
}

#[test]
fn runs_are_numbered_and_progress_is_json_where_asked() {
    let scratch = scratch();
    for expected in ["dummy-1", "dummy-2"] {
        let rounds = ["--set", "run.num-server-rounds=3", "--format", "json"];
        let output = scratch.undertone(&[&["sim", "dummy.toml"], &rounds[..]].concat()).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["run", "round", "round", "round", "end"]);
        assert_eq!(events[0]["run"], expected);
        assert!(scratch.path().join("runs").join(expected).is_dir());
    }
}

/// The demo as it is, but for its length.
/// Whatever the scenario trains with, and on which devices.
#[test]
fn a_profile_compares_every_kind_of_adapter_and_recommends_one() {
    let scratch = Scratch::tiny();
    let options = ["profile", "tiny.toml", "--rows", "16", "--perturbations", "64"];
    let output = scratch
        .undertone(&options)
        .args(["--set", "method={name=\"fwdllm\",head=\"exact\"}"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let row = |kind: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.trim_start().starts_with(kind)).expect(kind);
        line.split_whitespace().map(str::to_owned).collect()
    };
    for kind in ["head ", "bitfit", "lora ", "lora-xs", "bottleneck"] {
        let row = row(kind);
        let [parameters, cosine] = [1, 3].map(|column| row[column].parse::<f64>().unwrap());
        assert!(parameters > 0.0 && cosine > 0.0 && cosine < 1.0, "{row:?}");
    }
    assert!(text.contains("best cosine (FwdLLM's choice): "), "{text}");
}

#[test]
fn the_demo_runs_every_method_on_what_the_program_carries() {
    let scratch = Scratch::new();
    let short = ["--set", "run.num-server-rounds=1", "--set", "train.max_steps=1"];
    let output = scratch.undertone(&[&["demo"], &short[..]].concat()).output().unwrap();
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    let demo = scratch.path().join("runs/demo-1");
    let page = fs::read_to_string(demo.join("report.html")).unwrap();
    for run in ["frozen", "centralized", "fedavg-lora"] {
        assert_eq!(summary(&demo.join(run))["status"], "completed", "{run}");
        assert!(page.contains(run), "the report lacks {run}");
    }
    assert!(page.contains("generated"), "the report must say that the data is generated");
    assert!(text.contains("undertone predict runs/demo-1/fedavg-lora"), "{text}");
    scratch.undertone(&["predict", "runs/demo-1/fedavg-lora", "wake me at seven"]).assert().success();
}
