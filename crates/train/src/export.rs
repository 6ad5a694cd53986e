//! Writes trained models in Hugging Face's layout.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use attune_engine::{DefaultReference, PersRmSettings, WeightsForm};
use candle_core::{DType, Tensor, Var};
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
    write_tensors(&folder.join("model.safetensors"), model, DType::BF16)
}

/// Writes `config.json`, as another folder has it, and `model.safetensors` in `dtype` into `folder`, which is
/// made.
///
/// # Errors
/// A file that cannot be read or written, named.
pub fn write_like(folder: &Path, like: &Path, model: &Llama, dtype: DType) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    copy(like, folder, "config.json".as_ref())?;
    write_tensors(&folder.join("model.safetensors"), model, dtype)
}

fn write_tensors(path: &Path, model: &Llama, dtype: DType) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in model.tensors() {
        tensors.insert(name, tensor.to_dtype(dtype)?);
    }
    write_safetensors(path, tensors)
}

/// Writes trained variables as a file of bf16 tensors.
///
/// # Errors
/// A file that cannot be written, named.
pub fn write_vars(path: &Path, vars: &BTreeMap<String, Var>) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, var) in vars {
        tensors.insert(name.clone(), var.as_detached_tensor().to_dtype(DType::BF16)?);
    }
    write_safetensors(path, tensors)
}

fn write_safetensors(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<()> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::write(path, safetensors::serialize(tensors, Some(metadata))?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What stands beside the weights of a model: tokenizer, templates, settings of generation.
const TEXT_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
];

/// Copies what stands beside the weights of a model, as far as it is there.
///
/// # Errors
/// A file that cannot be read or written, named.
pub fn copy_text_files(from: &Path, to: &Path) -> Result<()> {
    let there = TEXT_FILES.iter().filter(|name| from.join(name).exists());
    there.into_iter().try_for_each(|name| copy(from, to, name.as_ref()))
}

/// Copies the files of a folder but those of these names, and none of the folders within it. Nothing is done
/// where both are one.
///
/// # Errors
/// A file that cannot be read or written, named.
pub fn copy_files(from: &Path, to: &Path, but: &[&str]) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    if from.canonicalize().ok() == to.canonicalize().ok() {
        return Ok(());
    }
    let unreadable = || format!("cannot read {}", from.display());
    for entry in fs::read_dir(from).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let left_out = but.iter().any(|name| entry.file_name() == *name);
        if entry.path().is_file() && !left_out {
            copy(from, to, &entry.file_name())?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, name: &OsStr) -> Result<()> {
    let (from, to) = (from.join(name), to.join(name));
    let copied = fs::copy(&from, &to);
    copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display())).map(drop)
}

/// Reads a checkpoint with its tokenizer.
///
/// # Errors
/// A missing file, named; tensors that do not match the configuration.
pub fn read_checkpoint(folder: &Path) -> Result<(Llama, Tokenizer)> {
    Ok((crate::open::weights(folder)?, read_tokenizer(folder)?))
}

/// Reads the tokenizer of a checkpoint.
///
/// # Errors
/// A missing or damaged file, named.
pub fn read_tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    Tokenizer::from_file(&path).map_err(|error| anyhow!("cannot read {}: {error}", path.display()))
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

/// Writes a PersRM of both stages but for its head: a checkpoint, `attune.json` and the reference's weights.
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
    let settings = PersRmSettings {
        template: Some(tokenizer::PREFERENCE_TEMPLATE.to_owned()),
        weights: WeightsForm::HeadAsIs,
        reference: Some(DefaultReference::Model),
        reference_model: Some("reference".to_owned()),
        beta: Some(beta),
        latent: None,
        prior: None,
    };
    write_json(&folder.join(PersRmSettings::FILE), &serde_json::to_value(settings)?)?;
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
