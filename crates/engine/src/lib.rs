//! Batched transformer decoding: model families, KV blocks, checkpoints, tokenizers.
//!
//! One forward pass ([`Decoder::forward`]) takes packed rows of any number of sequences, prefill and
//! decode together, each with its own positions and block table. A row's hidden state is the same
//! bits whatever the company, the chunking of its prefill and the number of threads.
#![deny(unsafe_code)]

mod assets;
mod base;
mod chat;
mod checkpoint;
mod config;
mod decoder;
mod error;
mod features;
mod files;
mod gguf;
pub mod hub;
pub mod kv;
mod latent;
mod likelihood;
mod ops;
mod persrm;
mod prior;
pub mod random_checkpoint;
mod rope;
mod settings;
mod shared_prefix;
mod text;
mod tokenizer;

pub use assets::{Assets, LoadOptions};
pub use base::{BaseModel, Logits};
pub use chat::{ChatTemplate, Message, PreferenceTemplate};
pub use checkpoint::{Checkpoint, ModelPath};
pub use config::{DecoderConfig, Rope, RopeScaling};
pub use decoder::{Decoder, Output, SequenceRows};
pub use error::{ForwardError, LoadError};
pub use features::{Feature, PersonWeights, Question};
pub use latent::{Gates, LatentAdapter, LatentShape};
pub use ops::Rows;
pub use persrm::{PersRm, Side};
pub use prior::{PriorShape, WeightPrior};
pub use settings::{DefaultReference, PersRmSettings, WeightsForm};
pub use shared_prefix::SharedPrefix;
pub use text::{Piece, TextError, TextStream};
pub use tokenizer::Tokenizer;
