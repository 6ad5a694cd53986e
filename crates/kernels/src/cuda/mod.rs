//! The same kernels on NVIDIA GPUs: CUDA C++ in `cuda/`, compiled at start by NVRTC, launched through
//! cudarc on the caller's stream.
//!
//! [`pack`] lays a call's rows out as the kernels read them, and reads their results; it is plain data, so
//! that a test runs the sources on a CPU with the very arrays that a card would get.

mod compile;
mod error;
pub mod pack;
mod source;

pub use compile::{Cache, Nvrtc};
pub use error::CudaError;
pub use source::{Element, HeadSize, Program};
