//! Every partition deals every row once, and is as skewed as its parameters say.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use base::{Node, Seed};
use proptest::prelude::*;
use undertone_data::{
    Dataset, Epoch, Example, Holdings, Input, Label, PartitionConfig, PartitionError, SizeLaw, partition,
};

/// Rows with labels 0..labels in turn, written by `clients` people with unequal diligence.
fn rows(count: usize, labels: usize, clients: usize) -> Dataset {
    let example = |row: usize| Example {
        input: Input::Text(row.to_string()),
        label: Some(Label::Class((row % labels) as u32)),
        client: Some(format!("c{:03}", (row * row / 7) % clients)),
        line: row as u64 + 1,
    };
    Dataset {
        examples: (0..count).map(example).collect(),
        labels: (0..labels).map(|label| label.to_string()).collect(),
        path: "rows.jsonl".into(),
    }
}

fn kinds() -> Vec<PartitionConfig> {
    vec![
        PartitionConfig::Iid {},
        PartitionConfig::Dirichlet { alpha: 0.3, min_rows: 0, self_balancing: false },
        PartitionConfig::Dirichlet { alpha: 1e-3, min_rows: 0, self_balancing: true },
        PartitionConfig::Dirichlet { alpha: 1.0, min_rows: 2, self_balancing: false },
        PartitionConfig::Quantity { alpha: 0.5, min_rows: 0 },
        PartitionConfig::Quantity { alpha: 1e-6, min_rows: 0 },
        PartitionConfig::Size { law: SizeLaw::Linear },
        PartitionConfig::Size { law: SizeLaw::Square },
        PartitionConfig::Size { law: SizeLaw::Exponential },
        PartitionConfig::KLabels { labels_per_device: 2 },
        PartitionConfig::Shards { shards_per_device: 2 },
        PartitionConfig::Natural { column: None },
    ]
}

proptest! {
    #[test]
    fn a_partition_is_a_permutation(
        count in 1usize..400,
        labels in 1usize..9,
        clients in 1usize..30,
        devices in 1usize..40,
        seed: u64,
    ) {
        let dataset = rows(count, labels, clients);
        for kind in kinds() {
            let dealt = partition(&dataset, &kind, devices, Seed(seed));
            let again = partition(&dataset, &kind, devices, Seed(seed));
            let Ok(shards) = dealt else { continue };
            prop_assert_eq!(&shards, &again.unwrap(), "{:?} is not seeded", kind);
            prop_assert_eq!(shards.len(), devices);
            let mut all = shards.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..count as u32).collect::<Vec<_>>(), "{:?}", kind);
            if !format!("{kind:?}").contains("min_rows: 0") {
                prop_assert!(shards.iter().all(|shard| !shard.is_empty()));
            }
            if let PartitionConfig::KLabels { labels_per_device } = kind {
                for shard in &shards {
                    let held: BTreeSet<u32> = shard.iter().map(|row| row % labels as u32).collect();
                    prop_assert!(held.len() <= labels_per_device);
                }
            }
        }
    }

    #[test]
    fn an_epoch_visits_every_row_once(count in 0u32..200, size in 1usize..300, seed: u64) {
        let rows: Vec<u32> = (0..count).map(|row| row * 3).collect();
        let size = NonZeroUsize::new(size).unwrap();
        let epoch = Epoch::new(&rows, size, Seed(seed), 4, Node(2), 1);
        prop_assert_eq!(epoch.batches().len(), epoch.steps());
        let sizes: Vec<usize> = epoch.batches().map(<[u32]>::len).collect();
        prop_assert!(sizes.iter().rev().skip(1).all(|len| *len == size.get()));
        prop_assert!(sizes.last().is_none_or(|last| (1..=size.get()).contains(last)));
        let mut visited: Vec<u32> = epoch.batches().flatten().copied().collect();
        visited.sort_unstable();
        prop_assert_eq!(visited, rows);
    }
}

#[test]
fn orders_differ_by_round_device_and_epoch() {
    let rows: Vec<u32> = (0..50).collect();
    let order = |round, device, epoch| {
        let epoch = Epoch::new(&rows, NonZeroUsize::MIN, Seed(1), round, Node(device), epoch);
        epoch.batches().map(|batch| batch[0]).collect::<Vec<_>>()
    };
    let orders: BTreeSet<Vec<u32>> =
        [order(1, 1, 0), order(2, 1, 0), order(1, 2, 0), order(1, 1, 1)].into_iter().collect();
    assert_eq!(orders.len(), 4);
    assert_eq!(order(1, 1, 0), order(1, 1, 0));
}

#[test]
fn skew_falls_as_alpha_grows_and_sizes_follow_their_law() {
    let dataset = rows(6000, 6, 10);
    let skew = |kind: &PartitionConfig| {
        let mean: f64 = (0..10)
            .map(|seed| {
                Holdings::count(&dataset, &partition(&dataset, kind, 12, Seed(seed)).unwrap()).skew()
            })
            .sum();
        mean / 10.0
    };
    let dirichlet = |alpha| skew(&PartitionConfig::Dirichlet { alpha, min_rows: 0, self_balancing: false });
    let skews = [0.05, 0.5, 5.0, 1000.0].map(dirichlet);
    assert!(skews.windows(2).all(|pair| pair[0] > pair[1] + 0.02), "{skews:?}");
    assert!(skews[0] > 0.6 && skews[3] < 0.05, "{skews:?}");
    let one_label = skew(&PartitionConfig::KLabels { labels_per_device: 1 });
    assert!((one_label - 5.0 / 6.0).abs() < 1e-9, "one of six equal labels: {one_label}");
    assert!(skew(&PartitionConfig::Iid {}) < 0.05);

    let sizes = |law| -> Vec<usize> {
        partition(&dataset, &PartitionConfig::Size { law }, 3, Seed(1))
            .unwrap()
            .iter()
            .map(Vec::len)
            .collect()
    };
    assert_eq!(sizes(SizeLaw::Linear), [1000, 2000, 3000]);
    assert_eq!(sizes(SizeLaw::Square), [429, 1714, 3857]);
    assert_eq!(sizes(SizeLaw::Exponential), [540, 1469, 3991]);
    let iid = partition(&dataset, &PartitionConfig::Iid {}, 7, Seed(1)).unwrap();
    assert!(iid.iter().all(|shard| shard.len() == 857 || shard.len() == 858));
}

