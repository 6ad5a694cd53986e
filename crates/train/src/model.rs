//! A differentiable decoder: the training forward, with Hugging Face's tensor names.
//!
//! It is a second implementation beside the engine's: a Llama with tied embeddings, and by [`Variant`] what
//! Mistral, Qwen2 and Qwen3 have otherwise. The tests hold it against the engine's logits.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::lora::Adapter;
use crate::ops;
use crate::world::dice::Dice;

/// A Llama's shape, with the names of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the hidden state, `d`.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// In what it differs from a Llama with tied embeddings.
    #[serde(skip)]
    pub variant: Variant,
}

/// In what a decoder differs from a Llama with tied embeddings; by default in nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Variant {
    /// Width of a head where it is not the hidden width over the heads.
    pub head: Option<usize>,
    /// The output embedding is a matrix of its own.
    pub untied: bool,
    /// Query, key and value projections have biases.
    pub qkv_bias: bool,
    /// The attention's output projection has a bias.
    pub output_bias: bool,
    /// The projections of the feed-forward layer have biases.
    pub mlp_bias: bool,
    /// Each head's query and key are normalised before the rotation.
    pub qk_norm: bool,
    /// Rotary frequencies where they are not those of `rope_theta` alone, `[head / 2]`.
    pub frequencies: Option<Vec<f32>>,
}

impl ModelConfig {
    /// Width of one head.
    pub fn head(&self) -> usize {
        self.variant.head.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// By how much each pair of a head turns a position, `[head / 2]`.
    pub fn frequencies(&self) -> Vec<f32> {
        let plain = || {
            let (theta, head) = (self.rope_theta as f32, self.head());
            (0..head / 2).map(|i| theta.powf(-2.0 * i as f32 / head as f32)).collect()
        };
        self.variant.frequencies.clone().unwrap_or_else(plain)
    }

    /// The name of the output embedding, without its ending.
    pub(crate) fn output(&self) -> &'static str {
        if self.variant.untied { "lm_head" } else { "model.embed_tokens" }
    }

    /// The shape of every tensor, by its Hugging Face name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (d, m, head) = (self.hidden_size, self.intermediate_size, self.head());
        let (q, kv) = (self.num_attention_heads * head, self.num_key_value_heads * head);
        let Variant { untied, qkv_bias, output_bias, mlp_bias, qk_norm, .. } = self.variant;
        let mut shapes = BTreeMap::from([
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d]),
            ("model.norm.weight".to_owned(), vec![d]),
        ]);
        if untied {
            shapes.insert("lm_head.weight".to_owned(), vec![self.vocab_size, d]);
        }
        for layer in 0..self.num_hidden_layers {
            let mut add = |part: &str, shape: Vec<usize>| {
                shapes.insert(format!("model.layers.{layer}.{part}"), shape);
            };
            add("input_layernorm.weight", vec![d]);
            add("post_attention_layernorm.weight", vec![d]);
            for (part, n_out, n_in, bias) in [
                ("self_attn.q_proj", q, d, qkv_bias),
                ("self_attn.k_proj", kv, d, qkv_bias),
                ("self_attn.v_proj", kv, d, qkv_bias),
                ("self_attn.o_proj", d, q, output_bias),
                ("mlp.gate_proj", m, d, mlp_bias),
                ("mlp.up_proj", m, d, mlp_bias),
                ("mlp.down_proj", d, m, mlp_bias),
            ] {
                add(&format!("{part}.weight"), vec![n_out, n_in]);
                if bias {
                    add(&format!("{part}.bias"), vec![n_out]);
                }
            }
            if qk_norm {
                add("self_attn.q_norm.weight", vec![head]);
                add("self_attn.k_norm.weight", vec![head]);
            }
        }
        shapes
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.shapes().values().map(|shape| shape.iter().product::<usize>()).sum()
    }
}

/// A model that can be trained, in f32.
///
/// It lives on a device, and all that goes into it and comes out of it on the CPU: nobody around it needs to know.
#[derive(Debug, Clone)]
pub struct Llama {
    config: ModelConfig,
    vars: BTreeMap<String, Var>,
    /// Worn on frozen weights.
    adapter: Option<Adapter>,
}

