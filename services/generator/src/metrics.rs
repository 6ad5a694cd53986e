//! What the generator measures of itself; `docs/operations.md` has the table.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_service::metrics::{Metrics, Part, StepTimes};
use opentelemetry::metrics::{Counter as Instrument, Histogram};
use tokio::sync::watch;

use crate::{
    counters::{Counter, Counters},
    scheduler::Load,
};

/// What the engine records into, made once.
#[derive(Debug)]
pub(crate) struct Instruments {
    /// The forward pass, the output head included.
    pub(crate) forward: Part,
    /// Top-k and log-sum-exp.
    pub(crate) select: Part,
    /// From `Candidates` sent to the last reward received, of each guided sequence.
    pub(crate) reward_wait: Part,
    /// Fusion and choice, of each sequence.
    pub(crate) fuse: Part,
    /// The token's way to its client's channel, of each sequence.
    pub(crate) emit: Part,
    batch_rows: Histogram<u64>,
    first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    tokens: Instrument<u64>,
}

impl Instruments {
    /// All instruments of the generator. What the scheduler counts itself is read from `load`.
    pub(crate) fn new(metrics: &Metrics, load: &watch::Receiver<Load>, counters: &Arc<Counters>) -> Self {
        let step = StepTimes::new(metrics);
        let level = |name, about, of: fn(&Load) -> usize| {
            let load = load.clone();
            metrics.level(name, about, move || of(&load.borrow()) as u64);
        };
        level("attune.sequences.running", "Sequences that hold a slot.", |l| l.running);
        level("attune.sequences.waiting", "Sequences that wait for a slot.", |l| l.waiting);
        level("attune.cache.blocks.used", "Cache blocks that sequences hold.", |l| l.cache.used);
        level("attune.cache.blocks.kept", "Cache blocks kept for who reads the same.", |l| l.cache.kept);
        level("attune.cache.blocks", "Cache blocks in all.", |l| l.cache.total);
        let total = |name, about, of: fn(&Load) -> u64| {
            let load = load.clone();
            metrics.total(name, about, move || of(&load.borrow()));
        };
        total("attune.preempted", "Sequences that gave their blocks back to wait.", |l| l.preempted);
        total("attune.cache.asked.tokens", "Tokens of sequences that began to be read.", |l| {
            l.cache.asked_tokens
        });
        total("attune.cache.hit.tokens", "Of these, found in the cache.", |l| l.cache.hit_tokens);
        let count = |name, about, of: fn(&Counters) -> &Counter| {
            let counters = Arc::clone(counters);
            metrics.total(name, about, move || of(&counters).get());
        };
        count("attune.sessions.opened", "Reward sessions opened for the first time.", |c| &c.opened);
        count("attune.sessions.moved", "Reward sessions opened anew, or on another worker.", |c| &c.moved);
        count("attune.sessions.failed", "Reward sessions that ended before their text.", |c| &c.failed);
        count("attune.worker.distrusted", "Answers that broke the protocol.", |c| &c.distrusted);
        count("attune.worker.late", "Answers that nobody waited for any more.", |c| &c.late);
        count("attune.worker.timeouts", "Steps past their deadline.", |c| &c.timeouts);
        count("attune.worker.taken.out", "Times a circuit breaker took a worker out.", |c| &c.taken_out);
        count("attune.worker.over.budget", "Re-openings that the retry budget put off.", |c| &c.over_budget);
        count("attune.worker.disconnected", "Connections to workers that broke.", |c| &c.disconnected);
        count("attune.worker.lookups.failed", "Look-ups of workers that failed.", |c| &c.lookups_failed);
        Self {
            forward: step.part("forward"),
            select: step.part("select"),
            reward_wait: step.part("reward_wait"),
            fuse: step.part("fuse"),
            emit: step.part("emit"),
            batch_rows: metrics.rows("attune.batch.rows", "Rows of one forward pass."),
            first_token: metrics
                .seconds("attune.time_to_first_token", "From a request's arrival to its first token."),
            per_token: metrics
                .seconds("attune.time_per_output_token", "Between a text's tokens, the first aside."),
            tokens: metrics.counter("attune.tokens", "Generated tokens."),
        }
    }

    /// A forward pass over so many rows has begun.
    pub(crate) fn pass(&self, rows: usize) {
        self.batch_rows.record(rows as u64, &[]);
    }

    /// A text that came at `arrived` has a token now, and had its last one at `last`.
    pub(crate) fn token(&self, arrived: Instant, last: Option<Instant>, now: Instant) {
        let (histogram, since) = match last {
            None => (&self.first_token, arrived),
            Some(last) => (&self.per_token, last),
        };
        histogram.record(now.saturating_duration_since(since).as_secs_f64(), &[]);
        self.tokens.add(1, &[]);
    }
}

/// Measures one part of a step after the other.
pub(crate) struct Lap(Instant);

impl Lap {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the last call, or the start.
    pub(crate) fn time(&mut self) -> Duration {
        let last = std::mem::replace(&mut self.0, Instant::now());
        self.0.saturating_duration_since(last)
    }
}
