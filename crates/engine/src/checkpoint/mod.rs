//! The safetensors files of a folder, mapped into memory; single or sharded.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use attune_kernels::{EmbeddingTable, Format};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest as _, Sha256};

use crate::LoadError;

/// The tensors of a checkpoint. Nothing is read before it is asked for.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// Tensor name to its file, checked when opened.
    index: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A missing, truncated or damaged file is named.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let index = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        if single.exists() {
            Self::open_files(folder, vec![single])
        } else if index.exists() {
            Self::open_files(folder, shards(folder, &index)?)
        } else {
            Err(LoadError::file(folder, "holds neither model.safetensors nor model.safetensors.index.json"))
        }
    }

    /// Opens one safetensors file beside the model's own.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_file(folder: &Path, name: &str) -> Result<Self, LoadError> {
        Self::open_files(folder, vec![folder.join(name)])
    }

    fn open_files(folder: &Path, paths: Vec<PathBuf>) -> Result<Self, LoadError> {
        let mut files = Vec::with_capacity(paths.len());
        let mut index = HashMap::new();
        for path in paths {
            let file = File::open(&path).map_err(|e| LoadError::file(&path, e))?;
            let map = map(&file).map_err(|e| LoadError::file(&path, e))?;
            let tensors = SafeTensors::deserialize(&map)
                .map_err(|e| LoadError::file(&path, format!("damaged or truncated safetensors: {e}")))?;
            for name in tensors.names() {
                index.insert(name.to_owned(), files.len());
            }
            files.push((path, map));
        }
        Ok(Self { folder: folder.to_path_buf(), files, index })
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The packed format that stores a tensor's numbers as the checkpoint does.
    pub fn format(&self, name: &str) -> Format {
        let dtype = self.index.get(name).and_then(|&file| {
            let tensors = SafeTensors::deserialize(&self.files[file].1).ok()?;
            tensors.tensor(name).ok().map(|t| t.dtype())
        });
        match dtype {
            Some(Dtype::BF16) => Format::Bf16,
            Some(Dtype::F16) => Format::F16,
            _ => Format::F32,
        }
    }

    /// An embedding, `[V, d]`, stored as the checkpoint does.
    ///
    /// # Errors
    /// As `f32`.
    pub fn table(&self, name: &str, shape: [usize; 2]) -> Result<EmbeddingTable, LoadError> {
        let values = self.f32(name, &shape)?;
        let [vocab, d] = shape;
        Ok(match self.format(name) {
            Format::Bf16 => {
                EmbeddingTable::from_bf16(values.into_iter().map(bf16::from_f32).collect(), vocab, d)?
            }
            Format::F16 => {
                EmbeddingTable::from_f16(values.into_iter().map(f16::from_f32).collect(), vocab, d)?
            }
            _ => EmbeddingTable::from_f32(values, vocab, d)?,
        })
    }

    /// The numbers of a tensor, row-major, widened to f32.
    ///
    /// # Errors
    /// It is missing, of another shape, or of a type other than F32, F16 and BF16.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let file = *self
            .index
            .get(name)
            .ok_or_else(|| LoadError::tensor(&self.folder, name, "is missing from the checkpoint"))?;
        let (path, map) = &self.files[file];
        let tensors = SafeTensors::deserialize(map).map_err(|e| LoadError::file(path, e))?;
        let view = tensors.tensor(name).map_err(|e| LoadError::tensor(path, name, e))?;
        if view.shape() != shape {
            let problem = format!("has shape {:?}, but config.json asks for {shape:?}", view.shape());
            return Err(LoadError::tensor(path, name, problem));
        }
        widen(&view).ok_or_else(|| {
            let problem = format!("is stored as {:?}; supported: F32, F16, BF16", view.dtype());
            LoadError::tensor(path, name, problem)
        })
    }

    /// A fingerprint of the files, hexadecimal: over names, shapes, types and sampled content.
    ///
    /// It tells checkpoints apart without reading gigabytes; it is no proof of integrity.
    pub fn fingerprint(&self) -> String {
        const SAMPLE: usize = 4096;
        let mut hash = Sha256::new();
        for (_, map) in &self.files {
            hash.update((map.len() as u64).to_le_bytes());
            let header = map.len().min(1 << 20);
            hash.update(&map[..header]);
            let stride = (map.len() / 256).max(SAMPLE);
            for start in (header..map.len()).step_by(stride) {
                hash.update(&map[start..map.len().min(start + SAMPLE)]);
            }
        }
        hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
    }
}

pub(crate) fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(|e| LoadError::file(index, e))?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| LoadError::file(index, e))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    for name in &names {
        // A checkpoint must not make the service read files outside its folder.
        if Path::new(name).file_name().is_none_or(|f| f != name.as_str()) {
            return Err(LoadError::file(index, format!("names `{name}`, which is not a plain file name")));
        }
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn widen(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => return None,
    })
}

/// The crate's one unsafe function.
#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only; as with every mapped file, whoever truncates a checkpoint while a
    // service runs on it ends that service. Weights are copied out while loading, so the time is short.
    unsafe { Mmap::map(file) }
}
