//! Side-tuning as a user runs it.

use crate::runs::summary;
use crate::scratch::{Scratch, workspace};
use crate::served::{DEVICES, Served, weights};
use base::Seed;
use serde_json::Value;
use std::fs;

/// A second model, of another family and with other tokens.
fn with_another_model() -> Scratch {
    let scratch = Scratch::tiny();
    for file in ["config.json", "model.safetensors"] {
        let from = workspace().join("golden/llama").join(file);
        fs::create_dir_all(scratch.path().join("other")).unwrap();
        fs::copy(from, scratch.path().join("other").join(file)).unwrap();
    }
    let tokenizer = fs::read_to_string(scratch.path().join("model/tokenizer.json")).unwrap();
    let tokenizer = tokenizer.replace("\"0\": 4, \"1\": 5, \"2\": 6", "\"0\": 16, \"1\": 14, \"2\": 12");
    scratch.write("other/tokenizer.json", &tokenizer);
    scratch
}

const BACKBONES: [&str; 7] = [
    "method={ name = \"side-tuning\", blocks = 2, epochs = 20, form = { kind = \"mlp\", hidden = 16 } }",
    "peft={ kind = \"none\" }",
    "model.by_class={ jetson-nano = { path = \"other\", pooling = \"last\" } }",
    "fleet.profiles={ jetson-nano = 1, pixel-7-pro = 1 }",
    "train.learning_rate=0.01",
    "cohort.fraction-train=1.0",
    "cohort.min-available-nodes=6",
];

fn with_sets<'a>(arguments: &[&'a str], sets: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().copied().chain(sets.iter().flat_map(|set| ["--set", *set])).collect()
}

#[test]
fn devices_with_different_models_share_a_side_network_and_predict_each_by_its_own() {
    let scratch = with_another_model();
    scratch.undertone(&with_sets(&["sim", "tiny.toml", "--out", "run"], &BACKBONES)).assert().success();
    let found = summary(&scratch.path().join("run"));
    assert_eq!(found["model"], "model and other");
    for class in ["jetson-nano", "pixel-7-pro"] {
        assert_eq!(found["eval"]["by_class"][class]["accuracy"], 1.0, "{found:#}");
        let said = |text: &str| {
            let command = ["predict", "run", "--class", class, "--format", "json", text];
            let said: Value =
                serde_json::from_slice(&scratch.undertone(&command).output().unwrap().stdout).unwrap();
            said["label"].as_str().unwrap().to_owned()
        };
        assert_eq!(
            ["0", "1", "2"].map(|label| said(&format!("a b c {label}"))),
            ["0", "1", "2"],
            "{class}"
        );
    }
    let refused = |sets: &[&str], says: &str| {
        let sets = [&BACKBONES[..], sets].concat();
        let output =
            scratch.undertone(&with_sets(&["sim", "tiny.toml", "--out", "no"], &sets)).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(says), "{sets:?}: {said}");
    };
    refused(
        &["method.name=fedavg-lora", "method={ name = \"fedavg-lora\" }"],
        "model.by_class is for side-tuning",
    );
    refused(&["model.by_class={ m3 = { path = \"other\" } }"], "names no class that a device has");
    refused(&["fleet.profiles={ jetson-nano = 1 }"], "leaves none with model.path");
}

