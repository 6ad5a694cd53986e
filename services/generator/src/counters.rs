//! What has happened to sessions and workers since the start, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that only grow. Any thread may read them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Sessions opened for the first time.
    pub(crate) opened: Counter,
    /// Sessions opened anew after a loss, or away from a worker that leaves.
    pub(crate) moved: Counter,
    /// Sessions that ended before their text did, for whatever reason.
    pub(crate) failed: Counter,
    /// Answers that broke the protocol; each moves its worker's sessions elsewhere.
    pub(crate) distrusted: Counter,
    /// Answers that came for a session closed meanwhile, or for a step that is over.
    pub(crate) late: Counter,
    /// Steps that were past their deadline.
    pub(crate) timeouts: Counter,
    /// Times that a circuit breaker took a worker out.
    pub(crate) taken_out: Counter,
    /// Re-openings put off because the retry budget was spent.
    pub(crate) over_budget: Counter,
    /// Connections to workers that broke.
    pub(crate) disconnected: Counter,
    /// Look-ups of worker names that failed.
    pub(crate) lookups_failed: Counter,
}

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
