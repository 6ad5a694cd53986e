//! What can go wrong between the host and a card.

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
    /// A kernel cannot be used as it was asked for.
    #[error("{0}")]
    Unsupported(String),
}
