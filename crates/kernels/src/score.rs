//! The reward model's values of the candidates: a gather of `k` rows of its output embedding.

use attune_guidance::{RowError, against_model, log_softmax};
use half::{bf16, f16};

use crate::error::check_len;
use crate::{KernelError, Threads};

#[derive(Debug, Clone)]
enum Rows {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

/// A row-major embedding `[V, d]`: looked up by id, or dotted with features row by row.
#[derive(Debug, Clone)]
pub struct EmbeddingTable {
    rows: Rows,
    vocab: usize,
    d: usize,
}

impl EmbeddingTable {
    /// Keeps `[vocab, d]` single-precision numbers.
    ///
    /// # Errors
    /// The length is not `vocab * d`.
    pub fn from_f32(rows: Vec<f32>, vocab: usize, d: usize) -> Result<Self, KernelError> {
        check_len("an embedding", rows.len(), vocab * d)?;
        Ok(Self { rows: Rows::F32(rows), vocab, d })
    }

    /// Keeps `[vocab, d]` bfloat16 numbers.
    ///
    /// # Errors
    /// The length is not `vocab * d`.
    pub fn from_bf16(rows: Vec<bf16>, vocab: usize, d: usize) -> Result<Self, KernelError> {
        check_len("an embedding", rows.len(), vocab * d)?;
        Ok(Self { rows: Rows::Bf16(rows), vocab, d })
    }

    /// Keeps `[vocab, d]` half-precision numbers.
    ///
    /// # Errors
    /// The length is not `vocab * d`.
    pub fn from_f16(rows: Vec<f16>, vocab: usize, d: usize) -> Result<Self, KernelError> {
        check_len("an embedding", rows.len(), vocab * d)?;
        Ok(Self { rows: Rows::F16(rows), vocab, d })
    }

    /// `V`.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The width of a row.
    pub fn d(&self) -> usize {
        self.d
    }

    /// The bytes that the table holds.
    pub fn bytes(&self) -> usize {
        match &self.rows {
            Rows::F32(rows) => rows.len() * 4,
            Rows::Bf16(_) | Rows::F16(_) => self.vocab * self.d * 2,
        }
    }

    /// Row `id` in single precision, `[d]`.
    ///
    /// # Panics
    /// `id` is not below `V`, or `out` not `d` long.
    pub fn row_into(&self, id: u32, out: &mut [f32]) {
        let at = id as usize * self.d..(id as usize + 1) * self.d;
        match &self.rows {
            Rows::F32(rows) => out.copy_from_slice(&rows[at]),
            Rows::Bf16(rows) => out.iter_mut().zip(&rows[at]).for_each(|(o, r)| *o = r.to_f32()),
            Rows::F16(rows) => out.iter_mut().zip(&rows[at]).for_each(|(o, r)| *o = r.to_f32()),
        }
    }

    /// `out[i] = E[ids[i]] . features`, each one sum in a fixed order.
    ///
    /// # Panics
    /// An id is not below `V`, or a slice does not have the length of its shape.
    pub fn dot_rows(&self, ids: &[u32], features: &[f32], out: &mut [f32]) {
        let mut row = vec![0.0; self.d];
        for (&id, out) in ids.iter().zip(out) {
            self.row_into(id, &mut row);
            *out = row.iter().zip(features).fold(0.0f32, |s, (a, b)| a.mul_add(*b, s));
        }
    }

    /// `log sum_a exp(E[a] . features)` over the whole vocabulary.
    pub fn log_sum_exp_all(&self, features: &[f32], _threads: &Threads) -> f64 {
        let ids: Vec<u32> = (0..self.vocab as u32).collect();
        let mut all = vec![0.0; self.vocab];
        self.dot_rows(&ids, features, &mut all);
        let max = all.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
        max + all.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
    }
}

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
/// reference's where there is one. A row fails alone.
///
/// # Errors
/// Per row: [`RowError::Reward`] for a value that is not finite or an id outside the vocabulary.
pub fn score(jobs: &[ScoreJob<'_>], threads: &Threads) -> Vec<Result<Vec<f32>, RowError>> {
    jobs.iter().map(|job| score_row(job, threads)).collect()
}

fn score_row(job: &ScoreJob<'_>, threads: &Threads) -> Result<Vec<f32>, RowError> {
    let values = |table: &EmbeddingTable, features: &[f32]| -> Vec<f64> {
        let mut dots = vec![0.0; job.ids.len()];
        table.dot_rows(job.ids, features, &mut dots);
        if job.over_vocabulary {
            let lse = table.log_sum_exp_all(features, threads);
            dots.iter().map(|&x| f64::from(x) - lse).collect()
        } else {
            log_softmax(&dots)
        }
    };
    let _ = against_model;
    let mut rewards = values(job.table, job.features);
    if let Some(reference) = job.reference {
        let theirs = values(reference.table, reference.features);
        rewards.iter_mut().zip(theirs).for_each(|(r, t)| *r -= t);
    }
    let rewards: Vec<f32> = rewards.into_iter().map(|r| r as f32).collect();
    if rewards.iter().all(|r| r.is_finite()) { Ok(rewards) } else { Err(RowError::Reward) }
}
