//! Adapters as files, in the layout of Hugging Face PEFT.
//!
//! | file | holds |
//! |---|---|
//! | `adapter_config.json` | PEFT's LoRA configuration, or for other kinds ours under `"undertone"` |
//! | `adapter_model.safetensors` | `base_model.model.<module>.lora_A.weight` and so on, f32 |
//! | `head.safetensors` | the classification head: `classifier.weight` (classes x width), `classifier.bias` |
//! | `head_config.json` | `pooling`, `squash` (k in `tanh(k * pooled)`, or null), `labels` |
//! | `README.md` | how to use them |
//!
//! Module names are those of the class `peft` wraps: `AutoModelForCausalLM` for a language model, and
//! `AutoModel`, whose names have no leading `model.`, for a classifier.

use crate::error::LoadError;
use crate::head::Kind;
use crate::layout::Site;
use crate::model::Model;
use crate::peft_config::{PeftConfig, PeftKind, Shorthand, TargetModules};
use crate::source::Weights;
use crate::spec::{Module, Pooling, Task};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const ADAPTER: &str = "adapter_model.safetensors";
const HEAD: &str = "head.safetensors";
const HEAD_CONFIG: &str = "head_config.json";

/// What stands before every tensor's name in PEFT's files.
const PREFIX: &str = "base_model.model.";

/// `head_config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadConfig {
    pub pooling: Pooling,
    pub squash: Option<f32>,
    pub labels: Vec<String>,
}

/// An adapter's directory, its configuration read.
#[derive(Clone, Debug)]
pub struct Adapter {
    dir: PathBuf,
    pub peft: PeftConfig,
    /// Name or path of the model it was trained on.
    pub base: String,
    /// `None` for a language model.
    pub head: Option<HeadConfig>,
}

/// Write the adapter `theta` of a model into `dir`, which must be new or empty. The directory appears
/// as a whole or not at all. `base` is what users should load the adapter onto.
pub fn save(
    dir: &Path,
    model: &Model,
    theta: &[f32],
    base: &str,
    labels: &[String],
) -> Result<(), LoadError> {
    let (found, expected) = (theta.len(), model.layout.total());
    if found != expected {
        return Err(LoadError::Peft(format!(
            "the adapter has {found} parameters, the model {expected} sites"
        )));
    }
    let sites = model.layout.sites.iter().filter(|site| !site.is_head());
    let tensors = sites.map(|site| (stored_name(site, &model.task), site.shape(), &theta[site.range()]));
    let mut files = vec![
        (CONFIG, pretty(&config_json(model, base))),
        (ADAPTER, safetensors_of(tensors)),
        ("README.md", readme(model, base).into_bytes()),
    ];
    if let (Task::Classification { pooling, squash, .. }, Some(head)) = (&model.task, &model.head)
        && let Kind::Classifier(classifier) = &head.kind
    {
        let config = HeadConfig { pooling: *pooling, squash: *squash, labels: labels.to_vec() };
        let (weight, bias) = (classifier.weight.get(theta), classifier.bias.get(theta));
        let (classes, width) = (classifier.classes, model.spec.width);
        let weight = ("classifier.weight".to_owned(), vec![classes, width], weight);
        let bias = ("classifier.bias".to_owned(), vec![classes], bias);
        files.push((HEAD, safetensors_of([weight, bias].into_iter())));
        files.push((HEAD_CONFIG, pretty(&json!(config))));
    }
    write_directory(dir, &files)
}

impl Adapter {
    /// Read an adapter's configuration: ours, or LoRA written by Python's `peft`.
    pub fn open(dir: &Path) -> Result<Adapter, LoadError> {
        let config: Map<String, Value> = read_json(&dir.join(CONFIG))?;
        let has_head = dir.join(HEAD_CONFIG).exists();
        let head = if has_head { Some(read_json(&dir.join(HEAD_CONFIG))?) } else { None };
        let fails = |error: String| LoadError::Peft(format!("{}: {error}", dir.join(CONFIG).display()));
        let mut peft = match config.get("undertone") {
            Some(own) => serde_json::from_value(own.clone()).map_err(|error| fails(error.to_string()))?,
            None => from_python(&config).map_err(fails)?,
        };
        // A head beside the adapter is a part of it, whether or not it was trained.
        peft.train_head = has_head;
        let base = config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
        Ok(Adapter { dir: dir.to_owned(), peft, base: base.to_owned(), head })
    }

