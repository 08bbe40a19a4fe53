//! Agreement with PyTorch, in float64, on real pretrained weights.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{
    floats, full, ids, json, largest_difference, load, mean_head, norm, shared_model, workspace,
};
use undertone_model::{
    Activations, Layout, Model, PeftConfig, PeftKind, Targets, Task, Tokens, argmax, hidden, logits, loss,
    loss_and_gradient,
};

/// Every parameter's gradient norm: within 1e-3 of itself + 1e-6 of the largest.
fn assert_gradient_norms(layout: &Layout, grad: &[f32], golden: &Value) {
    let golden = golden.as_object().unwrap();
    let largest = golden.values().filter_map(Value::as_f64).fold(0.0, f64::max);
    let mut checked = 0;
    for (name, expected) in golden {
        let Some(expected) = expected.as_f64() else { continue };
        let site = layout.site(name).unwrap_or_else(|| panic!("no site {name}"));
        let found = norm(&grad[site.range()]);
        let off = (found - expected).abs();
        assert!(off <= 1e-3 * expected + 1e-6 * largest, "{name}: {found} instead of {expected}");
        checked += 1;
    }
    println!("{checked} gradient norms agree");
}

fn batch_of(golden: &Value) -> Tokens {
    let rows =
        golden["input_ids"].as_array().unwrap().iter().zip(golden["attention_mask"].as_array().unwrap());
    let sequences: Vec<Vec<u32>> = rows
        .map(|(row, mask)| {
            ids(row).into_iter().zip(ids(mask)).filter(|(_, real)| *real == 1).map(|(id, _)| id).collect()
        })
        .collect();
    Tokens::of(&sequences)
}

#[test]
fn minilm_pooled_vectors() {
    let Some(dir) = shared_model("all-MiniLM-L6-v2") else { return };
    let (model, theta) = load(&dir, &mean_head(2), &PeftConfig::new(PeftKind::None));
    let golden = json(&dir.join("golden.json"));
    let sentences = golden["sentences"].as_array().unwrap();
    let sequences: Vec<Vec<u32>> = sentences.iter().map(|sentence| ids(&sentence["input_ids"])).collect();
    let tokens = Tokens::of(&sequences);
    let ws = workspace(2);
    let x = hidden(&ws, &model, &theta, &tokens).unwrap();
    let pooled = ops::pool::Pooling::Mean.forward(&ws, &x, &tokens.starts).unwrap();
    let mut worst = 0.0f32;
    for (row, sentence) in sentences.iter().enumerate() {
        let expected = floats(&sentence["mean_pooled_first16"]);
        worst = worst.max(largest_difference(&pooled.row(row)[..16], &expected));
        let length = norm(pooled.row(row)) - sentence["mean_pooled_norm"].as_f64().unwrap();
        worst = worst.max(length.abs() as f32);
    }
    println!("largest difference {worst:e}");
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn minilm_loss_and_every_gradient() {
    let Some(dir) = shared_model("all-MiniLM-L6-v2") else { return };
    let golden = &json(&dir.join("golden.json"))["batch"];
    let (model, mut theta) = load(&dir, &mean_head(4), &full());
    // The golden head: W[c, j] = sin(384 c + j), no bias.
    let weight = model.layout.site("classifier.weight").unwrap().range();
    theta[weight].iter_mut().enumerate().for_each(|(index, value)| *value = (index as f64).sin() as f32);
    let (tokens, targets) = (batch_of(golden), Targets::Classes(ids(&golden["labels"])));
    let ws = workspace(2);
    for activations in [Activations::Keep, Activations::Recompute] {
        let mut grad = vec![0.0; theta.len()];
        let loss =
            loss_and_gradient(&ws, &model, &theta, &tokens, &targets, activations, &mut grad).unwrap();
        let off = loss.mean() - golden["loss"].as_f64().unwrap();
        println!("loss off by {off:e}");
        assert!(off.abs() < 1e-5, "{off}");
        assert_gradient_norms(&model.layout, &grad, &golden["grad_norm"]);
    }
}

fn causal_golden(dir: &Path) {
    let golden = json(&dir.join("golden.json"));
    let sequence = ids(&golden["input_ids"]);
    let (model, theta) = load(dir, &Task::CausalLm, &full());
    let (frozen, none) = load(dir, &Task::CausalLm, &PeftConfig::new(PeftKind::None));
    let ws = workspace(2);

    // Every prefix is a sequence of its own, so its last position gives every position's logits.
    let prefixes: Vec<&[u32]> = (1..=sequence.len()).map(|end| &sequence[..end]).collect();
    let prefixes = Tokens::of(&prefixes);
    let all = logits(&ws, &frozen, &none, &prefixes).unwrap();
    let found: Vec<u32> = (0..all.rows()).map(|row| argmax(all.row(row))).collect();
    assert_eq!(found, ids(&golden["argmax"]));
    let expected = floats(&golden["last_logits_first32"]);
    let worst = largest_difference(&all.row(all.rows() - 1)[..32], &expected);
    println!("logits: largest difference {worst:e}");
    assert!(worst < 1e-4, "{worst}");

    let tokens = Tokens::of(&[&sequence]);
    let expected = golden["loss"].as_f64().unwrap();
    let frozen_loss = loss(&ws, &frozen, &none, &tokens, &Targets::NextToken).unwrap().mean();
    let mut grad = vec![0.0; theta.len()];
    let next = &Targets::NextToken;
    let found =
        loss_and_gradient(&ws, &model, &theta, &tokens, next, Activations::Keep, &mut grad).unwrap();
    for off in [frozen_loss - expected, found.mean() - expected] {
        println!("loss off by {off:e}");
        assert!(off.abs() < 1e-5, "{off}");
    }
    assert_gradient_norms(&model.layout, &grad, &golden["grad_norm"]);
}

#[test]
fn stories260k() {
    let Some(dir) = shared_model("stories260K") else { return };
    causal_golden(&dir);
}

#[test]
fn tinystories_656k() {
    let Some(dir) = shared_model("TinyStories-656K") else { return };
    causal_golden(&dir);
}

#[test]
fn hashes_name_the_weights() {
    let Some(dir) = shared_model("stories260K") else { return };
    let hash = |peft: &PeftConfig| -> String {
        let (model, _): (Model, _) = load(&dir, &Task::CausalLm, peft);
        model.hash().to_owned()
    };
    assert_eq!(hash(&full()), hash(&PeftConfig::lora(2, 4.0, &["q_proj"])));
}
