//! Writes trained models in Hugging Face's layout.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use candle_core::DType;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::model::{Llama, ModelConfig};
use crate::tokenizer::{self, END, PAD, START};

/// The contents of `config.json`.
pub fn model_config(config: &ModelConfig) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": START,
        "eos_token_id": END,
        "head_dim": config.head(),
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.04,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": null,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": config.vocab_size,
    })
}

/// Writes `config.json` and `model.safetensors` (bf16) into `folder`, which is made.
///
/// # Errors
/// A folder that cannot be written, named.
pub fn write_weights(folder: &Path, model: &Llama) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_json(&folder.join("config.json"), &model_config(model.config()))?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in model.tensors() {
        tensors.insert(name, tensor.to_dtype(DType::BF16)?);
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    fs::write(&path, safetensors::serialize(tensors, Some(metadata))?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a checkpoint that [`write_checkpoint`] wrote.
///
/// # Errors
/// A missing file, named; tensors that do not match the configuration.
pub fn read_checkpoint(folder: &Path) -> Result<(Llama, Tokenizer)> {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: ModelConfig =
        serde_json::from_str(&text).with_context(|| format!("{} is no Llama's", path.display()))?;
    let path = folder.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let path = folder.join("tokenizer.json");
    let tokenizer =
        Tokenizer::from_file(&path).map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
    Ok((Llama::from_tensors(config, &tensors.into_iter().collect())?, tokenizer))
}

/// Writes a whole checkpoint: weights, tokenizer and generation settings.
///
/// # Errors
/// A folder that cannot be written, named.
pub fn write_checkpoint(folder: &Path, model: &Llama, tokenizer: &Tokenizer) -> Result<()> {
    write_weights(folder, model)?;
    let path = folder.join("tokenizer.json");
    tokenizer.save(&path, false).map_err(|error| anyhow!("cannot write {}: {error}", path.display()))?;
    write_json(
        &folder.join("tokenizer_config.json"),
        &tokenizer::config(model.config().max_position_embeddings),
    )?;
    let generation = json!({"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD, "do_sample": true, "temperature": 1.0, "top_k": 10});
    write_json(&folder.join("generation_config.json"), &generation)
}

/// Writes a PersRM: a checkpoint, `attune.json` and the reference's weights.
///
/// # Errors
/// A folder that cannot be written, named.
pub fn write_persrm(
    folder: &Path,
    model: &Llama,
    reference: &Llama,
    tokenizer: &Tokenizer,
    beta: f64,
) -> Result<()> {
    write_checkpoint(folder, model, tokenizer)?;
    let attune = json!({
        "template": tokenizer::PREFERENCE_TEMPLATE,
        "weights": "ones",
        "reference": "model",
        "reference_model": "reference",
        "beta": beta,
    });
    write_json(&folder.join("attune.json"), &attune)?;
    write_weights(&folder.join("reference"), reference)
}

/// Writes indented JSON with a final newline.
///
/// # Errors
/// A file that cannot be written, named.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
