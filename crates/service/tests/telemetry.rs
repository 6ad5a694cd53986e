//! Telemetry starts once a process.

#![allow(clippy::unwrap_used)]

use attune_service::{
    sections::{LogConfig, LogFormat},
    telemetry::{Settings, Telemetry, TelemetryConfig, TelemetryError},
};

fn start(log: &LogConfig) -> Result<Telemetry, TelemetryError> {
    Telemetry::start("test", Settings { log, content: false, telemetry: &TelemetryConfig::default() })
}

#[tokio::test]
async fn it_starts_once_and_refuses_a_bad_filter() {
    let bad = LogConfig { filter: "info,=".into(), ..LogConfig::default() };
    assert!(matches!(start(&bad), Err(TelemetryError::Filter(_))));
    let telemetry = start(&LogConfig { format: LogFormat::Json, ..LogConfig::default() }).unwrap();
    assert!(matches!(start(&LogConfig::default()), Err(TelemetryError::Twice(_))));
    telemetry.shutdown().await;
}
