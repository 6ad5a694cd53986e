//! The trainers and the demo world they are shown on.
//!
//! Every training is a [`trainer::Task`] in one loop: a language model ([`lm`]), the PersRM's first stage
//! ([`dpo`]) and its second ([`head`]), with candle on the CPU. [`own`] trains on people's own data, from any
//! folder that [`open`] opens.
//!
//! [`demo::make`] makes the embedded pair: it writes a corpus ([`world`]), learns a tokenizer, trains base
//! and PersRM, measures guidance with the world's own judge ([`measure`]) and writes both models in Hugging
//! Face's layout ([`export`]).
#![forbid(unsafe_code)]

pub mod batch;
pub mod card;
mod comparisons;
pub mod curve;
pub mod data;
pub mod decode;
pub mod demo;
pub mod dpo;
pub mod export;
pub mod head;
pub mod latent;
pub mod lm;
pub mod lora;
pub mod measure;
pub mod model;
pub mod open;
pub mod ops;
pub mod optimizer;
pub mod own;
pub mod prior;
pub mod progress;
pub mod rivals;
pub mod saved;
pub mod tokenizer;
pub mod trainer;
pub mod world;
