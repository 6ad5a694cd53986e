//! What can be wrong with the numbers that a kernel is built from.

/// A kernel cannot be built from what was given.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A slice has another length than its shape says.
    #[error(
        "{what} has {got} values where its shape needs {want}: the checkpoint does not fit its configuration"
    )]
    Shape {
        /// What the slice holds.
        what: &'static str,
        /// The length that the shape needs.
        want: usize,
        /// The length that came.
        got: usize,
    },
    /// A dimension that must be a multiple is not.
    #[error("{what} is {got} where a multiple of {of} is needed")]
    Multiple {
        /// The dimension.
        what: &'static str,
        /// Of what it must be a multiple.
        of: usize,
        /// Its value.
        got: usize,
    },
    /// The operating system refused a thread.
    #[error("cannot start compute threads: {0}; lower `threads`")]
    Threads(String),
}

pub(crate) fn check_len(what: &'static str, got: usize, want: usize) -> Result<(), KernelError> {
    if got == want { Ok(()) } else { Err(KernelError::Shape { what, want, got }) }
}
