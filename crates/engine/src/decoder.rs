//! One forward pass: packed rows of any number of sequences through the layers.
//!
//! Llama (Touvron et al., arXiv 2302.13971), Mistral (arXiv 2310.06825), Qwen2 (arXiv 2407.10671)
//! and Qwen3 (arXiv 2505.09388) are one decoder here: they differ in the data of `DecoderConfig`.

use std::sync::Arc;

use attune_kernels::{AttentionRow, Format, Threads};

use crate::{
    Checkpoint, DecoderConfig, ForwardError, LoadError, LoadOptions,
    kv::{BLOCK_SIZE, KvCache},
    ops::{Hardware, Linear, Plan, Rope, Rotation, Rows, Table, Vector, attention_shape},
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
    embedding: Arc<Table>,
    layers: Vec<Layer>,
    norm: Vector,
    rope: Rope,
    hardware: Hardware,
}

struct Layer {
    attention_norm: Vector,
    qkv: Linear,
    /// Qwen3's norms of each query and key head.
    head_norms: Option<(Vector, Vector)>,
    output: Linear,
    mlp_norm: Vector,
    gate_up: Linear,
    down: Linear,
    window: Option<usize>,
}

impl Decoder {
    /// Loads the layers, packing every matrix as the options and the hardware say.
    ///
    /// # Errors
    /// A tensor is missing or of another shape; the memory is too small.
    pub(crate) fn load(
        config: &DecoderConfig,
        checkpoint: &Checkpoint,
        embedding: Arc<Table>,
        options: &LoadOptions,
        hardware: &Hardware,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            layers: (0..config.layers)
                .map(|i| Layer::load(config, checkpoint, options.format, hardware, i))
                .collect::<Result<_, _>>()?,
            norm: hardware.vector(checkpoint.f32("model.norm.weight", &[config.hidden])?)?,
            rope: hardware.rope(RopeTable::new(&config.rope, config.head_dim, config.context))?,
            config: config.clone(),
            embedding,
            hardware: hardware.clone(),
        })
    }

    /// The decoder's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// A cache of `blocks` blocks, where the decoder is.
    ///
    /// # Errors
    /// There is too little memory.
    pub fn cache(&self, blocks: usize) -> Result<KvCache, ForwardError> {
        self.hardware.cache(&self.config, blocks)
    }

    /// Bytes that one block of its cache takes, over all layers.
    pub fn block_bytes(&self) -> usize {
        self.hardware.block_bytes(&self.config)
    }

    /// Reads the rows, writes their keys and values to the cache, and gives the wanted hidden states
    /// after the final norm, `[outputs, d]`, in the order of the sequences. On a card it does not wait for
    /// them.
    ///
    /// # Errors
    /// The device failed, or the cache is none of this decoder's.
    pub fn forward(&self, sequences: &[SequenceRows<'_>], cache: &KvCache) -> Result<Rows, ForwardError> {
        self.forward_by(&self.hardware, sequences, cache)
    }

    /// [`Self::forward`] on threads of the caller's own, where the decoder is on a CPU: the bits are the same.
    ///
    /// # Errors
    /// As `forward`.
    pub fn forward_on(
        &self,
        sequences: &[SequenceRows<'_>],
        cache: &KvCache,
        threads: &Threads,
    ) -> Result<Rows, ForwardError> {
        self.forward_by(&self.hardware.with(threads), sequences, cache)
    }

    pub(crate) fn forward_by(
        &self,
        on: &Hardware,
        sequences: &[SequenceRows<'_>],
        cache: &KvCache,
    ) -> Result<Rows, ForwardError> {
        let eps = self.config.norm_eps;
        let plan = on.place(Plan::new(sequences), &attention_shape(&self.config, None))?;
        let mut x = on.embed(&self.embedding, &plan)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let rotation = Rotation {
                qkv: &layer.qkv,
                norms: layer.head_norms.as_ref().map(|(q, k)| (q, k, eps)),
                rope: &self.rope,
                shape: attention_shape(&self.config, layer.window),
                layer: index,
            };
            let qkv = on.before_rotation(&on.norm(&x, &layer.attention_norm, eps)?, &layer.qkv)?;
            let q = on.rotate(qkv, &rotation, &plan, cache)?;
            x = on.add(x, &on.attend(&q, &rotation, &plan, cache)?, &layer.output)?;
            let gate_up = on.linear(&on.norm(&x, &layer.mlp_norm, eps)?, &layer.gate_up)?;
            x = on.add(x, &on.silu_gate(&gate_up)?, &layer.down)?;
        }
        on.outputs(&x, &plan, &self.norm, eps)
    }
}

impl Layer {
    fn load(
        config: &DecoderConfig,
        checkpoint: &Checkpoint,
        format: Option<Format>,
        hardware: &Hardware,
        index: usize,
    ) -> Result<Self, LoadError> {
        let DecoderConfig { hidden, intermediate, head_dim, .. } = *config;
        let (queries, keys) = (config.heads * head_dim, config.kv_heads * head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let numbers = |part: &str, n| checkpoint.f32(&name(part), &[n]);
        let vector = |part: &str, n| hardware.vector(numbers(part, n)?);
        // Matrices that read the same input are packed as one, so that a step has fewer products.
        let linear = |parts: &[(&str, usize)], n_in: usize, bias: bool| {
            let mut biases = Vec::new();
            for &(part, n_out) in parts.iter().filter(|_| bias) {
                biases.extend(numbers(&format!("{part}.bias"), n_out)?);
            }
            let weights: Vec<_> =
                parts.iter().map(|&(part, n_out)| (name(&format!("{part}.weight")), n_out)).collect();
            hardware.load_linear(checkpoint, &weights, n_in, bias.then_some(&biases[..]), format)
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

impl<'a> Plan<'a> {
    fn new(sequences: &[SequenceRows<'a>]) -> Self {
        let mut plan =
            Self { tokens: vec![], positions: vec![], slots: vec![], rows: vec![], outputs: vec![] };
        for sequence in sequences {
            let first = plan.rows.len();
            plan.tokens.extend_from_slice(sequence.tokens);
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
