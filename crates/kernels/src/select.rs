//! The candidates of a step: top-k and both log-sum-exps in one pass over the logits.
//!
//! The row is read once, in pieces that stay in the first-level cache. Only pieces with edited ids
//! are copied, and only a piece with a logit above the worst candidate so far is searched.

use attune_guidance::{Candidates, RowError};

use crate::Threads;
use crate::disjoint::Disjoint;
use crate::simd::exp::exp;
use crate::simd::fold::{fold, sum4};
use crate::simd::{Isa, LANES, Lanes, simd_fn};

/// Logits of a piece: 4 KB.
const PIECE: usize = 1024;

/// What a request changes in its logits, in this order: penalty, bias, mask.
#[derive(Debug, Clone, Copy)]
pub struct Edits<'a> {
    /// Added to the logits of these ids; finite. Ids outside the vocabulary are passed over, here
    /// and below.
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
    select_as(Isa::best(), logits, k, edits)
}

/// [`select_row`] for every row of `logits`, `[rows, vocab]`. A row fails alone.
///
/// # Panics
/// `logits` does not hold `vocab` numbers for every row.
pub fn select(
    logits: &[f32],
    vocab: usize,
    rows: &[SelectRow<'_>],
    threads: &Threads,
) -> Vec<Result<Candidates, RowError>> {
    assert_eq!(logits.len(), rows.len() * vocab, "a row of logits for every row");
    let mut results = vec![Err(RowError::Logits); rows.len()];
    let out = Disjoint::new(&mut results);
    threads.for_each(rows.len(), |i| {
        // SAFETY: every task has its own row.
        #[allow(unsafe_code)]
        let result = unsafe { out.part(i, 1) };
        result[0] = select_row(&logits[i * vocab..][..vocab], rows[i].k, &rows[i].edits);
    });
    results
}

/// What happens to one id.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Edit {
    // In the order in which they apply.
    Penalty,
    Bias(f32),
    Ban,
}

fn select_as(isa: Isa, logits: &[f32], k: usize, edits: &Edits<'_>) -> Result<Candidates, RowError> {
    let edit_list = by_id(edits);
    let mut edit_list = edit_list.as_slice();
    let mut best = Best { k, found: Vec::with_capacity(k + 1) };
    let (mut raw_sum, mut edited_sum) = (LogSum::EMPTY, LogSum::EMPTY);
    let mut copy = [0.0; PIECE];
    for (i, raw) in logits.chunks(PIECE).enumerate() {
        let start = i * PIECE;
        let here = edit_list.partition_point(|(id, _)| (*id as usize) < start + raw.len());
        let (now, later) = edit_list.split_at(here);
        edit_list = later;
        let (raw_max, raw_total) = piece_sum(isa, raw);
        raw_sum.add(raw_max, raw_total)?;
        let (piece, max) = if now.is_empty() {
            edited_sum.add(raw_max, raw_total)?;
            (raw, raw_max)
        } else {
            let copy = &mut copy[..raw.len()];
            copy.copy_from_slice(raw);
            for &(id, edit) in now {
                apply(&mut copy[id as usize - start], edit, edits.penalty);
            }
            let (max, total) = piece_sum(isa, copy);
            edited_sum.add(max, total)?;
            (&*copy, max)
        };
        if max > best.floor() {
            search(isa, piece, start as u32, &mut best);
        }
    }
    if best.found.is_empty() {
        return Err(RowError::Logits);
    }
    Ok(Candidates {
        ids: best.found.iter().map(|found| found.1).collect(),
        logits: best.found.iter().map(|found| found.0).collect(),
        raw_logits: best.found.iter().map(|found| logits[found.1 as usize]).collect(),
        log_sum_exp: edited_sum.value(),
        raw_log_sum_exp: raw_sum.value(),
    })
}

/// Every edit, ascending by id and, for one id, in order of application.
pub(crate) fn by_id(edits: &Edits<'_>) -> Vec<(u32, Edit)> {
    let seen = if edits.penalty == 1.0 { &[] } else { edits.seen };
    let mut list: Vec<(u32, Edit)> = seen.iter().map(|&id| (id, Edit::Penalty)).collect();
    list.extend(edits.bias.iter().map(|&(id, bias)| (id, Edit::Bias(bias))));
    list.extend(edits.banned.iter().map(|&id| (id, Edit::Ban)));
    // A stable sort: the three kinds keep their order.
    list.sort_by_key(|(id, _)| *id);
    list
}

