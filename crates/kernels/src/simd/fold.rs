//! Folds of a slice with four running vectors, so that one step need not wait for the one before.
//! The order is a function of the length alone.

use super::{LANES, Lanes};

/// Vector `i` goes to running value `i % 4`. A function of the whole vectors of a slice.
#[inline(always)]
pub(crate) fn fold<L: Lanes>(
    l: L,
    chunks: &[[f32; LANES]],
    mut acc: [L::V; 4],
    step: impl Fn(L::V, L::V) -> L::V,
) -> [L::V; 4] {
    let (fours, rest) = chunks.as_chunks::<4>();
    for four in fours {
        for (acc, chunk) in acc.iter_mut().zip(four) {
            *acc = step(*acc, l.load(chunk));
        }
    }
    for (acc, chunk) in acc.iter_mut().zip(rest) {
        *acc = step(*acc, l.load(chunk));
    }
    acc
}

/// The sum of four vectors' lanes.
#[inline(always)]
pub(crate) fn sum4<L: Lanes>(l: L, v: [L::V; 4]) -> f32 {
    l.sum(l.add(l.add(v[0], v[1]), l.add(v[2], v[3])))
}
