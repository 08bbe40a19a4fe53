//! The generated utterances: reproducible, without leaks, and not to be solved by counting words.

use std::collections::{BTreeMap, BTreeSet};

use base::Seed;
use undertone_data::utterances::{SEED, TEST, TRAIN, corpus, generate};
use undertone_data::{
    Example, Holdings, Input, Label, PartitionConfig, Tokenizer, partition, utterances, vocabulary,
};

fn text(example: &Example) -> &str {
    match &example.input {
        Input::Text(text) => text,
        other => panic!("not plain text: {other:?}"),
    }
}

#[test]
fn sets_are_reproducible_and_apart() {
    let (train, test) = generate(TRAIN, TEST, SEED);
    assert_eq!((train.len(), test.len(), train.labels.len()), (TRAIN, TEST, 15));
    let texts: BTreeSet<&str> = train.examples.iter().chain(&test.examples).map(text).collect();
    assert_eq!(texts.len(), TRAIN + TEST, "an utterance occurs twice");
    assert!(texts.iter().all(|text| !text.contains(['{', '}'])), "a gap was left open");
    let (again, _) = generate(TRAIN, 0, SEED);
    assert_eq!(train.examples, again.examples, "the test set must not change the training set");
    assert_ne!(train.examples, generate(TRAIN, 0, Seed(1)).0.examples);

    let lines = corpus(3000, &test, SEED);
    assert_eq!(lines, corpus(3000, &test, SEED));
    let held_out: BTreeSet<&str> = test.examples.iter().map(text).collect();
    assert!(lines.iter().all(|line| !held_out.contains(line.as_str())));
}

#[test]
fn speakers_want_different_things() {
    let (train, test) = generate(TRAIN, TEST, SEED);
    let holdings = |devices| {
        let shards =
            partition(&train, &PartitionConfig::Natural { column: None }, devices, Seed(1)).unwrap();
        Holdings::count(&train, &shards)
    };
    assert_eq!(train.clients().len(), 48);
    assert_eq!(train.clients(), test.clients());
    let alone = holdings(48);
    assert!((0.3..0.8).contains(&alone.skew()), "{}", alone.table());
    assert!(holdings(12).skew() < alone.skew());
    assert!(alone.totals().iter().all(|rows| *rows as usize > TRAIN / 30), "{:?}", alone.totals());
}

/// Softmax regression on word counts, trained to convergence: the most that words alone give.
#[test]
fn words_alone_do_not_tell_the_intent() {
    let (train, test) = generate(TRAIN, TEST, SEED);
    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    for word in train.examples.iter().flat_map(|example| text(example).split([' ', ','])) {
        let next = ids.len();
        ids.entry(word).or_insert(next);
    }
    let bag = |example: &Example| -> Vec<usize> {
        text(example).split([' ', ',']).filter_map(|word| ids.get(word).copied()).collect()
    };
    let classes = train.labels.len();
    let mut weights = vec![vec![0.0f64; classes]; ids.len()];
    let scores = |weights: &[Vec<f64>], bag: &[usize]| -> Vec<f64> {
        (0..classes).map(|class| bag.iter().map(|word| weights[*word][class]).sum()).collect()
    };
    let rows: Vec<(Vec<usize>, usize)> = train
        .examples
        .iter()
        .map(|example| (bag(example), example.label.and_then(Label::class).unwrap() as usize))
        .collect();
    for epoch in 0..30 {
        let rate = 0.1 / (1.0 + 0.2 * f64::from(epoch));
        for (bag, label) in &rows {
            let exps: Vec<f64> = scores(&weights, bag).iter().map(|score| score.exp()).collect();
            let sum: f64 = exps.iter().sum();
            for word in bag {
                for (class, exp) in exps.iter().enumerate() {
                    weights[*word][class] += rate * (f64::from(u8::from(class == *label)) - exp / sum);
                }
            }
        }
    }
    let right = |example: &&Example| {
        let scores = scores(&weights, &bag(example));
        let best = (0..classes).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
        Some(Label::Class(best as u32)) == example.label
    };
    let accuracy = test.examples.iter().filter(right).count() as f64 / TEST as f64;
    println!("bag of words: {accuracy:.3}");
    assert!((0.4..0.75).contains(&accuracy), "bag of words reaches {accuracy}");
}

#[test]
fn the_vocabulary_is_deterministic_and_encodes_anything() {
    let (_, test) = generate(0, TEST, SEED);
    let lines = corpus(4000, &test, SEED);
    let bytes = vocabulary::train(&lines, 1024).unwrap();
    assert_eq!(bytes, vocabulary::train(&lines, 1024).unwrap());
    let tokenizer = Tokenizer::from_bytes(&bytes, None).unwrap();
    assert_eq!(tokenizer.vocabulary(), 1024);
    for text in ["set an alarm for seven", "Ünïcode 日本 \u{1F600}\n\ttoo", ""] {
        let example = Example { input: Input::Text(text.to_owned()), label: None, client: None, line: 1 };
        let ids = tokenizer.encode(&example, 512).unwrap().ids;
        assert_eq!(ids[0], 0);
        assert_eq!(tokenizer.decode(&ids).unwrap().trim_start(), text);
    }
    assert!(vocabulary::train(&lines, 100).is_err());
    assert_eq!(utterances::intents().len(), 15);
}
