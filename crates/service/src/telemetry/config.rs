//! `[telemetry]`: what is exported by OTLP, and where to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tonic::{
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    transport::Uri,
};

use crate::{
    config::{ConfigError, check_range, choice, invalid},
    secret::Secret,
    tls::ClientTlsConfig,
};

/// `[telemetry]`: the export of traces, metrics and logs by OTLP. `/metrics` on the admin port is there
/// with and without it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// The collector: http://HOST:PORT, or https://HOST:PORT with TLS. Absent: what the variable
    /// OTEL_EXPORTER_OTLP_ENDPOINT says; without that too, nothing is exported.
    pub endpoint: Option<String>,
    /// How it is spoken to. Default, and the only one: grpc.
    pub protocol: Protocol,
    /// Metadata that every export carries, such as `authorization`; the values are secrets.
    pub headers: BTreeMap<String, Secret>,
    /// How the collector is made sure of. It counts for https.
    pub tls: ClientTlsConfig,
    /// How long one export may take, in seconds, 0.01 to 300. Default: 10.
    pub timeout_seconds: f64,
    /// How long the end of the process waits for what has not been sent yet, in seconds, 0 to 60. Default: 2.
    pub flush_seconds: f64,
    /// The share of traces that begin here and are recorded, 0 to 1. Where a caller sends a trace context,
    /// its own decision counts. Default: 1.
    pub sampling: f64,
    /// Whether the steps of recorded requests are recorded too: some spans for every token. Default: false.
    pub steps: bool,
    /// `service.name`. Absent: what OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says; without those, the
    /// program's name.
    pub service_name: Option<String>,
    /// Further attributes of the process, such as `deployment.environment.name`.
    pub attributes: BTreeMap<String, String>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
}

impl TryFrom<String> for Protocol {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        choice(&text)
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            protocol: Protocol::Grpc,
            headers: BTreeMap::new(),
            tls: ClientTlsConfig::default(),
            timeout_seconds: 10.0,
            flush_seconds: 2.0,
            sampling: 1.0,
            steps: false,
            service_name: None,
            attributes: BTreeMap::new(),
        }
    }
}

impl TelemetryConfig {
    /// Checks every range.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_range("telemetry.timeout_seconds", self.timeout_seconds, 0.01..=300.0)?;
        check_range("telemetry.flush_seconds", self.flush_seconds, 0.0..=60.0)?;
        check_range("telemetry.sampling", self.sampling, 0.0..=1.0)?;
        self.tls.validate("telemetry.tls")?;
        if let Some(endpoint) = &self.endpoint {
            check_endpoint("telemetry.endpoint", endpoint)?;
            if self.tls != ClientTlsConfig::default() && !endpoint.starts_with("https://") {
                let allowed =
                    "https://HOST:PORT where `telemetry.tls` is set: without it nothing is encrypted";
                return Err(invalid("telemetry.endpoint", endpoint, allowed));
            }
        }
        for (name, value) in &self.headers {
            if name.parse::<AsciiMetadataKey>().is_err()
                || value.expose().parse::<AsciiMetadataValue>().is_err()
            {
                let allowed = "a name in small letters, not ending in -bin, with a value of printable ASCII";
                return Err(invalid("telemetry.headers", name, allowed));
            }
        }
        Ok(())
    }
}

/// Whether it is a collector's address.
///
/// # Errors
/// [`ConfigError::Invalid`] names `key`.
pub(super) fn check_endpoint(key: &str, endpoint: &str) -> Result<(), ConfigError> {
    let uri: Option<Uri> = endpoint.parse().ok();
    let scheme = uri.as_ref().filter(|uri| uri.authority().is_some()).and_then(Uri::scheme_str);
    if matches!(scheme, Some("http" | "https")) {
        return Ok(());
    }
    Err(invalid(key, endpoint, "http://HOST:PORT, or https://HOST:PORT for TLS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_and_secrets_are_not_shown() {
        let fine = TelemetryConfig {
            endpoint: Some("https://collector:4317".into()),
            headers: [("authorization".to_owned(), Secret::new("Bearer hunter2"))].into(),
            tls: ClientTlsConfig { server_name: Some("collector".into()), ..ClientTlsConfig::default() },
            ..TelemetryConfig::default()
        };
        fine.validate().unwrap();
        assert!(!format!("{fine:?}").contains("hunter2"));
        let headers = |name: &str, value: &str| [(name.to_owned(), Secret::new(value))].into();
        for (config, named) in [
            (
                TelemetryConfig { endpoint: Some("collector:4317".into()), ..fine.clone() },
                "telemetry.endpoint",
            ),
            (TelemetryConfig { endpoint: Some("http://a:1".into()), ..fine.clone() }, "telemetry.endpoint"),
            (TelemetryConfig { sampling: 1.5, ..fine.clone() }, "telemetry.sampling"),
            (TelemetryConfig { timeout_seconds: 0.0, ..fine.clone() }, "telemetry.timeout_seconds"),
            (TelemetryConfig { headers: headers("x y", "1"), ..fine.clone() }, "telemetry.headers"),
            (TelemetryConfig { headers: headers("x-key", "hunter2\n"), ..fine }, "telemetry.headers"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(named) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn another_protocol_is_refused_by_name() {
        let read = |text: &str| serde_json::from_str::<TelemetryConfig>(text);
        assert_eq!(read(r#"{"protocol": "grpc"}"#).unwrap().protocol, Protocol::Grpc);
        let error = read(r#"{"protocol": "http/protobuf"}"#).unwrap_err().to_string();
        assert!(error.contains("is not grpc"), "{error}");
    }
}
