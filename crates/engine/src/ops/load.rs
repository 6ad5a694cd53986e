//! A model's parts on the hardware that computes with them.

use attune_kernels::{
    AttentionShape, Format, Threads,
    cuda::{CardLinear, CardRope, Element, Gpu, Program, head_size},
};
use candle_core::Device;

use super::{Hardware, Linear, Rope, Table, Vector};
use crate::{
    Assets, Checkpoint, DecoderConfig, ForwardError, LoadError, LoadOptions,
    kv::{BLOCK_SIZE, KvCache},
    rope::RopeTable,
};

impl Hardware {
    /// The cores of the options, or a card, on which a model is stored as its assets say.
    ///
    /// # Errors
    /// The card cannot compute with such a model.
    pub(crate) fn new(gpu: Option<&Gpu>, assets: &Assets, options: &LoadOptions) -> Result<Self, LoadError> {
        let Some(gpu) = gpu else { return Ok(Self::Cpu(options.threads.clone())) };
        let element = match assets.format {
            Format::F32 => Element::F32,
            Format::F16 => Element::F16,
            Format::Bf16 => Element::Bf16,
            Format::Q8 => {
                return Err(LoadError::Other(
                    "8-bit weights compute on a CPU alone: choose --device cpu, or --quantize none with --dtype \
                     bf16 (a quantised GGUF file then takes two bytes a number on the card)"
                        .into(),
                ));
            }
        };
        let size = head_size(assets.config.head_dim)?;
        // What does not compile or load is told now, not by the first request.
        let attention = Program::attention(element, size);
        gpu.prepare(attention.chain([
            Program::Select(Element::F32),
            Program::Score(element),
            Program::FuseSample,
            Program::RmsNorm(element),
            Program::Rotate(element),
            Program::SiluGate(element),
            Program::Embed(element),
            Program::CopyRows(element),
            Program::AddBias(Element::F32),
            Program::AddBias(element),
        ]))?;
        Ok(Self::Card(gpu.clone(), element))
    }

    /// The same, on other cores where it is a CPU.
    pub(crate) fn with(&self, threads: &Threads) -> Self {
        match self {
            Self::Cpu(_) => Self::Cpu(threads.clone()),
            Self::Card(..) => self.clone(),
        }
    }

    /// The name that others know it by: "cpu" or "cuda:N".
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Cpu(_) => "cpu".into(),
            Self::Card(gpu, _) => format!("cuda:{}", gpu.ordinal()),
        }
    }

    /// Bytes of a number in the cache.
    fn cached_bytes(&self) -> usize {
        match self {
            Self::Cpu(_) => size_of::<f32>(),
            Self::Card(_, element) => element.bytes(),
        }
    }

    /// Bytes that one block of the cache takes, over all layers.
    pub(crate) fn block_bytes(&self, config: &DecoderConfig) -> usize {
        KvCache::block_bytes(config) / size_of::<f32>() * self.cached_bytes()
    }

    /// A cache of `blocks` blocks for one decoder.
    ///
    /// # Errors
    /// There is too little memory.
    pub(crate) fn cache(&self, config: &DecoderConfig, blocks: usize) -> Result<KvCache, ForwardError> {
        let (slots, width) = (blocks * BLOCK_SIZE, config.kv_heads * config.head_dim);
        match self {
            Self::Cpu(_) => KvCache::new(config, blocks, &Device::Cpu),
            Self::Card(gpu, element) => {
                let layers = || {
                    let zeros = (0..config.layers).map(|_| gpu.zero_matrix(*element, slots, width));
                    zeros.collect::<Result<Vec<_>, _>>()
                };
                Ok(KvCache::Card { keys: layers()?, values: layers()? })
            }
        }
    }

    /// A linear layer of one or several matrices, `[n_out, n_in]` each, one below the other.
    pub(crate) fn load_linear(
        &self,
        checkpoint: &Checkpoint,
        parts: &[(String, usize)],
        n_in: usize,
        bias: Option<&[f32]>,
        format: Option<Format>,
    ) -> Result<Linear, LoadError> {
        match self {
            Self::Cpu(_) => Ok(Linear::Cpu(checkpoint.linear(parts, n_in, bias, format)?)),
            Self::Card(gpu, element) => {
                let n_out = parts.iter().map(|part| part.1).sum();
                let bytes = checkpoint.card_bytes(parts, n_in, *element)?;
                let weight = gpu.upload_matrix(*element, n_out, n_in, &bytes)?;
                let bias = bias.map(|bias| gpu.upload(bias)).transpose()?;
                Ok(Linear::Card(CardLinear { weight, bias }))
            }
        }
    }

    /// A linear layer whose numbers are here.
    pub(crate) fn linear_of(
        &self,
        weight: &[f32],
        (n_out, n_in): (usize, usize),
        bias: &[f32],
        format: Format,
    ) -> Result<Linear, LoadError> {
        match self {
            Self::Cpu(_) => {
                Ok(Linear::Cpu(attune_kernels::Linear::pack(weight, n_out, n_in, Some(bias), format)?))
            }
            Self::Card(gpu, element) => {
                let weight = gpu.upload_numbers(*element, n_out, n_in, weight)?;
                Ok(Linear::Card(CardLinear { weight, bias: Some(gpu.upload(bias)?) }))
            }
        }
    }

    /// An embedding, `[V, d]`.
    pub(crate) fn table(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        shape: [usize; 2],
        format: Option<Format>,
    ) -> Result<Table, LoadError> {
        match self {
            Self::Cpu(_) => Ok(Table::Cpu(checkpoint.table(name, shape, format)?)),
            Self::Card(gpu, element) => {
                let [vocab, d] = shape;
                let bytes = checkpoint.card_bytes(&[(name.to_owned(), vocab)], d, *element)?;
                Ok(Table::Card(gpu.upload_matrix(*element, vocab, d, &bytes)?))
            }
        }
    }

    /// A vector of weights.
    pub(crate) fn vector(&self, numbers: Vec<f32>) -> Result<Vector, LoadError> {
        match self {
            Self::Cpu(_) => Ok(Vector::Cpu(numbers)),
            Self::Card(gpu, _) => Ok(Vector::Card(gpu.upload(&numbers)?)),
        }
    }

    /// Cosines and sines.
    pub(crate) fn rope(&self, table: RopeTable) -> Result<Rope, LoadError> {
        match self {
            Self::Cpu(_) => Ok(Rope::Cpu(table)),
            Self::Card(gpu, _) => {
                Ok(Rope::Card(CardRope { cos: gpu.upload(table.cos())?, sin: gpu.upload(table.sin())? }))
            }
        }
    }
}

/// The shape of a decoder's attention in one of its layers.
pub(crate) fn attention_shape(config: &DecoderConfig, window: Option<usize>) -> AttentionShape {
    let DecoderConfig { heads, kv_heads, head_dim, .. } = *config;
    AttentionShape { heads, kv_heads, head_dim, block_size: BLOCK_SIZE, window }
}
