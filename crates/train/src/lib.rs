//! The trainers and the demo world they are shown on.
//!
//! [`demo::make`] runs everything: it writes a corpus ([`world`]), learns a tokenizer, trains a base
//! ([`lm`]) and a PersRM ([`dpo`]) with candle on the CPU, measures guidance with the world's own judge
//! ([`measure`]) and writes both models in Hugging Face's layout ([`export`]).
#![forbid(unsafe_code)]

pub mod batch;
pub mod card;
pub mod decode;
pub mod demo;
pub mod dpo;
pub mod export;
pub mod latent;
pub mod lm;
pub mod lora;
pub mod measure;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod progress;
pub mod rivals;
pub mod tokenizer;
pub mod world;
