//! Fusion and choice for every row of a step.
//!
//! On a CPU the specification itself is the fast form: a row has at most 64 candidates.

use attune_guidance::{Candidates, RowError, Sampling, Term, choose, fuse};

/// One row: its candidates and what every guidance says of them.
#[derive(Debug, Clone, Copy)]
pub struct FuseRow<'a> {
    /// What `select` found.
    pub candidates: &'a Candidates,
    /// The guidances; none: plain decoding.
    pub terms: &'a [Term<'a>],
    /// A candidate below this share of the best base probability is out; 0: none is.
    pub min_p: f32,
    /// How the token is chosen.
    pub sampling: Sampling,
}

/// The choice in one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chosen {
    /// Its index among the candidates.
    pub index: usize,
    /// Its token id.
    pub id: u32,
    /// `log pi_base(a|s)` over the vocabulary, edits included.
    pub base_log_prob: f32,
    /// Log-softmax of the fused scores over the candidates, at temperature 1.
    pub fused_log_prob: f32,
    /// What the same noise would choose with every strength 0.
    pub unguided_id: u32,
}

/// Fuses and chooses, row by row. A row fails alone.
///
/// # Errors
/// Per row, what [`fuse`] finds wrong with it.
pub fn fuse_sample(rows: &[FuseRow<'_>]) -> Vec<Result<Chosen, RowError>> {
    rows.iter().map(fuse_sample_row).collect()
}

fn fuse_sample_row(row: &FuseRow<'_>) -> Result<Chosen, RowError> {
    let candidates = row.candidates;
    let fused = fuse(candidates, row.terms, row.min_p)?;
    let index = choose(candidates, &fused, row.sampling);
    let unguided = if row.terms.is_empty() {
        index
    } else {
        choose(candidates, &fuse(candidates, &[], row.min_p)?, row.sampling)
    };
    Ok(Chosen {
        index,
        id: candidates.ids[index],
        base_log_prob: candidates.log_prob(index) as f32,
        fused_log_prob: fused.log_prob(index) as f32,
        unguided_id: candidates.ids[unguided],
    })
}