#[test]
fn devices_with_different_models_join_over_the_network() {
    let scratch = with_another_model();
    let mut served = Served::new(&scratch, "two", &BACKBONES);
    let fleet = "devices = 6\nprofiles = { jetson-nano = 1, pixel-7-pro = 1 }";
    let fleet: sim::FleetConfig = toml::from_str(fleet).unwrap();
    let members = fleet.resolve(Seed(7)).unwrap().devices;
    for (model, member) in served.models.iter_mut().zip(&members) {
        *model = Some(if member.class == "jetson-nano" { "other" } else { "model" });
    }
    assert_eq!(served.models.iter().filter(|model| **model == Some("other")).count(), DEVICES as usize / 2);
    served.models[2..4].fill(None);
    let (mut server, mut devices) = (served.server(), served.devices());
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    assert_eq!(weights(&served.run()), served.simulated());
    for (node, device) in (1..).zip(&mut devices) {
        assert_eq!(device.end(), Some(0), "{}", served.log(&format!("device-{node}")));
    }
    // A device with the model of the others is told so.
    let mut served = Served::new(&scratch, "wrong", &BACKBONES);
    served.models.fill(Some("model"));
    let node = members.iter().position(|member| member.class == "jetson-nano").unwrap() as u32 + 1;
    let (_server, mut device) = (served.server(), served.device(node, &[]));
    assert_eq!(device.end(), Some(4), "{}", served.log(&format!("device-{node}")));
    assert!(served.log(&format!("device-{node}")).contains("model is not the model the server trains"));
}

const NUMBERS: [&str; 5] = [
    "method={ name = \"side-tuning\", epochs = 30, form = { kind = \"mlp\", hidden = 16 } }",
    "model.task=regression",
    "peft={ kind = \"none\" }",
    "train.learning_rate=0.01",
    "cohort.fraction-train=1.0",
];

#[test]
fn a_number_is_learned_predicted_and_served() {
    let scratch = Scratch::tiny();
    let served = Served::new(&scratch, "number", &NUMBERS);
    let simulated = served.simulated();
    let found = summary(&scratch.path().join("number-sim"));
    assert!(found["eval"]["pearson"].as_f64().unwrap() > 0.95, "{found:#}");
    assert!(
        found["eval"]["loss"].as_f64().unwrap() < 0.1 && found["before"]["loss"].as_f64().unwrap() > 1.0
    );
    for number in [0, 1, 2] {
        let text = format!("a b c {number}");
        let said =
            scratch.undertone(&["predict", "number-sim", "--format", "json", &text]).output().unwrap();
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        assert!((said["number"].as_f64().unwrap() - f64::from(number)).abs() < 0.4, "{number}: {said}");
    }
    let (mut server, mut devices) = (served.server(), served.devices());
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    assert_eq!(weights(&served.run()), simulated);
    for device in &mut devices {
        assert_eq!(device.end(), Some(0));
    }

    scratch.write("words.jsonl", "{\"text\": \"a b\", \"label\": \"high\"}\n");
    let refused = |sets: &[&str], code: i32, says: &str| {
        let sets = [&NUMBERS[..], sets].concat();
        let output =
            scratch.undertone(&with_sets(&["sim", "tiny.toml", "--out", "no"], &sets)).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && said.contains(says), "{sets:?}: {said}");
    };
    refused(&["data.train=words.jsonl"], 3, "must hold a number in every row");
    refused(&["data.partition={ kind = \"dirichlet\", alpha = 0.5 }"], 3, "label");
    refused(&["method={ name = \"fedavg-lora\" }"], 2, "model.task = \"regression\" is for side-tuning");
    refused(&["method={ name = \"side-tuning\", loss = \"exact\" }"], 2, "a number is learned with");
}

#[test]
fn what_a_real_device_draws_its_server_cannot_repeat() {
    let scratch = Scratch::tiny();
    let noise =
        "method={ name = \"side-tuning\", privacy = { mode = \"randomized-response\", epsilon = 1.0 } }";
    let served = Served::new(&scratch, "noise", &[noise]);
    let (mut server, mut devices) = (served.server(), served.devices());
    assert_eq!(server.end(), Some(0), "{}", served.log("server"));
    for device in &mut devices {
        assert_eq!(device.end(), Some(0));
    }
    // The same seed, and other labels.
    assert_ne!(weights(&served.run()), served.simulated());
    let mixed = "method={ name = \"side-tuning\", privacy = { mode = \"mixed\" } }";
    let served = Served::new(&scratch, "mixed", &[mixed]);
    assert_eq!(served.server().end(), Some(2));
    assert!(served.log("server").contains("all devices share"), "{}", served.log("server"));
}
