//! A decoder's shape from the metadata of a GGUF file.

use std::collections::HashMap;

use half::f16;
use serde_json::{Value, json};

use super::{Tensor, metadata::Metadata, names};
use crate::{DecoderConfig, RopeScaling, checkpoint::stored::Element};

const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// What `config.json` calls it, and what follows the architecture in a GGUF key.
const KEYS: [(&str, &str); 9] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("intermediate_size", "feed_forward_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
];

/// Reads the shape, with the checks of `config.json`. What that file says and a GGUF file does not (tied
/// embeddings, biases) is seen by the tensors.
///
/// # Errors
/// A key is missing or wrong, or the architecture or a setting is not supported: each is named.
pub(super) fn read(
    metadata: &Metadata,
    tensors: &HashMap<String, Tensor>,
    bytes: &[u8],
) -> Result<DecoderConfig, String> {
    let architecture =
        metadata.text("general.architecture")?.ok_or("has no `general.architecture`: it is no model")?;
    if !ARCHITECTURES.contains(&architecture) {
        let supported = ARCHITECTURES.join(", ");
        return Err(format!("architecture `{architecture}` is not supported; supported: {supported}"));
    }
    if let Some(name) = tensors.keys().filter(|name| !names::is_known(name)).min() {
        return Err(format!("tensor `{name}` is none that the architecture `{architecture}` has here"));
    }
    let settings = Settings { metadata, architecture };
    let has = |tensor: &str| tensors.contains_key(tensor);
    let vocab = tensors.get("token_embd.weight").ok_or("has no tensor `token_embd.weight`")?.shape[0];
    let json = settings.json(vocab, !has("output.weight"))?;
    let config = DecoderConfig::parse(&json.to_string()).map_err(|problem| settings.translate(problem))?;
    for key in ["rope.dimension_count", "attention.value_length"] {
        if let Some(n) = settings.integer(key)?.filter(|&n| n != config.head_dim as u64) {
            let dim = config.head_dim;
            return Err(format!(
                "`{architecture}.{key}` is {n}; only {dim}, the width of a head, is supported"
            ));
        }
    }
    let mut rope = config.rope.clone();
    if let Some(tensor) = tensors.get("rope_freqs.weight") {
        rope.scaling = RopeScaling::Factors(factors(tensor, bytes, config.head_dim / 2)?);
    }
    Ok(DecoderConfig {
        rope,
        qkv_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        ..config
    })
}

/// By what each rotary frequency is divided, as llama.cpp keeps Llama 3's scaling.
fn factors(tensor: &Tensor, bytes: &[u8], wanted: usize) -> Result<Vec<f32>, String> {
    let data = &bytes[tensor.bytes.clone()];
    let values: Vec<f32> = match tensor.kind.element() {
        Element::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Element::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => return Err("tensor `rope_freqs.weight` must be F32 or F16".to_owned()),
    };
    if values.len() != wanted || values.iter().any(|v| !v.is_finite() || *v <= 0.0) {
        return Err(format!("tensor `rope_freqs.weight` must hold {wanted} numbers above 0"));
    }
    Ok(values)
}

struct Settings<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Settings<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, String> {
        self.metadata.integer(&self.key(key))
    }

    /// A number, or a list with one for each layer, all the same.
    fn uniform(&self, key: &str) -> Result<Option<u64>, String> {
        let key = self.key(key);
        let Some(values) = self.metadata.numbers(&key)? else { return Ok(None) };
        match values.split_first() {
            Some((first, rest)) if rest.iter().all(|v| v == first) && *first >= 0.0 => {
                Ok(Some(*first as u64))
            }
            _ => Err(format!("`{key}` differs from layer to layer, which is not supported")),
        }
    }

    /// The settings in the words of `config.json`.
    fn json(&self, vocab: usize, tied: bool) -> Result<Value, String> {
        if self.integer("expert_count")?.is_some_and(|n| n > 0) {
            return Err("is a mixture of experts, which is not supported".to_owned());
        }
        let need = |value: Option<u64>, key: &str| {
            value.ok_or_else(|| format!("has no `{}`: it is no model", self.key(key)))
        };
        let heads = need(self.uniform("attention.head_count")?, "attention.head_count")?;
        let mut json = json!({
            "model_type": self.architecture,
            "hidden_size": need(self.integer("embedding_length")?, "embedding_length")?,
            "num_hidden_layers": need(self.integer("block_count")?, "block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.uniform("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": self.integer("attention.key_length")?,
            "intermediate_size": need(self.uniform("feed_forward_length")?, "feed_forward_length")?,
            "vocab_size": vocab,
            "max_position_embeddings": self.integer("context_length")?,
            "rms_norm_eps": self.metadata.number(&self.key("attention.layer_norm_rms_epsilon"))?,
            "rope_theta": self.metadata.number(&self.key("rope.freq_base"))?,
            "tie_word_embeddings": tied,
        });
        // Mistral is llama with a window. llama.cpp knows no window for the Qwens.
        if let Some(window) = self.integer("attention.sliding_window")?.filter(|&n| n > 0)
            && self.architecture == "llama"
        {
            json["model_type"] = "mistral".into();
            json["sliding_window"] = window.into();
        }
        let old = self.metadata.number(&self.key("rope.scale_linear"))?.filter(|&f| f != 1.0);
        let kind = self.metadata.text(&self.key("rope.scaling.type"))?.filter(|&k| k != "none");
        let factor = self.metadata.number(&self.key("rope.scaling.factor"))?.or(old);
        if let Some(kind) = kind.or(old.map(|_| "linear")) {
            json["rope_scaling"] = json!({"type": kind, "factor": factor});
        }
        Ok(json)
    }

    /// A problem in the words of `config.json`, in this file's.
    fn translate(&self, problem: String) -> String {
        KEYS.iter().fold(problem, |problem, (own, gguf)| {
            problem.replace(&format!("`{own}`"), &format!("`{}`", self.key(gguf)))
        })
    }
}