#[test]
fn natural_keys_keep_together() {
    let dataset = rows(500, 3, 20);
    let clients = dataset.clients();
    let natural = PartitionConfig::Natural { column: None };
    let exact = partition(&dataset, &natural, clients.len(), Seed(1)).unwrap();
    for (shard, client) in exact.iter().zip(&clients) {
        assert!(shard.iter().all(|row| dataset.examples[*row as usize].client.as_deref() == Some(*client)));
    }
    let spread = partition(&dataset, &natural, 4, Seed(1)).unwrap();
    let holders = |client: &str| {
        let has = |shard: &&Vec<u32>| {
            shard.iter().any(|row| dataset.examples[*row as usize].client.as_deref() == Some(client))
        };
        spread.iter().filter(has).count()
    };
    assert!(clients.iter().all(|client| holders(client) == 1));
}

#[test]
fn what_cannot_be_dealt_is_said() {
    let dataset = rows(30, 6, 5);
    let complain = |kind: &str, devices: usize| {
        let config: PartitionConfig = serde_json::from_str(kind).unwrap();
        partition(&dataset, &config, devices, Seed(1)).unwrap_err()
    };
    type E = PartitionError;
    assert!(matches!(complain(r#"{"kind":"iid"}"#, 0), E::NoDevices));
    assert!(matches!(complain(r#"{"kind":"iid"}"#, 31), E::EmptyShard { devices: 31, .. }));
    assert!(matches!(complain(r#"{"kind":"dirichlet","alpha":0.0}"#, 3), E::Alpha { .. }));
    assert!(matches!(
        complain(r#"{"kind":"dirichlet","alpha":1.0,"min_rows":11}"#, 3),
        E::TooFewRows { .. }
    ));
    assert!(matches!(complain(r#"{"kind":"dirichlet","alpha":0.01,"min_rows":4}"#, 7), E::Unlucky { .. }));
    assert!(matches!(complain(r#"{"kind":"quantity","alpha":0.01,"min_rows":9}"#, 3), E::Unlucky { .. }));
    assert!(matches!(complain(r#"{"kind":"k-labels","labels_per_device":7}"#, 3), E::TooFewLabels { .. }));
    assert!(matches!(
        complain(r#"{"kind":"k-labels","labels_per_device":1}"#, 3),
        E::LabelsLeftOver { .. }
    ));
    assert!(matches!(complain(r#"{"kind":"k-labels","labels_per_device":0}"#, 3), E::Zero { .. }));
    assert!(matches!(complain(r#"{"kind":"natural"}"#, 6), E::TooFewClients { clients: 5, .. }));
    let unlabelled = |example: Example| Example { label: None, client: None, ..example };
    let examples = dataset.examples.clone().into_iter().map(unlabelled).collect();
    let bare = Dataset { examples, labels: Vec::new(), path: "bare.jsonl".into() };
    let dirichlet = PartitionConfig::Dirichlet { alpha: 1.0, min_rows: 1, self_balancing: false };
    assert!(matches!(partition(&bare, &dirichlet, 2, Seed(1)), Err(E::NoLabels { .. })));
    let natural = partition(&bare, &PartitionConfig::Natural { column: None }, 2, Seed(1)).unwrap_err();
    assert!(natural.to_string().starts_with("bare.jsonl:1: no client"), "{natural}");
    for wrong in [
        r#"{"kind":"iid","alpha":1.0}"#,
        r#"{"kind":"dirichlet","alpha":1.0,"rows":2}"#,
        r#"{"kind":"dirich"}"#,
    ] {
        assert!(serde_json::from_str::<PartitionConfig>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn tables_and_plots_hold_every_device() {
    let dataset = rows(6000, 6, 10);
    let dirichlet = PartitionConfig::Dirichlet { alpha: 0.5, min_rows: 0, self_balancing: false };
    let few = Holdings::count(&dataset, &partition(&dataset, &dirichlet, 16, Seed(1)).unwrap());
    assert_eq!(few.rows().iter().sum::<u32>(), 6000);
    assert_eq!(few.table().lines().count(), 16 + 3);
    let many = Holdings::count(&dataset, &partition(&dataset, &dirichlet, 1000, Seed(1)).unwrap());
    assert!(many.table().starts_with("1000 devices") && many.table().lines().count() < 8);
    let mut odd = few.clone();
    odd.labels[0] = "<script>&\"".to_owned();
    for (holdings, most) in [(&few, 20_000), (&many, 60_000), (&odd, 20_000)] {
        let svg = holdings.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && svg.len() < most, "{}", svg.len());
        assert!(!svg.contains("NaN") && !svg.contains("<script>"));
    }
    for empty in [vec![vec![0; 2]; 3], vec![vec![0; 2]; 300], vec![vec![0; 2]; 1]] {
        let holdings = Holdings { labels: vec!["a".to_owned(), "b".to_owned()], counts: empty };
        assert!(!holdings.svg().contains("NaN") && !holdings.table().contains("NaN"));
    }
}
