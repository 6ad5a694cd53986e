//! The safetensors files of a folder, mapped into memory; single or sharded.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    map,
    stored::{Element, Stored},
};
use crate::LoadError;

/// The tensors of safetensors files.
pub(super) struct SafetensorsFiles {
    folder: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    /// Tensor name to its file, checked when opened.
    index: HashMap<String, usize>,
}

impl SafetensorsFiles {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A missing, truncated or damaged file is named.
    pub(super) fn open(folder: &Path) -> Result<Self, LoadError> {
        let index = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        if single.exists() {
            Self::open_files(folder, vec![single])
        } else if index.exists() {
            Self::open_files(folder, shards(folder, &index)?)
        } else {
            let problem = "holds no model: a config.json with model.safetensors or \
                           model.safetensors.index.json, or a .gguf file";
            Err(LoadError::file(folder, problem))
        }
    }

    /// Opens these files.
    ///
    /// # Errors
    /// As `open`.
    pub(super) fn open_files(folder: &Path, paths: Vec<PathBuf>) -> Result<Self, LoadError> {
        let mut files = Vec::with_capacity(paths.len());
        let mut index = HashMap::new();
        for path in paths {
            let map = map(&path)?;
            let tensors = SafeTensors::deserialize(&map)
                .map_err(|e| LoadError::file(&path, format!("damaged or truncated safetensors: {e}")))?;
            for name in tensors.names() {
                index.insert(name.to_owned(), files.len());
            }
            files.push((path, map));
        }
        Ok(Self { folder: folder.to_path_buf(), files, index })
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The names of all tensors, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// It is missing.
    pub(super) fn shape(&self, name: &str) -> Result<Vec<usize>, LoadError> {
        self.view(name, |_, view| Ok(view.shape().to_vec()))
    }

    /// The numbers of a tensor, row-major, widened to f32.
    ///
    /// # Errors
    /// As `tensor`.
    pub(super) fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name, shape)?;
        tensor.f32(shape.iter().product()).map_err(|e| LoadError::tensor(&self.folder, name, e))
    }

    /// The files' bytes.
    pub(super) fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|(_, map)| &map[..])
    }

    /// A tensor.
    ///
    /// # Errors
    /// It is missing, of another shape, or of a type other than F32, F16 and BF16.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>, LoadError> {
        self.view(name, |path, view| {
            if view.shape() != shape {
                let problem = format!("has shape {:?}, but config.json asks for {shape:?}", view.shape());
                return Err(LoadError::tensor(path, name, problem));
            }
            let element = match view.dtype() {
                Dtype::F32 => Element::F32,
                Dtype::F16 => Element::F16,
                Dtype::BF16 => Element::Bf16,
                other => {
                    let problem = format!("is stored as {other:?}; supported: F32, F16, BF16");
                    return Err(LoadError::tensor(path, name, problem));
                }
            };
            Stored::new(element, view.data(), shape).map_err(|e| LoadError::tensor(path, name, e))
        })
    }

    fn view<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&Path, TensorView<'a>) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        let file = *self
            .index
            .get(name)
            .ok_or_else(|| LoadError::tensor(&self.folder, name, "is missing from the checkpoint"))?;
        let (path, map) = &self.files[file];
        let tensors = SafeTensors::deserialize(map).map_err(|e| LoadError::file(path, e))?;
        read(path, tensors.tensor(name).map_err(|e| LoadError::tensor(path, name, e))?)
    }
}

/// The files that an index names.
///
/// # Errors
/// The index is damaged, or names a file outside of its folder.
pub(crate) fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let text = crate::files::read_text(index).map_err(|e| LoadError::file(index, e))?;
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
