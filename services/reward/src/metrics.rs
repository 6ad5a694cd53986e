//! What the worker measures of itself; `docs/operations.md` has the table.

use attune_engine::kv::CacheStats;
use attune_proto::reward::v1::FailureReason;
use attune_service::metrics::{Metrics, Part, StepTimes};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram},
};
use tokio::sync::watch;

use crate::trail::reason_name;

/// What the engine records into, made once.
#[derive(Debug)]
pub(crate) struct Instruments {
    /// The forward pass, the reference's included.
    pub(crate) forward: Part,
    /// The candidates' rewards, of a batch.
    pub(crate) score: Part,
    /// What an iteration has to say, on its way to the calls.
    pub(crate) emit: Part,
    /// From a session's `Candidates` to their rewards.
    pub(crate) answer: Part,
    batch_rows: Histogram<u64>,
    fill: watch::Sender<Fill>,
    preempted: Counter<u64>,
    opened: Counter<u64>,
    failures: Counter<u64>,
}

/// How full the worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fill {
    /// Sessions that are admitted.
    pub(crate) running: usize,
    /// Sessions whose prompt is still being encoded.
    pub(crate) waiting: usize,
    /// Sessions that wait for a forward pass, or for an answer.
    pub(crate) steps: usize,
    /// The cache.
    pub(crate) cache: CacheStats,
}

impl Instruments {
    /// All instruments of a worker of so many slots.
    pub(crate) fn new(metrics: &Metrics, slots: usize) -> Self {
        let step = StepTimes::new(metrics);
        let (fill, watched) = watch::channel(Fill::default());
        let level = |name, about, of: fn(&Fill) -> usize| {
            let fill = watched.clone();
            metrics.level(name, about, move || of(&fill.borrow()) as u64);
        };
        metrics.level("attune.slots", "Sessions that may be open at once.", move || slots as u64);
        level("attune.slots.busy", "Slots that sessions hold.", |f| f.running + f.waiting);
        level("attune.steps.waiting", "Sessions that wait for a pass or an answer.", |f| f.steps);
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
        let opened = metrics.counter("attune.sessions.opened", "Sessions that were admitted.");
        opened.add(0, &[]);
        let failures = metrics.counter("attune.session.failures", "Sessions refused or ended by the worker.");
        failures.add(0, &reason(FailureReason::Exhausted));
        Self {
            forward: step.part("forward"),
            score: step.part("score"),
            emit: step.part("emit"),
            answer: step.part("answer"),
            batch_rows: metrics.rows("attune.batch.rows", "Rows of one forward pass."),
            fill,
            preempted,
            opened,
            failures,
        }
    }

    /// A session was admitted.
    pub(crate) fn opened(&self) {
        self.opened.add(1, &[]);
    }

    /// A session was refused, or ended by the worker.
    pub(crate) fn failed(&self, why: FailureReason) {
        self.failures.add(1, &reason(why));
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

fn reason(why: FailureReason) -> [KeyValue; 1] {
    [KeyValue::new("reason", reason_name(why))]
}
