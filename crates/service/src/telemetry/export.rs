//! The exporters: one connection to the collector for traces, metrics and logs.

use std::time::Duration;

use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, SpanExporter, WithExportConfig as _,
    WithTonicConfig as _,
};
use opentelemetry_sdk::{
    Resource, logs,
    logs::{BatchLogProcessor, SdkLoggerProvider},
    metrics::PeriodicReader,
    trace,
    trace::{BatchSpanProcessor, SdkTracerProvider},
};
use tonic::{
    metadata::{AsciiMetadataKey, MetadataMap},
    transport::{Channel, Endpoint},
};

use super::{
    TelemetryConfig, TelemetryError,
    config::check_endpoint,
    delivery::{Counted, Gated, Lost, QUEUE},
    sampling::Sampling,
};
use crate::{
    config::{ConfigError, invalid},
    tls::ClientTls,
};

/// How often certificates are looked at for changes.
const RELOAD: Duration = Duration::from_secs(60);

/// What exports metrics now and then.
pub(crate) type MetricsReader = PeriodicReader<Counted<MetricExporter>>;

/// The way to the collector.
#[derive(Debug)]
pub(super) struct Exports {
    endpoint: String,
    channel: Channel,
    headers: MetadataMap,
    timeout: Duration,
    lost: Lost,
}

impl Exports {
    /// The way to the collector that the configuration, or the standard variables, name; none: nothing is
    /// exported. The connection is opened when it is needed, and again when it was lost.
    pub(super) fn to(config: &TelemetryConfig) -> Result<Option<Self>, TelemetryError> {
        let standard = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(Target { endpoint, timeout }) = Target::of(config, standard)? else { return Ok(None) };
        let reach = |endpoint: Endpoint| endpoint.timeout(timeout).connect_timeout(timeout);
        let address = |_| invalid("telemetry.endpoint", &endpoint, "http://HOST:PORT");
        let channel = if endpoint.starts_with("https://") {
            let tls = ClientTls::load(&config.tls, RELOAD)?;
            tls.connect_lazily(reach(ClientTls::endpoint(&endpoint).map_err(address)?))
        } else {
            let plain = Endpoint::from_shared(endpoint.clone());
            reach(plain.map_err(|_| invalid("telemetry.endpoint", &endpoint, "http://HOST:PORT"))?)
                .connect_lazy()
        };
        let mut headers = MetadataMap::new();
        for (name, value) in &config.headers {
            let refuse = || invalid("telemetry.headers", name, "a name and a value that gRPC can carry");
            let key: AsciiMetadataKey = name.parse().map_err(|_| refuse())?;
            let mut value: tonic::metadata::AsciiMetadataValue =
                value.expose().parse().map_err(|_| refuse())?;
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        Ok(Some(Self { endpoint, channel, headers, timeout, lost: Lost::default() }))
    }

    /// What did not arrive.
    pub(super) fn lost(&self) -> Lost {
        self.lost.clone()
    }

    /// Exports all metrics now and then.
    pub(super) fn metrics(&self) -> Result<MetricsReader, TelemetryError> {
        let exporter = self.named(
            MetricExporter::builder()
                .with_tonic()
                .with_channel(self.channel.clone())
                .with_metadata(self.headers.clone())
                .with_timeout(self.timeout)
                .build(),
        )?;
        Ok(PeriodicReader::builder(Counted { exporter, gate: self.lost.metrics.clone() }).build())
    }

    /// Exports spans in batches.
    pub(super) fn traces(&self, resource: Resource, share: f64) -> Result<SdkTracerProvider, TelemetryError> {
        let exporter = self.named(
            SpanExporter::builder()
                .with_tonic()
                .with_channel(self.channel.clone())
                .with_metadata(self.headers.clone())
                .with_timeout(self.timeout)
                .build(),
        )?;
        let gate = &self.lost.traces;
        let batches = trace::BatchConfigBuilder::default().with_max_queue_size(QUEUE).build();
        let processor = BatchSpanProcessor::builder(Counted { exporter, gate: gate.clone() })
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(Sampling::new(share))
            .with_span_processor(Gated { processor, gate: gate.clone() });
        Ok(provider.build())
    }

    /// Exports log lines in batches.
    pub(super) fn logs(&self, resource: Resource) -> Result<SdkLoggerProvider, TelemetryError> {
        let exporter = self.named(
            LogExporter::builder()
                .with_tonic()
                .with_channel(self.channel.clone())
                .with_metadata(self.headers.clone())
                .with_timeout(self.timeout)
                .build(),
        )?;
        let gate = &self.lost.logs;
        let batches = logs::BatchConfigBuilder::default().with_max_queue_size(QUEUE).build();
        let processor = BatchLogProcessor::builder(Counted { exporter, gate: gate.clone() })
            .with_batch_config(batches)
            .build();
        let provider = SdkLoggerProvider::builder()
            .with_resource(resource)
            .with_log_processor(Gated { processor, gate: gate.clone() });
        Ok(provider.build())
    }

    fn named<E>(&self, built: Result<E, ExporterBuildError>) -> Result<E, TelemetryError> {
        built.map_err(|source| TelemetryError::Exporter { endpoint: self.endpoint.clone(), source })
    }
}

/// Where to export to.
#[derive(Debug, PartialEq)]
struct Target {
    endpoint: String,
    timeout: Duration,
}

impl Target {
    /// As the configuration says; what it leaves open, the standard variables say.
    fn of(
        config: &TelemetryConfig,
        standard: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ConfigError> {
        if standard("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let variable = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let endpoint = match (&config.endpoint, standard(variable)) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(endpoint)) => {
                check_endpoint(variable, &endpoint)?;
                let variable = "OTEL_EXPORTER_OTLP_PROTOCOL";
                if let Some(protocol) = standard(variable).filter(|protocol| protocol != "grpc") {
                    return Err(invalid(variable, protocol, "grpc: OTLP is spoken over gRPC alone"));
                }
                endpoint
            }
            (None, None) => return Ok(None),
        };
        let timeout = Duration::from_secs_f64(config.timeout_seconds.clamp(0.01, 300.0));
        Ok(Some(Self { endpoint, timeout }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(endpoint: Option<&str>, standard: &[(&str, &str)]) -> Result<Option<Target>, ConfigError> {
        let config = TelemetryConfig { endpoint: endpoint.map(str::to_owned), ..TelemetryConfig::default() };
        Target::of(&config, |name| {
            standard.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_configuration_goes_before_the_standard_variables() {
        let endpoint = |target: Result<Option<Target>, ConfigError>| target.unwrap().map(|t| t.endpoint);
        let variable = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:4317");
        assert_eq!(endpoint(target(None, &[])), None);
        assert_eq!(endpoint(target(None, &[variable])).unwrap(), "http://b:4317");
        assert_eq!(endpoint(target(Some("http://a:4317"), &[variable])).unwrap(), "http://a:4317");
        let off = ("OTEL_SDK_DISABLED", "true");
        assert_eq!(endpoint(target(Some("http://a:4317"), &[variable, off])), None);
        let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        for (wrong, named) in [
            (target(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "b:4317")]), "OTEL_EXPORTER_OTLP_ENDPOINT"),
            (target(None, &[variable, protocol]), "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ] {
            assert!(wrong.unwrap_err().to_string().contains(named));
        }
    }
}
