//! What a process tells of itself: log lines on stderr, metrics, and by OTLP all of it with traces.
//!
//! One of it a process. Logs go to stderr, so that stdout stays machine-readable. Without an endpoint to
//! export to, spans are made by nobody and cost nothing.

mod config;
mod delivery;
mod export;
mod resource;
mod sampling;
pub mod trace;

use std::{io::IsTerminal as _, time::Duration};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::{logs::SdkLoggerProvider, trace::SdkTracerProvider};
use tokio::sync::oneshot;
use tracing::{Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, filter_fn},
    layer::{Filter, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

pub use config::{Protocol, TelemetryConfig};
pub(crate) use delivery::Lost;
pub(crate) use export::MetricsReader;

use crate::{
    config::ConfigError,
    metrics::{Metrics, MetricsError},
    reload::FileError,
    sections::{LogColor, LogConfig, LogFormat},
};
use export::Exports;

/// What a process shall tell of itself.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The log on stderr.
    pub log: &'a LogConfig,
    /// Whether people's texts may stand in the log, and in what is exported of it.
    pub content: bool,
    /// What is exported, and where to.
    pub telemetry: &'a TelemetryConfig,
}

/// A process that tells of itself. Hold it until the end, and end it by [`Telemetry::shutdown`].
#[must_use = "telemetry ends when this is dropped"]
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    flush: Duration,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error("log.filter: {0}; write a level or directives such as \"info,attune_engine=debug\"")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The process has a subscriber already.
    #[error("logging was set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    /// A setting, or one of the standard variables, is not allowed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate or a key for the way to the collector cannot be used.
    #[error(transparent)]
    Tls(#[from] FileError),
    /// An exporter cannot be built.
    #[error("cannot export to `{endpoint}`: {source}")]
    Exporter {
        /// Where to.
        endpoint: String,
        /// What is wrong.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Metrics cannot be set up.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

impl Telemetry {
    /// Starts logging to stderr, and what the configuration exports. Without `content` no text of people's
    /// stands in the log: our own lines hold none, and of other crates, which write down what they carry,
    /// the levels debug and trace are left out. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`TelemetryError`]: a setting that cannot be used, or a second call in one process.
    pub fn start(service: &str, settings: Settings<'_>) -> Result<Self, TelemetryError> {
        let Settings { log, content, telemetry } = settings;
        let resource = resource::of(service, telemetry);
        let exports = Exports::to(telemetry)?;
        let lost = exports.as_ref().map(Exports::lost).unwrap_or_default();
        let reader = exports.as_ref().map(Exports::metrics).transpose()?;
        let metrics = Metrics::with(resource.clone(), reader, &lost)?;
        let traces = exports.as_ref().map(|e| e.traces(resource.clone(), telemetry.sampling)).transpose()?;
        let logs = exports.as_ref().map(|e| e.logs(resource)).transpose()?;

        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = match log.format {
            LogFormat::Text => lines.with_ansi(colored(log.color)).boxed(),
            LogFormat::Json => lines.with_ansi(false).json().boxed(),
        };
        let spans = traces.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("attune"))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_target(false)
                .with_level(false)
                .with_filter(spans(telemetry.steps))
        });
        let exported = |metadata: &Metadata<'_>| metadata.is_event() && is_ours(metadata);
        let bridge = logs.as_ref().map(OpenTelemetryTracingBridge::new);
        let bridge = match bridge {
            Some(bridge) => Some(bridge.with_filter(asked(log, content)?.and(all_levels(exported)))),
            None => None,
        };
        let local = all_levels(|metadata: &Metadata<'_>| metadata.target() != trace::TARGET);
        tracing_subscriber::registry()
            .with(lines.with_filter(asked(log, content)?.and(local)))
            .with(spans)
            .with(bridge)
            .try_init()?;
        let flush = Duration::from_secs_f64(telemetry.flush_seconds.clamp(0.0, 60.0));
        Ok(Self { metrics, traces, logs, flush })
    }

    /// The metrics of this process.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Sends what has not been sent yet, and ends; it takes no longer than `telemetry.flush_seconds`. What
    /// has not arrived by then is lost.
    pub async fn shutdown(self) {
        let Self { metrics, traces, logs, flush } = self;
        let mut ends = vec![on_a_thread(move || metrics.shutdown(flush))];
        ends.extend(traces.map(|traces| on_a_thread(move || traces.shutdown_with_timeout(flush).is_ok())));
        ends.extend(logs.map(|logs| on_a_thread(move || logs.shutdown_with_timeout(flush).is_ok())));
        // A thread that is still at it ends with the process.
        let all = futures::future::join_all(ends);
        let sent = tokio::time::timeout(flush, all).await;
        if !sent.is_ok_and(|sent| sent.into_iter().all(|sent| sent.unwrap_or(false))) {
            tracing::warn!(seconds = flush.as_secs_f64(), "the last of the telemetry could not be delivered");
        }
    }
}

/// Does what blocks on a thread of its own. An async runtime would wait for the threads that it lends.
fn on_a_thread(work: impl FnOnce() -> bool + Send + 'static) -> oneshot::Receiver<bool> {
    let (done, result) = oneshot::channel();
    let work = move || {
        // Nobody waits any more: that is fine as well.
        let _ = done.send(work());
    };
    // Where no thread starts, the sender is dropped, and that is the answer.
    drop(std::thread::Builder::new().name("telemetry".into()).spawn(work));
    result
}

/// What the log's settings ask for.
fn asked<S>(log: &LogConfig, content: bool) -> Result<impl Filter<S> + use<S>, TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let discreet = all_levels(move |metadata: &Metadata<'_>| content || is_discreet(metadata));
    Ok(EnvFilter::try_new(&log.filter)?.and(discreet))
}

/// The spans that are exported: those of requests and sessions, and with `steps` those of steps too.
fn spans<S: Subscriber>(steps: bool) -> impl Filter<S> {
    let wanted = move |metadata: &Metadata<'_>| {
        metadata.is_span() && (metadata.target() == trace::TARGET || steps && is_ours(metadata))
    };
    let most = if steps { LevelFilter::DEBUG } else { LevelFilter::INFO };
    filter_fn(wanted).with_max_level_hint(most)
}

/// A filter that looks at no level: without the hint every line of every level would be asked about.
fn all_levels<F: Fn(&Metadata<'_>) -> bool>(wanted: F) -> tracing_subscriber::filter::FilterFn<F> {
    filter_fn(wanted).with_max_level_hint(LevelFilter::TRACE)
}

/// Whether a line cannot hold people's texts.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    is_ours(metadata) || *metadata.level() <= LevelFilter::INFO
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("attune")
}

fn colored(color: LogColor) -> bool {
    match color {
        LogColor::Always => true,
        LogColor::Never => false,
        LogColor::Auto => {
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        }
    }
}
