//! The reward model's values of the candidates.
//!
//! Within a step the normaliser over the vocabulary cancels, so that `k` rows of the output
//! embedding are gathered, and the whole head is multiplied for no one but who asks for it.

use attune_guidance::{RowError, log_softmax};

use crate::disjoint::Disjoint;
use crate::{EmbeddingTable, Threads};

/// The reference model's side of a row.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// `E_ref`.
    pub table: &'a EmbeddingTable,
    /// `w_p * h_ref`, `[d]`.
    pub features: &'a [f32],
}

/// One row to score.
#[derive(Debug, Clone, Copy)]
pub struct ScoreJob<'a> {
    /// `E_theta`.
    pub table: &'a EmbeddingTable,
    /// `w_p * h_theta`, `[d]`.
    pub features: &'a [f32],
    /// The candidates' ids, `[k]`.
    pub ids: &'a [u32],
    /// Reference MODEL; `None` for GENERATOR and NONE.
    pub reference: Option<Reference<'a>>,
    /// Normalise over the vocabulary instead of the candidates.
    pub over_vocabulary: bool,
}

/// The values of every job in the candidates' order: log-softmax of `E[a] . features`, less the
/// reference's where there is one (PAD, equation 9). A row fails alone.
///
/// # Errors
/// Per row: [`RowError::Reward`] for a value that is not finite or an id outside the vocabulary.
///
/// # Panics
/// Features do not have the width of their table.
pub fn score(jobs: &[ScoreJob<'_>], threads: &Threads) -> Vec<Result<Vec<f32>, RowError>> {
    let mut results = vec![Err(RowError::Reward); jobs.len()];
    let out = Disjoint::new(&mut results);
    // A sum over the vocabulary is split over the threads itself; for k rows a task is too small
    // below a few tens of thousands of products.
    let work = |i: usize, threads: &Threads| {
        // SAFETY: every task has its own row.
        #[allow(unsafe_code)]
        let result = unsafe { out.part(i, 1) };
        result[0] = score_row(&jobs[i], threads);
    };
    let whole = jobs.iter().any(|job| job.over_vocabulary);
    let products: usize = jobs.iter().map(|job| job.ids.len() * job.features.len()).sum();
    if whole || products < 64 * 1024 {
        (0..jobs.len()).for_each(|i| work(i, threads));
    } else {
        threads.for_each(jobs.len(), |i| work(i, threads));
    }
    results
}

fn score_row(job: &ScoreJob<'_>, threads: &Threads) -> Result<Vec<f32>, RowError> {
    let mut rewards = log_probs(job, job.table, job.features, threads)?;
    if let Some(reference) = job.reference {
        let theirs = log_probs(job, reference.table, reference.features, threads)?;
        rewards.iter_mut().zip(theirs).for_each(|(reward, theirs)| *reward -= theirs);
    }
    let rewards: Vec<f32> = rewards.into_iter().map(|reward| reward as f32).collect();
    if rewards.iter().all(|reward| reward.is_finite()) { Ok(rewards) } else { Err(RowError::Reward) }
}

fn log_probs(
    job: &ScoreJob<'_>,
    table: &EmbeddingTable,
    features: &[f32],
    threads: &Threads,
) -> Result<Vec<f64>, RowError> {
    if job.ids.iter().any(|&id| id as usize >= table.vocab()) {
        return Err(RowError::Reward);
    }
    let mut dots = vec![0.0; job.ids.len()];
    table.dot_rows(job.ids, features, &mut dots);
    if !job.over_vocabulary {
        return Ok(log_softmax(&dots));
    }
    let log_sum_exp = table.log_sum_exp_all(features, threads);
    Ok(dots.iter().map(|&dot| f64::from(dot) - log_sum_exp).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use attune_guidance::against_model;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const VOCAB: usize = 900;
    const D: usize = 70;

    fn numbers(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
    }

    fn dots(table: &EmbeddingTable, ids: &[u32], features: &[f32]) -> Vec<f32> {
        let mut row = vec![0.0; D];
        let dot = |id: &u32| {
            table.row_into(*id, &mut row);
            row.iter().zip(features).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
        };
        ids.iter().map(dot).collect()
    }

    #[test]
    fn values_are_those_of_the_specification_for_any_company() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let table = EmbeddingTable::from_f32(numbers(&mut rng, VOCAB * D), VOCAB, D).unwrap();
        let other = EmbeddingTable::from_f32(numbers(&mut rng, VOCAB * D), VOCAB, D).unwrap();
        let features: Vec<Vec<f32>> = (0..40).map(|_| numbers(&mut rng, D)).collect();
        let ids: Vec<u32> = (0..64).map(|i| i * 13 % VOCAB as u32).collect();
        let all: Vec<u32> = (0..VOCAB as u32).collect();
        for (over_vocabulary, with_reference) in [(false, false), (false, true), (true, false), (true, true)]
        {
            let jobs: Vec<ScoreJob<'_>> = (0..features.len())
                .map(|i| ScoreJob {
                    table: &table,
                    features: &features[i],
                    ids: &ids[..1 + i % 64],
                    reference: with_reference
                        .then_some(Reference { table: &other, features: &features[(i + 1) % 40] }),
                    over_vocabulary,
                })
                .collect();
            let together = score(&jobs, &Threads::new(3).unwrap());
            for (job, got) in jobs.iter().zip(&together) {
                assert_eq!(&score(&[*job], &Threads::new(1).unwrap())[0], got);
                let got = got.as_ref().unwrap();
                // Over the vocabulary: the same over all ids, then those of the candidates.
                let over = if over_vocabulary { all.as_slice() } else { job.ids };
                let policy = dots(&table, over, job.features);
                let want = match job.reference {
                    Some(reference) => against_model(&policy, &dots(&other, over, reference.features)),
                    None => log_softmax(&policy),
                };
                for (i, (got, id)) in got.iter().zip(job.ids).enumerate() {
                    let want = want[if over_vocabulary { *id as usize } else { i }];
                    assert!((f64::from(*got) - want).abs() < 2e-5, "{got} {want}");
                }
            }
        }
    }

    #[test]
    fn a_damaged_row_fails_alone() {
        let table = EmbeddingTable::from_f32(vec![0.5; 8 * 4], 8, 4).unwrap();
        let job = ScoreJob {
            table: &table,
            features: &[1.0; 4],
            ids: &[1, 2],
            reference: None,
            over_vocabulary: false,
        };
        let nan = ScoreJob { features: &[1.0, f32::NAN, 0.0, 0.0], ..job };
        let outside = ScoreJob { ids: &[1, 8], ..job };
        let whole = ScoreJob { over_vocabulary: true, ..nan };
        let got = score(&[job, nan, outside, whole], &Threads::new(1).unwrap());
        assert!(got[0].as_ref().unwrap().iter().all(|v| (v - 0.5f32.ln()).abs() < 1e-6));
        assert!(got[1..].iter().all(|row| *row == Err(RowError::Reward)));
    }
}
