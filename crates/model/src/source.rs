//! Weights as they lie on disk: safetensors, one file or shards with an index.
//!
//! Tensors are read one by one, converted to f32 and handed on at once, so that no second copy of a
//! model ever exists. A header is believed only after its lengths were held against the file.

use crate::error::LoadError;
use half::{bf16, f16};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Where a model comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A Hugging Face directory: `config.json` and `model.safetensors`, or shards with
    /// `model.safetensors.index.json`.
    Directory(PathBuf),
    /// The same two files, in memory.
    Memory { config: Cow<'static, str>, weights: Cow<'static, [u8]> },
}

impl Source {
    /// The text of `config.json`.
    pub fn config(&self) -> Result<String, LoadError> {
        match self {
            Source::Directory(dir) => {
                let path = dir.join("config.json");
                std::fs::read_to_string(&path).map_err(LoadError::io(path))
            }
            Source::Memory { config, .. } => Ok(config.to_string()),
        }
    }

    /// The weights, with every header read and checked.
    pub fn open(&self) -> Result<Weights, LoadError> {
        match self {
            Source::Directory(dir) => Weights::open_directory(dir),
            Source::Memory { weights, .. } => Weights::new(vec![Container::new(
                "the weights in memory".into(),
                Bytes::Memory(weights.clone()),
            )?]),
        }
    }
}

/// A tensor as it lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    /// As safetensors spells it, such as `F32`.
    pub dtype: String,
    pub shape: Vec<usize>,
    pub path: PathBuf,
    pub offset: u64,
    pub bytes: u64,
}

/// Tensors by name. Reading one also feeds [`Weights::hash`].
#[derive(Debug)]
pub struct Weights {
    files: Vec<Container>,
    index: BTreeMap<String, (usize, Entry)>,
    hash: blake3::Hasher,
}

#[derive(Debug)]
struct Container {
    name: String,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
    /// Where the tensors begin.
    data: u64,
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Memory(Cow<'static, [u8]>),
}

/// One tensor of a safetensors header.
#[derive(Clone, Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The most a header may take: the limit of the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Elements converted at a time while a tensor is read.
const CHUNK: usize = 1 << 14;

impl Weights {
    fn new(files: Vec<Container>) -> Result<Weights, LoadError> {
        let mut index = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for (name, entry) in &file.entries {
                index.insert(name.clone(), (number, entry.clone()));
            }
        }
        Ok(Weights { files, index, hash: blake3::Hasher::new() })
    }

    /// A single safetensors file.
    pub(crate) fn open_file(path: &Path) -> Result<Weights, LoadError> {
        let file = File::open(path).map_err(LoadError::io(path))?;
        Weights::new(vec![Container::new(path.display().to_string(), Bytes::File(file))?])
    }

    fn open_directory(dir: &Path) -> Result<Weights, LoadError> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.exists() {
            return Weights::open_file(&single);
        }
        if index.exists() {
            return Weights::open_shards(dir, &index);
        }
        Err(LoadError::Config(format!(
            "{} holds neither model.safetensors nor model.safetensors.index.json; save the model \
             with save_pretrained(..., safe_serialization=True)",
            dir.display()
        )))
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Weights, LoadError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let corrupt = |what| LoadError::Corrupt { file: index.display().to_string(), what };
        let text = std::fs::read_to_string(index).map_err(LoadError::io(index))?;
        let map =
            serde_json::from_str::<Index>(&text).map_err(|error| corrupt(error.to_string()))?.weight_map;
        let shards: BTreeSet<&String> = map.values().collect();
        let mut files = Vec::new();
        for shard in shards {
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(corrupt(format!("\"{shard}\" is no plain file name")));
            }
            let path = dir.join(shard);
            let file = File::open(&path).map_err(LoadError::io(&path))?;
            files.push(Container::new(path.display().to_string(), Bytes::File(file))?);
        }
        let weights = Weights::new(files)?;
        match map.keys().find(|name| !weights.contains(name)) {
            Some(name) => Err(corrupt(format!("tensor \"{name}\" is in none of its shards"))),
            None => Ok(weights),
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Every tensor with the place of its bytes in its file, in alphabetical order; none of weights in memory.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> {
        self.index.iter().filter_map(|(name, (number, entry))| {
            let Container { name: path, bytes: Bytes::File(_), data, .. } = &self.files[*number] else {
                return None;
            };
            let (start, end) = entry.data_offsets;
            Some(Tensor {
                name: name.clone(),
                dtype: entry.dtype.clone(),
                shape: entry.shape.clone(),
                path: PathBuf::from(path),
                offset: data + start,
                bytes: end - start,
            })
        })
    }

    /// Every tensor's name, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|(_, entry)| entry.shape.as_slice())
    }

    /// A tensor of exactly that shape, in a number format that is read: in which file, and how it is read.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(usize, &Entry, Convert), LoadError> {
        let Some((number, entry)) = self.index.get(name) else {
            let file = self.files.first().map_or_else(String::new, |file| file.name.clone());
            return Err(LoadError::MissingTensor { file, name: name.to_owned() });
        };
        if entry.shape != shape {
            let (found, expected) = (entry.shape.clone(), shape.to_vec());
            return Err(LoadError::WrongShape { name: name.to_owned(), found, expected });
        }
        let convert = converter(&entry.dtype)
            .ok_or_else(|| LoadError::Dtype { name: name.to_owned(), dtype: entry.dtype.clone() })?;
        Ok((*number, entry, convert))
    }

    /// An error unless [`Weights::read`] has a tensor of that shape to read.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        self.find(name, shape).map(drop)
    }

    /// Read a tensor of exactly that shape as f32.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let (number, entry, convert) = self.find(name, shape)?;
        let entry = entry.clone();
        let step = width(&entry.dtype).unwrap_or(4);
        self.hash.update(name.as_bytes()).update(entry.dtype.as_bytes());
        let count = shape.iter().product();
        let file = &mut self.files[number];
        let mut values = Vec::with_capacity(count);
        let mut chunk = vec![0; CHUNK * step];
        let mut at = file.data + entry.data_offsets.0;
        while values.len() < count {
            let bytes = &mut chunk[..step * CHUNK.min(count - values.len())];
            file.read_at(at, bytes)?;
            self.hash.update(bytes);
            values.extend(bytes.chunks_exact(step).map(convert));
            at += bytes.len() as u64;
        }
        if !values.iter().all(|value| value.is_finite()) {
            return Err(LoadError::NonFinite { name: name.to_owned() });
        }
        Ok(values)
    }

    /// BLAKE3 over the names and bytes of everything read so far, in hexadecimal.
    pub fn hash(&self) -> String {
        self.hash.finalize().to_hex().to_string()
    }
}

