//! Where a model is cut, who serves, in which order and on what: none of it may change the weights.

mod adaptive;
mod support;
#[path = "../support/unequal.rs"]
mod unequal;

use base::SERVER;
use federation::{Fact, Record};
use model::{PeftConfig, PeftKind, SiteKind};
use support::{Learn, alignment, classifier, difference, interrupted, run, weights, workload};

const KINDS: [PeftKind; 4] = [PeftKind::Lora, PeftKind::Bottleneck, PeftKind::Bitfit, PeftKind::Full];

/// Every cut of a model of five blocks, wherever the loss is.
#[test]
fn with_one_device_every_cut_and_every_method_gives_the_whole_model_s_weights() {
    const LAYERS: usize = 5;
    let cases = [("bert", Learn::Classes), ("llama", Learn::Classes), ("llama", Learn::NextTokens)];
    for (family, learn) in cases {
        for kind in KINDS {
            let work = workload(family, LAYERS, learn, &PeftConfig::new(kind), 1);
            let whole = weights("fedavg-lora", "", &work);
            let moved = difference(&whole, &work.initial.to_f32(whole.len()).unwrap());
            assert!(moved > 1e-3, "{family} {kind:?}: nothing was learned");
            for cut in 1..LAYERS {
                for labels in ["server", "device"] {
                    let options = format!("cut = {cut}\nlabels = \"{labels}\"");
                    let found = weights("split-lora", &options, &work);
                    let off = difference(&found, &whole);
                    assert!(
                        off < 1e-5,
                        "{family} {kind:?} cut at {cut}, labels on {labels}: off by {off:e}"
                    );
                    for method in ["sl", "sfl"] {
                        assert_eq!(weights(method, &options, &work), found, "{method} {options}");
                    }
                }
            }
        }
    }
}

/// Several devices, each with another cut, are averaged as whole models are.
#[test]
fn unequal_cuts_give_the_weights_of_fedavg() {
    for kind in KINDS {
        let mut work = workload("bert", 4, Learn::Classes, &PeftConfig::new(kind), 3);
        // The gradient of a key's bias is nothing but rounding, and Adam would make steps of it.
        (work.recipe.optim, work.recipe.learning_rate) = (model::optim::Optim::Sgd, 0.3);
        let expected = weights("fedavg-lora", "", &work);
        for options in
            ["cut = 3\ncuts = { small = 1 }", "cut = 1\ncuts = { small = 2 }\nlabels = \"device\""]
        {
            let off = difference(&weights("split-lora", options, &work), &expected);
            assert!(off < 1e-5, "{kind:?} {options}: off by {off:e}");
        }
    }
}

#[test]
fn neither_copies_nor_order_nor_what_is_kept_changes_a_bit() {
    let work = classifier(4);
    let expected = weights("split-lora", "", &work);
    assert_eq!(weights("sfl", "", &work), expected);
    for options in ["fifo", "random", "paper", "longest-tail", "optimal"] {
        assert_eq!(weights("split-lora", &format!("order = \"{options}\""), &work), expected, "{options}");
    }
    assert_eq!(weights("split-lora", "between = \"recompute\"", &work), expected);
    assert_ne!(weights("sl", "", &work), expected, "adapters are handed on, not averaged");
}

#[test]
fn smaller_traffic_is_smaller_and_close() {
    let work = classifier(2);
    let exact = run("split-lora", "cut = 1", &work, 1 << 30).unwrap();
    let crossing = |run: &support::Run| run.sent(true) + run.sent(false);
    for (traffic, close) in [("f16", 1e-2), ("int8", 0.2)] {
        let small =
            run("split-lora", &format!("cut = 1\ntraffic = \"{traffic}\""), &work, 1 << 30).unwrap();
        assert!(crossing(&small) < crossing(&exact), "{traffic}");
        let off = difference(&small.theta, &exact.theta);
        assert!(off > 0.0 && off < close, "{traffic}: {off}");
    }
}

#[test]
fn a_frozen_device_leaves_its_blocks_alone() {
    let work = classifier(2);
    let found = weights("split-lora", "cut = 1\nbackward = \"frozen\"", &work);
    let (initial, at) = (work.initial.to_f32(found.len()).unwrap(), work.model.layout.cut(1));
    assert_eq!(found[..at], initial[..at]);
    assert!(difference(&found[at..], &initial[at..]) > 1e-3);
}

