//! Tangents are derivatives: along any direction they are the inner product with the gradient that the
//! backward pass finds, whatever is trained, wherever the pass begins, however many run at once.

mod support;

use base::{Meter, Seed};
use ops::{Dual, Workspace};
use std::path::PathBuf;
use support::{full, load, norm, repository, workspace};
use undertone_model::tangent::{self, Fan, Over};
use undertone_model::{
    Activations, Draw, Given, Model, PeftConfig, PeftKind, Pooling, Seeded, Targets, Task, Tokens,
    backbone, loss, loss_and_gradient,
};

const FAMILIES: [&str; 5] = ["bert", "roberta", "distilbert", "llama", "qwen2"];

fn golden(family: &str) -> PathBuf {
    repository("golden").join(family)
}

fn tokens() -> Tokens {
    Tokens::of(&[vec![4u32, 9, 2, 33, 7], vec![5], vec![8, 8, 1, 40, 3, 21, 2, 2, 17]])
}

fn everywhere(kind: PeftKind) -> PeftConfig {
    let target_modules = serde_json::from_str("\"all-linear\"").unwrap();
    PeftConfig { target_modules, r: 3, bottleneck_size: 5, ..PeftConfig::new(kind) }
}

/// Both tasks and every way of fine-tuning on every family.
fn for_every_case(check: impl Fn(&str, &Model, &[f32], &Targets)) {
    for family in FAMILIES {
        let tasks = [
            (
                Task::Classification { classes: 3, pooling: Pooling::Mean, squash: Some(1.5) },
                Targets::Classes(vec![2, 0, 1]),
            ),
            (
                Task::Classification { classes: 4, pooling: Pooling::Last, squash: None },
                Targets::Classes(vec![3, 0, 1]),
            ),
            (Task::CausalLm, Targets::NextToken),
        ];
        for (task, targets) in tasks {
            let kinds = [
                everywhere(PeftKind::Lora),
                PeftConfig { layers_to_transform: Some(vec![1]), ..PeftConfig::new(PeftKind::Lora) },
                everywhere(PeftKind::LoraXs),
                everywhere(PeftKind::Bottleneck),
                PeftConfig::new(PeftKind::Bitfit),
                PeftConfig::new(PeftKind::Head),
                full(),
            ];
            for peft in kinds {
                let encoder = !["llama", "qwen2"].contains(&family);
                let nothing = peft.kind == PeftKind::Head || encoder;
                if task == Task::CausalLm && nothing {
                    continue;
                }
                let (model, theta) = load(&golden(family), &task, &peft);
                let mut stream = Seed(11).stream();
                let moved: Vec<f32> = theta.iter().map(|x| x + 0.1 * stream.normal() as f32).collect();
                check(&format!("{family} {task:?} {peft:?}"), &model, &moved, &targets);
            }
        }
    }
}

fn gradient(model: &Model, theta: &[f32], tokens: &Tokens, targets: &Targets) -> Vec<f32> {
    let mut grad = vec![0.0; theta.len()];
    let kept = Activations::Keep;
    loss_and_gradient(&workspace(1), model, theta, tokens, targets, kept, &mut grad).unwrap();
    grad
}

fn seeds(count: u64) -> Vec<Seed> {
    (0..count).map(|index| Seed(5).child("direction", index)).collect()
}

fn seeded<'a>(seeds: &'a [Seed], model: &Model) -> Seeded<'a> {
    Seeded { seeds, draw: Draw::Normal, moves: 0..model.layout.total() }
}

fn vector(seed: Seed, len: usize) -> Vec<f32> {
    let mut direction = vec![0.0; len];
    Draw::Normal.write(seed, 0, &mut direction);
    direction
}

/// A normal direction has an inner product near the gradient's length, of which the error is a share.
fn assert_slope(what: &str, found: f64, grad: &[f32], direction: &[f32]) {
    let expected = ops::slice::dot(grad, direction);
    let off = (found - expected).abs();
    assert!(off <= 1e-4 * norm(grad), "{what}: {found} instead of {expected}");
}

