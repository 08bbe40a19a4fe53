//! Learning a number: `y - y_b` is one, too.

use crate::support::{golden, run, same_in_every_weather, setup, tiny};
use base::{Blob, Seed};
use data::{Encoded, Target};
use federation::Eval;
use model::{Model, PeftConfig, PeftKind, Pooling, Task};
use sim::FaultsConfig;
use std::sync::Arc;
use undertone_methods::side::audit::audit;
use undertone_methods::{Keep, Workload, find};

/// Texts whose number is how many of their tokens are below 30, halved and moved: half of them are drawn there.
fn numbers(shards: &[u32]) -> Workload {
    let work = tiny(shards);
    let frozen = PeftConfig::new(PeftKind::None);
    let task = Task::Regression { pooling: Pooling::Mean };
    let (model, theta) = Model::load(&golden("bert"), &task, &frozen, Seed(1)).unwrap();
    let mut draw = Seed(7).stream();
    let mut row = |_| {
        let low = draw.below(9);
        let ids: Vec<u32> =
            (0..8).map(|at| (if at < low { draw.below(4) } else { 40 + draw.below(4) }) as u32).collect();
        Encoded::whole(ids, Target::Number(low as f32 / 2.0 + 1.0))
    };
    let train = (0..work.train.len()).map(&mut row).collect();
    let test = (0..40).map(&mut row).collect();
    Workload { model: Arc::new(model), initial: Blob::from_f32(&theta), train, test, ..work }
}

fn last(run: &crate::support::Run) -> Eval {
    run.summaries().pop().and_then(|summary| summary.eval.clone()).unwrap()
}

#[test]
fn kills_and_threads_change_no_bit_and_prices_hold() {
    same_in_every_weather("form = { kind = \"cascade\", r = 2 }", &numbers(&[8, 16, 24]));
    same_in_every_weather("head = \"trained\"\nchunk_rows = 9\nhead_epochs = 3", &numbers(&[30]));
}

#[test]
fn the_side_network_lowers_the_squared_error() {
    let work = numbers(&[100, 200]);
    for form in ["{ kind = \"cascade\", r = 8 }", "{ kind = \"mlp\", hidden = 32 }"] {
        let found = run(&format!("form = {form}\nepochs = 30"), &work, 2).unwrap();
        let before = found.summaries()[0].before.clone().unwrap();
        // Devices without a head say 0.
        let of =
            |row: &Encoded| if let Target::Number(number) = row.target { f64::from(number) } else { 0.0 };
        let zero = work.test.iter().map(|row| of(row).powi(2)).sum::<f64>() / work.test.len() as f64;
        assert!((before.loss - zero).abs() < 1e-6 * zero && before.pearson.is_none());
        let mean = work.test.iter().map(of).sum::<f64>() / work.test.len() as f64;
        let spread =
            work.test.iter().map(|row| (of(row) - mean).powi(2)).sum::<f64>() / work.test.len() as f64;
        let after = last(&found);
        assert!(after.loss < 0.2 * spread, "{form}: {} where the numbers vary by {spread}", after.loss);
        assert!(after.pearson.unwrap() > 0.9 && after.accuracy.is_none(), "{form}: {after:?}");
    }
}

#[test]
fn the_device_s_own_head_learns_numbers_and_its_sum_is_not_worse() {
    let work = numbers(&[300]);
    let found = run("head = \"trained\"\nhead_epochs = 3\nepochs = 20", &work, 1).unwrap();
    let (alone, both) = (found.summaries()[0].figures["head_loss"], last(&found).loss);
    let weight = found.summaries()[0].figures["side_weight"];
    assert!(weight > 0.0 && both < 0.9 * alone, "{alone} alone, {both} with {weight} of the side network");
}

#[test]
fn the_audit_reads_numbers_off_the_differences() {
    let (work, keep) = (numbers(&[60, 60]), Keep::recording());
    let options = "epochs = 30\nform = { kind = \"mlp\", hidden = 32 }";
    let run =
        crate::support::simulate(setup(options, &work, 2, &keep), 1, FaultsConfig::default()).unwrap();
    let findings = audit(&setup(options, &work, 2, &keep), Some(&Blob::from_f32(&run.theta))).unwrap();
    let (number, asked) = (&findings[0], &findings[1]);
    assert!(number.attack == "number: the difference" && number.recovered == 1.0, "{number:?}");
    assert!(asked.recovered > 1.5 * asked.chance && number.chance < 0.5, "{asked:?}");
}

#[test]
fn what_has_no_meaning_for_numbers_is_refused() {
    let work = numbers(&[10]);
    for options in [
        "loss = \"exact\"",
        "privacy = { mode = \"noise\", epsilon = 1.0 }",
        "privacy = { mode = \"randomized-response\", epsilon = 1.0 }",
        "privacy = { mode = \"mixed\" }",
    ] {
        let said = run(options, &work, 1).map(drop).unwrap_err().to_string();
        assert!(said.contains("a number is learned with"), "{options}: {said}");
    }
    for name in ["fedavg-lora", "fwdllm", "split-lora", "mobillm", "centralized"] {
        let refused = (find(name).unwrap().assemble)(setup("", &work, 1, &Keep::default()));
        let said = refused.map(drop).unwrap_err().to_string();
        assert!(said.contains("model.task = \"regression\" is for side-tuning"), "{name}: {said}");
    }
}
