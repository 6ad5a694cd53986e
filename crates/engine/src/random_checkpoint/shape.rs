//! The dimensions of a random checkpoint and its `config.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::tensors::Storage;
use super::{WriteError, tokenizer};

/// Architectures that a random checkpoint can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2 and 3.
    Llama,
    /// Mistral (with `sliding_window` where the shape has one).
    Mistral,
    /// Qwen 2 and 2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen 3: a norm on each head's query and key.
    Qwen3,
}

/// Llama 3's scaling of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// Stretch of the low frequencies, above 0.
    pub factor: f32,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched.
    pub low_freq_factor: f32,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` stay.
    pub high_freq_factor: f32,
    /// Context of the first training, in tokens.
    pub original_max_position_embeddings: usize,
}

/// The dimensions of a random checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Architecture.
    pub family: Family,
    /// Width of the hidden state, `d`.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Rows of the embedding, at least 262 (the tokenizer's special tokens and bytes). The
    /// tokenizer has `min(vocab, 4096)` ids; the rest are ids without text.
    pub vocab: usize,
    /// The output embedding is the input embedding.
    pub tied: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Llama 3's frequency scaling; absent: none.
    #[serde(default)]
    pub rope_scaling: Option<Llama3Scaling>,
    /// Mistral's attention window in tokens; absent: the whole context.
    #[serde(default)]
    pub sliding_window: Option<usize>,
    /// Longest context in tokens.
    pub max_position: usize,
    /// Standard deviation of the weight matrices.
    pub std: f32,
}

impl Shape {
    /// A shape for tests: 2 layers, `d` = 64, 512 ids; written in milliseconds. The weights are
    /// wide enough for sharp attention, so that a wrong position or mask shows.
    #[must_use]
    pub fn tiny(family: Family) -> Self {
        Self {
            family,
            hidden: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate: 160,
            vocab: 512,
            tied: false,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            max_position: 512,
            std: 0.2,
        }
    }

    /// The benchmarks' 'small' Llama: about 41M weights.
    #[must_use]
    pub fn small() -> Self {
        Self {
            family: Family::Llama,
            hidden: 512,
            layers: 8,
            heads: 8,
            kv_heads: 4,
            head_dim: 64,
            intermediate: 1536,
            vocab: 32_000,
            tied: false,
            rope_theta: 500_000.0,
            rope_scaling: None,
            sliding_window: None,
            max_position: 2048,
            std: 0.06,
        }
    }

    /// The benchmarks' 'medium' Llama: about 303M weights, 1.2 GB on disk.
    #[must_use]
    pub fn medium() -> Self {
        Self { hidden: 1024, layers: 24, heads: 16, intermediate: 2816, std: 0.05, ..Self::small() }
    }

    /// The shape of Llama 3.2's model of 1.2 billion weights.
    #[must_use]
    pub fn one_billion() -> Self {
        Self {
            hidden: 2048,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            intermediate: 8192,
            vocab: 128_256,
            tied: true,
            max_position: 4096,
            std: 0.03,
            ..Self::small()
        }
    }

    /// The shape of Llama 3.1's model of 8 billion weights.
    #[must_use]
    pub fn eight_billion() -> Self {
        Self {
            hidden: 4096,
            layers: 32,
            head_dim: 128,
            intermediate: 14_336,
            tied: false,
            std: 0.02,
            ..Self::one_billion()
        }
    }

    pub(super) fn check(&self) -> Result<(), WriteError> {
        let refuse = |why: &str| Err(WriteError::Shape(why.to_owned()));
        let sizes =
            [self.hidden, self.layers, self.heads, self.kv_heads, self.intermediate, self.max_position];
        if sizes.contains(&0) {
            return refuse("every size must be at least 1");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return refuse("kv_heads must divide heads");
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return refuse("head_dim must be even and above 0");
        }
        if self.vocab < tokenizer::MIN_VOCAB {
            return refuse("vocab must be at least 262, for the special tokens and the bytes");
        }
        if !(self.std.is_finite() && self.std > 0.0) {
            return refuse("std must be finite and above 0");
        }
        if self.sliding_window.is_some() && self.family != Family::Mistral {
            return refuse("sliding_window belongs to the family mistral");
        }
        Ok(())
    }

    /// `config.json` with every key that transformers and this engine read.
    pub(super) fn config(&self, storage: Storage) -> Value {
        let (architecture, model_type, eps) = match self.family {
            Family::Llama => ("LlamaForCausalLM", "llama", 1e-5),
            Family::Mistral => ("MistralForCausalLM", "mistral", 1e-5),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2", 1e-6),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3", 1e-6),
        };
        let scaling = self.rope_scaling.map(|s| {
            json!({
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
            })
        });
        let mut config = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "attention_dropout": 0.0,
            "bos_token_id": tokenizer::BOS_ID,
            "eos_token_id": tokenizer::EOS_ID,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_position,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": eps,
            "rope_scaling": scaling,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied,
            "torch_dtype": storage.torch_name(),
            "use_cache": true,
            "vocab_size": self.vocab,
        });
        let extra = match self.family {
            Family::Llama => json!({"attention_bias": false, "mlp_bias": false, "pretraining_tp": 1}),
            Family::Mistral => json!({"sliding_window": self.sliding_window}),
            // Published Qwen configurations carry a window that `use_sliding_window` turns off.
            Family::Qwen2 => json!({
                "use_sliding_window": false, "sliding_window": self.max_position,
                "max_window_layers": self.layers,
            }),
            Family::Qwen3 => json!({
                "attention_bias": false, "use_sliding_window": false, "sliding_window": null,
                "max_window_layers": self.layers,
            }),
        };
        if let (Some(config), Value::Object(extra)) = (config.as_object_mut(), extra) {
            config.extend(extra);
        }
        config
    }
}
