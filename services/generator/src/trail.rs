//! The trail of one request: when it came to each station, as its client, the metrics and its trace are told.
//!
//! A request is one span with a child for each time in the queue, each prefill and each stretch of decoding,
//! and one for each of its reward sessions. Whatever happens to a request, its trail ends when it is
//! dropped, once.

use std::{sync::Arc, time::Instant};

use attune_proto::generator::v1::{FinishReason, Timings, Usage};
use attune_service::{
    now, status,
    telemetry::trace::{self, TARGET},
};
use opentelemetry::{Array, ContextGuard, StringValue, Value};
use tonic::{Code, metadata::MetadataMap};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::{
    metrics::{Operation, Requests},
    validate::ValidRequest,
};

/// One request's trail. Dropped without an end, its client has gone.
#[derive(Debug)]
pub(crate) struct Trail {
    requests: Arc<Requests>,
    operation: Operation,
    span: Span,
    stage: Stage,
    stage_span: Span,
    arrived: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Tokens so far, those resumed aside.
    tokens: u32,
    /// Seconds of decoding that went by waiting for rewards.
    reward_wait: f64,
    code: Code,
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On its way to the engine.
    Arriving,
    /// It waits for a slot, here or on a worker.
    Queue,
    /// Its context is read, up to its next token.
    Prefill,
    /// Token after token.
    Decode,
}

impl Trail {
    /// A request that has just arrived, and goes on with the trace that its metadata names.
    pub(crate) fn new(
        requests: &Arc<Requests>,
        operation: Operation,
        metadata: &MetadataMap,
        arrived: Instant,
    ) -> Self {
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "attune.generator.v1.GeneratorService/Generate",
            otel.kind = "server",
            otel.status_code = Empty,
            rpc.system.name = "grpc",
            rpc.method = "attune.generator.v1.GeneratorService/Generate",
            rpc.response.status_code = Empty,
            error.type = Empty,
            gen_ai.operation.name = operation.name(),
            gen_ai.provider.name = "attune",
            gen_ai.request.model = requests.model(),
            gen_ai.request.max_tokens = Empty,
            gen_ai.usage.input_tokens = Empty,
            gen_ai.usage.output_tokens = Empty,
            attune.cached_tokens = Empty,
            attune.guidances = Empty,
        );
        trace::continue_call(&span, metadata);
        Self {
            requests: Arc::clone(requests),
            operation,
            span,
            stage: Stage::Arriving,
            stage_span: Span::none(),
            arrived,
            admitted: None,
            first_token: None,
            last_token: None,
            tokens: 0,
            reward_wait: 0.0,
            code: Code::Cancelled,
        }
    }

    /// The span of the whole request.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// While the guard lives, what this thread logs belongs to this request.
    pub(crate) fn attach(&self) -> ContextGuard {
        self.span.context().attach()
    }

    /// The request is valid, and goes to the engine.
    pub(crate) fn submitted(&mut self, request: &ValidRequest) {
        self.span.record("gen_ai.request.max_tokens", request.sampling.max_tokens as i64);
        self.span.record("attune.guidances", request.guidances.len() as i64);
        self.queued();
    }

    /// It waits for a slot, for the first time or again.
    pub(crate) fn queued(&mut self) {
        self.enter(Stage::Queue);
    }

    /// It has a slot.
    pub(crate) fn admitted(&mut self, now: Instant) {
        self.admitted.get_or_insert(now);
        self.enter(Stage::Prefill);
    }

    /// A step waited so long for its rewards.
    pub(crate) fn waited(&mut self, seconds: f64) {
        // The first token's wait belongs to the prefill.
        if self.first_token.is_some() {
            self.reward_wait += seconds;
        }
    }

    /// It has a token.
    pub(crate) fn token(&mut self, prompt_tokens: usize, now: Instant) {
        self.tokens += 1;
        match self.last_token {
            None => self.requests.began(
                self.operation,
                prompt_tokens,
                now.saturating_duration_since(self.arrived),
            ),
            Some(last) => self.requests.went_on(now.saturating_duration_since(last)),
        }
        self.last_token = Some(now);
        self.first_token.get_or_insert(now);
        self.enter(Stage::Decode);
    }

    /// What its client is told of it.
    pub(crate) fn timings(&self, now: Instant) -> Timings {
        let seconds = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64(),
            _ => 0.0,
        };
        Timings {
            queue_seconds: seconds(Some(self.arrived), self.admitted),
            prefill_seconds: seconds(self.admitted, self.first_token),
            decode_seconds: seconds(self.first_token, Some(now)),
            reward_wait_seconds: self.reward_wait,
        }
    }

    /// It has come to its end.
    pub(crate) fn finished(mut self, reason: FinishReason, usage: &Usage) {
        self.code = Code::Ok;
        self.span.record("gen_ai.usage.input_tokens", i64::from(usage.prompt_tokens));
        self.span.record("gen_ai.usage.output_tokens", i64::from(usage.generated_tokens));
        self.span.record("attune.cached_tokens", i64::from(usage.cached_tokens));
        let reasons = Array::String(vec![StringValue::from(reason.as_str_name())]);
        self.span.set_attribute("gen_ai.response.finish_reasons", Value::Array(reasons));
        if let (Some(first), Some(last), 2..) = (self.first_token, self.last_token, self.tokens) {
            let each = last.saturating_duration_since(first) / (self.tokens - 1);
            self.requests.decoded(self.operation, each);
        }
    }

    /// It has failed, or was refused.
    pub(crate) fn failed(mut self, code: Code) {
        self.code = code;
    }

    fn enter(&mut self, stage: Stage) {
        if self.stage == stage {
            return;
        }
        self.stage = stage;
        // The old one ends first: a moment belongs to one stage.
        self.stage_span = Span::none();
        self.stage_span = match stage {
            Stage::Arriving => Span::none(),
            Stage::Queue => tracing::info_span!(target: TARGET, parent: &self.span, "queue"),
            Stage::Prefill => tracing::info_span!(target: TARGET, parent: &self.span, "prefill"),
            Stage::Decode => tracing::info_span!(target: TARGET, parent: &self.span, "decode"),
        };
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        let code = status::name(self.code);
        self.requests.ended(self.operation, self.code, now().saturating_duration_since(self.arrived));
        self.stage_span = Span::none();
        self.span.record("rpc.response.status_code", code);
        if self.code != Code::Ok {
            self.span.record("error.type", code);
        }
        if status::is_servers_fault(self.code) {
            self.span.record("otel.status_code", "ERROR");
        }
    }
}
