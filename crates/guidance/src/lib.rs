//! PAD's maths as a specification: candidates, rewards, fusion and sampling, for one row at a time.
//!
//! Everything here is a pure function over at most 64 numbers, computed in double precision. On a
//! CPU it is also what the services run: so few numbers a row need no faster form. The forms for
//! accelerators in `attune-kernels` are tested against it.
//!
//! Notation as in PAD (Chen et al., ICLR 2025): `s` the tokens so far, `a` a candidate next token,
//! `C` the candidate set, `r_j` the reward under preference `j`.
#![forbid(unsafe_code)]

mod candidates;
mod fuse;
mod noise;
mod reward;
mod sample;

pub use candidates::{Candidates, MAX_CANDIDATES};
pub use fuse::{Fused, Term, fuse};
pub use noise::gumbel;
pub use reward::{against_generator, against_model, centred_clip, log_softmax};
pub use sample::{Sampling, choose};

/// A row whose numbers cannot be used. It fails alone, never its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A logit is NaN or positive infinity, or all are masked.
    #[error("the model's logits are not finite: its weights or inputs are damaged")]
    Logits,
    /// A reward is NaN or infinite.
    #[error("a reward is not finite")]
    Reward,
    /// As many rewards as candidates are needed.
    #[error("{got} rewards came for {want} candidates")]
    Length {
        /// The number of candidates.
        want: usize,
        /// The number of rewards.
        got: usize,
    },
}
