//! The side network as files that a device loads: `side_network.safetensors` and, beside it, how it is
//! built.

use super::{SideConfig, SideNetwork};
use crate::LoadError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

pub const WEIGHTS_FILE: &str = "side_network.safetensors";
pub const CONFIG_FILE: &str = "side_network_config.json";

/// What a device must know to use a side network beside its backbone, which is one of those it was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SideCard {
    pub network: SideConfig,
    /// The tapped layers of each backbone, from 0.
    pub layers: Vec<Vec<usize>>,
    pub reads: Reads,
    pub added_to: AddedTo,
    /// Class names.
    pub labels: Vec<String>,
}

/// Which rows of a layer it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// Those that the loss reads.
    Pivot,
    /// Every token's; its outputs are pooled as the model pools states.
    EveryToken,
}

/// What of the backbone's prediction the output is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddedTo {
    Probabilities,
    Logits,
    /// The number it predicts.
    Number,
}

/// Write both files into `dir`.
pub fn save(dir: &Path, card: &SideCard, theta: &[f32]) -> Result<(), LoadError> {
    let network = SideNetwork::new(card.network.clone()).map_err(LoadError::Config)?;
    let bytes: Vec<u8> = theta.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut tensors = BTreeMap::new();
    for site in network.sites() {
        let range = site.range();
        let data = bytes.get(4 * range.start..4 * range.end).ok_or_else(|| {
            let (found, expected) = (theta.len(), network.total());
            LoadError::Config(format!("{found} parameters of a side network of {expected}"))
        })?;
        let view = TensorView::new(Dtype::F32, vec![site.rows, site.cols], data);
        let view = view.map_err(|error| LoadError::Config(format!("{}: {error}", site.name)))?;
        tensors.insert(site.name.as_str(), view);
    }
    let path = dir.join(WEIGHTS_FILE);
    safetensors::serialize_to_file(tensors, None, &path)
        .map_err(|error| LoadError::Io { path, source: std::io::Error::other(error) })?;
    let path = dir.join(CONFIG_FILE);
    let mut text = serde_json::to_string_pretty(card).expect("a configuration is plain data");
    text.push('\n');
    std::fs::write(&path, text).map_err(LoadError::io(path))
}

/// Read both files of `dir`.
pub fn load(dir: &Path) -> Result<(SideCard, SideNetwork, Vec<f32>), LoadError> {
    let path = dir.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(LoadError::io(&path))?;
    let bad = |what: String| LoadError::Config(format!("{}: {what}", path.display()));
    let card: SideCard = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let complete = card.layers.iter().all(|layers| layers.len() == card.network.taps);
    if !complete || card.layers.len() != card.network.backbones.len() {
        return Err(bad("it does not say of every backbone which layers are tapped".into()));
    }
    let network = SideNetwork::new(card.network.clone()).map_err(bad)?;
    let path = dir.join(WEIGHTS_FILE);
    let bytes = std::fs::read(&path).map_err(LoadError::io(&path))?;
    let file = path.display().to_string();
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| LoadError::Corrupt { file: file.clone(), what: error.to_string() })?;
    let mut theta = Vec::with_capacity(bytes.len() / 4);
    for site in network.sites() {
        let missing = |_| LoadError::MissingTensor { file: file.clone(), name: site.name.clone() };
        let tensor = tensors.tensor(&site.name).map_err(missing)?;
        if tensor.dtype() != Dtype::F32 {
            let dtype = format!("{:?}", tensor.dtype());
            return Err(LoadError::Dtype { name: site.name.clone(), dtype });
        }
        let (found, expected) = (tensor.shape().to_vec(), vec![site.rows, site.cols]);
        if found != expected {
            return Err(LoadError::WrongShape { name: site.name.clone(), found, expected });
        }
        let value = |chunk: &[u8]| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        theta.extend(tensor.data().chunks_exact(4).map(value));
        if theta[site.offset..].iter().any(|value| !value.is_finite()) {
            return Err(LoadError::NonFinite { name: site.name.clone() });
        }
    }
    Ok((card, network, theta))
}
