//! One forward pass: packed rows of any number of sequences through the layers.
//!
//! Llama (Touvron et al., arXiv 2302.13971), Mistral (arXiv 2310.06825), Qwen2 (arXiv 2407.10671)
//! and Qwen3 (arXiv 2505.09388) are one decoder here: they differ in the data of `DecoderConfig`.

use std::sync::Arc;

use attune_kernels::{AttentionRow, AttentionShape, EmbeddingTable, Format, Linear, Threads};
use candle_core::{Device, Tensor};

use crate::{
    Checkpoint, DecoderConfig, ForwardError, LoadError, LoadOptions,
    kv::{BLOCK_SIZE, KvCache},
    ops::{self, Attention, Rotate, Store},
    rope::RopeTable,
};

/// The rows that one sequence adds to a forward pass.
#[derive(Debug, Clone, Copy)]
pub struct SequenceRows<'a> {
    /// The tokens to read; at least one, each below the vocabulary size.
    pub tokens: &'a [u32],
    /// The position of the first of them.
    pub start: usize,
    /// The sequence's blocks: enough for `start + tokens.len()` positions.
    pub blocks: &'a [u32],
    /// Which rows' hidden states are wanted.
    pub output: Output,
}

/// Which hidden states of a sequence's rows come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// None: a part of a prompt.
    Nothing,
    /// The last row's: what the next token is chosen from.
    Last,
    /// Every row's.
    All,
}

/// A decoder's weights, without its output head.
pub struct Decoder {
    config: DecoderConfig,
    embedding: Arc<EmbeddingTable>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    rope: RopeTable,
    threads: Threads,
}

struct Layer {
    attention_norm: Vec<f32>,
    qkv: Linear,
    /// Qwen3's norms of each query and key head.
    head_norms: Option<(Vec<f32>, Vec<f32>)>,
    output: Linear,
    mlp_norm: Vec<f32>,
    gate_up: Linear,
    down: Linear,
    window: Option<usize>,
}

