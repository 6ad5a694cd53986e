//! How likely the base model finds a text that it did not write.

use attune_guidance::log_softmax;
use attune_kernels::Threads;

use crate::{BaseModel, ForwardError, Output, SequenceRows, kv::blocks_for};

/// Tokens of one forward pass: what the memory of the logits is bounded by.
const CHUNK: usize = 64;

impl BaseModel {
    /// The log-probability, in nats, of `answer` behind `prompt`, on threads of the caller's own where the model
    /// is on a CPU, with a cache of its own. 0 where either is empty.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// An id lies outside the vocabulary.
    pub fn log_prob_on(
        &self,
        prompt: &[u32],
        answer: &[u32],
        threads: &Threads,
    ) -> Result<f64, ForwardError> {
        if prompt.is_empty() || answer.is_empty() {
            return Ok(0.0);
        }
        let ids = [prompt, answer].concat();
        let vocab = self.assets.config.vocab;
        let blocks: Vec<u32> = (0..blocks_for(ids.len()) as u32).collect();
        let cache = self.decoder.cache(blocks.len())?;
        // The last id is a target alone; the first target follows the prompt's last id.
        let inputs = &ids[..ids.len() - 1];
        let first = prompt.len() - 1;
        let mut sum = 0.0;
        for (tokens, start) in inputs.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            let rows = SequenceRows { tokens, start, blocks: &blocks, output: Output::All };
            let hidden = self.decoder.forward_on(&[rows], &cache, threads)?;
            let skipped = first.saturating_sub(start).min(tokens.len());
            if skipped == tokens.len() {
                continue;
            }
            let logits = self.logits_on(&hidden.from_row(skipped)?, threads)?;
            for (logits, &target) in logits.chunks_exact(vocab).zip(&ids[start + skipped + 1..]) {
                sum += log_softmax(logits)[target as usize];
            }
        }
        Ok(sum)
    }
}
