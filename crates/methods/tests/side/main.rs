//! Side-tuning: what leaves a device and when, what the server makes of it, and what a mode's name
//! promises.

mod audits;
mod backbones;
mod regression;
mod support;

use base::{Node, SERVER, Seed};
use data::{Encoded, Target};
use federation::{Fact, Pace, Record};
use model::optim::Optim;
use model::side::{Form, Pivot, SideConfig, SideNetwork, Width, squared_loss_backward, tap};
use model::{Model, Pooling, Source, Tokens, price};
use ops::{Mat, Workspace};
use sim::FaultsConfig;
use std::path::PathBuf;
use support::{
    CLASSES, language, mobillm, of_length, run, same_in_every_weather, setup, simulate, tiny, watch,
    workload,
};
use undertone_methods::side::format::TapFormat;
use undertone_methods::{Keep, Workload};

/// Every option that changes what crosses or who computes. A head of the device's own is for one device.
const VARIANTS: [(&str, bool); 9] = [
    ("form = { kind = \"cascade\", r = 2 }", false),
    ("form = { kind = \"mlp\", hidden = 5 }\ntap_format = \"nf4\"", false),
    ("blocks = 1\ntap_format = \"int8\"\nchunk_rows = 3", false),
    ("loss = \"exact\"\nchunk_rows = 5\nserver_batch_size = 9\nepochs = 2", false),
    ("privacy = { mode = \"noise\", epsilon = 2.0 }", false),
    ("privacy = { mode = \"randomized-response\", epsilon = 2.0 }", false),
    ("privacy = { mode = \"mixed\" }", false),
    ("head = \"trained\"\nchunk_rows = 9\nhead_epochs = 3", true),
    ("head = \"trained\"\nloss = \"exact\"\nchunk_rows = 9\nserver_batch_size = 9\nhead_epochs = 3", true),
];

#[test]
fn kills_and_threads_change_no_bit_and_prices_hold_in_every_mode() {
    for (options, one) in VARIANTS {
        same_in_every_weather(options, &if one { tiny(&[30]) } else { tiny(&[8, 16, 24]) });
    }
}

#[test]
fn a_language_model_is_tuned_from_sparse_differences() {
    let work = language(&[20, 40]);
    let options = "form = { kind = \"mlp\", hidden = 32 }\ntop_k = 8\nepochs = 20\nchunk_rows = 16";
    let found = same_in_every_weather(options, &work);
    // Half of the rows have 11 tokens to learn, half 9, and prompts are never sent.
    let (values, samples) = (work.model.spec.layers * work.model.spec.width, 30 * (11 + 9));
    let quoted: u64 = found.quotes.iter().map(|quote| quote.up_bytes).sum();
    assert_eq!(quoted, samples * (2 * values as u64 + 8 * 8));

    let ws = Workspace::new(&base::Meter::unlimited(), 1);
    let frozen = work.initial.to_f32(work.model.layout.total()).unwrap();
    let rows: Vec<&[u32]> = work.test.iter().map(|row| row.ids.as_slice()).collect();
    let from = |row: &Encoded| if let Target::Completion { from } = row.target { from as u32 } else { 0 };
    let targets = model::Targets::Completion(work.test.iter().map(from).collect());
    let own = model::loss(&ws, &work.model, &frozen, &Tokens::of(&rows), &targets).unwrap();
    let before = found.summaries()[0].before.as_ref().unwrap();
    assert!((before.loss - own.mean()).abs() < 1e-4 * own.mean(), "{} and {}", before.loss, own.mean());
    let after = found.summaries()[1].eval.as_ref().unwrap();
    assert!(after.loss < 0.8 * before.loss, "{} to {}", before.loss, after.loss);

    let refused = run("head = \"trained\"", &language(&[8]), 1).map(drop).unwrap_err().to_string();
    assert!(refused.contains("a language model is side-tuned with"), "{refused}");
}

