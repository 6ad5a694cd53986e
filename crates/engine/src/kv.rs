//! The paged cache of keys and values: which sequence holds which blocks, and the memory behind them.

mod pool;
mod table;

use attune_kernels::cuda::Matrix;
use candle_core::{DType, Device, Tensor};

pub use pool::{BlockPool, CacheStats, Reader, Sharing, Writes};
pub use table::BlockTable;

use crate::{DecoderConfig, ForwardError};

/// Positions of one block.
pub const BLOCK_SIZE: usize = 16;

/// The number of blocks that hold `tokens` positions.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_SIZE)
}

/// The memory of the cache: of each layer, keys and values, `[blocks * BLOCK_SIZE, kv_heads * head_dim]`.
pub enum KvCache {
    /// In single precision.
    Cpu {
        /// One a layer.
        keys: Vec<Tensor>,
        /// One a layer.
        values: Vec<Tensor>,
    },
    /// In the model's number format.
    Card {
        /// One a layer.
        keys: Vec<Matrix>,
        /// One a layer.
        values: Vec<Matrix>,
    },
}

impl KvCache {
    /// A cache of `blocks` blocks for one decoder on a CPU; a model's own `cache` is for where the model is.
    ///
    /// # Errors
    /// There is too little memory.
    pub fn new(config: &DecoderConfig, blocks: usize, device: &Device) -> Result<Self, ForwardError> {
        let shape = (blocks * BLOCK_SIZE, config.kv_heads * config.head_dim);
        let layers = || {
            let zeros = (0..config.layers).map(|_| Tensor::zeros(shape, DType::F32, device));
            zeros.collect::<candle_core::Result<Vec<Tensor>>>()
        };
        Ok(Self::Cpu { keys: layers()?, values: layers()? })
    }

    /// Bytes that one block takes on a CPU, over all layers.
    pub fn block_bytes(config: &DecoderConfig) -> usize {
        2 * config.layers * BLOCK_SIZE * config.kv_heads * config.head_dim * size_of::<f32>()
    }
}
