//! Reads answers with a PersRM beside the running batch: prompts and answers in, features out.

use attune_engine::{ForwardError, Output, PersRm, SequenceRows, Side, kv::KvCache, kv::blocks_for};
use attune_kernels::Threads;

/// Tokens of one forward pass: what the memory of the activations is bounded by.
const CHUNK: usize = 256;

/// Reads with a model, into a cache of its own.
pub struct Reader<'a> {
    persrm: &'a PersRm,
    threads: &'a Threads,
    blocks: Vec<u32>,
    policy: KvCache,
    reference: Option<KvCache>,
}

/// The features before each token of an answer, `[tokens][d]`.
pub type Features = Vec<Vec<f32>>;

impl<'a> Reader<'a> {
    /// A reader of texts of at most `longest` tokens, on threads of the caller's own; with the reference's
    /// features too, where `with_reference`.
    ///
    /// # Errors
    /// The device has too little memory.
    pub fn new(
        persrm: &'a PersRm,
        threads: &'a Threads,
        longest: usize,
        with_reference: bool,
    ) -> Result<Self, ForwardError> {
        let blocks: Vec<u32> = (0..blocks_for(longest) as u32).collect();
        let reference = with_reference.then(|| persrm.cache(blocks.len())).transpose()?;
        Ok(Self { persrm, threads, policy: persrm.cache(blocks.len())?, reference, blocks })
    }

    /// The policy's features before each token of each answer behind the prompt.
    ///
    /// # Errors
    /// The device failed.
    pub fn policy(&self, prompt: &[u32], answers: &[&[u32]]) -> Result<Vec<Features>, ForwardError> {
        self.read(Side::Policy, &self.policy, prompt, answers)
    }

    /// As [`Self::policy`], the reference's; none, where this reader has no reference.
    ///
    /// # Errors
    /// The device failed.
    pub fn reference(&self, prompt: &[u32], answers: &[&[u32]]) -> Result<Vec<Features>, ForwardError> {
        match &self.reference {
            Some(cache) => self.read(Side::Reference, cache, prompt, answers),
            None => Ok(Vec::new()),
        }
    }

    /// The prompt is read once. Each answer is then read behind it, over the one before: a row attends to
    /// nothing behind its own position.
    fn read(
        &self,
        side: Side,
        cache: &KvCache,
        prompt: &[u32],
        answers: &[&[u32]],
    ) -> Result<Vec<Features>, ForwardError> {
        let Some((&last, before)) = prompt.split_last() else { return Ok(vec![Vec::new(); answers.len()]) };
        self.pass(side, cache, before, 0, Output::Nothing)?;
        let of_answer = |answer: &&[u32]| {
            // The last token is read by nobody: nothing follows it.
            let rows: Vec<u32> = [&[last], &answer[..answer.len().saturating_sub(1)]].concat();
            self.pass(side, cache, &rows, before.len(), Output::All)
        };
        answers.iter().map(of_answer).collect()
    }

    fn pass(
        &self,
        side: Side,
        cache: &KvCache,
        tokens: &[u32],
        start: usize,
        output: Output,
    ) -> Result<Features, ForwardError> {
        let mut features = Vec::new();
        for (i, tokens) in tokens.chunks(CHUNK).enumerate() {
            let rows = SequenceRows { tokens, start: start + i * CHUNK, blocks: &self.blocks, output };
            features.extend(self.persrm.features_on(side, &[rows], cache, self.threads)?);
        }
        Ok(features)
    }
}
