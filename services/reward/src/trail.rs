//! The trail of one session, as its trace is told: a span that belongs to the trace of the generator's
//! request, with a child while its prompt is encoded and one while its context is read.

use attune_proto::reward::v1::FailureReason;
use attune_service::telemetry::trace::{self, TARGET};
use opentelemetry::trace::SpanContext;
use tracing::{Span, field::Empty};

/// One session's trail; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Trail {
    span: Span,
    prefill: Span,
}

impl Trail {
    /// A session that is opened behind so many generated tokens, by a generator whose span is `traceparent`.
    pub(crate) fn new(traceparent: &str, generated: usize) -> Self {
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "session",
            otel.kind = "server",
            otel.status_code = Empty,
            error.type = Empty,
            attune.method = Empty,
            attune.generated_tokens = generated as i64,
            attune.cached_tokens = Empty,
        );
        trace::continue_from(&span, traceparent);
        Self { span, prefill: Span::none() }
    }

    /// While it lives, the session's prompt is being encoded.
    pub(crate) fn prompt(&self) -> Span {
        tracing::info_span!(target: TARGET, parent: &self.span, "prompt")
    }

    /// It is admitted, with so many tokens that need not be read, and reads its context.
    pub(crate) fn admitted(&mut self, method: &str, cached: usize) {
        self.span.record("attune.method", method);
        self.span.record("attune.cached_tokens", cached as i64);
        self.prefill = tracing::info_span!(target: TARGET, parent: &self.span, "prefill");
    }

    /// It has read all that it knows; from now on each token is a step.
    pub(crate) fn ready(&mut self) {
        if !self.prefill.is_none() {
            self.prefill = Span::none();
        }
    }

    /// The worker ends it.
    pub(crate) fn failed(&self, reason: FailureReason) {
        self.span.record("error.type", reason_name(reason));
        self.span.record("otel.status_code", "ERROR");
    }

    /// Its place in the trace, for a batch's span to be linked to.
    pub(crate) fn context(&self) -> SpanContext {
        trace::context(&self.span)
    }
}

/// A reason as metrics and spans name it: `EXHAUSTED`.
pub(crate) fn reason_name(reason: FailureReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("FAILURE_REASON_").unwrap_or(name)
}
