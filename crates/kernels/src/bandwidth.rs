//! What memory gives: the measure of every kernel that streams weights.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::Threads;
use crate::linear::{Line, Store};
use crate::simd::{Isa, LANES, Lanes, simd_fn};

/// Lines of one task: 1 MB.
const PART: usize = 1 << 14;
/// How many lines ahead memory is asked for.
const AHEAD: usize = 48;

/// Memory to be read over and over: on huge pages, as the weights are.
#[derive(Debug)]
pub struct ReadProbe {
    store: Store,
}

impl ReadProbe {
    /// `bytes` of memory, touched once. A probe smaller than the last-level cache measures the cache.
    pub fn new(bytes: usize) -> Self {
        let mut store = Store::zeroed(bytes.div_ceil(size_of::<Line>()));
        store.lines_mut().fill(Line([1; LANES]));
        Self { store }
    }

    /// The bytes that one pass reads.
    pub fn bytes(&self) -> usize {
        size_of_val(self.store.lines())
    }

    /// Reads it all once with all threads; returns bytes a second.
    pub fn read(&self, threads: &Threads) -> f64 {
        let isa = Isa::best();
        let lines = self.store.lines();
        let start = Instant::now();
        let total = AtomicU32::new(0);
        threads.for_each(lines.len().div_ceil(PART), |task| {
            let part = &lines[task * PART..lines.len().min((task + 1) * PART)];
            total.fetch_add(largest(isa, part).to_bits(), Ordering::Relaxed);
        });
        black_box(total);
        self.bytes() as f64 / start.elapsed().as_secs_f64()
    }
}

simd_fn!(fn largest(lines: &[Line]) -> f32 = largest_body);

#[inline(always)]
fn largest_body<L: Lanes>(l: L, lines: &[Line]) -> f32 {
    let mut acc = [l.splat(0.0); 4];
    for four in lines.chunks_exact(4) {
        for (acc, line) in acc.iter_mut().zip(four) {
            l.prefetch((line as *const Line).wrapping_add(AHEAD));
            *acc = l.max(*acc, l.bits(&line.0));
        }
    }
    l.largest(l.max(l.max(acc[0], acc[1]), l.max(acc[2], acc[3])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_at_some_speed() {
        let probe = ReadProbe::new(4 << 20);
        assert_eq!(probe.bytes(), 4 << 20);
        assert!(probe.read(&Threads::new(2).unwrap()) > 1e6);
    }
}
