//! Who holds which rows.

use std::collections::BTreeMap;

use base::Seed;
use serde::{Deserialize, Serialize};

use crate::example::{Dataset, Label};
use crate::skew;

/// `data.partition` of a scenario: how the rows of one file are dealt to devices. Names and meanings
/// follow flwr-datasets; every partitioner uses every row exactly once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PartitionConfig {
    /// Equal sizes (one row more or less), drawn uniformly.
    Iid {},
    /// Label skew: the rows of each label are divided by a draw from Dirichlet(alpha) (Yurochkin et al.
    /// 2019). Small alpha: each device knows few labels; large alpha: all devices are alike.
    Dirichlet {
        alpha: f64,
        /// Fewest rows of any device; 0 permits devices without rows.
        #[serde(default = "one")]
        min_rows: usize,
        /// A device that already holds its even share gets no more, as in Li et al. 2022: sizes are less
        /// unequal, labels more so.
        #[serde(default)]
        self_balancing: bool,
    },
    /// Quantity skew: sizes are a draw from Dirichlet(alpha), rows are drawn uniformly.
    Quantity {
        alpha: f64,
        /// Fewest rows of any device; 0 permits devices without rows.
        #[serde(default = "one")]
        min_rows: usize,
    },
    /// Quantity skew by law: device i of n gets rows in proportion to the law at i + 1; rows are drawn
    /// uniformly.
    Size { law: SizeLaw },
    /// Pathological label skew: each device holds this many labels and nothing else.
    KLabels { labels_per_device: usize },
    /// Rows sorted by label, cut into shards, and dealt (McMahan et al. 2017).
    Shards { shards_per_device: usize },
    /// By the `client` column. As many devices as clients: one each, in sorted order. Fewer devices:
    /// clients are spread so that devices hold about the same number of rows.
    Natural {
        /// The column that holds the key, if it is not called `client`: `Columns::client` must name
        /// it when the file is read (see [`PartitionConfig::column`]).
        #[serde(default)]
        column: Option<String>,
    },
}

/// How sizes grow from device to device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SizeLaw {
    /// i
    Linear,
    /// i squared
    Square,
    /// e to the i-th; only for a few devices, since all others come out empty.
    Exponential,
}

fn one() -> usize {
    1
}

impl PartitionConfig {
    /// The column that must be read as `client` for this partition, if it names one.
    pub fn column(&self) -> Option<&str> {
        match self {
            PartitionConfig::Natural { column } => column.as_deref(),
            _ => None,
        }
    }
}

/// Why rows cannot be dealt as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    #[error("a partition over 0 devices holds nothing; set fleet.devices to 1 or more")]
    NoDevices,
    #[error(
        "alpha = {alpha} is not a concentration; it must be positive and finite (0.1 is skewed, 100 is even)"
    )]
    Alpha { alpha: f64 },
    #[error("{name} = 0 leaves every device empty; set it to 1 or more")]
    Zero { name: &'static str },
    #[error(
        "partition by label, but the rows of {path} have no class for a label; choose iid, quantity or natural"
    )]
    NoLabels { path: String },
    #[error(
        "{devices} devices with at least {min_rows} rows each need {} rows, and there are {rows}; \
         use fewer devices or lower min_rows",
        devices * min_rows
    )]
    TooFewRows { devices: usize, min_rows: usize, rows: usize },
    #[error(
        "none of {draws} draws gave every one of {devices} devices at least {min_rows} rows (nearest: \
         {best}); raise alpha, use fewer devices, or lower min_rows"
    )]
    Unlucky { draws: u64, devices: usize, min_rows: usize, best: usize },
    #[error("device {device} of {devices} would hold no row; use fewer devices or another partition")]
    EmptyShard { device: usize, devices: usize },
    #[error("labels_per_device = {asked}, but the rows carry only {present} different labels")]
    TooFewLabels { asked: usize, present: usize },
    #[error(
        "{devices} devices with {labels_per_device} labels each cannot cover {present} labels, and every \
         row must be used; raise labels_per_device or use more devices"
    )]
    LabelsLeftOver { devices: usize, labels_per_device: usize, present: usize },
    #[error(
        "{path}:{line}: no client; a natural partition needs one in every row (name its column with column = \"...\")"
    )]
    NoClient { path: String, line: u64 },
    #[error("{devices} devices, but the rows name only {clients} clients; use at most {clients} devices")]
    TooFewClients { devices: usize, clients: usize },
}

