//! `config.json`: one decoder's shape, whatever its family. The families differ in data alone.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::LoadError;

/// The shape of a decoder-only transformer with rotary positions and gated MLPs.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `d`: the width of the hidden state.
    pub hidden: usize,
    /// The number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// The width of a head; even.
    pub head_dim: usize,
    /// The width of the gated MLP.
    pub intermediate: usize,
    /// `V`: rows of the embeddings.
    pub vocab: usize,
    /// The longest context in tokens.
    pub context: usize,
    /// Added to the mean square before its root.
    pub norm_eps: f64,
    /// The output embedding is the input embedding.
    pub tied: bool,
    /// Query, key and value projections have biases.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
    /// The MLP's projections have biases.
    pub mlp_bias: bool,
    /// Each head's query and key are normalised before the rotation (Qwen3).
    pub qk_norm: bool,
    /// Rotary positions.
    pub rope: Rope,
    /// Of each layer: how many positions a token sees, itself included. `None`: all before it.
    pub windows: Vec<Option<usize>>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How frequencies are stretched to longer contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// Positions are divided by it.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies by the factor, high ones not, between them smoothly.
    Llama3 {
        /// Low frequencies are divided by it.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context the model was first trained on.
        original: f64,
    },
    /// Each frequency divided by its own factor, `[head_dim / 2]`, as GGUF files keep Llama 3.1's.
    Factors(Vec<f32>),
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
}

impl DecoderConfig {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// A missing or damaged file, an unsupported architecture or setting, sizes that do not fit
    /// together: each names the file and the key.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let text = crate::files::read_text(&path).map_err(|e| LoadError::file(&path, e))?;
        Self::parse(&text).map_err(|problem| LoadError::file(&path, problem))
    }

    /// The name of the output embedding's tensor.
    pub(crate) fn head_tensor(&self) -> &'static str {
        if self.tied { "model.embed_tokens.weight" } else { "lm_head.weight" }
    }

    /// Reads the text of a `config.json`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let family = raw.model_type.clone().unwrap_or_default();
        if !["llama", "mistral", "qwen2", "qwen3"].contains(&family.as_str()) {
            let architectures = raw.architectures.unwrap_or_default().join(", ");
            return Err(format!(
                "architecture `{family}` ({architectures}) is not supported; supported model types: llama, mistral, qwen2, qwen3"
            ));
        }
        if raw.quantization_config.is_some() {
            return Err("`quantization_config` is not supported; use an unquantised checkpoint".into());
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|&a| a != "silu") {
            return Err(format!("`hidden_act` {act} is not supported, only silu"));
        }
        let heads = raw.num_attention_heads;
        let kv_heads = raw.num_key_value_heads.unwrap_or(heads);
        for (key, value) in [
            ("hidden_size", raw.hidden_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
            ("intermediate_size", raw.intermediate_size),
            ("vocab_size", raw.vocab_size),
        ] {
            // Bounds far above any real model keep products of sizes from overflowing.
            if value == 0 || value > 1 << 22 {
                return Err(format!("`{key}` is {value}; it must be in 1..=4194304"));
            }
        }
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "`num_attention_heads` {heads} is no multiple of `num_key_value_heads` {kv_heads}"
            ));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1024 {
            return Err(format!("`head_dim` is {head_dim}; it must be even, in 2..=1024"));
        }
        let qwen2 = family == "qwen2";
        Ok(Self {
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            intermediate: raw.intermediate_size,
            vocab: raw.vocab_size,
            context: raw.max_position_embeddings.unwrap_or(2048).clamp(1, 1 << 24),
            norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            tied: raw.tie_word_embeddings.unwrap_or(false),
            qkv_bias: qwen2 || raw.attention_bias.unwrap_or(false),
            output_bias: !qwen2 && raw.attention_bias.unwrap_or(false),
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            qk_norm: family == "qwen3",
            rope: rope(&raw)?,
            windows: windows(&raw, &family)?,
        })
    }
}

