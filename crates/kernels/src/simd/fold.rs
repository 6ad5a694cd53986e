//! Folds of a slice with four running vectors, so that one step need not wait for the one before.
//! The order is a function of the length alone.

use super::Lanes;

/// `fold!(l, chunks, acc, |a, v| step)`: vector `i` of `chunks` goes to running value `i % 4` of `acc`.
///
/// A macro, because a closure is compiled without the features of the function around it.
macro_rules! fold {
    ($l:expr, $chunks:expr, $acc:ident, |$a:ident, $v:ident| $step:expr) => {
        let (fours, rest) = $chunks.as_chunks::<4>();
        for four in fours {
            for ($a, chunk) in $acc.iter_mut().zip(four) {
                let $v = $l.load(chunk);
                *$a = $step;
            }
        }
        for ($a, chunk) in $acc.iter_mut().zip(rest) {
            let $v = $l.load(chunk);
            *$a = $step;
        }
    };
}
pub(crate) use fold;

/// The sum of four vectors' lanes.
#[inline(always)]
pub(crate) fn sum4<L: Lanes>(l: L, v: [L::V; 4]) -> f32 {
    l.sum(l.add(l.add(v[0], v[1]), l.add(v[2], v[3])))
}
