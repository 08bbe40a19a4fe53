//! What must not matter does not: where a model is cut, what is kept, how many threads, which
//! sequences share a batch. And gradients are those of the loss.

mod support;

use base::Seed;
use ops::Mat;
use std::ops::Range;
use std::path::PathBuf;
use support::{full, largest_difference, load, repository, workspace};
use undertone_model::backbone::{backward, embed, embed_backward, forward, forward_for_backward};
use undertone_model::{
    Activations, Below, Layout, Lower, Model, PeftConfig, PeftKind, Pooling, Source, Targets, Task, Tokens,
    head_loss_and_gradient, hidden, logits, loss, loss_and_gradient, price,
};

const FAMILIES: [&str; 2] = ["bert", "llama"];

fn golden(family: &str) -> PathBuf {
    repository("golden").join(family)
}

fn classification() -> Task {
    Task::Classification { classes: 3, pooling: Pooling::Mean, squash: Some(1.5) }
}

fn tokens() -> Tokens {
    Tokens::of(&[vec![4u32, 9, 2, 33, 7], vec![5], vec![8, 8, 1, 40, 3, 21, 2, 2, 17]])
}

fn targets() -> Targets {
    Targets::Classes(vec![2, 0, 1])
}

/// Every way of fine-tuning, adapters on every linear.
fn kinds() -> Vec<PeftConfig> {
    let everywhere = |kind| PeftConfig {
        target_modules: serde_json::from_str("\"all-linear\"").unwrap(),
        r: 3,
        bottleneck_size: 5,
        ..PeftConfig::new(kind)
    };
    vec![
        everywhere(PeftKind::Lora),
        everywhere(PeftKind::LoraXs),
        everywhere(PeftKind::Bottleneck),
        PeftConfig::new(PeftKind::Bitfit),
        PeftConfig::new(PeftKind::Head),
        full(),
    ]
}

/// Parameters away from their start, where nothing is zero.
fn moved(theta: &[f32]) -> Vec<f32> {
    let mut stream = Seed(11).stream();
    theta.iter().map(|value| value + 0.1 * stream.normal() as f32).collect()
}

fn gradient(model: &Model, theta: &[f32], activations: Activations, threads: usize) -> (f64, Vec<f32>) {
    let mut grad = vec![0.0; theta.len()];
    let ws = workspace(threads);
    let loss = loss_and_gradient(&ws, model, theta, &tokens(), &targets(), activations, &mut grad).unwrap();
    (loss.sum, grad)
}

#[test]
fn gradients_are_central_differences() {
    for family in FAMILIES {
        for peft in kinds() {
            let (model, theta) = load(&golden(family), &classification(), &peft);
            let theta = moved(&theta);
            let (_, grad) = gradient(&model, &theta, Activations::Keep, 1);
            for site in &model.layout.sites {
                let mut stream = Seed(3).child(&site.name, 0).stream();
                let direction: Vec<f32> = site.range().map(|_| stream.normal() as f32).collect();
                let length = support::norm(&direction);
                // Small enough to stay on one side of most kinks of the ReLU.
                let step = 5e-4 / length;
                let at = |sign: f64| {
                    let mut theta = theta.clone();
                    ops::slice::axpy((sign * step) as f32, &direction, &mut theta[site.range()]);
                    let loss = loss(&workspace(1), &model, &theta, &tokens(), &targets()).unwrap();
                    loss.mean()
                };
                let measured = (at(1.0) - at(-1.0)) / (2.0 * step);
                let expected = ops::slice::dot(&grad[site.range()], &direction);
                let tolerance = 5e-3 * (support::norm(&grad[site.range()]) + 0.1) * length;
                let off = (measured - expected).abs();
                assert!(off < tolerance, "{family} {}: {measured} for {expected}", site.name);
            }
        }
    }
}

#[test]
fn neither_activations_nor_threads_change_a_bit() {
    for family in FAMILIES {
        for peft in kinds() {
            let (model, theta) = load(&golden(family), &classification(), &peft);
            let theta = moved(&theta);
            let whole = gradient(&model, &theta, Activations::Keep, 1);
            for (activations, threads) in [(Activations::Recompute, 1), (Activations::Keep, 3)] {
                let other = gradient(&model, &theta, activations, threads);
                assert!(whole == other, "{family} {peft:?} {activations:?}");
            }
        }
    }
}

#[test]
fn an_adapter_at_its_start_is_the_backbone() {
    for family in FAMILIES {
        let (plain, none) = load(&golden(family), &classification(), &PeftConfig::new(PeftKind::None));
        let expected = hidden(&workspace(1), &plain, &none, &tokens()).unwrap();
        for peft in kinds() {
            let (model, theta) = load(&golden(family), &classification(), &peft);
            let found = hidden(&workspace(1), &model, &theta, &tokens()).unwrap();
            // A dense weight is multiplied in another order than a packed one.
            let tolerance = if peft.kind == PeftKind::Full { 1e-5 } else { 0.0 };
            assert!(largest_difference(&found, &expected) <= tolerance, "{family} {peft:?}");
        }
    }
}

