//! What can go wrong with a model's files, and in a forward pass.

use std::path::{Path, PathBuf};

use attune_kernels::cuda::CudaError;

/// A checkpoint that cannot be loaded. Each names what is at fault.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing, damaged, or says something unsupported.
    #[error("{path}: {problem}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A tensor is missing or of another shape than the configuration says.
    #[error("{path}: tensor `{tensor}`: {problem}")]
    Tensor {
        /// The safetensors file, or the folder where no file has it.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Anything else, in a sentence.
    #[error("{0}")]
    Other(String),
}

impl LoadError {
    /// A problem with a file.
    pub(crate) fn file(path: &Path, problem: impl ToString) -> Self {
        Self::File { path: path.to_path_buf(), problem: problem.to_string() }
    }

    /// A problem with a tensor.
    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl ToString) -> Self {
        Self::Tensor { path: path.to_path_buf(), tensor: tensor.to_owned(), problem: problem.to_string() }
    }
}

impl From<attune_kernels::KernelError> for LoadError {
    fn from(error: attune_kernels::KernelError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<CudaError> for LoadError {
    fn from(error: CudaError) -> Self {
        Self::Other(error.to_string())
    }
}

/// A forward pass that failed as a whole: a fault of the device or of this program, never of one row.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// On a CPU.
    #[error("the forward pass failed: {0}")]
    Cpu(#[from] candle_core::Error),
    /// On a card.
    #[error("the forward pass failed: {0}")]
    Card(#[from] CudaError),
    /// Something lies on other hardware than the model.
    #[error("the forward pass failed: {0} lies on other hardware than the model")]
    Elsewhere(String),
}

impl ForwardError {
    /// Whether the device's memory was too small for this pass; a smaller one may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Card(CudaError::OutOfMemory(_)))
    }

    /// Whether nothing that follows on this device can be relied on.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Card(error) if !error.is_recoverable())
    }
}
