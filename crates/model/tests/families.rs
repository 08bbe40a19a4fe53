//! Agreement with PyTorch and PEFT, in float64, on a tiny model of every family: `golden/`.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{flat, floats, full, ids, json, largest_difference, load, norm, repository, workspace};
use undertone_model::optim::{Optimizer, OptimizerConfig, Schedule, clip_norm};
use undertone_model::peft::Adapter;
use undertone_model::{
    Activations, Model, PeftConfig, PeftKind, Pooling, Sampling, Targets, Task, Tokens, generate, hidden,
    logits, loss_and_gradient,
};

const FAMILIES: [&str; 5] = ["bert", "roberta", "distilbert", "llama", "qwen2"];

struct Case {
    golden: Value,
    task: Task,
    tokens: Tokens,
    targets: Targets,
    adapter: Adapter,
}

fn for_every_case(check: impl Fn(&Path, &Case)) {
    for family in FAMILIES {
        let dir = repository("golden").join(family);
        let golden = json(&dir.join("golden.json"));
        let sequences: Vec<Vec<u32>> = golden["input_ids"].as_array().unwrap().iter().map(ids).collect();
        for case in golden["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            println!("{family}/{name}");
            let adapter = Adapter::open(&dir.join(name)).unwrap();
            let targets = match &case["targets"] {
                Value::Null => Targets::NextToken,
                labels => Targets::Classes(ids(labels)),
            };
            let task = task_of(case);
            let second_from =
                if golden["second_from"].is_null() { vec![] } else { ids(&golden["second_from"]) };
            let tokens = Tokens { second_from, ..Tokens::of(&sequences) };
            check(&dir, &Case { golden: case.clone(), task, tokens, targets, adapter });
        }
    }
}

fn task_of(case: &Value) -> Task {
    let task = &case["task"];
    if task["kind"] == "causal-lm" {
        return Task::CausalLm;
    }
    let pooling: Pooling = serde_json::from_value(task["pooling"].clone()).unwrap();
    let squash = task["squash"].as_f64().map(|squash| squash as f32);
    Task::Classification { classes: 3, pooling, squash }
}

/// The model with that configuration, its head as stored beside the adapter.
fn with_head(dir: &Path, case: &Case, peft: &PeftConfig) -> (Model, Vec<f32>) {
    let (model, mut theta) = load(dir, &case.task, peft);
    if case.adapter.head.is_none() {
        return (model, theta);
    }
    let (adapted, _) = load(dir, &case.task, &case.adapter.peft);
    let stored = case.adapter.theta(&adapted).unwrap();
    for name in ["classifier.weight", "classifier.bias"] {
        let (from, to) = (adapted.layout.site(name).unwrap(), model.layout.site(name).unwrap());
        theta[to.range()].copy_from_slice(&stored[from.range()]);
    }
    (model, theta)
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let off = largest_difference(found, expected);
    assert!(off <= tolerance, "{what}: off by {off:e}");
}

fn logits_of(model: &Model, theta: &[f32], case: &Case) -> Vec<f32> {
    let ws = workspace(1);
    if case.task != Task::CausalLm {
        return logits(&ws, model, theta, &case.tokens).unwrap().to_vec();
    }
    // Every prefix is a sequence of its own: the logits of all positions.
    let pairs = case.tokens.starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
    let prefixes: Vec<&[u32]> = pairs
        .flat_map(|range| range.clone().map(move |end| (range.start, end)))
        .map(|(start, end)| &case.tokens.ids[start..=end])
        .collect();
    logits(&ws, model, theta, &Tokens::of(&prefixes)).unwrap().to_vec()
}

#[test]
fn without_adapter_every_gradient_agrees() {
    for_every_case(|dir, case| {
        let (model, theta) = with_head(dir, case, &full());
        let plain = &case.golden["plain"];
        assert_close("logits", &logits_of(&model, &theta, case), &flat(&plain["logits"]), 1e-4);
        let ws = workspace(2);
        let mut grad = vec![0.0; theta.len()];
        let found = loss_and_gradient(
            &ws,
            &model,
            &theta,
            &case.tokens,
            &case.targets,
            Activations::Keep,
            &mut grad,
        );
        let off = found.unwrap().mean() - plain["loss"].as_f64().unwrap();
        assert!(off.abs() < 1e-5, "loss off by {off:e}");
        let golden = plain["gradients"].as_object().unwrap();
        let largest = golden.values().map(|entry| entry["norm"].as_f64().unwrap()).fold(0.0, f64::max);
        assert_eq!(golden.len(), model.layout.sites.len());
        for (name, entry) in golden {
            // AutoModel's names have no leading `model.`.
            let site = model.layout.site(name).or_else(|| model.layout.site(&format!("model.{name}")));
            let site = site.unwrap_or_else(|| panic!("no site {name}"));
            let grad = &grad[site.range()];
            let probe: f64 = grad.iter().enumerate().map(|(i, g)| f64::from(*g) * (i as f64).cos()).sum();
            let expected = entry["norm"].as_f64().unwrap();
            let tolerance = 1e-3 * expected + 1e-6 * largest;
            assert!(
                (norm(grad) - expected).abs() <= tolerance,
                "{name}: norm {} for {expected}",
                norm(grad)
            );
            let expected = entry["probe"].as_f64().unwrap();
            assert!((probe - expected).abs() <= tolerance, "{name}: probe {probe} for {expected}");
        }
    });
}