fn apply(logit: &mut f32, edit: Edit, penalty: f32) {
    match edit {
        Edit::Penalty if *logit < 0.0 => *logit *= penalty,
        Edit::Penalty => *logit /= penalty,
        Edit::Bias(bias) => *logit += bias,
        Edit::Ban => *logit = f32::NEG_INFINITY,
    }
}

/// `log sum exp` of pieces: a running maximum, and the sum relative to it.
struct LogSum {
    max: f64,
    sum: f64,
}

impl LogSum {
    const EMPTY: Self = Self { max: f64::NEG_INFINITY, sum: 0.0 };

    /// Adds a piece whose terms sum to `sum` relative to `max`.
    fn add(&mut self, max: f32, sum: f32) -> Result<(), RowError> {
        if max == f32::INFINITY || sum.is_nan() {
            return Err(RowError::Logits);
        }
        let (max, sum) = (f64::from(max), f64::from(sum));
        if max > self.max {
            self.sum = self.sum * (self.max - max).exp() + sum;
            self.max = max;
        } else if max > f64::NEG_INFINITY {
            self.sum += sum * (max - self.max).exp();
        }
        Ok(())
    }

    fn value(&self) -> f32 {
        (self.max + self.sum.ln()) as f32
    }
}

simd_fn!(
    /// The largest logit of a piece, and `sum exp(logit - largest)`: NaN where a logit is NaN, 0 where
    /// all are negative infinity.
    fn piece_sum(piece: &[f32]) -> (f32, f32) = piece_sum_body
);

#[inline(always)]
fn piece_sum_body<L: Lanes>(l: L, piece: &[f32]) -> (f32, f32) {
    let (chunks, rest) = piece.as_chunks::<LANES>();
    let rest = l.load_part(rest, f32::NEG_INFINITY);
    let mut max = [rest; 4];
    fold!(l, chunks, max, |max, v| l.max(*max, v));
    let max = l.largest(l.max(l.max(max[0], max[1]), l.max(max[2], max[3])));
    // Negative infinity less itself would be NaN.
    let base = l.splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
    let zero = l.splat(0.0);
    let mut sums = [exp(l, l.sub(rest, base)), zero, zero, zero];
    fold!(l, chunks, sums, |sum, v| l.add(*sum, exp(l, l.sub(v, base))));
    (max, sum4(l, sums))
}

/// The best so far, best first; of equals the lower id first.
struct Best {
    k: usize,
    found: Vec<(f32, u32)>,
}

impl Best {
    /// A logit must lie above it to enter: ids come in ascending order, so an equal one comes late.
    #[inline(always)]
    fn floor(&self) -> f32 {
        match self.found.last() {
            Some(&(worst, _)) if self.found.len() >= self.k => worst,
            _ => f32::NEG_INFINITY,
        }
    }

    fn insert(&mut self, logit: f32, id: u32) {
        let at = self.found.partition_point(|found| found.0 >= logit);
        self.found.insert(at, (logit, id));
        self.found.truncate(self.k);
    }
}

simd_fn!(
    /// Puts what is above the worst candidate among the best; the first of `piece` has id `start`.
    fn search(piece: &[f32], start: u32, best: &mut Best) = search_body
);