/// Deal the rows of a set to `devices` devices: for each device the indices of its rows, ascending.
/// Every row is dealt exactly once.
///
/// # Errors
/// If the set cannot be dealt as asked; says what to change.
pub fn partition(
    dataset: &Dataset,
    config: &PartitionConfig,
    devices: usize,
    seed: Seed,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    if devices == 0 {
        return Err(PartitionError::NoDevices);
    }
    let seed = seed.child("partition", 0);
    let rows = dataset.len();
    let mut shards = match config {
        PartitionConfig::Iid {} => skew::by_size(rows, &vec![1.0; devices], seed),
        PartitionConfig::Dirichlet { alpha, min_rows, self_balancing } => {
            let labels = by_label(dataset)?;
            let even = rows as f64 / devices as f64;
            let capacity = if *self_balancing { even } else { f64::INFINITY };
            redraw(rows, devices, *alpha, *min_rows, seed, |seed| {
                skew::dirichlet(&labels, devices, *alpha, capacity, seed)
            })?
        }
        PartitionConfig::Quantity { alpha, min_rows } => {
            redraw(rows, devices, *alpha, *min_rows, seed, |seed| {
                let sizes = skew::simplex(devices, *alpha, &mut seed.child("sizes", 0).stream());
                skew::by_size(rows, &sizes, seed)
            })?
        }
        PartitionConfig::Size { law } => skew::by_size(rows, &law.weights(devices), seed),
        PartitionConfig::KLabels { labels_per_device } => {
            skew::k_labels(&by_label(dataset)?, devices, *labels_per_device, seed)?
        }
        PartitionConfig::Shards { shards_per_device } => {
            if *shards_per_device == 0 {
                return Err(PartitionError::Zero { name: "shards_per_device" });
            }
            skew::shards(&by_label(dataset)?, devices, *shards_per_device, seed)
        }
        PartitionConfig::Natural { .. } => natural(dataset, devices, seed)?,
    };
    shards.iter_mut().for_each(|shard| shard.sort_unstable());
    let may_be_empty = matches!(
        config,
        PartitionConfig::Dirichlet { min_rows: 0, .. } | PartitionConfig::Quantity { min_rows: 0, .. }
    );
    match shards.iter().position(Vec::is_empty) {
        Some(device) if !may_be_empty => Err(PartitionError::EmptyShard { device, devices }),
        _ => Ok(shards),
    }
}

impl SizeLaw {
    fn weights(self, devices: usize) -> Vec<f64> {
        match self {
            SizeLaw::Linear => (1..=devices).map(|device| device as f64).collect(),
            SizeLaw::Square => (1..=devices).map(|device| (device * device) as f64).collect(),
            SizeLaw::Exponential => {
                // Relative to the largest, which keeps it finite for any number of devices.
                let down = std::iter::successors(Some(1.0), |weight| Some(weight / std::f64::consts::E));
                let mut weights: Vec<f64> = down.take(devices).collect();
                weights.reverse();
                weights
            }
        }
    }
}

/// The rows of each label that has any, by ascending label.
fn by_label(dataset: &Dataset) -> Result<Vec<Vec<u32>>, PartitionError> {
    let mut labels: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (row, example) in (0..).zip(&dataset.examples) {
        let label = example
            .label
            .and_then(Label::class)
            .ok_or_else(|| PartitionError::NoLabels { path: dataset.path.display().to_string() })?;
        labels.entry(label).or_default().push(row);
    }
    Ok(labels.into_values().collect())
}

/// Draws tried before giving up.
const DRAWS: u64 = 1000;

/// Draw until every device has `min_rows` rows.
fn redraw(
    rows: usize,
    devices: usize,
    alpha: f64,
    min_rows: usize,
    seed: Seed,
    mut draw: impl FnMut(Seed) -> Vec<Vec<u32>>,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(PartitionError::Alpha { alpha });
    }
    if devices.checked_mul(min_rows).is_none_or(|needed| needed > rows) {
        return Err(PartitionError::TooFewRows { devices, min_rows, rows });
    }
    let mut best = 0;
    for attempt in 0..DRAWS {
        let shards = draw(seed.child("draw", attempt));
        let fewest = shards.iter().map(Vec::len).min().unwrap_or(0);
        if fewest >= min_rows {
            return Ok(shards);
        }
        best = best.max(fewest);
    }
    Err(PartitionError::Unlucky { draws: DRAWS, devices, min_rows, best })
}

/// One device a client, or clients spread over fewer devices, largest first to the emptiest device.
fn natural(dataset: &Dataset, devices: usize, seed: Seed) -> Result<Vec<Vec<u32>>, PartitionError> {
    let mut clients: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (row, example) in (0..).zip(&dataset.examples) {
        let client = example.client.as_deref().ok_or_else(|| PartitionError::NoClient {
            path: dataset.path.display().to_string(),
            line: example.line,
        })?;
        clients.entry(client).or_default().push(row);
    }
    let mut clients: Vec<Vec<u32>> = clients.into_values().collect();
    if devices > clients.len() {
        return Err(PartitionError::TooFewClients { devices, clients: clients.len() });
    }
    if devices == clients.len() {
        return Ok(clients);
    }
    seed.stream().shuffle(&mut clients);
    clients.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
    let mut shards = vec![Vec::new(); devices];
    for rows in clients {
        if let Some(emptiest) = shards.iter_mut().min_by_key(|shard| shard.len()) {
            emptiest.extend(rows);
        }
    }
    Ok(shards)
}