#[test]
fn what_cannot_be_cut_is_refused_in_words() {
    let work = classifier(2);
    let said =
        |options: &str| run("split-lora", options, &work, 1 << 30).map(|_| ()).unwrap_err().to_string();
    assert!(said("cut = 9").contains("has 2 blocks, so 1 to 1 are possible"), "{}", said("cut = 9"));
    // Nobody can hold a block: the run goes on without them, and says why.
    let run = run("split-lora", "", &work, 10_000).unwrap();
    let why = |record: &Record| match &record.fact {
        Fact::Lost { reason, .. } => reason.contains("one block would take"),
        _ => false,
    };
    assert_eq!(run.records.iter().filter(|record| why(record)).count(), 4);
}

/// Bytes that cross in an iteration: batch x sequence x width x bytes of a number, both ways.
#[test]
fn what_crosses_is_what_the_formula_says() {
    let work = classifier(2);
    let tokens: usize = work.shards.iter().flatten().map(|row| work.train[*row as usize].ids.len()).sum();
    let (rounds, width) = (2, work.model.spec.width);
    for (traffic, bytes_of_a_token) in [("f32", 4 * width), ("int8", width + 4)] {
        let of = |options: &str, from_device: bool| {
            let options = format!("cut = 1\ntraffic = \"{traffic}\"\n{options}");
            run("split-lora", &options, &work, 1 << 30).unwrap().sent(from_device)
        };
        let each_way = (rounds * tokens * bytes_of_a_token) as f64;
        let adapters = (rounds * work.shards.len() * 4 * work.model.layout.cut(1)) as f64;
        for from_device in [true, false] {
            let (found, expected) = (of("", from_device) as f64, each_way + adapters);
            assert!(found > expected, "{traffic}: {found} bytes, and {expected} must cross");
            let framing = found - expected;
            let messages = (2 * rounds * 9) as f64;
            assert!(framing < messages * 150.0, "{traffic}: {framing} bytes beside what must cross");
        }
        assert!((of("backward = \"frozen\"", false) as f64) < each_way, "nothing comes down to the frozen");
    }
}

/// A device of a lower rank trains and sends less; adapters of unequal ranks are averaged as products.
#[test]
fn devices_of_unequal_rank_train_together() {
    let work = classifier(3);
    let full = run("split-lora", "cut = 1", &work, 1 << 30).unwrap();
    assert_eq!(full.figure("energy_lost_at_rank_4"), None, "equal ranks: an average of factors");
    // A rank that is not lower is no rank at all.
    let same = run("split-lora", "cut = 1\nranks = { small = 4, phone = 9 }", &work, 1 << 30).unwrap();
    assert_eq!(same.theta, full.theta);
    let mixed = run("split-lora", "cut = 1\nranks = { small = 1 }", &work, 1 << 30).unwrap();
    assert!(mixed.sent(true) < full.sent(true) && mixed.sent(false) < full.sent(false));
    let lost = |rank: u32| mixed.figure(&format!("energy_lost_at_rank_{rank}")).unwrap();
    assert!(0.0 < lost(4) && lost(4) < lost(1) && lost(1) < 1.0, "{} {}", lost(4), lost(1));
    // Alone with its rank, a device moves the first direction of every pair only.
    let low = weights("split-lora", "cut = 1\nranks = { small = 1 }", &classifier(1));
    let initial = work.initial.to_f32(low.len()).unwrap();
    for site in &work.model.layout.sites {
        let moved: Vec<usize> = site.range().filter(|&i| low[i] != initial[i]).collect();
        match site.kind {
            SiteKind::LoraA => assert!(moved.iter().all(|i| i - site.offset < site.cols), "{}", site.name),
            SiteKind::LoraB => {
                assert!(moved.iter().all(|i| (i - site.offset).is_multiple_of(site.cols)), "{}", site.name);
            }
            _ => continue,
        }
        assert!(!moved.is_empty(), "{}", site.name);
    }
}

/// `sfl` serves its devices at the same time, and its memory says so.
#[test]
fn jobs_beside_each_other_hold_what_they_hold_together() {
    let work = classifier(4);
    let most = |method: &str| {
        let run = run(method, "cut = 1", &work, 1 << 30).unwrap();
        let of = |record: &Record| match &record.fact {
            Fact::Ran { label, peak_bytes, .. } if label == "serve" && record.node == SERVER => *peak_bytes,
            _ => 0,
        };
        run.records.iter().map(of).max().unwrap()
    };
    assert!(2 * most("split-lora") < most("sfl"), "{} {}", most("split-lora"), most("sfl"));
    assert_eq!(most("split-lora"), most("sl"));
}

