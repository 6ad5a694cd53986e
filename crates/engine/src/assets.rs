//! What a checkpoint folder holds beside its weights, the same for base and reward models.

use std::path::{Path, PathBuf};

use attune_kernels::{Format, Threads};
use serde_json::Value;

use crate::{ChatTemplate, Checkpoint, DecoderConfig, LoadError, ModelPath, Tokenizer};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How matrices are stored. `None`: each as in the checkpoint.
    pub format: Option<Format>,
    /// The longest context to make room for. `None`: the model's own.
    pub context: Option<usize>,
    /// The cores to compute on.
    pub threads: Threads,
}

/// Cosines that the rotary tables may hold: above a million tokens for any width of a head that is in
/// use, and below what only a damaged file would ask for.
const MOST_ANGLES: usize = 1 << 28;

/// A checkpoint, opened.
pub struct Assets {
    /// The folder, or the one that the GGUF file lies in.
    pub folder: PathBuf,
    /// The name that others know it by.
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
    /// How matrices are stored, as the options say, else as most of the checkpoint is.
    pub format: Format,
}

impl Assets {
    /// Reads everything of a folder or a GGUF file but its weights, and opens these. Of a GGUF file, a
    /// `tokenizer.json` beside it goes before the tokenizer within, with the chat template that it has; so
    /// does one beside an adapter before that of the model that it is worn on.
    ///
    /// # Errors
    /// What is missing, damaged or unsupported is named with its file.
    pub fn open(
        path: impl Into<ModelPath>,
        id: &str,
        options: &LoadOptions,
    ) -> Result<(Self, Checkpoint), LoadError> {
        let path = path.into();
        let checkpoint = Checkpoint::open(path.clone())?;
        let mut config = checkpoint.config()?;
        if let Some(context) = options.context {
            config.context = config.context.min(context.max(1));
        }
        if config.context * config.head_dim > MOST_ANGLES {
            let problem = format!("has a context of {} tokens; limit it with `context`", config.context);
            return Err(LoadError::file(&path.base, problem));
        }
        let own = checkpoint.folder();
        let worn = own.join("tokenizer.json").exists();
        let folder = if worn { own } else { checkpoint.base_folder() };
        let (tokenizer, chat, eos) = match checkpoint.gguf() {
            None => {
                let eos = eos(checkpoint.base_folder(), config.vocab)?;
                (Tokenizer::load(folder)?, ChatTemplate::load(folder)?, eos)
            }
            Some(file) if folder.join("tokenizer.json").exists() => {
                let chat = ChatTemplate::load(folder)?;
                let chat = if chat.usable() { chat } else { file.chat()? };
                (Tokenizer::load(folder)?, chat, file.eos(config.vocab)?)
            }
            Some(file) => (file.tokenizer()?, file.chat()?, file.eos(config.vocab)?),
        };
        let format = match options.format {
            Some(format) => format,
            None => checkpoint
                .format("model.layers.0.mlp.gate_proj.weight", &[config.intermediate, config.hidden])?,
        };
        let assets = Self {
            folder: own.to_path_buf(),
            id: id.to_owned(),
            revision: checkpoint.fingerprint(),
            tokenizer,
            chat,
            eos,
            format,
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
        let text = crate::files::read_text(&path).map_err(|e| LoadError::file(&path, e))?;
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