impl Container {
    fn new(name: String, mut bytes: Bytes) -> Result<Container, LoadError> {
        let len = bytes.len().map_err(LoadError::io(&name))?;
        let corrupt = |what| LoadError::Corrupt { file: name.clone(), what };
        if len < 8 {
            return Err(corrupt(format!("{len} bytes are no safetensors file")));
        }
        let mut size = [0; 8];
        bytes.read_at(0, &mut size).map_err(LoadError::io(&name))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size > len - 8 {
            return Err(corrupt(format!("its header claims {size} bytes of the file's {len}")));
        }
        let mut header = vec![0; size as usize];
        bytes.read_at(8, &mut header).map_err(LoadError::io(&name))?;
        let entries = parse(&header, len - 8 - size).map_err(corrupt)?;
        Ok(Container { name, bytes, entries, data: 8 + size })
    }

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<(), LoadError> {
        self.bytes.read_at(at, out).map_err(LoadError::io(&self.name))
    }
}

/// The tensors of a header before `data` bytes of tensors, which they fill one after another.
fn parse(header: &[u8], data: u64) -> Result<BTreeMap<String, Entry>, String> {
    let Header(entries) = serde_json::from_slice(header)
        .map_err(|error| format!("its header is no list of tensors ({error})"))?;
    let mut spans = Vec::with_capacity(entries.len());
    for (name, entry) in &entries {
        let (start, end) = entry.data_offsets;
        if start > end || end > data {
            return Err(format!("tensor \"{name}\" claims the bytes {start}..{end} of {data}"));
        }
        let elements = entry.shape.iter().try_fold(1u64, |product, &side| product.checked_mul(side as u64));
        let width = width(&entry.dtype);
        if let Some(width) = width
            && elements.and_then(|elements| elements.checked_mul(width as u64)) != Some(end - start)
        {
            let (shape, bytes) = (&entry.shape, end - start);
            return Err(format!("tensor \"{name}\" of shape {shape:?} does not fill its {bytes} bytes"));
        }
        spans.push((start, end, name));
    }
    spans.sort_unstable();
    let mut filled = 0;
    for (start, end, name) in spans {
        if start != filled {
            let what = if start < filled { "overlaps with another" } else { "leaves a hole before it" };
            return Err(format!("tensor \"{name}\" {what}: it begins at byte {start}, not {filled}"));
        }
        filled = end;
    }
    if filled < data {
        return Err(format!("{} bytes follow its last tensor", data - filled));
    }
    Ok(entries)
}

/// A header as it is read: no tree of values first, and no name twice.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let wrong = |error| A::Error::custom(format!("tensor \"{name}\": {error}"));
            let entry = map.next_value::<Entry>().map_err(wrong)?;
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor \"{name}\" is there twice")));
            }
            entries.insert(name, entry);
        }
        Ok(Header(entries))
    }
}

/// Bytes an element takes, for the number formats that are read.
fn width(dtype: &str) -> Option<usize> {
    match dtype {
        "F32" => Some(4),
        "F16" | "BF16" => Some(2),
        _ => None,
    }
}

/// Reads an element.
type Convert = fn(&[u8]) -> f32;

fn converter(dtype: &str) -> Option<Convert> {
    match dtype {
        "F32" => Some(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        "F16" => Some(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
        "BF16" => Some(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
        _ => None,
    }
}

impl Bytes {
    fn len(&self) -> std::io::Result<u64> {
        match self {
            Bytes::File(file) => Ok(file.metadata()?.len()),
            Bytes::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        match self {
            Bytes::File(file) => {
                file.seek(SeekFrom::Start(at))?;
                file.read_exact(out)
            }
            Bytes::Memory(bytes) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                (&bytes[start..]).read_exact(out)
            }
        }
    }
}
