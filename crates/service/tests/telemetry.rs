//! Logging starts once a process.

#![allow(clippy::unwrap_used)]

use attune_service::{
    sections::{LogConfig, LogFormat},
    telemetry::{TelemetryError, init},
};

#[test]
fn it_starts_once_and_refuses_a_bad_filter() {
    let bad = LogConfig { filter: "info,=".into(), ..LogConfig::default() };
    assert!(matches!(init(&bad, false), Err(TelemetryError::Filter(_))));
    let _guard = init(&LogConfig { format: LogFormat::Json, ..LogConfig::default() }, false).unwrap();
    assert!(matches!(init(&LogConfig::default(), false), Err(TelemetryError::Twice(_))));
}
