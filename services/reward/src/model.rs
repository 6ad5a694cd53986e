//! The PersRM on its device: caches, forward passes, scores. Used by the engine's thread alone.

use std::sync::Arc;

use attune_engine::{Feature, ForwardError, Output, PersRm, Question, SequenceRows, Side, kv::KvCache};
use attune_guidance::RowError;

/// What one session reads in a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// The tokens; at least one.
    pub(crate) tokens: &'a [u32],
    /// The position of the first.
    pub(crate) start: usize,
    /// The session's blocks.
    pub(crate) blocks: &'a [u32],
    /// Whether the features behind the last token are wanted.
    pub(crate) last: bool,
}

/// A session's features at its step, turned into its person's.
#[derive(Default)]
pub(crate) struct Features {
    /// `w_p * phi(h_theta)`, or what the latent adapter makes of it; none before the prompt is read.
    pub(crate) policy: Option<Feature>,
    /// `w_p * phi(h_ref)`, for reference MODEL.
    pub(crate) reference: Option<Feature>,
}

/// The model with the memory of its caches. Both sides use the same block ids.
pub(crate) struct Model {
    persrm: Arc<PersRm>,
    policy: KvCache,
    reference: Option<KvCache>,
}

impl Model {
    /// Makes the caches, `blocks` blocks each.
    ///
    /// # Errors
    /// The device has too little memory.
    pub(crate) fn new(persrm: Arc<PersRm>, blocks: usize) -> Result<Self, ForwardError> {
        let policy = persrm.cache(blocks)?;
        let reference = persrm.has_reference().then(|| persrm.cache(blocks)).transpose()?;
        Ok(Self { persrm, policy, reference })
    }

    /// Reads the rows with one side, and gives the unweighted features of those that want them, in
    /// their order.
    ///
    /// # Errors
    /// The device failed, or the side is not there.
    pub(crate) fn forward(&self, side: Side, rows: &[Rows<'_>]) -> Result<Vec<Feature>, ForwardError> {
        let cache = match (side, &self.reference) {
            (Side::Policy, _) => &self.policy,
            (Side::Reference, Some(cache)) => cache,
            (Side::Reference, None) => return Ok(Vec::new()),
        };
        let sequences: Vec<SequenceRows<'_>> = rows
            .iter()
            .map(|r| SequenceRows {
                tokens: r.tokens,
                start: r.start,
                blocks: r.blocks,
                output: if r.last { Output::Last } else { Output::Nothing },
            })
            .collect();
        self.persrm.read(side, &sequences, cache)
    }

    /// `w_p` read off a preference text, `[d]`; `None` where the model has no head.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn preference_weights(&self, text: &[u32]) -> Result<Option<Vec<f32>>, ForwardError> {
        self.persrm.preference_weights(text)
    }

    /// The model itself, for what needs no cache.
    pub(crate) fn persrm(&self) -> &PersRm {
        &self.persrm
    }

    /// The rewards of each question, in the candidates' order. A question fails alone.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn score(
        &self,
        questions: &[Question<'_>],
    ) -> Result<Vec<Result<Vec<f32>, RowError>>, ForwardError> {
        self.persrm.score(questions)
    }
}
