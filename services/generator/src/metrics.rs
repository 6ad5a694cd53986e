//! What the generator measures of itself; `docs/operations.md` has the table.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use attune_service::{
    metrics::{Metrics, Part, StepTimes},
    status,
};
use opentelemetry::{
    KeyValue,
    metrics::{Counter as Instrument, Histogram},
};
use tokio::sync::watch;
use tonic::Code;

use crate::{
    counters::{Counter, Counters},
    scheduler::Load,
};

/// The buckets that OpenTelemetry's conventions for generative AI name.
const DURATION: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const PER_TOKEN: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

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
}

impl Instruments {
    /// All instruments of the engine. What the scheduler counts itself is read from `load`.
    pub(crate) fn new(
        metrics: &Metrics,
        slots: usize,
        load: &watch::Receiver<Load>,
        counters: &Arc<Counters>,
    ) -> Self {
        let step = StepTimes::new(metrics);
        let level = |name, about, of: fn(&Load) -> usize| {
            let load = load.clone();
            metrics.level(name, about, move || of(&load.borrow()) as u64);
        };
        metrics.level("attune.slots", "Sequences that may run at once.", move || slots as u64);
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
        }
    }

    /// A forward pass over so many rows has begun.
    pub(crate) fn pass(&self, rows: usize) {
        self.batch_rows.record(rows as u64, &[]);
    }
}

/// What a request asks to be done, as OpenTelemetry's conventions for generative AI call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A conversation goes on.
    Chat,
    /// A text, or token ids, go on.
    TextCompletion,
}

impl Operation {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
        }
    }
}

/// What is recorded of requests, made once. Where OpenTelemetry's conventions for generative AI have a
/// name for it, that is its name.
#[derive(Debug)]
pub(crate) struct Requests {
    ended: Instrument<u64>,
    duration: Histogram<f64>,
    first_token: Histogram<f64>,
    per_token: Histogram<f64>,
    between: Histogram<f64>,
    tokens: Instrument<u64>,
    model: String,
    chat: [KeyValue; 3],
    completion: [KeyValue; 3],
    input: [KeyValue; 1],
    output: [KeyValue; 1],
}

impl Requests {
    /// The instruments of a service that serves this model.
    pub(crate) fn new(metrics: &Metrics, model: &str) -> Self {
        let of = |operation: Operation| {
            [
                KeyValue::new("gen_ai.operation.name", operation.name()),
                KeyValue::new("gen_ai.provider.name", "attune"),
                KeyValue::new("gen_ai.request.model", model.to_owned()),
            ]
        };
        let seconds = |name, about, buckets: &[f64]| metrics.seconds_within(name, about, buckets);
        let ended = metrics.counter("attune.requests", "Generate calls that ended, by their gRPC code.");
        // A counter is told from its first increment on: it shall be there from the start.
        ended.add(0, &[KeyValue::new("code", status::name(Code::Ok))]);
        Self {
            ended,
            duration: seconds(
                "gen_ai.server.request.duration",
                "From a request's arrival to its end.",
                &DURATION,
            ),
            first_token: seconds(
                "gen_ai.server.time_to_first_token",
                "From a request's arrival to its first token.",
                &FIRST_TOKEN,
            ),
            per_token: seconds(
                "gen_ai.server.time_per_output_token",
                "Of a text that came to its end: the mean time per token, the first aside.",
                &PER_TOKEN,
            ),
            between: metrics.seconds("attune.inter_token", "From one token of a text to its next."),
            tokens: metrics.counter("attune.tokens", "Tokens of prompts and of generated text."),
            model: model.to_owned(),
            chat: of(Operation::Chat),
            completion: of(Operation::TextCompletion),
            input: [KeyValue::new("gen_ai.token.type", "input")],
            output: [KeyValue::new("gen_ai.token.type", "output")],
        }
    }

    /// The model that is served.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// A text has its first token.
    pub(crate) fn began(&self, operation: Operation, prompt_tokens: usize, since_arrival: Duration) {
        self.first_token.record(since_arrival.as_secs_f64(), self.labels(operation));
        self.tokens.add(prompt_tokens as u64, &self.input);
        self.tokens.add(1, &self.output);
    }

    /// A text has its next token.
    pub(crate) fn went_on(&self, since_last: Duration) {
        self.between.record(since_last.as_secs_f64(), &[]);
        self.tokens.add(1, &self.output);
    }

    /// A text came to its end, its tokens behind the first after so long each.
    pub(crate) fn decoded(&self, operation: Operation, each: Duration) {
        self.per_token.record(each.as_secs_f64(), self.labels(operation));
    }

    /// A request has ended.
    pub(crate) fn ended(&self, operation: Operation, code: Code, since_arrival: Duration) {
        let name = status::name(code);
        self.ended.add(1, &[KeyValue::new("code", name)]);
        let seconds = since_arrival.as_secs_f64();
        match code {
            Code::Ok => self.duration.record(seconds, self.labels(operation)),
            _ => {
                let labels = [self.labels(operation), &[KeyValue::new("error.type", name)]].concat();
                self.duration.record(seconds, &labels);
            }
        }
    }

    fn labels(&self, operation: Operation) -> &[KeyValue] {
        match operation {
            Operation::Chat => &self.chat,
            Operation::TextCompletion => &self.completion,
        }
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
