//! Spans that are exported, and the trace context of the W3C that goes from one process to the next.
//!
//! A span of this target is made only where traces are exported; elsewhere it is disabled, and all that
//! is done with it does nothing. No text of people's, no token and no preference stands in a span. Numbers
//! are given as `i64`: of an unsigned one the exporting layer makes a text.

use std::collections::HashMap;

use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of spans that are exported, and that the log on stderr does not show.
pub const TARGET: &str = "attune_trace";

/// The key of the context, in metadata and on the wire.
const TRACEPARENT: &str = "traceparent";
/// The longest that is looked at; version 0 has 55 characters.
const LONGEST: usize = 256;

/// Makes a span go on with the trace that a call's metadata names.
pub fn continue_call(span: &Span, metadata: &MetadataMap) {
    if !span.is_disabled() {
        set_parent(span, TraceContextPropagator::new().extract(&Carrier(metadata)));
    }
}

/// Makes a span go on with the trace of a `traceparent`; with none, or one that cannot be read, it begins
/// a trace of its own.
pub fn continue_from(span: &Span, traceparent: &str) {
    if span.is_disabled() || traceparent.is_empty() || traceparent.len() > LONGEST {
        return;
    }
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    set_parent(span, TraceContextPropagator::new().extract(&carrier));
}

fn set_parent(span: &Span, parent: Context) {
    // It fails where no traces are exported, and then nobody misses it.
    let _ = span.set_parent(parent);
}

/// A span as `traceparent`, for who shall go on with its trace. Empty: there is none.
pub fn traceparent(span: &Span) -> String {
    let context = context(span);
    if !context.is_valid() {
        return String::new();
    }
    let flags = context.trace_flags().to_u8() & 1;
    format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
}

/// A span's place in its trace; not valid where there is none.
pub fn context(span: &Span) -> SpanContext {
    span.context().span().span_context().clone()
}

/// Links a span to others, which are not its parents.
pub fn link(span: &Span, to: impl IntoIterator<Item = SpanContext>) {
    if !span.is_disabled() {
        to.into_iter().filter(SpanContext::is_valid).for_each(|context| span.add_link(context));
    }
}

/// A call's metadata, to be read by a propagator.
struct Carrier<'a>(&'a MetadataMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}
