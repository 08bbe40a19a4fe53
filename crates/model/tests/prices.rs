//! Prices are arithmetic; here they are held against the meter of the real computation.

mod support;

use base::{Meter, Seed};
use ops::{Dual, Workspace};
use support::{load, repository, shared_model};
use undertone_model::tangent::{self, Fan};
use undertone_model::{
    Activations, Below, Draw, Model, PeftConfig, PeftKind, Pooling, Seeded, Targets, Task, Tokens,
    backbone, head_loss_and_gradient, loss, loss_and_gradient, price,
};

const KINDS: [PeftKind; 7] = [
    PeftKind::Lora,
    PeftKind::LoraXs,
    PeftKind::Full,
    PeftKind::Bitfit,
    PeftKind::Bottleneck,
    PeftKind::Head,
    PeftKind::None,
];

fn classification() -> Task {
    Task::Classification { classes: 6, pooling: Pooling::Mean, squash: Some(3.0) }
}

fn batch(model: &Model, lengths: &[usize]) -> (Tokens, Targets) {
    let id = |at: usize| (at * 7 % model.spec.vocab) as u32;
    let sequences: Vec<Vec<u32>> = lengths.iter().map(|length| (0..*length).map(id).collect()).collect();
    let targets = match model.task {
        Task::CausalLm => Targets::NextToken,
        Task::Classification { .. } | Task::Regression { .. } => Targets::Classes(vec![1; lengths.len()]),
    };
    (Tokens::of(&sequences), targets)
}

/// The price covers the peak, and is at most 5 % + 1 MiB above it.
fn assert_price(what: &str, price: u64, peak: u64) {
    let slack = peak / 20 + (1 << 20);
    assert!(price >= peak, "{what}: price {price} is below the peak {peak}");
    assert!(price <= peak + slack, "{what}: price {price} is far above the peak {peak}");
}

fn check(model: &Model, theta: &[f32], lengths: &[usize]) {
    let (tokens, targets) = batch(model, lengths);
    let (spec, task, layout) = (&model.spec, &model.task, &model.layout);
    let name = format!("{} {:?} {lengths:?}", spec.family.model_type, model.peft);
    for activations in [Activations::Keep, Activations::Recompute] {
        let price = price::training(spec, task, layout, &tokens.starts, activations);
        let meter = Meter::new(price.bytes);
        let ws = Workspace::new(&meter, 3);
        let mut grad = vec![0.0; theta.len()];
        let done = loss_and_gradient(&ws, model, theta, &tokens, &targets, activations, &mut grad);
        done.unwrap_or_else(|error| panic!("{name} {activations:?}: {error}"));
        assert_price(&format!("{name} {activations:?}"), price.bytes, meter.peak());
    }
    check_tangents(&name, model, theta, &tokens, &targets);
    check_upper_loss(&name, model, theta, &tokens, &targets);
    let price = price::inference(spec, task, layout, &tokens.starts);
    let meter = Meter::unlimited();
    loss(&Workspace::new(&meter, 2), model, theta, &tokens, &targets).unwrap();
    assert_price(&format!("{name} inference"), price.bytes, meter.peak());
}

/// A pass with tangents: of everything, and of the last block and the head from what is below.
fn check_tangents(name: &str, model: &Model, theta: &[f32], tokens: &Tokens, targets: &Targets) {
    let (spec, task, layout, starts) = (&model.spec, &model.task, &*model.layout, &tokens.starts);
    let last = spec.layers - 1;
    for (lanes, first) in [(1, 0), (5, 0), (3, last)] {
        let seeds: Vec<Seed> = (0..lanes as u64).map(Seed).collect();
        let moves = if first == 0 { 0..layout.total() } else { layout.cut(first)..layout.total() };
        let directions = Seeded { seeds: &seeds, draw: Draw::Sign, moves: moves.clone() };
        let fan = Fan::batch(&directions);
        let price = price::Tangents { spec, task, layout, starts, lanes, moves }.loss_from(first);
        let meter = Meter::new(price.bytes);
        let ws = Workspace::new(&meter, 2);
        let run = || {
            if first == 0 {
                return tangent::loss(&ws, model, theta, tokens, targets, fan);
            }
            let x = Dual::constant(ws.zeros(tokens.rows(), spec.width)?);
            let x = tangent::blocks(&ws, model, theta, first..spec.layers, x, starts, fan)?;
            tangent::head_loss(&ws, model, theta, x, (tokens, targets), fan)
        };
        run().unwrap_or_else(|error| panic!("{name}, {lanes} tangents from {first}: {error}"));
        assert_price(&format!("{name}, {lanes} tangents from {first}"), price.bytes, meter.peak());
    }
}

/// From what is below the last block: forward, and the gradient of the head alone.
fn check_upper_loss(name: &str, model: &Model, theta: &[f32], tokens: &Tokens, targets: &Targets) {
    let (spec, task, layout, starts) = (&model.spec, &model.task, &*model.layout, &tokens.starts);
    let (at, activations) = (spec.layers - 1, Activations::Recompute);
    let price = price::Split { spec, task, layout, at, starts, activations }.upper_loss();
    let meter = Meter::new(price.bytes);
    let ws = Workspace::new(&meter, 2);
    let x = ws.zeros(tokens.rows(), spec.width).unwrap();
    let x = backbone::forward(&ws, model, theta, at..spec.layers, x, starts, |_, _| {}).unwrap();
    let mut grad = vec![0.0; theta.len()];
    let batch = (tokens, targets);
    let done = head_loss_and_gradient(&ws, model, theta, x, batch, Below::Frozen, &mut grad);
    done.unwrap_or_else(|error| panic!("{name}, loss from {at}: {error}"));
    assert_price(&format!("{name}, loss from {at}"), price.bytes, meter.peak());
}

#[test]
fn prices_hold_on_minilm() {
    let Some(dir) = shared_model("all-MiniLM-L6-v2") else { return };
    for kind in KINDS {
        let (model, theta) = load(&dir, &classification(), &PeftConfig::new(kind));
        for lengths in [&[32; 6][..], &[130, 9]] {
            check(&model, &theta, lengths);
        }
    }
}

#[test]
fn prices_hold_on_stories() {
    let Some(dir) = shared_model("stories260K") else { return };
    for task in [Task::CausalLm, classification()] {
        for kind in KINDS {
            if kind == PeftKind::Head && task == Task::CausalLm {
                continue;
            }
            let (model, theta) = load(&dir, &task, &PeftConfig::new(kind));
            for lengths in [&[64; 16][..], &[100, 400], &[9]] {
                check(&model, &theta, lengths);
            }
        }
    }
}

#[test]
fn prices_hold_on_every_family_and_choice_of_sites() {
    for family in ["bert", "roberta", "distilbert", "llama", "qwen2"] {
        let dir = repository("golden").join(family);
        for kind in KINDS {
            let all = PeftConfig {
                target_modules: serde_json::from_str("\"all-linear\"").unwrap(),
                layers_to_transform: Some(vec![1]),
                ..PeftConfig::new(kind)
            };
            for peft in [PeftConfig::new(kind), all] {
                let (model, theta) = load(&dir, &classification(), &peft);
                assert_eq!(price::weights(&model.spec, &model.task, &model.layout), model.bytes());
                check(&model, &theta, &[15; 40]);
            }
        }
    }
}