/// `rope_parameters` (newer files) or `rope_theta` with `rope_scaling` (older ones).
fn rope(raw: &Raw) -> Result<Rope, String> {
    let settings = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()).filter(|v| !v.is_null());
    let number = |key: &str| settings.and_then(|s| s.get(key)).and_then(Value::as_f64);
    let theta = number("rope_theta").or(raw.rope_theta).unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(format!("`rope_theta` is {theta}; it must be above 0"));
    }
    let kind = settings
        .and_then(|s| s.get("rope_type").or_else(|| s.get("type")))
        .and_then(Value::as_str)
        .unwrap_or("default");
    let need = |key: &str| {
        number(key)
            .filter(|v| v.is_finite() && *v > 0.0)
            .ok_or_else(|| format!("rope scaling `{kind}` needs `{key}`, a number above 0"))
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: need("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original: need("original_max_position_embeddings")?,
        },
        other => {
            return Err(format!(
                "rope scaling `{other}` is not supported; supported: default, linear, llama3"
            ));
        }
    };
    Ok(Rope { theta, scaling })
}

fn windows(raw: &Raw, family: &str) -> Result<Vec<Option<usize>>, String> {
    let layers = raw.num_hidden_layers;
    // Mistral's window holds for all layers; Qwen's is off unless switched on, and then for those
    // from `max_window_layers` on, unless `layer_types` names each.
    let on = match family {
        "mistral" => true,
        "qwen2" | "qwen3" => raw.use_sliding_window.unwrap_or(false),
        _ => false,
    };
    let Some(window) = raw.sliding_window.filter(|_| on) else {
        return Ok(vec![None; layers]);
    };
    if window == 0 {
        return Err("`sliding_window` is 0; it must be at least 1, or null".into());
    }
    if let Some(types) = &raw.layer_types {
        if types.len() != layers {
            return Err(format!("`layer_types` has {} entries for {layers} layers", types.len()));
        }
        return Ok(types.iter().map(|t| (t == "sliding_attention").then_some(window)).collect());
    }
    let first = if family == "mistral" { 0 } else { raw.max_window_layers.unwrap_or(28) };
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(edit: impl FnOnce(&mut Value)) -> Result<DecoderConfig, String> {
        let mut json = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100
        });
        edit(&mut json);
        DecoderConfig::parse(&json.to_string())
    }

    #[test]
    fn what_is_absent_has_the_families_own_defaults() {
        let llama = parse(|_| ()).unwrap();
        assert_eq!((llama.head_dim, llama.tied, llama.qkv_bias), (16, false, false));
        assert_eq!(llama.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
        let qwen = parse(|j| j["model_type"] = "qwen2".into()).unwrap();
        assert!(qwen.qkv_bias && !qwen.output_bias);
    }

    #[test]
    fn windows_follow_the_family() {
        let mistral = parse(|j| {
            j["model_type"] = "mistral".into();
            j["sliding_window"] = 8.into();
        });
        assert_eq!(mistral.unwrap().windows, vec![Some(8); 3]);
        let off = parse(|j| {
            j["model_type"] = "qwen2".into();
            j["sliding_window"] = 8.into();
        });
        assert_eq!(off.unwrap().windows, vec![None; 3]);
        let upper = parse(|j| {
            j["model_type"] = "qwen2".into();
            j["sliding_window"] = 8.into();
            j["use_sliding_window"] = true.into();
            j["max_window_layers"] = 2.into();
        });
        assert_eq!(upper.unwrap().windows, vec![None, None, Some(8)]);
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let scaling = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        let old = parse(|j| {
            j["rope_theta"] = 500_000.0.into();
            j["rope_scaling"] = scaling.clone();
        });
        let new = parse(|j| {
            j["rope_parameters"] = scaling.clone();
            j["rope_parameters"]["rope_theta"] = 500_000.0.into();
        });
        assert_eq!(old.unwrap().rope, new.unwrap().rope);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (edit, named) in [
            (("model_type", Value::from("mamba")), "mamba"),
            (("hidden_act", "gelu".into()), "gelu"),
            (("num_key_value_heads", 3.into()), "num_key_value_heads"),
            (("vocab_size", 0.into()), "vocab_size"),
            (("rope_scaling", serde_json::json!({"type": "yarn"})), "yarn"),
            (("quantization_config", serde_json::json!({})), "quantization_config"),
        ] {
            let error = parse(|j| j[edit.0] = edit.1).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
