//! Devices with different backbones, of different width, tokens and pivot, that share one side network.

use crate::support::{CLASSES, golden, run, same_in_every_weather, setup, tiny};
use base::{Blob, Meter, Seed};
use data::{Encoded, Target};
use federation::Eval;
use model::optim::Optim;
use model::side::{
    AddedTo, Form, Pivot, SideConfig, SideNetwork, Width, joint, load, squared_loss_backward, tap,
};
use model::{Model, PeftConfig, PeftKind, Pooling, Task, Tokens, argmax};
use ops::{Mat, Workspace};
use std::collections::BTreeSet;
use std::sync::Arc;
use undertone_methods::{Keep, OtherBackbone, Workload, find};

/// BERT's tokens as LLaMA writes them: other numbers, one for one.
fn in_other_tokens(row: &Encoded) -> Encoded {
    Encoded::whole(row.ids.iter().map(|id| (5 * id + 3) % 67).collect(), row.target)
}

/// Every other device has a LLaMA in place of BERT.
fn mixed(shards: &[u32]) -> Workload {
    let work = tiny(shards);
    let nodes: BTreeSet<_> = (1..=shards.len() as u32).filter(|i| i % 2 == 0).map(base::Node).collect();
    let mut train = work.train.to_vec();
    for node in &nodes {
        for &row in &work.shards[node.0 as usize - 1] {
            train[row as usize] = in_other_tokens(&train[row as usize]);
        }
    }
    let task = Task::Classification { classes: CLASSES, pooling: Pooling::Last, squash: None };
    let frozen = PeftConfig::new(PeftKind::None);
    let (model, theta) = Model::load(&golden("llama"), &task, &frozen, Seed(1)).unwrap();
    let test = work.test.iter().map(in_other_tokens).collect();
    let other = OtherBackbone { model: Arc::new(model), initial: Blob::from_f32(&theta), test, nodes };
    Workload { train: train.into(), others: [other].into(), ..work }
}

#[test]
fn kills_and_threads_change_no_bit_and_prices_hold() {
    let work = mixed(&[8, 16, 24, 9]);
    for options in [
        "form = { kind = \"cascade\", r = 2 }",
        "form = { kind = \"mlp\", hidden = 5 }\ntap_format = \"nf4\"\nwidth = 16",
        "loss = \"exact\"\nchunk_rows = 5\nserver_batch_size = 9\nepochs = 2",
        "privacy = { mode = \"mixed\" }",
    ] {
        same_in_every_weather(&format!("blocks = 2\n{options}"), &work);
    }
}

/// What each backbone reads of these rows: the number of classes right with `theta` behind it.
fn accuracy(theta: &[f32], network: &SideNetwork, layers: &[Vec<usize>], work: &Workload) -> [f64; 2] {
    let ws = Workspace::new(&Meter::unlimited(), 1);
    let others = &work.others[0];
    let each = [
        (0, &work.model, &work.initial, &work.test, Pooling::Mean),
        (1, &others.model, &others.initial, &others.test, Pooling::Last),
    ];
    each.map(|(number, model, initial, test, pooling)| {
        let frozen = initial.to_f32(model.layout.total()).unwrap();
        let tokens = Tokens::of(&test.iter().map(|row| row.ids.as_slice()).collect::<Vec<_>>());
        let taps =
            tap(&ws, model, &frozen, &tokens, &layers[number], &Pivot::Pooled(pooling)).unwrap().taps;
        let side = network.forward(&ws, theta, number, &taps).unwrap();
        let even = [1.0 / CLASSES as f32; CLASSES];
        let said = |row| argmax(&joint(AddedTo::Probabilities, &even, side.row(row), 1.0));
        let right =
            test.iter().enumerate().filter(|(row, truth)| Target::Class(said(*row)) == truth.target);
        right.count() as f64 / test.len() as f64
    })
}

