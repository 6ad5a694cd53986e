//! Where a model lies: its weights, and perhaps an adapter on them.

use std::path::{Path, PathBuf};

use super::adapter;

/// A checkpoint folder or GGUF file, with the folder of a LoRA adapter that is worn on it, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPath {
    /// The weights.
    pub base: PathBuf,
    /// The adapter, which is merged into them while they load.
    pub adapter: Option<PathBuf>,
}

impl ModelPath {
    /// An adapter on a base.
    pub fn adapted(base: impl Into<PathBuf>, adapter: impl Into<PathBuf>) -> Self {
        Self { base: base.into(), adapter: Some(adapter.into()) }
    }

    /// Whether a folder holds a PEFT adapter, and no model of its own.
    pub fn is_adapter(folder: &Path) -> bool {
        adapter::is_adapter(folder)
    }

    /// The folder or file that the model is called by: the adapter's, where there is one.
    pub fn own(&self) -> &Path {
        self.adapter.as_deref().unwrap_or(&self.base)
    }
}

impl<T: AsRef<Path> + ?Sized> From<&T> for ModelPath {
    fn from(path: &T) -> Self {
        Self { base: path.as_ref().to_path_buf(), adapter: None }
    }
}