#[test]
fn with_a_peft_adapter_every_gradient_agrees() {
    for_every_case(|dir, case| {
        let (model, _) = load(dir, &case.task, &case.adapter.peft);
        assert_eq!(case.adapter.task(), case.task);
        let theta = case.adapter.theta(&model).unwrap();
        let adapted = &case.golden["adapted"];
        let ws = workspace(2);
        let states = hidden(&ws, &model, &theta, &case.tokens).unwrap();
        assert_close("hidden", &states, &flat(&adapted["hidden"]), 1e-4);
        assert_close("logits", &logits_of(&model, &theta, case), &flat(&adapted["logits"]), 1e-4);
        let mut grad = vec![0.0; theta.len()];
        let found = loss_and_gradient(
            &ws,
            &model,
            &theta,
            &case.tokens,
            &case.targets,
            Activations::Recompute,
            &mut grad,
        );
        let off = found.unwrap().mean() - adapted["loss"].as_f64().unwrap();
        assert!(off.abs() < 1e-5, "loss off by {off:e}");
        let golden = adapted["gradients"].as_object().unwrap();
        assert_eq!(golden.len(), model.layout.sites.len());
        for site in &model.layout.sites {
            let bare = site.name.trim_start_matches("model.");
            let names = [
                site.name.clone(),
                format!("base_model.model.{}", site.name),
                format!("base_model.model.{bare}"),
            ];
            let expected = floats(names.iter().find_map(|name| golden.get(name)).unwrap());
            let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert_close(&site.name, &grad[site.range()], &expected, 5e-5 * largest + 1e-6);
        }
    });
}

#[test]
fn ten_losses_of_every_training_agree() {
    for_every_case(|dir, case| {
        for training in case.golden["trainings"].as_array().unwrap() {
            let (model, mut theta) = if training["train"] == "full" {
                with_head(dir, case, &full())
            } else {
                let (model, _) = load(dir, &case.task, &case.adapter.peft);
                let theta = case.adapter.theta(&model).unwrap();
                (model, theta)
            };
            let config = optimizer_of(&training["optimizer"]);
            let mut optimizer = Optimizer::new(&config, theta.len());
            let schedule: Schedule = serde_json::from_value(serde_json::json!({
                "lr_scheduler_type": training["lr_scheduler_type"],
                "warmup_ratio": training["warmup_ratio"],
            }))
            .unwrap();
            let (rates, losses) = (floats(&training["learning_rates"]), floats(&training["losses"]));
            let ws = workspace(1);
            for (step, expected) in losses.iter().enumerate() {
                let mut grad = vec![0.0; theta.len()];
                let keep = Activations::Keep;
                let loss =
                    loss_and_gradient(&ws, &model, &theta, &case.tokens, &case.targets, keep, &mut grad);
                let off = loss.unwrap().mean() - f64::from(*expected);
                // Ten steps amplify the rounding of f32: PyTorch's own is off by 4e-6 at most, ours by 3e-5.
                assert!(off.abs() < 5e-5, "step {step} of {training}: loss off by {off:e}");
                if let Some(max) = training["max_grad_norm"].as_f64() {
                    clip_norm(&mut grad, max as f32);
                }
                let rate = config.learning_rate * schedule.factor(step as u32, losses.len() as u32);
                assert!((rate - rates[step]).abs() < 1e-8, "rate {rate} at step {step}");
                optimizer.step(&mut theta, &grad, rate);
            }
        }
    });
}

fn optimizer_of(golden: &Value) -> OptimizerConfig {
    let mut config = serde_json::Map::new();
    for (key, value) in golden.as_object().unwrap() {
        let key = match key.as_str() {
            "kind" => "optim",
            "beta1" => "adam_beta1",
            "beta2" => "adam_beta2",
            "epsilon" => "adam_epsilon",
            other => other,
        };
        config.insert(key.into(), value.clone());
    }
    serde_json::from_value(Value::Object(config)).unwrap()
}

#[test]
fn greedy_tokens_agree() {
    for_every_case(|dir, case| {
        let greedy = &case.golden["greedy"];
        if greedy.is_null() {
            return;
        }
        let (model, theta) = load(dir, &case.task, &PeftConfig::new(PeftKind::None));
        let found =
            generate(&workspace(1), &model, &theta, &ids(&greedy["prompt"]), 24, Sampling::Greedy, None);
        assert_eq!(found.unwrap(), ids(&greedy["tokens"]));
    });
}

#[test]
fn what_is_saved_loads_again() {
    for_every_case(|dir, case| {
        let (model, _) = load(dir, &case.task, &case.adapter.peft);
        let theta = case.adapter.theta(&model).unwrap();
        let labels = case.adapter.head.as_ref().map_or(Vec::new(), |head| head.labels.clone());
        let parent = tempfile::tempdir().unwrap();
        let saved = parent.path().join("adapter");
        undertone_model::peft::save(&saved, &model, &theta, &case.adapter.base, &labels).unwrap();
        let back = Adapter::open(&saved).unwrap();
        assert_eq!((&back.base, &back.head), (&case.adapter.base, &case.adapter.head));
        let (again, _) = load(dir, &back.task(), &back.peft);
        assert_eq!(again.layout, model.layout);
        assert!(back.theta(&again).unwrap() == theta);
        // The tensors have the names and shapes that Python's peft gave them.
        let stored = std::fs::read(saved.join("adapter_model.safetensors")).unwrap();
        let golden = std::fs::read(
            dir.join(case.golden["name"].as_str().unwrap()).join("adapter_model.safetensors"),
        );
        assert!(tensors(&stored) == tensors(&golden.unwrap()));
        // A directory that holds something is never overwritten.
        assert!(undertone_model::peft::save(&saved, &model, &theta, "", &labels).is_err());
    });
}

fn tensors(bytes: &[u8]) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort();
    tensors
}
