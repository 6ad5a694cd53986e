//! GGUF: weights, settings and tokenizer in one file (the format's specification: `docs/gguf.md` of
//! ggml; versions 2 and 3, little endian).
//!
//! The file stays mapped. Opening it reads the header alone; every count, length and offset is held
//! against the bytes that are there before anything is allocated for it, and lists are not unpacked
//! before they are asked for.

mod config;
mod metadata;
mod names;
mod reader;
mod tensor_type;
mod tokenizer;

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use crate::{DecoderConfig, LoadError, checkpoint::stored::Stored};
use metadata::Metadata;
use reader::Reader;
use tensor_type::TensorType;

/// Entries of the metadata, and tensors, that a file may have: far above any real model's.
const MOST_ENTRIES: u64 = 1 << 16;
const DEFAULT_ALIGNMENT: u64 = 32;

/// An opened file.
pub(crate) struct GgufFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    tensors: HashMap<String, Tensor>,
    config: DecoderConfig,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Tensor {
    kind: TensorType,
    /// Row-major, the slowest dimension first.
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The GGUF file that a model's path means: itself by its ending, or the only one of a folder without
/// safetensors.
///
/// # Errors
/// The folder holds several, and nothing else.
pub(crate) fn find(path: &Path) -> Result<Option<PathBuf>, LoadError> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if path.is_file() {
        return Ok(is_gguf(path).then(|| path.to_path_buf()));
    }
    if !path.is_dir() {
        return Ok(None);
    }
    if ["model.safetensors", "model.safetensors.index.json"].iter().any(|f| path.join(f).exists()) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| LoadError::file(path, e))? {
        let file = entry.map_err(|e| LoadError::file(path, e))?.path();
        if is_gguf(&file) && file.is_file() {
            found.push(file);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        n => Err(LoadError::file(path, format!("holds {n} .gguf files; name the one that is meant"))),
    }
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// It is no GGUF file of a known version, is damaged or cut off, or has a tensor of a type that is
    /// not supported.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let map = crate::checkpoint::map(path)?;
        let (metadata, tensors) = parse(&map).map_err(|problem| match problem {
            Problem::File(problem) => LoadError::file(path, problem),
            Problem::Tensor(name, problem) => LoadError::tensor(path, &name, problem),
        })?;
        let config = config::read(&metadata, &tensors, &map).map_err(|e| LoadError::file(path, e))?;
        Ok(Self { path: path.to_path_buf(), map, metadata, tensors, config })
    }

    /// The decoder's shape.
    pub(crate) fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether a tensor of this name, as safetensors would call it, exists.
    pub(crate) fn contains(&self, name: &str) -> bool {
        names::gguf_name(name).is_some_and(|name| self.tensors.contains_key(&name))
    }

    /// A tensor by the name that it has in safetensors, its rows in the order that they have there.
    ///
    /// # Errors
    /// It is missing, or of another shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>, LoadError> {
        let own = names::gguf_name(name).unwrap_or_else(|| name.to_owned());
        let tensor = self
            .tensors
            .get(&own)
            .ok_or_else(|| LoadError::tensor(&self.path, &own, "is missing from the file"))?;
        if tensor.shape != shape {
            let problem = format!("has shape {:?}, but the metadata ask for {shape:?}", tensor.shape);
            return Err(LoadError::tensor(&self.path, &own, problem));
        }
        let stored = Stored::new(tensor.kind.element(), &self.map[tensor.bytes.clone()], shape)
            .map_err(|problem| LoadError::tensor(&self.path, &own, problem))?;
        let paired = self.is_llama() && names::is_rotated(&own);
        Ok(if paired { stored.in_pairs(self.config.head_dim) } else { stored })
    }

    /// llama.cpp keeps the rows of rotated heads in pairs for this architecture alone.
    fn is_llama(&self) -> bool {
        self.metadata.text("general.architecture").is_ok_and(|a| a == Some("llama"))
    }

    /// An error about the file as a whole.
    fn refuse(&self, problem: impl ToString) -> LoadError {
        LoadError::file(&self.path, problem)
    }
}

