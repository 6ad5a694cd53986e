//! The fast forms of a decoding step: linear, attention, select, score, fuse_sample.
//!
//! All work on plain row-major slices. A row's numbers never depend on its company: every sum has
//! one fixed order, so that its bits are the same alone or in a batch, with any number of threads,
//! and with AVX-512, AVX2 or no SIMD at all.

mod attention;
mod bandwidth;
pub mod cuda;
mod disjoint;
mod embedding;
mod error;
mod fuse_sample;
mod linear;
mod mlp;
mod norm;
mod place;
mod rope;
mod score;
mod select;
mod simd;
mod team;
mod threads;

pub use attention::{AttentionRow, AttentionShape, paged_attention, write_kv};
pub use bandwidth::ReadProbe;
pub use embedding::EmbeddingTable;
pub use error::KernelError;
pub use fuse_sample::{Chosen, FuseRow, fuse_sample};
pub use linear::{Format, Linear};
pub use mlp::{add_assign, swiglu};
pub use norm::rms_norm;
pub use rope::rope;
pub use score::{Reference, ScoreJob, score};
pub use select::{Edits, SelectRow, select, select_row};
pub use threads::Threads;
