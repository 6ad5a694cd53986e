//! The paged cache of keys and values: which sequence holds which blocks, and the memory behind them.

mod pool;
mod table;

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
pub struct KvCache {
    pub(crate) keys: Vec<Tensor>,
    pub(crate) values: Vec<Tensor>,
}

impl KvCache {
    /// A cache of `blocks` blocks for one decoder.
    ///
    /// # Errors
    /// The device has too little memory.
    pub fn new(config: &DecoderConfig, blocks: usize, device: &Device) -> Result<Self, ForwardError> {
        let shape = (blocks * BLOCK_SIZE, config.kv_heads * config.head_dim);
        let layers = || {
            let zeros = (0..config.layers).map(|_| Tensor::zeros(shape, DType::F32, device));
            zeros.collect::<candle_core::Result<Vec<Tensor>>>()
        };
        Ok(Self { keys: layers()?, values: layers()? })
    }

    /// Bytes that one block takes, over all layers.
    pub fn block_bytes(config: &DecoderConfig) -> usize {
        2 * config.layers * BLOCK_SIZE * config.kv_heads * config.head_dim * size_of::<f32>()
    }
}
