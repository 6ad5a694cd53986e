//! Checkpoints made elsewhere, as models that can be trained: any folder that the engine loads, but for what
//! is named here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use attune_engine::{Assets, Checkpoint, DecoderConfig, LoadOptions, ModelPath, RopeScaling, hub};
use attune_kernels::Threads;
use candle_core::{DType, Device, Tensor};

use crate::model::{Llama, ModelConfig, Variant};

/// A model to start from, with its tokenizer and templates.
pub struct Opened {
    /// Its weights, in single precision.
    pub model: Llama,
    /// Tokenizer, chat template, ids that end a text.
    pub assets: Assets,
    /// The folder of its weights; of an adapter, that of its base.
    pub weights: PathBuf,
    /// What the weights are stored as.
    pub dtype: DType,
    checkpoint: Checkpoint,
}

impl Opened {
    /// Opens a folder or hub id, or an adapter with its base, which is merged into it.
    ///
    /// # Errors
    /// What the engine refuses; a GGUF file, whose weights are not meant to be trained; sliding windows.
    pub fn new(model: &str, base_model: Option<&str>) -> Result<Self> {
        Self::at(hub::locate(model, None, base_model)?)
    }

    /// Opens what lies at a path.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn at(path: impl Into<ModelPath>) -> Result<Self> {
        // The threads are for the engine's own passes, of which there are none.
        let options = LoadOptions { format: None, context: None, threads: Threads::new(1)? };
        let (assets, checkpoint) = Assets::open(path, "", &options)?;
        let weights = checkpoint.base_folder().to_path_buf();
        if !weights.join("config.json").exists() {
            bail!("{} has no config.json; training starts from Hugging Face folders", weights.display());
        }
        let dtype = match assets.dtype() {
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            _ => DType::F32,
        };
        let mut model = read(&assets.config, &checkpoint)?;
        if checkpoint.without_adapter().is_some() {
            // The start is the frozen reference too, and will be stored in that type.
            model = model.stored_as(dtype)?;
        }
        Ok(Self { model, assets, weights, dtype, checkpoint })
    }

    /// The same weights with the adapter off. `None`: there is no adapter.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_adapter(&self) -> Result<Option<Llama>> {
        self.checkpoint.without_adapter().map(|base| read(&self.assets.config, &base)).transpose()
    }
}

/// The weights that lie at a path, without tokenizer or templates.
///
/// # Errors
/// As [`Opened::new`].
pub fn weights(path: &Path) -> Result<Llama> {
    let checkpoint = Checkpoint::open(path)?;
    read(&checkpoint.config()?, &checkpoint)
}

fn read(config: &DecoderConfig, checkpoint: &Checkpoint) -> Result<Llama> {
    let config = shape(config)?;
    let mut tensors = BTreeMap::new();
    for (name, shape) in config.shapes() {
        let values = checkpoint.f32(&name, &shape)?;
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Llama::from_tensors(config, &tensors).context("the weights do not fit config.json")
}

fn shape(config: &DecoderConfig) -> Result<ModelConfig> {
    if let Some(window) = config.windows.iter().flatten().find(|window| **window < config.context) {
        bail!("a sliding window of {window} tokens is not supported in training, only full attention");
    }
    Ok(ModelConfig {
        vocab_size: config.vocab,
        hidden_size: config.hidden,
        intermediate_size: config.intermediate,
        num_hidden_layers: config.layers,
        num_attention_heads: config.heads,
        num_key_value_heads: config.kv_heads,
        max_position_embeddings: config.context,
        rms_norm_eps: config.norm_eps,
        rope_theta: config.rope.theta,
        variant: Variant {
            head: (config.head_dim * config.heads != config.hidden).then_some(config.head_dim),
            untied: !config.tied,
            qkv_bias: config.qkv_bias,
            output_bias: config.output_bias,
            mlp_bias: config.mlp_bias,
            qk_norm: config.qk_norm,
            frequencies: (config.rope.scaling != RopeScaling::None)
                .then(|| config.rope.frequencies(config.head_dim)),
        },
    })
}
