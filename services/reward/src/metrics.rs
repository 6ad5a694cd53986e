//! What the worker measures of itself; `docs/operations.md` has the table.

use attune_engine::kv::CacheStats;
use attune_service::metrics::{Metrics, Part, StepTimes};
use opentelemetry::metrics::{Counter, Histogram};
use tokio::sync::watch;

/// What the engine records into, made once.
#[derive(Debug)]
pub(crate) struct Instruments {
    /// The forward pass, the reference's included.
    pub(crate) forward: Part,
    /// The candidates' rewards, of a batch.
    pub(crate) score: Part,
    /// What an iteration has to say, on its way to the calls.
    pub(crate) emit: Part,
    batch_rows: Histogram<u64>,
    fill: watch::Sender<Fill>,
    preempted: Counter<u64>,
}

/// How full the worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fill {
    /// Sessions that are admitted.
    pub(crate) running: usize,
    /// Sessions whose prompt is still being encoded.
    pub(crate) waiting: usize,
    /// The cache.
    pub(crate) cache: CacheStats,
}

impl Instruments {
    /// All instruments of the worker.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let step = StepTimes::new(metrics);
        let (fill, watched) = watch::channel(Fill::default());
        let level = |name, about, of: fn(&Fill) -> usize| {
            let fill = watched.clone();
            metrics.level(name, about, move || of(&fill.borrow()) as u64);
        };
        level("attune.sessions.running", "Sessions that are admitted.", |f| f.running);
        level("attune.sessions.waiting", "Sessions whose prompt is being encoded.", |f| f.waiting);
        level("attune.cache.blocks.used", "Cache blocks that sessions hold.", |f| f.cache.used);
        level("attune.cache.blocks.kept", "Cache blocks kept for who reads the same.", |f| f.cache.kept);
        level("attune.cache.blocks", "Cache blocks in all.", |f| f.cache.total);
        let total = |name, about, of: fn(&Fill) -> u64| {
            let fill = watched.clone();
            metrics.total(name, about, move || of(&fill.borrow()));
        };
        total("attune.cache.asked.tokens", "Tokens of sessions that began to be read.", |f| {
            f.cache.asked_tokens
        });
        total("attune.cache.hit.tokens", "Of these, found in the cache.", |f| f.cache.hit_tokens);
        let preempted = metrics.counter("attune.preempted", "Sessions that had to make room.");
        // A counter is told from its first increment on: it shall be there from the start.
        preempted.add(0, &[]);
        Self {
            forward: step.part("forward"),
            score: step.part("score"),
            emit: step.part("emit"),
            batch_rows: metrics.rows("attune.batch.rows", "Rows of one forward pass."),
            fill,
            preempted,
        }
    }

    /// A forward pass over so many rows has begun.
    pub(crate) fn pass(&self, rows: usize) {
        self.batch_rows.record(rows as u64, &[]);
    }

    /// So many sessions were pre-empted.
    pub(crate) fn preempted(&self, sessions: usize) {
        if sessions > 0 {
            self.preempted.add(sessions as u64, &[]);
        }
    }

    /// How full the worker is now.
    pub(crate) fn fill(&self, fill: Fill) {
        self.fill.send_replace(fill);
    }
}
