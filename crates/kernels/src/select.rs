//! The candidates of a step: top-k and log-sum-exp in one pass over the logits.

use attune_guidance::{Candidates, RowError};

use crate::Threads;

/// What a request changes in its logits, in this order: penalty, bias, mask.
#[derive(Debug, Clone, Copy)]
pub struct Edits<'a> {
    /// Added to the logits of these ids; finite.
    pub bias: &'a [(u32, f32)],
    /// Ids that cannot be chosen.
    pub banned: &'a [u32],
    /// Repetition penalty (Keskar et al., 2019): a positive logit of a seen id is divided by it, a
    /// negative one multiplied. Above 0; 1: none.
    pub penalty: f32,
    /// The distinct ids of prompt and output; fastest when ascending.
    pub seen: &'a [u32],
}

impl Edits<'_> {
    /// No change.
    pub const NONE: Edits<'static> = Edits { bias: &[], banned: &[], penalty: 1.0, seen: &[] };
}

/// One row of a batch.
#[derive(Debug, Clone, Copy)]
pub struct SelectRow<'a> {
    /// How many candidates, from 1 to 64.
    pub k: usize,
    /// What the request changes.
    pub edits: Edits<'a>,
}

/// The `k` best candidates of one row of logits `[V]`; fewer where fewer are finite.
///
/// # Errors
/// [`RowError::Logits`] for NaN, positive infinity, or no finite logit at all.
pub fn select_row(logits: &[f32], k: usize, edits: &Edits<'_>) -> Result<Candidates, RowError> {
    let mut edited = logits.to_vec();
    if edits.penalty != 1.0 {
        for &id in edits.seen {
            if let Some(l) = edited.get_mut(id as usize) {
                *l = if *l < 0.0 { *l * edits.penalty } else { *l / edits.penalty };
            }
        }
    }
    for &(id, bias) in edits.bias {
        if let Some(l) = edited.get_mut(id as usize) {
            *l += bias;
        }
    }
    for &id in edits.banned {
        if let Some(l) = edited.get_mut(id as usize) {
            *l = f32::NEG_INFINITY;
        }
    }
    if logits.iter().chain(&edited).any(|l| l.is_nan() || *l == f32::INFINITY) {
        return Err(RowError::Logits);
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(|&i| edited[i as usize].is_finite()).collect();
    ids.sort_by(|&a, &b| edited[b as usize].total_cmp(&edited[a as usize]).then(a.cmp(&b)));
    ids.truncate(k);
    if ids.is_empty() {
        return Err(RowError::Logits);
    }
    let log_sum_exp = |l: &[f32]| {
        let max = l.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
        (max + l.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()) as f32
    };
    Ok(Candidates {
        logits: ids.iter().map(|&i| edited[i as usize]).collect(),
        raw_logits: ids.iter().map(|&i| logits[i as usize]).collect(),
        log_sum_exp: log_sum_exp(&edited),
        raw_log_sum_exp: log_sum_exp(logits),
        ids,
    })
}

/// [`select_row`] for every row of `logits`, `[rows, vocab]`. A row fails alone.
///
/// # Panics
/// `logits` does not hold `vocab` numbers for every row.
pub fn select(
    logits: &[f32],
    vocab: usize,
    rows: &[SelectRow<'_>],
    _threads: &Threads,
) -> Vec<Result<Candidates, RowError>> {
    rows.iter().zip(logits.chunks_exact(vocab)).map(|(r, l)| select_row(l, r.k, &r.edits)).collect()
}
