//! A collector that takes connections and never answers: what waits for it is bounded, what is dropped is
//! counted, and the end does not wait for it.

#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, time::Duration};

use attune_service::{
    sections::LogConfig,
    telemetry::{Settings, Telemetry, TelemetryConfig, trace::TARGET},
};

/// More than wait for a collector.
const SPANS: usize = 10_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_and_the_end_does_not_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = TelemetryConfig {
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        // No export ends while the test runs.
        timeout_seconds: 300.0,
        flush_seconds: 0.2,
        ..TelemetryConfig::default()
    };
    config.validate().unwrap();
    let settings = Settings { log: &LogConfig::default(), content: false, telemetry: &config };
    let telemetry = Telemetry::start("attune-test", settings).unwrap();
    for _ in 0..SPANS {
        drop(tracing::info_span!(target: TARGET, "one"));
    }
    let text = telemetry.metrics().render();
    let lost = |reason: &str| -> usize {
        let series = format!("attune_telemetry_lost_total{{reason=\"{reason}\",signal=\"traces\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    };
    assert_eq!((lost("queue_full"), lost("not_delivered")), (SPANS - 4096, 0));
    tokio::time::timeout(Duration::from_secs(60), telemetry.shutdown()).await.unwrap();
}