impl Llama {
    /// Fresh weights: normal with deviation 0.02 (the layers that write to the residual stream less, by
    /// the square root of twice the depth), norms at one. Small, as usual for tied embeddings.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn fresh(config: ModelConfig, seed: u64) -> Result<Self> {
        let mut dice = Dice::new(seed, 20);
        let depth = (2.0 * config.num_hidden_layers as f64).sqrt();
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let deviation =
                if name.contains("o_proj") || name.contains("down_proj") { 0.04 / depth } else { 0.04 };
            let count = shape.iter().product();
            let norm = name.ends_with("norm.weight");
            let values: Vec<f32> =
                (0..count).map(|_| if norm { 1.0 } else { (dice.normal() * deviation) as f32 }).collect();
            tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Self::from_tensors(config, &tensors)
    }

    /// A model with the given weights (copied, as f32).
    ///
    /// # Errors
    /// A missing tensor or one of another shape, named.
    pub fn from_tensors(config: ModelConfig, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for (name, shape) in config.shapes() {
            let Some(tensor) = tensors.get(&name) else { candle_core::bail!("the weights lack {name}") };
            if tensor.dims() != shape {
                candle_core::bail!("{name} has shape {:?}, the configuration says {shape:?}", tensor.dims());
            }
            vars.insert(name, Var::from_tensor(&tensor.to_dtype(DType::F32)?.copy()?)?);
        }
        Ok(Self { config, vars, adapter: None })
    }

    /// The same weights, frozen, with an adapter on them, where they are, that is trained in their place.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn with_adapter(&self, adapter: &Adapter) -> Result<Self> {
        Ok(Self { adapter: Some(adapter.on(self.device())?), ..self.clone() })
    }

    /// The same on a device: the very same weights where they lie there already, else a copy.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn on(&self, device: &Device) -> Result<Self> {
        if self.device().same_device(device) {
            return Ok(self.clone());
        }
        let moved = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_device(device)?));
        let tensors = self.tensors().into_iter().map(moved).collect::<Result<_>>()?;
        let adapter = self.adapter.as_ref().map(|adapter| adapter.on(device)).transpose()?;
        Ok(Self { adapter, ..Self::from_tensors(self.config.clone(), &tensors)? })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.vars.values().next().map_or(&Device::Cpu, |var| var.device())
    }

    /// The adapter, where one is worn.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// What training moves: the adapter where there is one, else all weights.
    pub fn trained(&self) -> &BTreeMap<String, Var> {
        self.adapter.as_ref().map_or(&self.vars, Adapter::vars)
    }

    /// The shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The weights by name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// The weights by name, cut off from training.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
    }

    /// A copy whose weights are rounded to bf16, as they will be stored.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn rounded(&self) -> Result<Self> {
        self.stored_as(DType::BF16)
    }

    /// A copy whose weights are rounded to what another type holds.
    ///
    /// # Errors
    /// Only if memory cannot be had.
    pub fn stored_as(&self, dtype: DType) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, var) in &self.vars {
            tensors.insert(name.clone(), var.as_detached_tensor().to_dtype(dtype)?);
        }
        Self::from_tensors(self.config.clone(), &tensors)
    }

    /// Final hidden states after the final norm, `[batch * time, d]`, of right-padded `tokens`
    /// `[batch, time]`. `frozen`: without a graph for gradients.
    ///
    /// # Errors
    /// Ids outside the vocabulary.
    pub fn hidden(&self, tokens: &Tensor, frozen: bool) -> Result<Tensor> {
        self.states(tokens, frozen)?.to_device(&Device::Cpu)
    }

    /// As [`Llama::hidden`], where the model lives.
    fn states(&self, tokens: &Tensor, frozen: bool) -> Result<Tensor> {
        let tokens = tokens.to_device(self.device())?;
        let (batch, time) = tokens.dims2()?;
        let config = &self.config;
        let (head, eps) = (config.head(), config.rms_norm_eps);
        let frequencies: Arc<[f32]> = config.frequencies().into();
        let mut x = self.weight("model.embed_tokens", frozen)?.index_select(&tokens.flatten_all()?, 0)?;
        for layer in 0..config.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let weight = |part: &str| self.weight(&name(part), frozen);
            let linear = |x: &Tensor, part: &str| {
                let y = x.matmul(&weight(part)?.t()?)?;
                match self.bias(&name(part), frozen) {
                    Some(bias) => y.broadcast_add(&bias),
                    None => Ok(y),
                }
            };
            let normed = ops::rms_norm(&x, &weight("input_layernorm")?, eps)?;
            let rows = |part: &str| linear(&normed, part)?.reshape((batch, time, ()));
            let turned = |part: &str, norm: &str| {
                let mut x = rows(part)?;
                if config.variant.qk_norm {
                    let shape = x.shape().clone();
                    x = ops::rms_norm(&x.reshape(((), head))?, &weight(norm)?, eps)?.reshape(shape)?;
                }
                ops::rope(&x, head, &frequencies)
            };
            let q = turned("self_attn.q_proj", "self_attn.q_norm")?;
            let k = turned("self_attn.k_proj", "self_attn.k_norm")?;
            let mixed = ops::attention(&q, &k, &rows("self_attn.v_proj")?, head)?;
            x = (x + linear(&mixed.reshape((batch * time, ()))?, "self_attn.o_proj")?)?;
            let normed = ops::rms_norm(&x, &weight("post_attention_layernorm")?, eps)?;
            let gated = ops::swiglu(&linear(&normed, "mlp.gate_proj")?, &linear(&normed, "mlp.up_proj")?)?;
            x = (x + linear(&gated, "mlp.down_proj")?)?;
        }
        ops::rms_norm(&x, &self.weight("model.norm", frozen)?, eps)
    }

    /// The output embedding, `[V, d]`.
    ///
    /// # Errors
    /// The adapter does not fit.
    pub fn output(&self, frozen: bool) -> Result<Tensor> {
        self.weight(self.config.output(), frozen)?.to_device(&Device::Cpu)
    }

    /// Log-probabilities `[n]` of `targets` `[n]` at the positions `at` `[n]` of the flattened `tokens`
    /// `[batch, time]`, by log-softmax over the whole vocabulary.
    ///
    /// # Errors
    /// Ids or positions out of range.
    pub fn log_probs(&self, tokens: &Tensor, at: &Tensor, targets: &Tensor, frozen: bool) -> Result<Tensor> {
        let hidden = self.states(tokens, frozen)?.index_select(&at.to_device(self.device())?, 0)?;
        self.next_log_probs(&hidden, targets, frozen)
    }

    /// Log-probabilities `[n]` of `targets` `[n]` behind final hidden states `[n, d]`.
    ///
    /// # Errors
    /// Ids out of range.
    pub fn next_log_probs(&self, hidden: &Tensor, targets: &Tensor, frozen: bool) -> Result<Tensor> {
        let device = self.device();
        let embedding = self.weight(self.config.output(), frozen)?;
        let logits = hidden.to_device(device)?.matmul(&embedding.t()?)?;
        ops::token_log_probs(&logits, &targets.to_device(device)?)?.to_device(&Device::Cpu)
    }

    fn weight(&self, part: &str, frozen: bool) -> Result<Tensor> {
        let name = format!("{part}.weight");
        let Some(var) = self.vars.get(&name) else { candle_core::bail!("the weights lack {name}") };
        let Some(adapter) = &self.adapter else {
            return Ok(if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() });
        };
        let weight = var.as_detached_tensor();
        match adapter.delta(&name, frozen)? {
            Some(delta) => weight + delta,
            None => Ok(weight),
        }
    }

    /// A layer's bias, where it has one. Adapters leave it as it is.
    fn bias(&self, part: &str, frozen: bool) -> Option<Tensor> {
        let var = self.vars.get(&format!("{part}.bias"))?;
        let still = frozen || self.adapter.is_some();
        Some(if still { var.as_detached_tensor() } else { var.as_tensor().clone() })
    }
}