/// One step of plain gradient descent over all rows at once, by the formulas and nothing of the method's.
fn one_step(work: &Workload, gradient: impl Fn(&Workspace, &Mat, &[u32]) -> Mat) -> Vec<f32> {
    let ws = Workspace::new(&base::Meter::unlimited(), 1);
    let frozen = work.initial.to_f32(work.model.layout.total()).unwrap();
    let (spec, rows) = (&work.model.spec, work.train.len());
    let tokens = Tokens::of(&work.train.iter().map(|row| row.ids.as_slice()).collect::<Vec<_>>());
    let class = |row: &Encoded| if let Target::Class(class) = row.target { class } else { u32::MAX };
    let classes: Vec<u32> = work.train.iter().map(class).collect();
    let layers: Vec<usize> = (0..spec.layers).collect();
    let pivot = Pivot::Pooled(Pooling::Mean);
    let taps = tap(&ws, &work.model, &frozen, &tokens, &layers, &pivot).unwrap().taps;
    let network = SideNetwork::new(SideConfig {
        form: Form::Cascade { r: 2 },
        taps: layers.len(),
        width: spec.width,
        outputs: CLASSES,
        backbones: vec![Width::Own],
    })
    .unwrap();
    let mut theta = network.initial(Seed(11).child("side network", 0));
    let mut grad = vec![0.0; theta.len()];
    let (y, trail) = network.forward_for_backward(&ws, &theta, 0, &taps).unwrap();
    let mut dy = gradient(&ws, &y, &classes);
    ops::slice::scale(1.0 / rows as f32, &mut dy);
    network.backward(&ws, &theta, 0, &taps, (trail, &dy), &mut grad).unwrap();
    ops::slice::axpy(-work.recipe.learning_rate, &grad, &mut theta);
    theta
}

fn one_hot(ws: &Workspace, classes: &[u32]) -> Mat {
    let mut truth = ws.zeros(classes.len(), CLASSES).unwrap();
    classes.iter().enumerate().for_each(|(row, &class)| truth.row_mut(row)[class as usize] = 1.0);
    truth
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(square).sum::<f64>().sqrt()
}

#[test]
fn a_step_on_the_server_is_the_step_its_loss_says() {
    let mut work = tiny(&[8, 16]);
    work.recipe.optim = Optim::Sgd;
    (work.recipe.max_grad_norm, work.recipe.momentum, work.recipe.learning_rate) = (0.0, 0.0, 0.3);
    let options =
        "form = { kind = \"cascade\", r = 2 }\ntap_format = \"f32\"\nserver_batch_size = 99\nepochs = 1\n";
    // The server never sees a label: it trains on differences. The squared loss of the sum of a uniform
    // prediction and the side network's against the one-hot label has the same gradient.
    let residual = one_step(&work, |ws, y, classes| {
        let mut sum = ws.copy(y).unwrap();
        sum.iter_mut().for_each(|y| *y += 1.0 / CLASSES as f32);
        squared_loss_backward(ws, &sum, &one_hot(ws, classes), 1.0).unwrap().1
    });
    let found = run(options, &work, 1).unwrap().theta;
    let mut still = work.clone();
    still.recipe.learning_rate = 0.0;
    let start = run(options, &still, 1);
    let moved = distance(&found, &start.unwrap().theta);
    assert!(moved > 1e-2 && distance(&found, &residual) < 1e-5 * moved, "{moved}");
    // Cross-entropy of the sum of logits: softmax minus one-hot.
    let exact = one_step(&work, |ws, y, classes| {
        let mut dy = ws.copy(y).unwrap();
        for (row, &class) in classes.iter().enumerate() {
            let powers: Vec<f64> = y.row(row).iter().map(|&z| f64::from(z).exp()).collect();
            let total: f64 = powers.iter().sum();
            dy.row_mut(row).iter_mut().zip(powers).for_each(|(dy, power)| *dy = (power / total) as f32);
            dy.row_mut(row)[class as usize] -= 1.0;
        }
        dy
    });
    let found = run(&format!("{options}loss = \"exact\""), &work, 1).unwrap().theta;
    assert!(distance(&found, &exact) < 1e-5 * moved, "{}", distance(&found, &exact));
}

#[test]
fn a_device_sends_each_sample_once_and_then_rests() {
    let work = tiny(&[16, 32]);
    let (layers, width) = (work.model.spec.layers, work.model.spec.width);
    let few = run("epochs = 1", &work, 1).unwrap();
    let (jobs, flops) = few.device_jobs();
    assert_eq!(jobs, ["forward", "forward"]);
    for (options, rounds) in [("epochs = 9", 1), ("epochs = 2", 4)] {
        let more = run(options, &work, rounds).unwrap();
        assert_eq!(more.device_jobs(), (vec!["forward", "forward"], flops), "{options}");
    }
    for (format, values, scales) in [("f32", 4.0, 0), ("f16", 2.0, 0), ("int8", 1.0, 2), ("nf4", 0.5, 2)] {
        let run = run(&format!("tap_format = \"{format}\"\nepochs = 1"), &work, 1).unwrap();
        let row = (layers * width) as f64 * values + (scales * (layers * width).div_ceil(64)) as f64;
        let payload = 48 * (row as u64 + 4 * CLASSES as u64);
        let quoted: u64 = run.quotes.iter().map(|quote| quote.up_bytes).sum();
        assert_eq!(quoted, payload, "{format}");
        // What crosses beside it: two hellos, acknowledgements, and the head of each letter.
        let beside = run.sent_up() - payload;
        assert!(beside < 1000, "{format}: {beside} bytes beside {payload}");
    }
}

