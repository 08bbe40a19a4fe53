//! What a server tells its devices about the run: settings and names, never code.

use crate::errors::{Exit, Failure, context};
use crate::offer::Offer;
use crate::prepare::Prepared;
use crate::scenario::{BUILTIN, ModelConfig, Scenario};
use crate::settings::Settings;
use model::Lower;
use net::server::Shelf;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The body of `GET /v1/run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brief {
    /// The resolved scenario, as TOML.
    pub scenario: String,
    /// Class names; empty for a language model, and where nothing is trained.
    pub labels: Vec<String>,
    /// The files of every model that devices have, with the BLAKE3 of each; empty where nothing is trained.
    pub models: Vec<Print>,
    /// The same models, for devices that have not got theirs.
    pub offers: Vec<Offer>,
    /// By class of devices what they need of it, where that is not all of it.
    pub lower: BTreeMap<String, Lower>,
}

/// A model, as far as two machines must agree on it.
pub type Print = BTreeMap<String, String>;

impl Brief {
    /// With the places where the offered models stand.
    pub fn of(prepared: &Prepared) -> Result<(Brief, Shelf), Failure> {
        let model = prepared.scenario.model.as_ref().filter(|_| prepared.material.is_some());
        let models = model.map(ModelConfig::all).unwrap_or_default();
        let (mut offers, mut places) = (Vec::new(), Vec::new());
        for model in &models {
            let (offer, stand) = Offer::of(&model.path)?;
            offers.push(offer);
            places.extend(stand);
        }
        let mut lower: BTreeMap<String, Lower> = BTreeMap::new();
        for (member, quote) in prepared.quoted() {
            if let Some(needed) = quote.lower {
                let known = lower.entry(member.class.clone()).or_insert(needed);
                *known = known.union(needed);
            }
        }
        let brief = Brief {
            scenario: prepared.scenario.to_toml(),
            labels: prepared.material.as_ref().map(|material| material.labels.clone()).unwrap_or_default(),
            models: models.iter().map(|model| print_of(&model.path)).collect::<Result<_, _>>()?,
            offers,
            lower,
        };
        Ok((brief, places.into_iter().collect()))
    }

    /// Read what a server said, and check it as any scenario: a method that is not on this device's own
    /// list is refused here.
    pub fn open(json: &[u8]) -> Result<(Brief, Scenario), Failure> {
        let brief: Brief = serde_json::from_slice(json)
            .map_err(context(Exit::Failed, "what the server says of the run makes no sense"))?;
        let settings = Settings::parse("the server's scenario".to_owned(), brief.scenario.clone(), &[])?;
        let (scenario, _) = Scenario::of(settings)?;
        Ok((brief, scenario))
    }

    /// An error unless this machine's model at `path` is that one of the server's.
    pub fn check_model(&self, number: usize, path: &str) -> Result<(), Failure> {
        let Some(theirs) = self.models.get(number) else { return Ok(()) };
        let ours = print_of(path)?;
        if ours == *theirs {
            return Ok(());
        }
        let different = |name: &&String| theirs.get(*name) != ours.get(*name);
        let names: Vec<&str> =
            theirs.keys().chain(ours.keys()).filter(different).map(String::as_str).collect();
        Err(Failure::new(Exit::Model, format!("{path} is not the model the server trains"))
            .at(names.join(", "))
            .help("leave --model out, and what is needed of it is fetched from the server; or name the same revision"))
    }
}

/// The files that decide what a model computes.
fn print_of(path: &str) -> Result<Print, Failure> {
    if path == BUILTIN {
        return Ok(BTreeMap::from([(BUILTIN.to_owned(), env!("CARGO_PKG_VERSION").to_owned())]));
    }
    let failed = || context(Exit::Model, path);
    let mut print = BTreeMap::new();
    for entry in std::fs::read_dir(Path::new(path)).map_err(failed())? {
        let file = entry.map_err(failed())?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let decides =
            ["config.json", "tokenizer.json"].contains(&name.as_str()) || name.ends_with(".safetensors");
        if decides {
            let mut hash = blake3::Hasher::new();
            let content = std::fs::File::open(&file).and_then(|file| hash.update_reader(file).map(drop));
            content.map_err(failed())?;
            print.insert(name, hash.finalize().to_hex().to_string());
        }
    }
    Ok(print)
}