#[test]
fn a_tangent_is_the_gradients_inner_product_with_the_direction() {
    for_every_case(|name, model, theta, targets| {
        let (tokens, seeds) = (tokens(), seeds(3));
        let grad = gradient(model, theta, &tokens, targets);
        let all = seeded(&seeds, model);
        let found = tangent::loss(&workspace(2), model, theta, &tokens, targets, Fan::batch(&all)).unwrap();
        let plain = loss(&workspace(1), model, theta, &tokens, targets).unwrap();
        assert!((found.loss.sum - plain.sum).abs() <= 1e-6 * plain.sum, "{name}");
        assert_eq!((found.loss.correct, &found.loss.predicted), (plain.correct, &plain.predicted));
        for (&seed, slope) in seeds.iter().zip(&found.slopes) {
            assert_slope(name, *slope, &grad, &vector(seed, theta.len()));
        }
        // One site after another, so that a small one is not lost among large ones.
        for site in &model.layout.sites {
            let only = Seeded { seeds: &seeds[..1], draw: Draw::Sign, moves: site.range() };
            let fan = Fan::batch(&only);
            let found = tangent::loss(&workspace(1), model, theta, &tokens, targets, fan).unwrap();
            let mut direction = vec![0.0; theta.len()];
            Draw::Sign.write(seeds[0], site.offset, &mut direction[site.range()]);
            let expected = ops::slice::dot(&grad, &direction);
            let off = (found.slopes[0] - expected).abs();
            let tolerance = 1e-4 * norm(&grad[site.range()]) + 1e-6;
            assert!(off <= tolerance, "{name} {}: {} for {expected}", site.name, found.slopes[0]);
        }
    });
}

#[test]
fn many_at_once_are_bit_for_bit_those_alone_on_any_number_of_threads() {
    for_every_case(|name, model, theta, targets| {
        let (tokens, seeds) = (tokens(), seeds(4));
        let run = |seeds: &[Seed], threads| {
            let directions = seeded(seeds, model);
            let fan = Fan::batch(&directions);
            tangent::loss(&workspace(threads), model, theta, &tokens, targets, fan).unwrap()
        };
        let together = run(&seeds, 1);
        assert_eq!(together, run(&seeds, 3), "{name}");
        for (index, seed) in seeds.iter().enumerate() {
            let alone = run(&[*seed], 1);
            assert_eq!((alone.slopes[0], alone.loss), (together.slopes[index], together.loss.clone()));
        }
    });
}

#[test]
fn a_direction_for_each_sequence_moves_that_sequence_alone() {
    for_every_case(|name, model, theta, targets| {
        let (tokens, seeds) = (tokens(), seeds(6));
        let all = seeded(&seeds, model);
        let fan = Fan { directions: &all, over: Over::Sequences };
        let found = tangent::loss(&workspace(1), model, theta, &tokens, targets, fan).unwrap();
        for (index, seed) in seeds.iter().enumerate() {
            let sequence = index % 3;
            let rows = tokens.starts[sequence] as usize..tokens.starts[sequence + 1] as usize;
            let alone = Tokens::of(&[&tokens.ids[rows.clone()]]);
            let target = match targets {
                Targets::Classes(classes) => Targets::Classes(vec![classes[sequence]]),
                other => other.clone(),
            };
            if *targets == Targets::NextToken && rows.len() < 2 {
                assert_eq!(found.slopes[index], 0.0);
                continue;
            }
            let grad = gradient(model, theta, &alone, &target);
            assert_slope(name, found.slopes[index], &grad, &vector(*seed, theta.len()));
        }
        let five = Seeded { seeds: &seeds[..5], ..all.clone() };
        let fan = Fan { directions: &five, over: Over::Sequences };
        assert!(tangent::loss(&workspace(1), model, theta, &tokens, targets, fan).is_err());
    });
}

/// What a device half of split learning does: tangents of the activations at the cut, of which the server's
/// gradient makes derivatives of the loss.
#[test]
fn ranges_compose_and_a_kept_prefix_changes_nothing() {
    for_every_case(|name, model, theta, targets| {
        let (tokens, ws) = (tokens(), workspace(1));
        let grad = gradient(model, theta, &tokens, targets);
        let directions = [vector(Seed(1), theta.len()), vector(Seed(2), theta.len())];
        let given = Given(&directions);
        let (fan, starts) = (Fan::batch(&given), &tokens.starts);
        let whole = tangent::loss(&ws, model, theta, &tokens, targets, fan).unwrap();
        let x = tangent::embed(&ws, model, theta, &tokens, fan).unwrap();
        let x = tangent::blocks(&ws, model, theta, 0..1, x, starts, fan).unwrap();
        let x = tangent::blocks(&ws, model, theta, 1..model.spec.layers, x, starts, fan).unwrap();
        let parts = tangent::head_loss(&ws, model, theta, x, (&tokens, targets), fan).unwrap();
        assert_eq!(parts, whole, "{name}");
        for (slope, direction) in whole.slopes.iter().zip(&directions) {
            assert_slope(name, *slope, &grad, direction);
        }
        // Only block 1 and what is above it move: what is below is kept from an ordinary forward pass.
        let moves = model.layout.cut(1)..theta.len();
        if moves.is_empty() {
            return;
        }
        let seeds = seeds(2);
        let upper = Seeded { seeds: &seeds, draw: Draw::Normal, moves };
        let fan = Fan::batch(&upper);
        let whole = tangent::loss(&ws, model, theta, &tokens, targets, fan).unwrap();
        let kept = backbone::embed(&ws, model, theta, &tokens).unwrap();
        let kept = backbone::forward(&ws, model, theta, 0..1, kept, starts, |_, _| {}).unwrap();
        let kept = Dual::constant(kept);
        let x = tangent::blocks(&ws, model, theta, 1..model.spec.layers, kept, starts, fan).unwrap();
        let from_kept = tangent::head_loss(&ws, model, theta, x, (&tokens, targets), fan).unwrap();
        assert_eq!(from_kept, whole, "{name}");
    });
}