/// Terms chosen from what devices took change times, and weights in their last digits only.
#[test]
fn choosing_anew_each_round_changes_no_weight() {
    let work = workload("bert", 4, Learn::Classes, &PeftConfig::lora(4, 4.0, &["query", "value"]), 3);
    let fixed = weights("split-lora", "", &work);
    let found = run("split-lora", "choose = \"each-round\"", &work, 1 << 30).unwrap();
    let off = difference(&found.theta, &fixed);
    assert!(off < 1e-5, "off by {off:e}");
    assert!(found.figure("cut_mean").is_some());
}

/// The step of a device that takes tangents is that of one that goes backward, on average over directions.
#[test]
fn forward_gradients_estimate_the_gradient() {
    let mut work = workload("bert", 3, Learn::Classes, &PeftConfig::lora(1, 4.0, &["query", "value"]), 1);
    (work.recipe.optim, work.recipe.learning_rate, work.recipe.max_steps) =
        (model::optim::Optim::Sgd, 1e-3, 1);
    let at = work.model.layout.cut(2);
    let initial = work.initial.to_f32(work.model.layout.total()).unwrap();
    let moved = |options: &str| -> Vec<f32> {
        let theta = weights("split-lora", &format!("cut = 2\n{options}"), &work);
        theta[..at].iter().zip(&initial).map(|(after, before)| after - before).collect()
    };
    let exact = moved("");
    let few = moved("backward = \"forward-gradient\"\nforward_gradient = { perturbations = 10, rate = 1 }");
    let many =
        moved("backward = \"forward-gradient\"\nforward_gradient = { perturbations = 2000, rate = 1 }");
    let (rough, close) = (alignment(&few, &exact), alignment(&many, &exact));
    assert!(close > 0.97 && close > rough, "{rough} with 10 directions, {close} with 2,000");
    assert!(difference(&many, &exact) < 0.35, "as long as it, too: {}", difference(&many, &exact));
}

/// A fleet mixes what devices can do by their memory.
#[test]
fn each_device_does_what_its_memory_holds() {
    let work = workload("bert", 6, Learn::Classes, &PeftConfig::lora(2, 4.0, &["query", "value"]), 1);
    let at = work.model.layout.cut(5);
    let initial = work.initial.to_f32(work.model.layout.total()).unwrap();
    let options = "cut = 5\nbackward = \"by-memory\"\nforward_gradient = { lanes = 1, perturbations = 1 }";
    let learns = |memory_bytes: u64| {
        let run = run("split-lora", options, &work, memory_bytes).unwrap();
        let job = |label: &str| {
            let of = |record: &&Record| matches!(&record.fact, Fact::Ran { label: l, .. } if l == label);
            run.records.iter().any(|record| of(&record))
        };
        (job("backward"), job("tangents"), run.theta[..at] != initial[..at])
    };
    assert_eq!(learns(1 << 30), (true, false, true));
    // Byte by byte downwards, less and less is possible.
    let mut seen = Vec::new();
    for kib in (20..800u32).step_by(4).rev().map(u64::from) {
        let able = learns(kib << 10);
        if seen.last() != Some(&able) {
            seen.push(able);
        }
    }
    let steps = [(true, false, true), (false, true, true), (false, false, false)];
    assert_eq!(seen, steps, "backward, then tangents, then forward only or nothing");
}

/// An interrupt in the middle of a step loses what a device kept; the trace does not show it. What a kill
/// takes is lost in both: devices that are dead at the interrupt, were killed before it, or are after it.
#[test]
fn a_run_that_was_interrupted_goes_on_as_if_it_was_not() {
    let work = classifier(2);
    for kill in [0.0, 0.15] {
        for options in ["cut = 1", "cut = 1\nbetween = \"recompute\"", "cut = 1\nlabels = \"device\""] {
            let whole = interrupted(options, &work, kill, usize::MAX);
            for after in (1..120).step_by(7) {
                let found = interrupted(options, &work, kill, after);
                assert_eq!(found, whole, "{options}, kills {kill}: interrupted after {after}");
            }
        }
    }
}
