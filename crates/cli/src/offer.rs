//! A model as a server offers it: its files whole, its weights tensor by tensor, each by its hash. A device
//! without the model fetches what it needs of it, and has a Hugging Face directory then, of a part.

use crate::errors::{Exit, Failure, context};
use crate::scenario::BUILTIN;
use base::units;
use model::{Lower, Source, Spec, Task};
use net::envelope::Beside;
use net::protocol::Address;
use net::server::Place;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
/// What a directory may hold besides weights that decides what its model reads and computes.
const FILES: [&str; 5] =
    [CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
const WEIGHTS: &str = "model.safetensors";
/// No model of a device is larger, and sums of sizes stay far from overflow.
const MOST_BYTES: u64 = 1 << 48;

/// What a model is made of; nothing for the built-in one, which every device has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    files: BTreeMap<String, Content>,
    tensors: BTreeMap<String, Tensor>,
}

/// Brings a content from the server into a file.
pub type Fetch<'a> = dyn FnMut(Beside, &Path) -> Result<(), Failure> + 'a;

/// Tensors that a part of the model needs, by name.
type Chosen<'a> = BTreeMap<&'a str, &'a Tensor>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    address: String,
    bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    dtype: String,
    shape: Vec<usize>,
    content: Content,
}

impl Offer {
    /// The model at `path`, and where each of its contents stands.
    pub fn of(path: &str) -> Result<(Offer, Vec<(Address, Place)>), Failure> {
        let (mut offer, mut places) = (Offer::default(), Vec::new());
        if path == BUILTIN {
            return Ok((offer, places));
        }
        let mut content = |place: Place| {
            let address = place.address().map_err(context(Exit::Model, place.path.display()))?;
            let content = Content { address: address.to_string(), bytes: place.len };
            places.push((address, place));
            Ok::<_, Failure>(content)
        };
        for name in FILES {
            let file = Path::new(path).join(name);
            if let Ok(found) = fs::metadata(&file) {
                let place = Place { path: file, offset: 0, len: found.len() };
                offer.files.insert(name.to_owned(), content(place)?);
            }
        }
        let weights = Source::Directory(path.into()).open();
        for tensor in weights.map_err(|error| Failure::new(Exit::Model, error))?.tensors() {
            let place = Place { path: tensor.path, offset: tensor.offset, len: tensor.bytes };
            let (dtype, shape, content) = (tensor.dtype, tensor.shape, content(place)?);
            offer.tensors.insert(tensor.name, Tensor { dtype, shape, content });
        }
        Ok((offer, places))
    }

    /// Whether there is nothing to fetch.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Fetch what is needed below `state`: the directory of a model that has the tensors of `lower`, or all
    /// that the task uses.
    pub fn fetch(
        &self,
        state: &Path,
        (lower, task): (Option<Lower>, &Task),
        fetch: &mut Fetch,
    ) -> Result<PathBuf, Failure> {
        let folder = state.join("model").join(self.name(lower));
        fs::create_dir_all(&folder).map_err(context(Exit::Files, folder.display()))?;
        if folder.join(WEIGHTS).is_file() {
            return Ok(folder);
        }
        for (name, content) in &self.files {
            if !FILES.contains(&name.as_str()) {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("the server's model has a file \"{name}\""),
                ));
            }
            content.bring(&folder.join(name), fetch)?;
        }
        let config = fs::read_to_string(folder.join(CONFIG));
        let config = config.map_err(context(Exit::Model, folder.join(CONFIG).display()))?;
        let spec = Spec::from_config(&config).map_err(|error| Failure::new(Exit::Model, error))?;
        let needed = lower.unwrap_or_else(|| Lower::whole(&spec));
        let names: BTreeSet<&str> = self.tensors.keys().map(String::as_str).collect();
        let needed = needed.tensors(&spec, task, &names);
        let tensors = needed.into_iter().filter_map(|name| self.tensors.get_key_value(name));
        let tensors: Chosen = tensors.map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut sizes = tensors.values().map(|tensor| tensor.content.bytes);
        let bytes = sizes.try_fold(0u64, u64::checked_add).filter(|bytes| *bytes <= MOST_BYTES);
        let bytes = bytes.ok_or_else(|| {
            Failure::new(Exit::Failed, format!("the server's model is larger than {MOST_BYTES} bytes"))
        })?;
        let what = lower.map_or_else(|| "the model".to_owned(), |lower| described(lower, &spec));
        eprintln!("fetching {what} from the server: {}", units::bytes(bytes));
        assemble(&tensors, &folder.join(WEIGHTS), fetch)?;
        Ok(folder)
    }

    /// The name of a folder for this part of this model.
    fn name(&self, lower: Option<Lower>) -> String {
        let said = serde_json::to_vec(&(self, lower)).expect("an offer is plain data");
        Address::of(&said).to_string()[..16].to_owned()
    }
}

fn described(lower: Lower, spec: &Spec) -> String {
    let head = if lower.head { ", and the head," } else { "" };
    format!("the embeddings and {} of the model's {} blocks{head}", lower.blocks, spec.layers)
}

impl Content {
    /// Its address. What the server said for one is no name of a file before it was read as an address.
    fn address(&self) -> Result<Address, Failure> {
        let address = Address::parse(&self.address);
        address.ok_or_else(|| Failure::new(Exit::Failed, "the server's model has a wrong address"))
    }

    /// Fetch it into a file, unless it is there.
    fn bring(&self, path: &Path, fetch: &mut Fetch) -> Result<(), Failure> {
        let address = self.address()?;
        if path.is_file() {
            return Ok(());
        }
        fetch(Beside { address, len: self.bytes }, path)
    }
}

/// Write a safetensors file of these tensors, each fetched when it is its turn. A file that an earlier process
/// began is gone on with after its last whole tensor.
fn assemble(tensors: &Chosen, path: &Path, fetch: &mut Fetch) -> Result<(), Failure> {
    let partial = path.with_extension("partial");
    let failed = || context(Exit::Files, partial.display());
    let header = header(tensors);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial);
    let mut file = open.map_err(failed())?;
    let there = file.metadata().map_err(failed())?.len();
    let mut end = header.len() as u64;
    if there < end {
        file.write_all(&header).and_then(|()| file.sync_data()).map_err(failed())?;
    }
    for tensor in tensors.values().filter(|tensor| tensor.content.bytes > 0) {
        let begin = end;
        end += tensor.content.bytes;
        if there < end {
            let piece = path.with_file_name(tensor.content.address()?.to_string());
            tensor.content.bring(&piece, fetch)?;
            append(&mut file, begin, &piece).map_err(failed())?;
        }
    }
    fs::rename(&partial, path).map_err(failed())
}

/// Add a fetched tensor at its place, for good.
fn append(file: &mut File, at: u64, piece: &Path) -> io::Result<()> {
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    io::copy(&mut File::open(piece)?, file)?;
    file.sync_data()?;
    fs::remove_file(piece)
}

/// The head of a safetensors file in which these tensors follow each other.
fn header(tensors: &Chosen) -> Vec<u8> {
    let mut end = 0;
    let entry = |(name, tensor): (&&str, &&Tensor)| {
        let begin = end;
        end += tensor.content.bytes;
        let Tensor { dtype, shape, .. } = tensor;
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
        ((*name).to_owned(), entry)
    };
    let entries: serde_json::Map<_, _> = tensors.iter().map(entry).collect();
    let text = serde_json::Value::Object(entries).to_string();
    let padded = text.len().next_multiple_of(8);
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend(text.bytes().chain(std::iter::repeat(b' ')).take(padded));
    header
}