impl Decoder {
    /// Loads the layers, packing every matrix as the options say.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn load(
        config: &DecoderConfig,
        checkpoint: &Checkpoint,
        embedding: Arc<EmbeddingTable>,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            layers: (0..config.layers)
                .map(|i| Layer::load(config, checkpoint, options.format, i))
                .collect::<Result<_, _>>()?,
            norm: checkpoint.f32("model.norm.weight", &[config.hidden])?,
            rope: RopeTable::new(&config.rope, config.head_dim, config.context),
            config: config.clone(),
            embedding,
            threads: options.threads.clone(),
        })
    }

    /// The decoder's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Reads the rows, writes their keys and values to the cache, and gives the wanted hidden states
    /// after the final norm, `[outputs, d]`, in the order of the sequences.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, sequences: &[SequenceRows<'_>], cache: &KvCache) -> Result<Tensor, ForwardError> {
        self.forward_on(sequences, cache, &self.threads)
    }

    /// [`Self::forward`] on threads of the caller's own: the bits are the same.
    ///
    /// # Errors
    /// As `forward`.
    pub fn forward_on(
        &self,
        sequences: &[SequenceRows<'_>],
        cache: &KvCache,
        threads: &Threads,
    ) -> Result<Tensor, ForwardError> {
        let plan = Plan::new(sequences);
        let mut x = self.embed(sequences)?;
        for (layer, (keys, values)) in self.layers.iter().zip(cache.keys.iter().zip(&cache.values)) {
            x = (x.clone() + self.attend(layer, &x, &plan, (keys, values), threads)?)?;
            x = (x.clone() + self.mlp(layer, &x, threads)?)?;
        }
        let outputs = Tensor::new(plan.outputs, x.device())?;
        Ok(ops::rms_norm(&x.index_select(&outputs, 0)?, &self.norm, self.config.norm_eps)?)
    }

    /// The tokens' input embeddings, `[rows, d]`.
    fn embed(&self, sequences: &[SequenceRows<'_>]) -> candle_core::Result<Tensor> {
        let hidden = self.config.hidden;
        let rows: usize = sequences.iter().map(|s| s.tokens.len()).sum();
        let mut x = vec![0.0; rows * hidden];
        let tokens = sequences.iter().flat_map(|s| s.tokens);
        for (row, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
            self.embedding.row_into(token, row);
        }
        Tensor::from_vec(x, (rows, hidden), &Device::Cpu)
    }

    fn attend(
        &self,
        layer: &Layer,
        x: &Tensor,
        plan: &Plan<'_>,
        (keys, values): (&Tensor, &Tensor),
        threads: &Threads,
    ) -> candle_core::Result<Tensor> {
        let DecoderConfig { heads, kv_heads, head_dim, norm_eps, .. } = self.config;
        let normed = ops::rms_norm(x, &layer.attention_norm, norm_eps)?;
        let qkv = ops::linear(&normed, &layer.qkv, threads)?;
        qkv.inplace_op1(&Rotate {
            heads,
            kv_heads,
            head_dim,
            positions: &plan.positions,
            cos: self.rope.cos(),
            sin: self.rope.sin(),
            norms: layer.head_norms.as_ref().map(|(q, k)| (&q[..], &k[..], norm_eps as f32)),
        })?;
        keys.inplace_op2(&qkv, &Store { column: heads * head_dim, slots: &plan.slots })?;
        values.inplace_op2(&qkv, &Store { column: (heads + kv_heads) * head_dim, slots: &plan.slots })?;
        let attention = Attention {
            shape: AttentionShape { heads, kv_heads, head_dim, block_size: BLOCK_SIZE, window: layer.window },
            rows: &plan.rows,
            threads,
        };
        ops::linear(&attention.forward(&qkv, keys, values)?, &layer.output, threads)
    }

    fn mlp(&self, layer: &Layer, x: &Tensor, threads: &Threads) -> candle_core::Result<Tensor> {
        let normed = ops::rms_norm(x, &layer.mlp_norm, self.config.norm_eps)?;
        let gate_up = ops::linear(&normed, &layer.gate_up, threads)?;
        ops::linear(&ops::silu_gate(&gate_up)?, &layer.down, threads)
    }
}

impl Layer {
    fn load(
        config: &DecoderConfig,
        checkpoint: &Checkpoint,
        format: Option<Format>,
        index: usize,
    ) -> Result<Self, LoadError> {
        let DecoderConfig { hidden, intermediate, head_dim, .. } = *config;
        let (queries, keys) = (config.heads * head_dim, config.kv_heads * head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let vector = |part: &str, n| checkpoint.f32(&name(part), &[n]);
        // Matrices that read the same input are packed as one, so that a step has fewer products.
        let linear = |parts: &[(&str, usize)], n_in: usize, bias: bool| {
            let mut biases = Vec::new();
            for &(part, n_out) in parts.iter().filter(|_| bias) {
                biases.extend(vector(&format!("{part}.bias"), n_out)?);
            }
            let weights: Vec<_> =
                parts.iter().map(|&(part, n_out)| (name(&format!("{part}.weight")), n_out)).collect();
            checkpoint.linear(&weights, n_in, bias.then_some(&biases[..]), format)
        };
        Ok(Self {
            attention_norm: vector("input_layernorm.weight", hidden)?,
            qkv: linear(
                &[("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)],
                hidden,
                config.qkv_bias,
            )?,
            head_norms: if config.qk_norm {
                let norm = |part| vector(part, head_dim);
                Some((norm("self_attn.q_norm.weight")?, norm("self_attn.k_norm.weight")?))
            } else {
                None
            },
            output: linear(&[("self_attn.o_proj", hidden)], queries, config.output_bias)?,
            mlp_norm: vector("post_attention_layernorm.weight", hidden)?,
            gate_up: linear(
                &[("mlp.gate_proj", intermediate), ("mlp.up_proj", intermediate)],
                hidden,
                config.mlp_bias,
            )?,
            down: linear(&[("mlp.down_proj", hidden)], intermediate, config.mlp_bias)?,
            window: config.windows[index],
        })
    }
}

/// Where each packed row stands, made once a pass for all layers.
struct Plan<'a> {
    positions: Vec<u32>,
    slots: Vec<usize>,
    rows: Vec<AttentionRow<'a>>,
    outputs: Vec<u32>,
}

impl<'a> Plan<'a> {
    fn new(sequences: &[SequenceRows<'a>]) -> Self {
        let mut plan = Self { positions: vec![], slots: vec![], rows: vec![], outputs: vec![] };
        for sequence in sequences {
            let first = plan.rows.len();
            for position in sequence.start..sequence.start + sequence.tokens.len() {
                let block = sequence.blocks[position / BLOCK_SIZE] as usize;
                plan.positions.push(position as u32);
                plan.slots.push(block * BLOCK_SIZE + position % BLOCK_SIZE);
                plan.rows.push(AttentionRow { position, blocks: sequence.blocks });
            }
            let rows = first as u32..plan.rows.len() as u32;
            match sequence.output {
                Output::Nothing => {}
                Output::Last => plan.outputs.extend(rows.last()),
                Output::All => plan.outputs.extend(rows),
            }
        }
        plan
    }
}