    /// The task the adapter was trained for.
    pub fn task(&self) -> Task {
        match &self.head {
            None => Task::CausalLm,
            Some(HeadConfig { pooling, squash, labels }) => {
                Task::Classification { classes: labels.len(), pooling: *pooling, squash: *squash }
            }
        }
    }

    /// The adapter's parameters, for a model loaded with this adapter's `peft` and task.
    pub fn theta(&self, model: &Model) -> Result<Vec<f32>, LoadError> {
        let mut theta = vec![0.0; model.layout.total()];
        let mut adapter = Weights::open_file(&self.dir.join(ADAPTER))?;
        let mut head =
            if self.head.is_some() { Some(Weights::open_file(&self.dir.join(HEAD))?) } else { None };
        let mut read = 0;
        for site in &model.layout.sites {
            let values = match &mut head {
                Some(head) if site.is_head() => head.read(&site.name, &site.shape())?,
                _ => {
                    read += 1;
                    let name = candidates(site).into_iter().find(|name| adapter.contains(name));
                    let name = name.unwrap_or_else(|| stored_name(site, &model.task));
                    adapter.read(&name, &site.shape())?
                }
            };
            theta[site.range()].copy_from_slice(&values);
        }
        let stored = adapter.names().count();
        if stored == read {
            return Ok(theta);
        }
        Err(LoadError::Peft(format!(
            "{} holds {stored} tensors of which the model has a place for {read}: are the adapter's \
             configuration and tensors from the same training?",
            self.dir.join(ADAPTER).display()
        )))
    }
}

/// A site's name in PEFT's files.
fn stored_name(site: &Site, task: &Task) -> String {
    match task {
        Task::CausalLm => format!("{PREFIX}{}", site.name),
        Task::Classification { .. } | Task::Regression { .. } => {
            format!("{PREFIX}{}", site.name.trim_start_matches("model."))
        }
    }
}

/// The names a site may have, depending on the class that was wrapped.
fn candidates(site: &Site) -> [String; 2] {
    let bare = site.name.trim_start_matches("model.");
    [format!("{PREFIX}{}", site.name), format!("{PREFIX}{bare}")]
}

/// LoRA in PEFT's words, each adapted module named in full: endings that are right here could match
/// more in a class that has more modules (BERT's pooler). Other kinds are ours alone.
fn config_json(model: &Model, base: &str) -> Value {
    let peft = &model.peft;
    let task_type = if model.task == Task::CausalLm { "CAUSAL_LM" } else { "FEATURE_EXTRACTION" };
    if peft.kind != PeftKind::Lora {
        return json!({
            "peft_type": "UNDERTONE",
            "base_model_name_or_path": base,
            "task_type": task_type,
            "undertone": peft,
        });
    }
    let name = |module: &Module| match model.task {
        Task::CausalLm => module.name.clone(),
        Task::Classification { .. } | Task::Regression { .. } => {
            module.name.trim_start_matches("model.").to_owned()
        }
    };
    let (mut targets, mut ranks, mut alphas) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for module in model.spec.modules(&model.task, model.layers()) {
        let Some(rank) = peft.rank(&module) else { continue };
        targets.push(name(&module));
        if rank.r != peft.r {
            ranks.insert(name(&module), rank.r);
        }
        if rank.alpha != peft.lora_alpha {
            alphas.insert(name(&module), rank.alpha);
        }
    }
    json!({
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": task_type,
        "inference_mode": true,
        "r": peft.r,
        "lora_alpha": peft.lora_alpha,
        "lora_dropout": 0.0,
        "use_rslora": peft.use_rslora,
        "target_modules": targets,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
    })
}