#[inline(always)]
fn search_body<L: Lanes>(l: L, piece: &[f32], start: u32, best: &mut Best) {
    let mut floor = best.floor();
    for (i, chunk) in piece.chunks(LANES).enumerate() {
        let v = match <&[f32; LANES]>::try_from(chunk) {
            Ok(chunk) => l.load(chunk),
            Err(_) => l.load_part(chunk, f32::NEG_INFINITY),
        };
        let mut above = l.above(v, l.splat(floor));
        while above != 0 {
            let lane = above.trailing_zeros() as usize;
            above &= above - 1;
            // An earlier lane may have raised the floor.
            if chunk[lane] > floor {
                best.insert(chunk[lane], start + (i * LANES + lane) as u32);
                floor = best.floor();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same in double precision, with a copy and a full sort.
    fn expected(logits: &[f32], k: usize, edits: &Edits<'_>) -> Result<Candidates, RowError> {
        let mut edited = logits.to_vec();
        let len = logits.len() as u32;
        if edits.penalty != 1.0 {
            for &id in edits.seen.iter().filter(|&&id| id < len) {
                let logit = &mut edited[id as usize];
                *logit = if *logit < 0.0 { *logit * edits.penalty } else { *logit / edits.penalty };
            }
        }
        edits.bias.iter().filter(|b| b.0 < len).for_each(|b| edited[b.0 as usize] += b.1);
        edits.banned.iter().filter(|&&b| b < len).for_each(|b| edited[*b as usize] = f32::NEG_INFINITY);
        let mut ids: Vec<u32> = (0..len).filter(|&i| edited[i as usize].is_finite()).collect();
        ids.sort_by(|&a, &b| edited[b as usize].total_cmp(&edited[a as usize]).then(a.cmp(&b)));
        ids.truncate(k);
        let log_sum_exp = |l: &[f32]| {
            let max = l.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
            (max + l.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()) as f32
        };
        let bad = logits.iter().chain(&edited).any(|l| l.is_nan() || *l == f32::INFINITY);
        if bad || ids.is_empty() {
            return Err(RowError::Logits);
        }
        Ok(Candidates {
            logits: ids.iter().map(|&i| edited[i as usize]).collect(),
            raw_logits: ids.iter().map(|&i| logits[i as usize]).collect(),
            log_sum_exp: log_sum_exp(&edited),
            raw_log_sum_exp: log_sum_exp(logits),
            ids,
        })
    }

    fn logit() -> impl Strategy<Value = f32> {
        // Few distinct values make ties; some are masked by the model already.
        prop_oneof![
            8 => -10.0f32..10.0,
            8 => (-8i8..8).prop_map(|x| f32::from(x) * 0.5),
            1 => Just(f32::NEG_INFINITY),
        ]
    }

    proptest! {
        #[test]
        fn every_form_selects_what_a_sort_selects(
            logits in proptest::collection::vec(logit(), 1..3000), k in 1usize..65,
            bias in proptest::collection::vec((0u32..3200, -20.0f32..20.0), 0..20),
            banned in proptest::collection::vec(0u32..3200, 0..20),
            penalty in prop_oneof![Just(1.0f32), 0.5f32..2.0],
            seen in proptest::collection::hash_set(0u32..3200, 0..100),
        ) {
            let seen: Vec<u32> = seen.into_iter().collect();
            let edits = Edits { bias: &bias, banned: &banned, penalty, seen: &seen };
            let want = expected(&logits, k, &edits);
            let mut first = None;
            for isa in Isa::all() {
                let got = select_as(isa, &logits, k, &edits);
                match (&got, &want) {
                    (Ok(got), Ok(want)) => {
                        prop_assert_eq!((&got.ids, &got.logits, &got.raw_logits),
                                        (&want.ids, &want.logits, &want.raw_logits));
                        prop_assert!((got.log_sum_exp - want.log_sum_exp).abs() < 2e-6 * want.log_sum_exp.abs().max(1.0));
                        prop_assert!((got.raw_log_sum_exp - want.raw_log_sum_exp).abs()
                                     < 2e-6 * want.raw_log_sum_exp.abs().max(1.0));
                    }
                    _ => prop_assert_eq!(&got, &want),
                }
                prop_assert_eq!(first.get_or_insert_with(|| got.clone()), &got);
            }
        }
    }

    #[test]
    fn a_damaged_row_fails_alone() {
        let vocab = 5000;
        let mut logits: Vec<f32> = (0..4 * vocab).map(|i| (i as f32 * 0.1).sin()).collect();
        logits[vocab + 4999] = f32::NAN;
        logits[2 * vocab + 17] = f32::INFINITY;
        logits[3 * vocab..].fill(f32::NEG_INFINITY);
        let row = SelectRow { k: 10, edits: Edits::NONE };
        for threads in 1..3 {
            let got = select(&logits, vocab, &[row; 4], &Threads::new(threads).unwrap());
            assert_eq!(got[0].as_ref().unwrap().len(), 10);
            assert!(got[1..].iter().all(|row| *row == Err(RowError::Logits)));
        }
    }

    #[test]
    fn a_mask_of_all_but_one_leaves_one() {
        let banned: Vec<u32> = (0..2000).filter(|&id| id != 1234).collect();
        let edits = Edits { banned: &banned, ..Edits::NONE };
        let got = select_row(&vec![1.0; 2000], 10, &edits).unwrap();
        assert_eq!((got.ids, got.log_sum_exp), (vec![1234], 1.0));
    }
}
