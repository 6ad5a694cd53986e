//! The base model: a decoder and its output head.

use std::sync::Arc;

use attune_kernels::{Linear, Threads};
use candle_core::Tensor;

use crate::{Assets, Decoder, ForwardError, LoadError, LoadOptions, ModelPath, ops};

/// The model that decides every token.
pub struct BaseModel {
    /// Configuration, tokenizer and names.
    pub assets: Arc<Assets>,
    /// The layers.
    pub decoder: Decoder,
    head: Linear,
    threads: Threads,
}

impl BaseModel {
    /// Loads a checkpoint: a folder, a GGUF file, or either with an adapter on it.
    ///
    /// # Errors
    /// Names the file and the tensor at fault.
    pub fn load(path: impl Into<ModelPath>, id: &str, options: &LoadOptions) -> Result<Self, LoadError> {
        let (assets, checkpoint) = Assets::open(path, id, options)?;
        let config = &assets.config;
        let shape = [config.vocab, config.hidden];
        let embedding = Arc::new(checkpoint.table("model.embed_tokens.weight", shape, options.format)?);
        let head = [(config.head_tensor().to_owned(), config.vocab)];
        Ok(Self {
            decoder: Decoder::load(config, &checkpoint, embedding, options)?,
            head: checkpoint.linear(&head, config.hidden, None, options.format)?,
            threads: options.threads.clone(),
            assets: Arc::new(assets),
        })
    }

    /// The logits of hidden states: `[rows, d]` to `[rows, V]`, row-major.
    ///
    /// # Errors
    /// The device failed.
    pub fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>, ForwardError> {
        self.logits_on(hidden, &self.threads)
    }

    /// [`Self::logits`] on threads of the caller's own.
    ///
    /// # Errors
    /// The device failed.
    pub fn logits_on(&self, hidden: &Tensor, threads: &Threads) -> Result<Vec<f32>, ForwardError> {
        if hidden.dim(0)? == 0 {
            return Ok(Vec::new());
        }
        let logits = ops::linear(hidden, &self.head, threads)?;
        Ok(logits.flatten_all()?.to_vec1()?)
    }
}