/// Our configuration from one written by Python's `peft`. What it asks for beyond LoRA on linears is
/// refused by name, not ignored.
fn from_python(config: &Map<String, Value>) -> Result<PeftConfig, String> {
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err("only peft_type \"LORA\" is read".into());
    }
    let harmless = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    };
    for key in UNSUPPORTED {
        if let Some(value) = config.get(*key).filter(|value| !harmless(value)) {
            return Err(format!("{key} = {value} is not supported"));
        }
    }
    let mut own = Map::new();
    own.insert("kind".into(), "lora".into());
    for key in SHARED {
        if let Some(value) = config.get(*key).filter(|value| !value.is_null()) {
            own.insert((*key).into(), value.clone());
        }
    }
    if let Some(layer) = own.get("layers_to_transform").filter(|value| value.is_number()) {
        own["layers_to_transform"] = json!([layer]);
    }
    let peft: PeftConfig = serde_json::from_value(Value::Object(own)).map_err(|error| error.to_string())?;
    match &peft.target_modules {
        None => Err("it names no target_modules".into()),
        Some(TargetModules::Shorthand(Shorthand::AllLinear) | TargetModules::Names(_)) => Ok(peft),
    }
}

/// Keys that PEFT's configuration and ours have in common.
const SHARED: &[&str] = &[
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
];

/// Keys of PEFT that change what is computed, and that we have no counterpart of.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
];

fn readme(model: &Model, base: &str) -> String {
    let loading = match (model.peft.kind, &model.task) {
        (PeftKind::Lora, Task::CausalLm) => {
            "    model = AutoModelForCausalLM.from_pretrained(base)\n    \
             model = PeftModel.from_pretrained(model, \"this directory\")\n"
        }
        (PeftKind::Lora, Task::Classification { .. }) => {
            "    model = AutoModel.from_pretrained(base)\n    \
             model = PeftModel.from_pretrained(model, \"this directory\")\n\n\
             `head.safetensors` holds the classifier, `head_config.json` says how to use it:\n\
             pool the last hidden states (`cls`, `mean` or `last` token of each text), take\n\
             `tanh(squash * pooled)` unless `squash` is null, then\n\
             `logits = pooled @ classifier.weight.T + classifier.bias`.\n"
        }
        _ => {
            "    undertone predict, undertone generate\n\n\
              Python's `peft` has no counterpart of this kind of adapter.\n"
        }
    };
    format!("# Adapter\n\nTrained by Undertone on `{base}`.\n\n{loading}")
}

fn safetensors_of<'a>(tensors: impl Iterator<Item = (String, Vec<usize>, &'a [f32])>) -> Vec<u8> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<_> = tensors.map(|(name, shape, values)| (name, shape, bytes(values))).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.expect("a site's shape is as large as its range"))
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).expect("an adapter's header is small")
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let text = std::fs::read_to_string(path).map_err(LoadError::io(path))?;
    serde_json::from_str(&text)
        .map_err(|error| LoadError::Corrupt { file: path.display().to_string(), what: error.to_string() })
}

/// Write all files beside `dir` first, then rename: a reader sees the whole directory or none.
fn write_directory(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), LoadError> {
    let occupied = dir.exists() && dir.read_dir().map_or(true, |mut entries| entries.next().is_some());
    if occupied {
        return Err(LoadError::Exists(dir.to_owned()));
    }
    let mut staging = dir.as_os_str().to_owned();
    staging.push(".partial");
    let staging = PathBuf::from(staging);
    if staging.exists() {
        std::fs::remove_dir_all(&staging).map_err(LoadError::io(&staging))?;
    }
    std::fs::create_dir_all(&staging).map_err(LoadError::io(&staging))?;
    for (name, bytes) in files {
        let path = staging.join(name);
        let write = |path: &Path| {
            let mut file = File::create(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write(&path).map_err(LoadError::io(path))?;
    }
    std::fs::rename(&staging, dir).map_err(LoadError::io(dir))
}