#[test]
fn a_sequence_does_not_see_its_batch() {
    for family in FAMILIES {
        let (model, theta) = load(&golden(family), &classification(), &kinds()[0]);
        let theta = moved(&theta);
        let all = tokens();
        let together = logits(&workspace(1), &model, &theta, &all).unwrap();
        for (row, pair) in all.starts.windows(2).enumerate() {
            let sequence = &all.ids[pair[0] as usize..pair[1] as usize];
            let alone = logits(&workspace(1), &model, &theta, &Tokens::of(&[sequence])).unwrap();
            assert_eq!(&*alone, together.row(row), "{family}");
        }
    }
}

#[test]
fn a_lower_part_computes_what_the_whole_does_there_and_holds_no_more() {
    for family in FAMILIES {
        for peft in kinds() {
            let source = Source::Directory(golden(family));
            let (whole, start) = load(&golden(family), &classification(), &peft);
            let (theta, tokens, ws) = (moved(&start), tokens(), workspace(1));
            let below = |model: &Model, blocks| {
                let x = embed(&ws, model, &theta, &tokens).unwrap();
                forward(&ws, model, &theta, 0..blocks, x, &tokens.starts, |_, _| {}).unwrap()
            };
            for blocks in 0..=whole.spec.layers {
                let lower = Lower { blocks, head: false };
                let part = Model::load_lower(&source, &classification(), &peft, Seed(7), lower).unwrap().0;
                assert_eq!(*below(&part, blocks), *below(&whole, blocks), "{family} {peft:?}");
                assert!(logits(&ws, &part, &theta, &tokens).is_err(), "it has no head");
                let layout = Layout::of_part(&whole.spec, &whole.task, &peft, 0..blocks);
                if blocks < whole.spec.layers {
                    assert_eq!(part.bytes(), price::weights(&whole.spec, &whole.task, &layout));
                }
            }
            let all = Lower::whole(&whole.spec);
            let (again, initial) =
                Model::load_lower(&source, &classification(), &peft, Seed(7), all).unwrap();
            assert_eq!((again.bytes(), initial), (whole.bytes(), start));
            assert_eq!(
                *logits(&ws, &again, &theta, &tokens).unwrap(),
                *logits(&ws, &whole, &theta, &tokens).unwrap()
            );
        }
    }
}

/// One side of a cut, as a device or a server has it.
struct Part {
    model: Model,
    theta: Vec<f32>,
    grad: Vec<f32>,
}

impl Part {
    fn load(family: &str, peft: &PeftConfig, layers: Range<usize>) -> Part {
        let source = Source::Directory(golden(family));
        let (model, theta) = Model::load_part(&source, &classification(), peft, Seed(7), layers).unwrap();
        Part { model, grad: vec![0.0; theta.len()], theta }
    }
}

/// A training step with the model in two parts: activations go up, their gradient comes down.
fn split_step(device: &mut Part, server: &mut Part, activations: Activations) -> f64 {
    let (tokens, targets, ws) = (tokens(), targets(), workspace(1));
    let Part { model, theta, grad } = device;
    let below = if model.layout.sites.is_empty() { Below::Frozen } else { Below::Trained };
    let x = embed(&ws, model, theta, &tokens).unwrap();
    let (x, trail) =
        forward_for_backward(&ws, model, theta, model.layers(), x, &tokens.starts, activations, below)
            .unwrap();
    let above = {
        let Part { model, theta, grad } = server;
        let layers = model.layers();
        let (x, trail) =
            forward_for_backward(&ws, model, theta, layers, x, &tokens.starts, activations, Below::Trained)
                .unwrap();
        let (loss, dx) =
            head_loss_and_gradient(&ws, model, theta, x, (&tokens, &targets), Below::Trained, grad)
                .unwrap();
        let dx = backward(&ws, model, theta, trail, &tokens.starts, dx.unwrap(), grad).unwrap();
        (loss.sum, dx.unwrap())
    };
    let (sum, dx): (f64, Mat) = above;
    if let Some(dx) = backward(&ws, model, theta, trail, &tokens.starts, dx, grad).unwrap() {
        embed_backward(&ws, model, theta, &tokens, dx, grad).unwrap();
    }
    sum
}

#[test]
fn where_a_model_is_cut_cannot_matter() {
    for family in FAMILIES {
        for peft in kinds() {
            let (whole, start) = load(&golden(family), &classification(), &peft);
            let moved = moved(&start);
            let (sum, expected) = gradient(&whole, &moved, Activations::Keep, 1);
            for cut in 1..whole.spec.layers {
                let mut device = Part::load(family, &peft, 0..cut);
                let mut server = Part::load(family, &peft, cut..whole.spec.layers);
                let at = whole.layout.cut(cut);
                // Parts are drawn from the same seeds as the whole, and divide its theta.
                assert!([device.theta, server.theta].concat() == start, "{family} {peft:?} cut at {cut}");
                (device.theta, server.theta) = (moved[..at].to_vec(), moved[at..].to_vec());
                for activations in [Activations::Keep, Activations::Recompute] {
                    device.grad.fill(0.0);
                    server.grad.fill(0.0);
                    assert_eq!(split_step(&mut device, &mut server, activations), sum);
                    let found = [device.grad.clone(), server.grad.clone()].concat();
                    assert!(found == expected, "{family} {peft:?} cut at {cut}");
                }
            }
        }
    }
}