#[test]
fn mobillm_sends_every_token_as_the_papers_count_and_side_tuning_a_length_th_of_it() {
    // 16 sequences of 256 tokens of OPT-350M's shape, 24 layers of 1024, in f16: 192 MiB a batch.
    let (layers, width, tokens) = (24, 1024, 16 * 256);
    let batch = tokens * TapFormat::F16.row_bytes(layers * width);
    assert_eq!(batch, 16 * 256 * 1024 * 2 * 24);
    assert_eq!(batch, 192 << 20);
    assert!((tokens * TapFormat::Nf4.row_bytes(layers * width)) as f64 <= 0.27 * batch as f64);

    let (length, epochs) = (16, 3);
    let mut work = of_length(&tiny(&[20]), length);
    work.recipe.per_device_train_batch_size = 4.try_into().unwrap();
    work.recipe.local_epochs = epochs;
    let values = work.model.spec.layers * work.model.spec.width;
    let everything = mobillm("", &work, 1);
    let (labels, batch) = (4 * 20 * u64::from(epochs), (4 * length * 2 * values) as u64);
    assert_eq!(everything.quotes[0].up_bytes, 5 * u64::from(epochs) * batch + labels);
    let beside = everything.sent_up() - everything.quotes[0].up_bytes;
    assert!(beside < 5 * u64::from(epochs) * 150, "{beside} bytes beside");
    let pivots = run(&format!("epochs = {epochs}"), &work, 1).unwrap();
    let differences = 20 * 4 * CLASSES as u64;
    assert_eq!(pivots.quotes[0].up_bytes - differences, 5 * batch / length as u64);
}

#[test]
fn where_a_text_is_one_token_mobillm_is_exact_side_tuning() {
    let mut work = of_length(&tiny(&[24]), 1);
    work.recipe.per_device_train_batch_size = 24.try_into().unwrap();
    work.recipe.optim = Optim::Sgd;
    let options = "form = { kind = \"cascade\", r = 2 }\ntap_format = \"f32\"\n";
    let every_token = mobillm(options, &work, 3).theta;
    let exact = format!("{options}loss = \"exact\"\nserver_batch_size = 24\nepochs = 1");
    let pivots = run(&exact, &work, 3).unwrap().theta;
    work.recipe.learning_rate = 0.0;
    let moved = distance(&pivots, &mobillm(options, &work, 1).theta);
    assert!(distance(&every_token, &pivots) < 1e-5 * moved, "{}", distance(&every_token, &pivots) / moved);
}

#[test]
fn the_weights_follow_what_is_learned_and_every_mode_learns() {
    let work = tiny(&[60, 120]);
    for (options, _) in VARIANTS.iter().filter(|(_, one)| !one) {
        let strong = options.replace("epsilon = 2.0", "epsilon = 6.0");
        let epochs = if strong.contains("epochs") { "" } else { "\nepochs = 20" };
        let found = run(&format!("{strong}{epochs}"), &work, 2).unwrap();
        let before = found.summaries()[0].before.as_ref().unwrap().accuracy.unwrap();
        assert!(found.accuracy() >= 0.8 && before < 0.7, "{options}: {before} to {}", found.accuracy());
    }
}

#[test]
fn the_last_word_is_never_worse_than_the_device_s_own_head() {
    let mut work = tiny(&[150]);
    let head = "head = \"trained\"\nhead_epochs = 30\nepochs = 3";
    let tuned = run(head, &work, 1).unwrap();
    let (weight, accuracy) = (tuned.summaries()[0].figures["side_weight"], tuned.accuracy());
    assert!((0.0..=1.5).contains(&weight));
    // A side network that never left its start adds nothing, and the smallest weight is taken.
    work.recipe.learning_rate = 0.0;
    let still = run(head, &work, 1).unwrap();
    assert_eq!(still.summaries()[0].figures["side_weight"], 0.0);
    assert!(accuracy >= still.accuracy() - 0.05, "{accuracy} beside {}", still.accuracy());
}

