//! What a checkpoint folder holds beside its weights, the same for base and reward models.

use std::path::{Path, PathBuf};

use attune_kernels::{Format, Threads};
use serde_json::Value;

use crate::{ChatTemplate, Checkpoint, DecoderConfig, LoadError, Tokenizer};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How matrices are stored. `None`: as in the checkpoint.
    pub format: Option<Format>,
    /// The longest context to make room for. `None`: the model's own.
    pub context: Option<usize>,
    /// The cores to compute on.
    pub threads: Threads,
}

/// A checkpoint folder, opened.
pub struct Assets {
    /// The folder.
    pub folder: PathBuf,
    /// The folder's name, or the hub id it came by.
    pub id: String,
    /// A fingerprint of the weights, hexadecimal.
    pub revision: String,
    /// The decoder's shape, its context limited as the options say.
    pub config: DecoderConfig,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Conversations to text.
    pub chat: ChatTemplate,
    /// The ids that end a text.
    pub eos: Vec<u32>,
    /// How matrices are stored.
    pub format: Format,
}

impl Assets {
    /// Reads everything of a folder but its weights, and opens these.
    ///
    /// # Errors
    /// What is missing, damaged or unsupported is named with its file.
    pub fn open(folder: &Path, id: &str, options: &LoadOptions) -> Result<(Self, Checkpoint), LoadError> {
        if !folder.is_dir() {
            return Err(LoadError::file(folder, "is no folder; give a checkpoint folder or a hub id"));
        }
        let mut config = DecoderConfig::load(folder)?;
        if let Some(context) = options.context {
            config.context = config.context.min(context.max(1));
        }
        let checkpoint = Checkpoint::open(folder)?;
        let assets = Self {
            folder: folder.to_path_buf(),
            id: id.to_owned(),
            revision: checkpoint.fingerprint(),
            tokenizer: Tokenizer::load(folder)?,
            chat: ChatTemplate::load(folder)?,
            eos: eos(folder, config.vocab)?,
            format: options.format.unwrap_or_else(|| checkpoint.format("model.embed_tokens.weight")),
            config,
        };
        Ok((assets, checkpoint))
    }

    /// The name of the storage format: "f32", "bf16", "f16" or "q8".
    pub fn dtype(&self) -> &'static str {
        match self.format {
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
            Format::Q8 => "q8",
        }
    }
}

/// The end-of-text ids: `generation_config.json`'s, else `config.json`'s; one number or a list.
fn eos(folder: &Path, vocab: usize) -> Result<Vec<u32>, LoadError> {
    for file in ["generation_config.json", "config.json"] {
        let path = folder.join(file);
        if !path.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| LoadError::file(&path, e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| LoadError::file(&path, e))?;
        let ids: Vec<u64> = match &json["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
            one => one.as_u64().into_iter().collect(),
        };
        if ids.iter().any(|&id| id >= vocab as u64) {
            return Err(LoadError::file(&path, "`eos_token_id` lies outside the vocabulary"));
        }
        return Ok(ids.into_iter().map(|id| id as u32).collect());
    }
    Ok(Vec::new())
}
