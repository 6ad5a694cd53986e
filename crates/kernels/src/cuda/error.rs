//! What can go wrong between the host and a card.

use cudarc::{
    cublas::{result::CublasError, sys::cublasStatus_t},
    driver::{DriverError, sys::CUresult},
};

/// A failure on the way to a card, or on it.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// A library is not on this machine.
    #[error("{library} cannot be loaded: {problem}; {remedy}")]
    Library {
        /// Its file name.
        library: String,
        /// What the loader says.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// NVRTC refused a source.
    #[error("{program} does not compile for {arch}: {log}")]
    Compile {
        /// The kernel's name.
        program: &'static str,
        /// The card's architecture, such as sm_90.
        arch: String,
        /// NVRTC's log.
        log: String,
    },
    /// A kernel cannot be used as it was asked for, or the card cannot be used at all.
    #[error("{0}")]
    Unsupported(String),
    /// The card's memory is full. What was asked for has no effect, and the card works on.
    #[error("the card's memory is full: {0}; use a smaller model, a lower cache_mib, or another card")]
    OutOfMemory(String),
    /// The driver or the matrix library failed: nothing that follows on this card can be relied on.
    #[error("the card failed: {what}: {problem}")]
    Device {
        /// What was under way.
        what: &'static str,
        /// What the library says.
        problem: String,
    },
}

impl CudaError {
    /// Whether only what was asked for failed, and the card works on.
    pub fn is_recoverable(&self) -> bool {
        !matches!(self, Self::Device { .. })
    }

    pub(super) fn driver(what: &'static str, error: DriverError) -> Self {
        if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Self::OutOfMemory(format!("{what} needs more"));
        }
        Self::Device { what, problem: described(error) }
    }

    pub(super) fn blas(what: &'static str, error: CublasError) -> Self {
        if error.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED {
            return Self::OutOfMemory(format!("{what} needs more"));
        }
        Self::Device { what, problem: format!("{:?}", error.0) }
    }
}

/// The driver's code and what it says of it. The loaded driver knows codes that these bindings do not.
fn described(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    format!("{:?}: {}", error.0, text.unwrap_or_else(|_| "no description".into()))
}
