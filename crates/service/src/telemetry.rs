//! Logs. One subscriber a process, on stderr, so that stdout stays machine-readable.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::sections::{LogColor, LogConfig, LogFormat};

/// Keeps telemetry running; hold it until the process ends, so that nothing is lost.
#[must_use = "telemetry ends when this is dropped"]
#[derive(Debug)]
pub struct TelemetryGuard(());

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error("log.filter: {0}; write a level or directives such as \"info,attune_engine=debug\"")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The process has a subscriber already.
    #[error("logging was set up twice: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts logging to stderr. Without `content` no text of people's stands in the log: our own lines hold
/// none, and of other crates, which write down what they carry, the levels debug and trace are left out.
///
/// # Errors
/// [`TelemetryError`]: a filter that does not parse, or a second call in one process.
pub fn init(config: &LogConfig, content: bool) -> Result<TelemetryGuard, TelemetryError> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let discreet = filter_fn(move |metadata| content || is_discreet(metadata));
    let subscriber = tracing_subscriber::registry().with(filter).with(discreet);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => subscriber.with(lines.with_ansi(colored(config.color))).try_init()?,
        LogFormat::Json => subscriber.with(lines.with_ansi(false).json()).try_init()?,
    }
    Ok(TelemetryGuard(()))
}

/// Whether a line cannot hold people's texts.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("attune") || *metadata.level() <= Level::INFO
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
