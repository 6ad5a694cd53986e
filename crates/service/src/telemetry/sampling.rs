//! Which spans are recorded: those of a trace together, and those of a step with the requests in it.

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceContextExt as _, TraceId},
};
use opentelemetry_sdk::trace::{Sampler, SamplingResult, ShouldSample};

/// A parent decides for its children, in this process or another; what is linked to others and has no
/// parent is recorded where one of these is; a share of all others is.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    roots: Sampler,
}

impl Sampling {
    /// `share` of the traces that begin here, 0 to 1.
    pub(super) fn new(share: f64) -> Self {
        Self { roots: Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))) }
    }
}

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_root = parent.is_none_or(|parent| !parent.span().span_context().is_valid());
        if !is_root || links.is_empty() {
            return self.roots.should_sample(parent, trace, name, kind, attributes, links);
        }
        let recorded = links.iter().any(|link| link.span_context.is_sampled());
        let sampler = if recorded { Sampler::AlwaysOn } else { Sampler::AlwaysOff };
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceState};
    use opentelemetry_sdk::trace::SamplingDecision;

    use super::*;

    fn context(flags: TraceFlags) -> SpanContext {
        SpanContext::new(TraceId::from(7), SpanId::from(7), flags, true, TraceState::default())
    }

    fn decides(share: f64, parent: Option<TraceFlags>, links: &[TraceFlags]) -> bool {
        let parent = parent.map(|flags| Context::new().with_remote_span_context(context(flags)));
        let links: Vec<Link> = links.iter().map(|&flags| Link::with_context(context(flags))).collect();
        let result = Sampling::new(share).should_sample(
            parent.as_ref(),
            TraceId::from(u128::MAX),
            "x",
            &SpanKind::Internal,
            &[],
            &links,
        );
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn parents_decide_then_links_then_the_share() {
        let (on, off) = (TraceFlags::SAMPLED, TraceFlags::default());
        assert!(decides(0.0, Some(on), &[]) && decides(0.0, Some(on), &[off]));
        assert!(!decides(1.0, Some(off), &[]) && !decides(1.0, Some(off), &[on]));
        assert!(decides(0.0, None, &[off, on]));
        assert!(!decides(1.0, None, &[off, off]));
        assert!(decides(1.0, None, &[]) && !decides(0.0, None, &[]));
    }
}
