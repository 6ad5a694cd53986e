//! What happens in one simulation: everything follows from its seed.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// Something that goes wrong, or is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A worker's process dies.
    Crash(usize),
    /// It is started again.
    Restart(usize),
    /// It shuts down in good order.
    Drain(usize),
    /// Nothing passes between it and the generator; connections notice nothing.
    Partition(usize),
    /// Messages pass again.
    Repair(usize),
    /// All messages are held back.
    Hold(usize),
    /// And delivered late.
    Release(usize),
    /// Its name no longer stands in DNS.
    Vanish(usize),
    /// It stands there again.
    Appear(usize),
}

/// One simulation.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) workers: usize,
    /// Slots of each worker.
    pub(crate) slots: usize,
    pub(crate) generator_slots: usize,
    /// Tokens of prompts in one pass, on both sides.
    pub(crate) chunk: usize,
    /// Whether the workers' passes wait for company, as on a card.
    pub(crate) company: bool,
    /// Longest delay of a message.
    pub(crate) delay: Duration,
    /// Which texts are asked for, and when.
    pub(crate) texts: Vec<(Duration, usize)>,
    pub(crate) faults: Vec<(Duration, Fault)>,
}

impl Plan {
    /// Of `catalogue` texts, `count` come within `span`, and so do the faults; whatever breaks is
    /// mended in the end.
    pub(crate) fn new(seed: u64, catalogue: usize, count: usize, span: Duration, faults: usize) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let workers = dice.random_range(2..=4);
        let at = |dice: &mut StdRng| span.mul_f64(dice.random());
        let mut texts: Vec<_> =
            (0..count).map(|_| (at(&mut dice), dice.random_range(0..catalogue))).collect();
        texts.sort_unstable();
        let mut happenings = Vec::new();
        for _ in 0..faults {
            let worker = dice.random_range(0..workers);
            let (breaks, mends) = *[
                (Fault::Crash(worker), Fault::Restart(worker)),
                (Fault::Crash(worker), Fault::Restart(worker)),
                (Fault::Drain(worker), Fault::Restart(worker)),
                (Fault::Partition(worker), Fault::Repair(worker)),
                (Fault::Hold(worker), Fault::Release(worker)),
                (Fault::Vanish(worker), Fault::Appear(worker)),
            ]
            .choose(&mut dice)
            .unwrap();
            let start = at(&mut dice);
            let length = Duration::from_millis(dice.random_range(20..1500));
            happenings.push((start, breaks));
            happenings.push((start + length, mends));
        }
        happenings.sort_by_key(|(at, _)| *at);
        // Faults overlap: at the end everything is mended once more.
        let end = happenings.last().map_or(span, |(at, _)| *at) + Duration::from_millis(10);
        for worker in 0..workers {
            for mend in
                [Fault::Repair(worker), Fault::Release(worker), Fault::Restart(worker), Fault::Appear(worker)]
            {
                happenings.push((end, mend));
            }
        }
        Self {
            seed,
            workers,
            slots: dice.random_range(2..=6),
            generator_slots: dice.random_range(2..=6),
            chunk: dice.random_range(1..=32),
            company: seed % 2 == 1,
            delay: Duration::from_micros(*[200, 1_000, 5_000, 20_000].choose(&mut dice).unwrap()),
            texts,
            faults: happenings,
        }
    }

    /// The same without anything going wrong, one text after the other.
    pub(crate) fn undisturbed(catalogue: usize) -> Self {
        Self {
            seed: 0,
            workers: 1,
            slots: 8,
            generator_slots: 1,
            chunk: 64,
            company: false,
            delay: Duration::from_micros(200),
            texts: (0..catalogue).map(|i| (Duration::from_secs(i as u64), i)).collect(),
            faults: Vec::new(),
        }
    }
}