/// What is wrong with a file's header.
enum Problem {
    File(String),
    Tensor(String, String),
}

impl From<String> for Problem {
    fn from(problem: String) -> Self {
        Self::File(problem)
    }
}

fn parse(bytes: &[u8]) -> Result<(Metadata, HashMap<String, Tensor>), Problem> {
    let mut reader = Reader::new(bytes);
    if !bytes.starts_with(b"GGUF") {
        return Err("is no GGUF file: it does not begin with `GGUF`".to_owned().into());
    }
    reader.take(4)?;
    match reader.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() == 3 => {
            return Err("is a big-endian GGUF file; only little-endian ones are read".to_owned().into());
        }
        version => return Err(format!("is GGUF of version {version}; 2 and 3 are read").into()),
    }
    let count = |n: u64, what: &str| match n {
        0..=MOST_ENTRIES => Ok(n),
        _ => Err(format!("claims {n} {what}; at most {MOST_ENTRIES} are read")),
    };
    let tensor_count = count(reader.u64()?, "tensors")?;
    let entries = count(reader.u64()?, "metadata entries")?;
    let metadata = Metadata::read(&mut reader, entries)?;
    if metadata.integer("split.count")?.unwrap_or(1) > 1 {
        return Err("is one of several parts; join them first (llama.cpp's `gguf-split --merge`)"
            .to_owned()
            .into());
    }
    let alignment = metadata.integer("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || !(8..=1 << 20).contains(&alignment) {
        return Err(format!("`general.alignment` is {alignment}; it must be a power of two from 8").into());
    }
    let mut headers = Vec::new();
    for _ in 0..tensor_count {
        headers.push(Header::read(&mut reader)?);
    }
    let data = (reader.position() as u64).next_multiple_of(alignment);
    let mut tensors = HashMap::with_capacity(headers.len());
    for header in headers {
        let name = header.name.clone();
        let refuse = |problem: String| Problem::Tensor(name.clone(), problem);
        let tensor = header.place(data, alignment, bytes.len() as u64).map_err(refuse)?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(Problem::Tensor(name, "stands twice in the file".to_owned()));
        }
    }
    Ok((metadata, tensors))
}

/// A tensor as the header tells of it.
struct Header {
    name: String,
    /// The fastest dimension first.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Result<Self, String> {
        let name = reader.text()?.to_owned();
        let rank = reader.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!("tensor `{name}` has {rank} dimensions; it must be 1 to 4"));
        }
        let dimensions = (0..rank).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        Ok(Self { name, dimensions, kind: reader.u32()?, offset: reader.u64()? })
    }

    /// Checks that the tensor lies within the file.
    fn place(&self, data: u64, alignment: u64, len: u64) -> Result<Tensor, String> {
        let kind = TensorType::from_id(self.kind)?;
        let numbers = self
            .dimensions
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .filter(|&n| n > 0)
            .ok_or_else(|| format!("has the impossible shape {:?}", self.dimensions))?;
        let (block, block_bytes) = (kind.block() as u64, kind.block_bytes() as u64);
        if !self.dimensions[0].is_multiple_of(block) {
            let row = self.dimensions[0];
            return Err(format!("has rows of {row} numbers, but {kind} keeps blocks of {block}"));
        }
        if !self.offset.is_multiple_of(alignment) {
            return Err(format!("begins at {}, which is no multiple of {alignment}", self.offset));
        }
        let start = data.checked_add(self.offset);
        let end = (numbers / block).checked_mul(block_bytes).and_then(|n| start?.checked_add(n));
        match (start, end) {
            (Some(start), Some(end)) if end <= len => Ok(Tensor {
                kind,
                shape: self.dimensions.iter().rev().map(|&d| d as usize).collect(),
                bytes: start as usize..end as usize,
            }),
            _ => Err(format!(
                "needs {numbers} numbers of {kind} from byte {} of the data, but the file ends before; it is cut off or damaged",
                self.offset
            )),
        }
    }
}