/// The mean of `(g . v) v` over n directions is the gradient: each element within five standard errors, and
/// the squared error of the whole as large as the variance says, `(d + 1) |g|^2 / n` for normals and
/// `(d - 1) |g|^2 / n` for signs.
#[test]
fn the_mean_of_forward_gradients_is_the_gradient() {
    let task = Task::Classification { classes: 3, pooling: Pooling::Mean, squash: Some(1.5) };
    let peft = PeftConfig { r: 2, ..PeftConfig::new(PeftKind::Lora) };
    let (model, theta) = load(&golden("bert"), &task, &peft);
    let (tokens, targets) = (tokens(), Targets::Classes(vec![2, 0, 1]));
    let mut stream = Seed(11).stream();
    let theta: Vec<f32> = theta.iter().map(|x| x + 0.1 * stream.normal() as f32).collect();
    let grad = gradient(&model, &theta, &tokens, &targets);
    let (d, n) = (theta.len(), 4096);
    for (draw, excess) in [(Draw::Normal, 1.0), (Draw::Sign, -1.0)] {
        let (mut sum, mut squares) = (vec![0f64; d], vec![0f64; d]);
        for batch in 0..n / 32 {
            let seeds: Vec<Seed> = (0..32).map(|index| Seed(batch).child("mean", index)).collect();
            let directions = Seeded { seeds: &seeds, draw, moves: 0..d };
            let fan = Fan::batch(&directions);
            let found = tangent::loss(&workspace(1), &model, &theta, &tokens, &targets, fan).unwrap();
            for (seed, slope) in seeds.iter().zip(&found.slopes) {
                let mut direction = vec![0.0; d];
                draw.write(*seed, 0, &mut direction);
                for ((sum, square), v) in sum.iter_mut().zip(&mut squares).zip(&direction) {
                    let part = slope * f64::from(*v);
                    *sum += part;
                    *square += part * part;
                }
            }
        }
        let n = n as f64;
        let mut error = 0.0;
        for ((sum, square), g) in sum.iter().zip(&squares).zip(&grad) {
            let (mean, off) = (sum / n, sum / n - f64::from(*g));
            let standard_error = ((square / n - mean * mean) / n).sqrt();
            assert!(off.abs() <= 5.0 * standard_error, "{draw:?}: {mean} for {g} +- {standard_error}");
            error += off * off;
        }
        let expected = (d as f64 + excess) * ops::slice::norm2(&grad) / n;
        println!("{draw:?}: squared error {error:.3e}, expected {expected:.3e} (d = {d}, n = {n})");
        assert!((error / expected - 1.0).abs() < 0.25, "{draw:?}: {error} for {expected}");
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let task = Task::Classification { classes: 3, pooling: Pooling::Mean, squash: None };
    let (model, mut theta) = load(&golden("bert"), &task, &PeftConfig::new(PeftKind::Lora));
    let (tokens, targets, seeds) = (tokens(), Targets::Classes(vec![2, 0, 1]), seeds(1));
    let run = |theta: &[f32], seeds: &[Seed], moves| {
        let directions = Seeded { seeds, draw: Draw::Normal, moves };
        let ws = Workspace::new(&Meter::unlimited(), 1);
        let found = tangent::loss(&ws, &model, theta, &tokens, &targets, Fan::batch(&directions));
        found.map_err(|error| error.to_string())
    };
    assert!(run(&theta, &[], 0..theta.len()).unwrap_err().contains("at least one"));
    assert!(run(&theta, &seeds, 1..theta.len()).unwrap_err().contains("query.lora_A"));
    theta[3] = f32::NAN;
    assert!(run(&theta, &seeds, 0..theta.len()).unwrap_err().contains("not finite"));
}
