//! Whatever is wrong, a person gets one message that says what, where and what to do; a script gets
//! the documented exit code; and nothing half-written is left.

use crate::scratch::{Scratch, TOKENIZER, rows};
use std::fs;

/// One wrong thing: how the command is called, its exit code, and what the message must say.
struct Case {
    sets: &'static [&'static str],
    code: i32,
    says: &'static [&'static str],
}

const fn case(sets: &'static [&'static str], code: i32, says: &'static [&'static str]) -> Case {
    Case { sets, code, says }
}

const CASES: &[Case] = &[
    case(
        &["peft.lora_alhpa=4"],
        2,
        &["unknown key `lora_alhpa` in [peft]", "--set peft.lora_alhpa=4", "did you mean `lora_alpha`?"],
    ),
    case(
        &["cohort.fraction_train=0.5"],
        2,
        &["unknown key `fraction_train`", "did you mean `fraction-train`?"],
    ),
    case(&["cohrt.pace=deadline"], 2, &["unknown key `cohrt`", "did you mean `cohort`?"]),
    case(&["train.learning_rate=fast"], 2, &["`train.learning_rate`", "expected a number"]),
    case(
        &["run.num-server-rounds=0"],
        2,
        &["`run.num-server-rounds` is 0", "--set run.num-server-rounds=0"],
    ),
    case(&["run.name=../up"], 2, &["`run.name`", "no plain file name"]),
    case(&["method.name=fedavg-lroa"], 2, &["did you mean \"fedavg-lora\"?"]),
    case(&["method.momentum=0.9"], 2, &["unknown key `momentum` in [method]"]),
    case(&["fleet.profiles={ pixel-7 = 1 }"], 2, &["Did you mean \"pixel-7-pro\"?"]),
    case(&["cohort.fraction-train=2"], 2, &["fraction-train"]),
    case(&["weather.loss=1.5"], 2, &["`weather.loss`"]),
    case(&["peft.target_modules=[\"qurey\"]"], 2, &["qurey"]),
    case(&["data.train=no/such.jsonl"], 3, &["no/such.jsonl", "current directory"]),
    case(&["data.train=bad.jsonl"], 3, &["bad.jsonl:2"]),
    case(&["data.test=outside.jsonl"], 3, &["outside.jsonl:1", "label 9"]),
    case(&["fleet.devices=500"], 3, &["500", "row"]),
    case(&["model.path=no-such-model"], 4, &["no-such-model"]),
    case(&["model.path=corrupt"], 4, &["model.safetensors"]),
    case(&["model.path=strange"], 4, &["mamba"]),
    case(&["fleet.memory=1 kB"], 5, &["no device can hold the work", "undertone plan"]),
    case(&["train.learning_rate=1e30", "train.optim=sgd", "train.max_grad_norm=0"], 6, &["not finite"]),
];

/// Bad files beside the good ones.
fn scratch() -> Scratch {
    let scratch = Scratch::tiny();
    scratch.write("outside.jsonl", &rows(&[9]));
    scratch.write("bad.jsonl", "{\"text\": \"a\", \"label\": 0}\n{\"text\": \n");
    let model = scratch.path().join("model");
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    for (to, config, kept) in [
        ("corrupt", config.clone(), 1000),
        ("strange", config.replace("\"bert\"", "\"mamba\""), weights.len()),
    ] {
        scratch.write(&format!("{to}/config.json"), &config);
        scratch.write(&format!("{to}/tokenizer.json"), TOKENIZER);
        fs::write(scratch.path().join(to).join("model.safetensors"), &weights[..kept]).unwrap();
    }
    scratch
}

#[test]
fn every_wrong_input_is_one_message_one_code_and_no_run() {
    let scratch = scratch();
    for case in CASES {
        let mut command = scratch.undertone(&["sim", "tiny.toml", "--out", "kept/run"]);
        for set in case.sets {
            command.args(["--set", set]);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(case.code), "{:?} said: {said}", case.sets);
        assert!(
            said.starts_with("error: ") && said.matches("error").count() == 1,
            "{:?}: {said}",
            case.sets
        );
        for part in case.says {
            assert!(said.contains(part), "{:?} should say {part:?}, said: {said}", case.sets);
        }
        assert!(!scratch.path().join("kept/run").exists(), "{:?} left a run", case.sets);
        assert!(!scratch.path().join("kept/run.partial").exists(), "{:?} left a partial run", case.sets);
    }
}

#[test]
fn the_scenario_itself_may_be_missing_or_broken() {
    let scratch = scratch();
    scratch.write("broken.toml", "[run]\nname = \n");
    scratch.write("bare.toml", "[run]\nname = \"a\"\n[method]\nname = \"fedavg-lora\"\n");
    for (file, says) in [
        ("none.toml", "cannot read the scenario none.toml"),
        ("broken.toml", "at broken.toml:2"),
        ("bare.toml", "`model` is missing"),
    ] {
        scratch.undertone(&["sim", file]).assert().code(2).stderr(predicates::str::contains(says));
    }
    assert!(!scratch.path().join("runs").exists());
}

#[test]
fn no_run_is_overwritten() {
    let scratch = scratch();
    scratch.write("used/keep.txt", "mine");
    scratch
        .undertone(&["sim", "tiny.toml", "--out", "used"])
        .assert()
        .code(2)
        .stderr(predicates::str::contains("not empty"));
    assert_eq!(fs::read_to_string(scratch.path().join("used/keep.txt")).unwrap(), "mine");
}

#[test]
fn what_is_no_run_is_said_to_be_none() {
    let scratch = scratch();
    for command in [
        &["report", "nowhere"][..],
        &["diff", "nowhere", "nowhere"],
        &["predict", "nowhere", "text"],
        &["generate", "nowhere", "text"],
        &["export", "nowhere", "--to", "peft"],
        &["resume", "nowhere"],
    ] {
        scratch
            .undertone(command)
            .assert()
            .code(7)
            .stderr(predicates::str::contains("nowhere does not exist"));
    }
}
