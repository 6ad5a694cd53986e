//! The way to the collector: never longer than so many, and whoever is lost on it is counted.
//!
//! The SDK's processors have bounded queues too, but do not tell what they drop. So a gate before the queue
//! lets in no more than the queue holds, and counts.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{LogBatch, LogExporter, LogProcessor, SdkLogRecord},
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};

/// The most spans, or log lines, that wait for the collector or are on their way to it.
pub(super) const QUEUE: usize = 4096;

/// What did not arrive, of each signal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lost {
    /// Spans.
    pub(super) traces: Arc<Gate>,
    /// Log lines.
    pub(super) logs: Arc<Gate>,
    /// Exports of all metrics; what the next one says makes up for a lost one.
    pub(super) metrics: Arc<Gate>,
}

impl Lost {
    /// Each signal and why it was lost, with how many have been so far.
    pub(crate) fn counts(&self) -> [(&'static str, &'static str, u64); 5] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [
            ("traces", "queue_full", of(&self.traces.turned_away)),
            ("traces", "not_delivered", of(&self.traces.undelivered)),
            ("logs", "queue_full", of(&self.logs.turned_away)),
            ("logs", "not_delivered", of(&self.logs.undelivered)),
            ("metrics", "not_delivered", of(&self.metrics.undelivered)),
        ]
    }
}

/// Counts who is on the way.
#[derive(Debug, Default)]
pub(super) struct Gate {
    under_way: AtomicUsize,
    turned_away: AtomicU64,
    undelivered: AtomicU64,
    /// Whether the last delivery failed.
    failing: AtomicBool,
}

impl Gate {
    /// Lets one in. False: there are too many.
    fn enter(&self) -> bool {
        let more = |n| (n < QUEUE).then_some(n + 1);
        let entered = self.under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
        if !entered {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    /// So many have arrived, or are lost.
    fn leave(&self, signal: &str, count: usize, result: &OTelSdkResult) {
        self.under_way.fetch_sub(count, Ordering::Relaxed);
        self.count(signal, count, result);
    }

    fn count(&self, signal: &str, count: usize, result: &OTelSdkResult) {
        if result.is_err() {
            self.undelivered.fetch_add(count as u64, Ordering::Relaxed);
        }
        // A line when it begins and one when it ends: a collector that is away fails every few seconds.
        match (result, self.failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => tracing::warn!(signal, %error, "telemetry cannot be delivered"),
            (Ok(()), true) => tracing::info!(signal, "telemetry is delivered again"),
            _ => {}
        }
    }
}

/// A processor behind its gate.
#[derive(Debug)]
pub(super) struct Gated<P> {
    pub(super) processor: P,
    pub(super) gate: Arc<Gate>,
}

impl<P: SpanProcessor> SpanProcessor for Gated<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.gate.enter() {
            self.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

impl<P: LogProcessor> LogProcessor for Gated<P> {
    fn emit(&self, record: &mut SdkLogRecord, scope: &InstrumentationScope) {
        if self.gate.enter() {
            self.processor.emit(record, scope);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// An exporter that tells its gate how it went.
#[derive(Debug)]
pub(crate) struct Counted<E> {
    pub(super) exporter: E,
    pub(super) gate: Arc<Gate>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.gate.leave("traces", count, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: LogExporter> LogExporter for Counted<E> {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let count = batch.iter().count();
        let result = self.exporter.export(batch).await;
        self.gate.leave("logs", count, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Counted<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let result = self.exporter.export(metrics).await;
        self.gate.count("metrics", 1, &result);
        result
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[test]
    fn no_more_are_under_way_than_there_is_room_for() {
        let lost = Lost::default();
        let gate = &lost.traces;
        let entered = (0..QUEUE + 3).filter(|_| gate.enter()).count();
        assert_eq!(entered, QUEUE);
        gate.leave("traces", 10, &Err(OTelSdkError::AlreadyShutdown));
        gate.leave("traces", 10, &Ok(()));
        assert_eq!((0..30).filter(|_| gate.enter()).count(), 20);
        let counts = lost.counts().map(|(_, _, count)| count);
        assert_eq!(counts, [3 + 10, 10, 0, 0, 0]);
    }
}