#[test]
fn each_device_predicts_through_its_own_projection() {
    let work = mixed(&[60, 60, 60, 60]);
    let options = "blocks = 2\nepochs = 30\nform = { kind = \"mlp\", hidden = 24 }";
    let found = run(options, &work, 2).unwrap();
    let (before, after) =
        (found.summaries()[0].before.clone().unwrap(), found.summaries()[1].eval.clone().unwrap());
    let of = |eval: &Eval, class: &str| eval.by_class[class].accuracy.unwrap();
    for class in ["phone", "tablet"] {
        let (before, after) = (of(&before, class), of(&after, class));
        assert!(after >= 0.8 && before < 0.7, "{class}: {before} to {after}");
    }
    // What is written for devices to load says the same.
    let assembly =
        (find("side-tuning").unwrap().assemble)(setup(options, &work, 2, &Keep::default())).unwrap();
    let dir = std::env::temp_dir().join(format!("undertone-backbones-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    (assembly.saver.unwrap())(&dir, &Blob::from_f32(&found.theta), &[]).unwrap();
    let (card, network, theta) = load(&dir).unwrap();
    assert_eq!(card.network.backbones, [Width::Projected(24), Width::Projected(20)]);
    assert_eq!(card.network.width, 24, "of two the larger");
    assert_eq!(
        accuracy(&theta, &network, &card.layers, &work),
        [of(&after, "phone"), of(&after, "tablet")]
    );
    std::fs::remove_dir_all(dir).unwrap();
}

/// One step of plain gradient descent over all rows of both backbones, by the formulas and nothing else.
#[test]
fn a_step_over_both_is_along_the_sum_of_their_gradients() {
    let mut work = mixed(&[8, 16]);
    work.recipe.optim = Optim::Sgd;
    (work.recipe.max_grad_norm, work.recipe.momentum, work.recipe.learning_rate) = (0.0, 0.0, 0.3);
    let config = SideConfig {
        form: Form::Mlp { hidden: 6 },
        taps: 2,
        width: 24,
        outputs: CLASSES,
        backbones: vec![Width::Projected(24), Width::Projected(20)],
    };
    let network = SideNetwork::new(config).unwrap();
    let mut theta = network.initial(Seed(11).child("side network", 0));
    let ws = Workspace::new(&Meter::unlimited(), 1);
    // The head starts at zero, so that the first step moves nothing else: take two.
    for _ in 0..2 {
        let mut grad = vec![0.0; theta.len()];
        for (number, rows) in [(0, 0..8), (1, 8..24)] {
            let (model, initial, pooling) = match number {
                0 => (&work.model, &work.initial, Pooling::Mean),
                _ => (&work.others[0].model, &work.others[0].initial, Pooling::Last),
            };
            let frozen = initial.to_f32(model.layout.total()).unwrap();
            let rows = &work.train[rows];
            let tokens = Tokens::of(&rows.iter().map(|row| row.ids.as_slice()).collect::<Vec<_>>());
            let taps = tap(&ws, model, &frozen, &tokens, &[0, 1], &Pivot::Pooled(pooling)).unwrap().taps;
            let (y, trail) = network.forward_for_backward(&ws, &theta, number, &taps).unwrap();
            let (_, dy) = squared_loss_backward(&ws, &y, &differences(&ws, rows), 1.0 / 24.0).unwrap();
            network.backward(&ws, &theta, number, &taps, (trail, &dy), &mut grad).unwrap();
        }
        ops::slice::axpy(-work.recipe.learning_rate, &grad, &mut theta);
    }
    let options = "blocks = 2\nform = { kind = \"mlp\", hidden = 6 }\ntap_format = \"f32\"\n\
                   server_batch_size = 99\nepochs = 2";
    let found = run(options, &work, 1).unwrap().theta;
    let off = found.iter().zip(&theta).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let projections = 0..24 * (24 + 20);
    let start = network.initial(Seed(11).child("side network", 0));
    let moved = projections.map(|at| (theta[at] - start[at]).abs()).fold(0.0, f32::max);
    assert!(moved > 1e-4 && off < 1e-2 * moved, "off by {off}, projections moved by {moved}");
}

/// One-hot minus even.
fn differences(ws: &Workspace, rows: &[Encoded]) -> Mat {
    let mut out = ws.zeros(rows.len(), CLASSES).unwrap();
    out.fill(-1.0 / CLASSES as f32);
    for (at, row) in rows.iter().enumerate() {
        let Target::Class(class) = row.target else { panic!("a row without a class") };
        out.row_mut(at)[class as usize] += 1.0;
    }
    out
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let work = mixed(&[8, 8]);
    let said = |options: &str| run(options, &work, 1).map(drop).unwrap_err().to_string();
    assert!(said("").contains("method.blocks"));
    assert!(said("layers = [0, 1]").contains("method.blocks"));
    assert!(said("blocks = 3").contains("2 layers cannot be cut into 3 blocks"));
    for name in ["fedavg-lora", "mobillm", "split-lora"] {
        let refused = (find(name).unwrap().assemble)(setup("", &work, 1, &Keep::default()));
        let said = refused.map(drop).unwrap_err().to_string();
        assert!(said.contains("model.by_class is for side-tuning"), "{name}: {said}");
    }
}
