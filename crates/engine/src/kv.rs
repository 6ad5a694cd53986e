//! The paged cache of keys and values: blocks as guards, and the memory behind them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::{DecoderConfig, ForwardError};

/// Positions of one block.
pub const BLOCK_SIZE: usize = 16;

/// The number of blocks that hold `tokens` positions.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_SIZE)
}

/// The free blocks of a cache. Bookkeeping alone: it touches no memory of the device.
#[derive(Debug)]
pub struct BlockPool {
    free: Arc<Mutex<Vec<u32>>>,
    total: usize,
}

impl BlockPool {
    /// A pool of `total` free blocks.
    pub fn new(total: usize) -> Self {
        // Popped from the end: low ids first, so that a lightly used cache stays in few pages.
        Self { free: Arc::new(Mutex::new((0..total as u32).rev().collect())), total }
    }

    /// Blocks in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        lock(&self.free).len()
    }

    /// Takes `n` blocks, or none where fewer are free.
    pub fn take(&self, n: usize) -> Option<Vec<Block>> {
        let mut free = lock(&self.free);
        let kept = free.len().checked_sub(n)?;
        Some(free.drain(kept..).rev().map(|id| Block { id, home: Arc::clone(&self.free) }).collect())
    }
}

/// One block of the cache, given back on drop.
#[derive(Debug)]
pub struct Block {
    id: u32,
    home: Arc<Mutex<Vec<u32>>>,
}

impl Block {
    /// Its index in the cache.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        lock(&self.home).push(self.id);
    }
}

fn lock(free: &Mutex<Vec<u32>>) -> std::sync::MutexGuard<'_, Vec<u32>> {
    // A push or a pop cannot leave the list half done, so a poisoned lock is still a whole list.
    free.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_when_dropped() {
        let pool = BlockPool::new(4);
        let three = pool.take(3).unwrap();
        assert_eq!(three.iter().map(Block::id).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(pool.take(2).is_none());
        assert_eq!(pool.free(), 1);
        drop(three);
        assert_eq!((pool.free(), pool.take(4).map(|b| b.len())), (4, Some(4)));
    }
}