#[test]
fn taps_see_every_block() {
    let (model, theta) = load(&golden("bert"), &classification(), &full());
    let (tokens, ws) = (tokens(), workspace(1));
    let mut seen = Vec::new();
    let x = embed(&ws, &model, &theta, &tokens).unwrap();
    let tap = |layer, x: &Mat| seen.push((layer, x.to_vec()));
    let x = forward(&ws, &model, &theta, 0..2, x, &tokens.starts, tap).unwrap();
    assert_eq!(seen.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(seen[1].1, x.to_vec());
}

#[test]
fn a_frozen_prefix_leaves_no_trail_and_gets_no_gradient() {
    let peft = PeftConfig { layers_to_transform: Some(vec![1]), ..PeftConfig::lora(2, 4.0, &["query"]) };
    let (model, theta) = load(&golden("bert"), &classification(), &peft);
    let (all, _) = load(&golden("bert"), &classification(), &PeftConfig::lora(2, 4.0, &["query"]));
    let held = |model: &Model, theta: &[f32]| {
        let ws = workspace(1);
        let mut grad = vec![0.0; theta.len()];
        loss_and_gradient(&ws, model, theta, &tokens(), &targets(), Activations::Keep, &mut grad).unwrap();
        ws.meter().peak()
    };
    assert!(held(&model, &theta) < held(&all, &vec![0.1; all.layout.total()]));
}

#[test]
fn a_prompt_is_read_but_not_learned() {
    let (model, theta) = load(&golden("llama"), &Task::CausalLm, &full());
    let (tokens, ws) = (tokens(), workspace(1));
    let of = |targets: &Targets| loss(&ws, &model, &theta, &tokens, targets).unwrap();
    assert_eq!(of(&Targets::NextToken), of(&Targets::Completion(vec![0, 1, 1])));
    assert_eq!(of(&Targets::NextToken).count, 4 + 8);
    // The loss of each half of the second sequence adds up to that of the whole.
    let late = of(&Targets::Completion(vec![9, 9, 5]));
    assert_eq!(late.count, 4);
    let cut = Tokens::of(&[&tokens.ids[6..11]]);
    let early = loss(&ws, &model, &theta, &cut, &Targets::NextToken).unwrap();
    let sequence = of(&Targets::Completion(vec![9, 9, 0]));
    assert!((late.sum + early.sum - sequence.sum).abs() < 1e-4);
}

#[test]
fn bad_batches_are_refused_in_words() {
    let (model, theta) = load(&golden("bert"), &classification(), &full());
    let ws = workspace(1);
    let refuse = |tokens: &Tokens, targets: &Targets, part: &str| {
        let error = loss(&ws, &model, &theta, tokens, targets).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let classes = |classes: &[u32]| Targets::Classes(classes.to_vec());
    refuse(&Tokens::of(&[[1u32, 67]]), &classes(&[0]), "outside the vocabulary");
    refuse(&Tokens::of(&[vec![1u32; 500]]), &classes(&[0]), "max_seq_length");
    refuse(&Tokens::of(&[vec![1u32], vec![]]), &classes(&[0, 0]), "empty");
    refuse(&Tokens { ids: vec![1, 2], starts: vec![0, 1], second_from: vec![] }, &classes(&[0]), "span");
    refuse(&Tokens { second_from: vec![1, 1], ..Tokens::of(&[[1, 2]]) }, &classes(&[0]), "second texts");
    refuse(&tokens(), &classes(&[0, 1, 3]), "outside of 0..3");
    refuse(&tokens(), &classes(&[0]), "1 labels for 3 sequences");
    refuse(&tokens(), &Targets::NextToken, "classification");
    let short = loss(&ws, &model, &theta[1..], &tokens(), &targets()).unwrap_err();
    assert!(short.to_string().contains("trainable"), "{short}");
    let mut wild = theta.clone();
    wild[0] = f32::NAN;
    let tokens = Tokens::of(&[[0u32, 1]]);
    assert!(loss(&ws, &model, &wild, &tokens, &classes(&[0])).is_err());
}

#[test]
fn sites_stand_in_forward_order() {
    let (model, _) = load(&golden("llama"), &classification(), &full());
    let layout: &Layout = &model.layout;
    assert!(layout.sites.is_sorted_by_key(|site| site.place));
    assert_eq!((layout.cut(0) > 0, layout.cut(2) < layout.total()), (true, true));
}
