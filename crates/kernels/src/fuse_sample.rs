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

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(logits: &[f32]) -> Candidates {
        let sum: f32 = logits.iter().map(|l| l.exp()).sum();
        Candidates {
            ids: (0..logits.len() as u32).map(|i| 100 + i).collect(),
            logits: logits.to_vec(),
            raw_logits: logits.to_vec(),
            log_sum_exp: sum.ln(),
            raw_log_sum_exp: sum.ln(),
        }
    }

    #[test]
    fn guidance_turns_the_choice_and_the_rest_is_told() {
        let candidates = candidates(&[2.0, 1.0, 0.0]);
        let rewards = [0.0, 3.0, 0.0];
        let terms = [Term { strength: 1.0, clip: None, rewards: &rewards }];
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 1, index: 0 };
        let row = FuseRow { candidates: &candidates, terms: &terms, min_p: 0.0, sampling };
        let bad = [0.0, f32::NAN, 0.0];
        let bad = [Term { strength: 1.0, clip: None, rewards: &bad }];
        let got = fuse_sample(&[row, FuseRow { terms: &bad, ..row }, FuseRow { terms: &[], ..row }]);
        let chosen = got[0].unwrap();
        assert_eq!((chosen.index, chosen.id, chosen.unguided_id), (1, 101, 100));
        assert!((chosen.base_log_prob - candidates.log_prob(1) as f32).abs() < 1e-6);
        let want = 4.0 - (2f32.exp() + 4f32.exp() + 0f32.exp()).ln();
        assert!((chosen.fused_log_prob - want).abs() < 1e-5);
        assert_eq!(got[1], Err(RowError::Reward));
        assert_eq!(got[2].unwrap().id, 100);
    }

    #[test]
    fn the_unguided_choice_draws_the_same_noise() {
        let candidates = candidates(&[0.3, 0.2, 0.1, 0.0]);
        let rewards = [0.1, -2.0, 2.0, 0.0];
        let terms = [Term { strength: 1.0, clip: Some(1.5), rewards: &rewards }];
        for index in 0..200 {
            let sampling = Sampling { temperature: 0.8, top_p: 0.9, seed: 42, index };
            let guided = FuseRow { candidates: &candidates, terms: &terms, min_p: 0.1, sampling };
            let plain = FuseRow { terms: &[], ..guided };
            let got = fuse_sample(&[guided, plain]);
            assert_eq!(got[0].unwrap().unguided_id, got[1].unwrap().id);
        }
    }
}