#[test]
fn what_would_break_a_promise_is_refused() {
    let one = tiny(&[10]);
    let said = |options: &str, work: &Workload| run(options, work, 1).map(drop).unwrap_err().to_string();
    let noisy = "head = \"trained\"\nprivacy = { mode = \"noise\", epsilon = 1.0 }";
    assert!(said(noisy, &one).contains("epsilon would not hold"));
    // A head that is trained on the randomised labels alone keeps epsilon.
    let randomised =
        "head = \"trained\"\nhead_epochs = 1\nprivacy = { mode = \"randomized-response\", epsilon = 1.0 }";
    assert!(run(randomised, &one, 1).is_ok());
    for mode in ["{ mode = \"noise\", epsilon = 1.0 }", "{ mode = \"mixed\" }"] {
        let options = format!("loss = \"exact\"\nprivacy = {mode}");
        assert!(said(&options, &one).contains("shows the label again"), "{mode}");
    }
    assert!(said("head = \"trained\"", &tiny(&[4, 4])).contains("contradict each other"));
    let zero = "privacy = { mode = \"randomized-response\", epsilon = 0.0 }";
    assert!(said(zero, &one).contains("epsilon is 0"));
    assert!(said("layers = [1, 9]", &one).contains("layers must rise within 0..2"));
}

#[test]
fn the_server_can_train_while_samples_still_arrive() {
    let work = tiny(&[40, 400]);
    let options = "training = \"while-arriving\"\nchunk_rows = 50\nepochs = 3";
    let mut setup = setup(options, &work, 2, &Keep::default());
    setup.plan.cohort.pace = Pace::Deadline;
    setup.plan.cohort.deadline_seconds = Some(1e6);
    let run = simulate(setup, 2, FaultsConfig::default()).unwrap();
    let at = |node: Node, wanted: &str| {
        let of = |record: &&Record| {
            record.node == node && matches!(&record.fact, Fact::Ran { label, .. } if label == wanted)
        };
        run.records.iter().filter(of).map(|record| record.t).collect::<Vec<_>>()
    };
    let (trained, sent) = (at(SERVER, "train"), at(Node(2), "forward"));
    assert!(trained[0] < sent[sent.len() - 1], "{trained:?} {sent:?}");
    assert!(run.accuracy() > 0.6, "{}", run.accuracy());
    assert_eq!(run.summaries()[1].figures["cached_samples"], 440.0);
}

#[test]
fn what_is_erased_is_not_trained_on() {
    let work = tiny(&[20, 20, 20]);
    let keep = Keep::recording();
    simulate(setup("epochs = 2", &work, 1, &keep), 1, FaultsConfig::default()).unwrap();
    let kept = keep.cache.list().unwrap();
    let row = 2 * work.model.spec.layers * work.model.spec.width + 4 * CLASSES;
    assert_eq!(kept.keys().copied().collect::<Vec<_>>(), [Node(1), Node(2), Node(3)]);
    assert!(kept.values().all(|kept| kept.bytes == 20 * row as u64), "{kept:?}");
    keep.erase(Node(2)).unwrap();
    assert_eq!(keep.cache.list().unwrap().len(), 2);
    assert_eq!(keep.traffic.as_ref().unwrap().list().unwrap().len(), 2);

    // Erased while the run goes on: it goes on without these rows.
    let keep = Keep::default();
    let erase = |record: &Record| {
        if matches!(record.fact, Fact::RoundClosed { round: 1, .. }) {
            keep.cache.erase(Node(2)).unwrap();
        }
    };
    let without =
        watch("side-tuning", setup("epochs = 2", &work, 2, &keep), 1, FaultsConfig::default(), erase)
            .unwrap();
    assert_ne!(without.theta, run("epochs = 2", &work, 2).unwrap().theta);
    assert_eq!(without.summaries()[1].figures["cached_samples"], 40.0);
}

/// MiniLM on a device: what the method asks of it, and what plain inference does.
#[test]
fn a_device_needs_hardly_more_than_inference() {
    let directory =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/all-MiniLM-L6-v2");
    if !directory.is_dir() {
        return eprintln!("SKIPPED: ../shared not found");
    }
    let mut work = workload(&Source::Directory(directory), 20_000, &[300]);
    work.recipe.per_device_train_batch_size = 16.try_into().unwrap();
    let Model { spec, task, layout, .. } = &*work.model;
    let batches = work.train.chunks(16).map(|rows| {
        let sequences: Vec<&[u32]> = rows.iter().map(|row| row.ids.as_slice()).collect();
        price::inference(spec, task, layout, &Tokens::of(&sequences).starts).bytes
    });
    let inference = work.model.bytes() + batches.max().unwrap();
    for form in ["{ kind = \"cascade\", r = 64 }", "{ kind = \"mlp\", hidden = 256 }"] {
        let run = run(&format!("form = {form}\nepochs = 1"), &work, 1).unwrap();
        let jobs = run.records.iter().filter(|record| record.node != SERVER);
        let peak =
            jobs.map(|r| if let Fact::Ran { peak_bytes, .. } = r.fact { peak_bytes } else { 0 }).max();
        let share = (run.quotes[0].resident_bytes + peak.unwrap()) as f64 / inference as f64;
        println!("device peak over plain inference: {share:.4}");
        assert!((1.0..=1.05).contains(&share), "{share}");
    }
}
