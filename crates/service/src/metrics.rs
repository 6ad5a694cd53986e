//! Metrics: recorded through OpenTelemetry's API, read in Prometheus' text format from the admin port.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Counter, Histogram, Meter, MeterProvider as _},
};
use opentelemetry_sdk::{Resource, metrics::SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use crate::telemetry::{Lost, MetricsReader};

/// From 50 us, below any forward pass, to ten seconds.
const SECONDS: [f64; 17] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
];
/// A batch's rows: up to 64 sequences that decode, and the chunk of a prompt beside them.
const ROWS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The metrics of one service. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    meter: Meter,
    /// Its end would end the meter.
    provider: SdkMeterProvider,
}

/// The metrics cannot be set up: a fault of the program.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up metrics: {0}")]
pub struct MetricsError(String);

impl Metrics {
    /// The metrics of a service of this name, none recorded yet.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn new(service: &'static str) -> Result<Self, MetricsError> {
        let resource = Resource::builder().with_service_name(service).build();
        Self::with(resource, None, &Lost::default())
    }

    /// The metrics of a process, which `reader` exports as well.
    pub(crate) fn with(
        resource: Resource,
        reader: Option<MetricsReader>,
        lost: &Lost,
    ) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|e| MetricsError(e.to_string()))?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).with_resource(resource);
        let provider = match reader {
            Some(reader) => provider.with_reader(reader),
            None => provider,
        };
        let provider = provider.build();
        let metrics = Self { registry, meter: provider.meter("attune"), provider };
        metrics.count_lost(lost.clone());
        Ok(metrics)
    }

    fn count_lost(&self, lost: Lost) {
        let name = "attune.telemetry.lost";
        let about = "Spans, log lines and exports of metrics that did not reach the collector.";
        let counter = self.meter.u64_observable_counter(name).with_description(about);
        let labels = |signal, reason| [KeyValue::new("signal", signal), KeyValue::new("reason", reason)];
        let observe = move |observer: &dyn AsyncInstrument<u64>| {
            for (signal, reason, count) in lost.counts() {
                observer.observe(count, &labels(signal, reason));
            }
        };
        counter.with_callback(observe).build();
    }

    /// Exports them a last time, where they are exported, and ends. False: they did not arrive.
    pub(crate) fn shutdown(&self, limit: Duration) -> bool {
        self.provider.shutdown_with_timeout(limit).is_ok()
    }

    /// A histogram of seconds; its name in the text format ends in `_seconds`.
    pub fn seconds(&self, name: &'static str, about: &'static str) -> Histogram<f64> {
        self.seconds_within(name, about, &SECONDS)
    }

    /// A histogram of seconds with buckets of its own.
    pub fn seconds_within(&self, name: &'static str, about: &'static str, buckets: &[f64]) -> Histogram<f64> {
        let histogram = self.meter.f64_histogram(name).with_unit("s").with_description(about);
        histogram.with_boundaries(buckets.to_vec()).build()
    }

    /// A histogram of rows.
    pub fn rows(&self, name: &'static str, about: &'static str) -> Histogram<u64> {
        self.meter.u64_histogram(name).with_description(about).with_boundaries(ROWS.to_vec()).build()
    }

    /// A counter; its name in the text format ends in `_total`.
    pub fn counter(&self, name: &'static str, about: &'static str) -> Counter<u64> {
        self.meter.u64_counter(name).with_description(about).build()
    }

    /// A counter that something else keeps: `read` is called at every scrape.
    pub fn total(
        &self,
        name: &'static str,
        about: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let counter = self.meter.u64_observable_counter(name).with_description(about);
        counter.with_callback(move |observer| observer.observe(read(), &[])).build();
    }

    /// A level, which `read` gives at every scrape.
    pub fn level(
        &self,
        name: &'static str,
        about: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let gauge = self.meter.u64_observable_gauge(name).with_description(about);
        gauge.with_callback(move |observer| observer.observe(read(), &[])).build();
    }

    /// All metrics in Prometheus' text format, version 0.0.4.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics cannot be rendered");
            String::new()
        })
    }
}

/// The times of a step's parts: one histogram, `attune_step_seconds{part}`.
#[derive(Debug, Clone)]
pub struct StepTimes(Histogram<f64>);

/// A part of a step. Its label is made once, so that recording a time makes nothing.
#[derive(Debug, Clone)]
pub struct Part {
    times: StepTimes,
    label: [KeyValue; 1],
}

impl StepTimes {
    /// The histogram.
    pub fn new(metrics: &Metrics) -> Self {
        Self(metrics.seconds("attune.step", "Time of one part of a decoding step."))
    }

    /// One of its parts.
    pub fn part(&self, name: &'static str) -> Part {
        Part { times: self.clone(), label: [KeyValue::new("part", name)] }
    }
}

impl Part {
    /// Records a time.
    pub fn record(&self, time: Duration) {
        self.times.0.record(time.as_secs_f64(), &self.label);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_recorded_is_rendered_in_base_units() {
        let metrics = Metrics::new("attune-test").unwrap();
        let step = StepTimes::new(&metrics);
        step.part("forward").record(Duration::from_millis(3));
        step.part("select").record(Duration::from_micros(20));
        metrics.rows("attune.batch.rows", "Rows.").record(7, &[]);
        metrics.counter("attune.tokens", "Tokens.").add(5, &[]);
        metrics.total("attune.preempted", "Texts.", || 3);
        metrics.level("attune.cache.blocks.used", "Blocks.", || 4);
        let text = metrics.render();
        for line in [
            "# TYPE attune_step_seconds histogram",
            "attune_step_seconds_bucket{part=\"forward\",le=\"0.005\"} 1",
            "attune_step_seconds_bucket{part=\"forward\",le=\"0.0025\"} 0",
            "attune_step_seconds_count{part=\"select\"} 1",
            "attune_batch_rows_sum 7",
            "attune_tokens_total 5",
            "attune_preempted_total 3",
            "attune_cache_blocks_used 4",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.contains("service_name=\"attune-test\""), "{text}");
    }

    #[test]
    fn two_services_in_one_process_keep_apart() {
        let (a, b) = (Metrics::new("a").unwrap(), Metrics::new("b").unwrap());
        a.counter("attune.tokens", "Tokens.").add(1, &[]);
        assert!(a.render().contains("attune_tokens_total 1"));
        assert!(!b.render().contains("attune_tokens"));
    }
}
