//! The same kernels on NVIDIA GPUs: CUDA C++ in `cuda/`, compiled at start by NVRTC, launched through
//! cudarc, with cuBLAS for matrix products. The driver and both libraries are loaded when a card is asked
//! for, so that one binary serves machines with and without one.
//!
//! [`pack`] lays a call's rows out as the kernels read them, and reads their results; it is plain data, so
//! that a test runs the sources on a CPU with the very arrays that a card would get. A [`Gpu`] launches
//! them: `step` what a decoding step needs beside the model, `layers` the model.

mod blas;
mod compile;
mod error;
mod gpu;
mod layers;
mod matrix;
pub mod pack;
mod source;
mod step;

pub use compile::{Cache, Nvrtc};
pub use error::CudaError;
pub use gpu::{Array, Gpu};
pub use layers::{CardLinear, CardRope, Pass, PassRows, head_size};
pub use matrix::Matrix;
pub use source::{Element, HeadSize, Program};
pub use step::{CardRow, CardScore, FuseSample, Score, Select};
