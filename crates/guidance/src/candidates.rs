//! The candidate set of one step.

/// The most candidates of a step.
pub const MAX_CANDIDATES: usize = 64;

/// `C`: the `k` highest base logits of one row, best first, ties by the lower id.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidates {
    /// Token ids, `[k]`.
    pub ids: Vec<u32>,
    /// Base logits with mask, bias and penalty, `[k]`; finite.
    pub logits: Vec<f32>,
    /// Base logits as the model gave them, `[k]`.
    pub raw_logits: Vec<f32>,
    /// Log-sum-exp of the edited logits over the vocabulary.
    pub log_sum_exp: f32,
    /// Log-sum-exp of the model's own logits over the vocabulary.
    pub raw_log_sum_exp: f32,
}

impl Candidates {
    /// `k`: the number of candidates.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True for no candidates; never so for what `select` returns.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// `log pi_base(a|s)` of candidate `i`, edits included, over the vocabulary.
    pub fn log_prob(&self, i: usize) -> f64 {
        f64::from(self.logits[i]) - f64::from(self.log_sum_exp)
    }
}
