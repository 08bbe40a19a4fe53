//! The draws behind the partitioners. Each returns for every device its rows, in any order.

use base::{Seed, Stream};

use crate::partition::PartitionError;

/// Rows in random order, divided in proportion to `sizes`.
pub(crate) fn by_size(rows: usize, sizes: &[f64], seed: Seed) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    seed.child("rows", 0).stream().shuffle(&mut order);
    let mut shards = vec![Vec::new(); sizes.len()];
    deal(&order, sizes, &mut shards);
    shards
}

/// A draw from the symmetric Dirichlet distribution: `parts` proportions that sum to 1.
pub(crate) fn simplex(parts: usize, alpha: f64, stream: &mut Stream) -> Vec<f64> {
    let mut draws: Vec<f64> = (0..parts).map(|_| stream.gamma(alpha)).collect();
    let sum: f64 = draws.iter().sum();
    if sum > 0.0 {
        draws.iter_mut().for_each(|draw| *draw /= sum);
    } else {
        // Every draw underflowed (a tiny alpha): the limit of Dirichlet(0) is one part with everything.
        draws[stream.below(parts as u64) as usize] = 1.0;
    }
    draws
}

/// Divide the rows of each label by its own Dirichlet draw, among devices that hold fewer than
/// `capacity` rows.
pub(crate) fn dirichlet(
    labels: &[Vec<u32>],
    devices: usize,
    alpha: f64,
    capacity: f64,
    seed: Seed,
) -> Vec<Vec<u32>> {
    let mut shards = vec![Vec::new(); devices];
    for (label, rows) in (0..).zip(labels) {
        let mut stream = seed.child("label", label).stream();
        let mut order = rows.clone();
        stream.shuffle(&mut order);
        let mut proportions = simplex(devices, alpha, &mut stream);
        for (proportion, shard) in proportions.iter_mut().zip(&shards) {
            if shard.len() as f64 >= capacity {
                *proportion = 0.0;
            }
        }
        if proportions.iter().all(|proportion| *proportion == 0.0) {
            // All that was drawn belongs to devices that are full: the others share alike.
            for (proportion, shard) in proportions.iter_mut().zip(&shards) {
                *proportion = f64::from(u8::from((shard.len() as f64) < capacity));
            }
        }
        deal(&order, &proportions, &mut shards);
    }
    shards
}

/// Give each device this many labels; the rows of a label are divided evenly among its holders.
pub(crate) fn k_labels(
    labels: &[Vec<u32>],
    devices: usize,
    labels_per_device: usize,
    seed: Seed,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    let present = labels.len();
    if labels_per_device == 0 {
        return Err(PartitionError::Zero { name: "labels_per_device" });
    }
    if labels_per_device > present {
        return Err(PartitionError::TooFewLabels { asked: labels_per_device, present });
    }
    if devices.saturating_mul(labels_per_device) < present {
        return Err(PartitionError::LabelsLeftOver { devices, labels_per_device, present });
    }
    // A deck of all labels is dealt again and again, so that labels get equally many holders.
    let mut stream = seed.child("deck", 0).stream();
    let mut deck: Vec<usize> = Vec::new();
    let mut held = vec![vec![false; present]; devices];
    for mine in &mut held {
        for _ in 0..labels_per_device {
            if deck.iter().all(|label| mine[*label]) {
                let mut more: Vec<usize> = (0..present).collect();
                stream.shuffle(&mut more);
                deck.extend(more);
            }
            if let Some(next) = deck.iter().position(|label| !mine[*label]) {
                mine[deck.remove(next)] = true;
            }
        }
    }
    let mut shards = vec![Vec::new(); devices];
    for (label, rows) in labels.iter().enumerate() {
        let mut order = rows.clone();
        seed.child("label", label as u64).stream().shuffle(&mut order);
        let holders: Vec<f64> = held.iter().map(|mine| f64::from(u8::from(mine[label]))).collect();
        deal(&order, &holders, &mut shards);
    }
    Ok(shards)
}

/// Rows sorted by label, cut into equal shards, dealt at random.
pub(crate) fn shards(labels: &[Vec<u32>], devices: usize, each: usize, seed: Seed) -> Vec<Vec<u32>> {
    let sorted = labels.concat();
    let count = devices.saturating_mul(each).min(sorted.len().max(devices));
    let mut pieces = vec![Vec::new(); count];
    deal(&sorted, &vec![1.0; count], &mut pieces);
    seed.child("deal", 0).stream().shuffle(&mut pieces);
    let mut shards = vec![Vec::new(); devices];
    for (piece, device) in pieces.into_iter().zip((0..devices).cycle()) {
        shards[device].extend(piece);
    }
    shards
}

/// Append consecutive runs of `rows` to the shards, in proportion to `weights`. Run ends are rounded
/// cumulative weights, so every row is dealt and sizes are off by less than one row.
fn deal(rows: &[u32], weights: &[f64], shards: &mut [Vec<u32>]) {
    let total: f64 = weights.iter().sum();
    let last = weights.iter().rposition(|weight| *weight > 0.0);
    let (mut sum, mut start) = (0.0, 0);
    for (device, (weight, shard)) in weights.iter().zip(shards).enumerate() {
        sum += weight;
        let share = (sum / total * rows.len() as f64).round() as usize;
        let end = if Some(device) == last { rows.len() } else { share.clamp(start, rows.len()) };
        shard.extend_from_slice(&rows[start..end]);
        start = end;
    }
}
