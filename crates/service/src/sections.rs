//! The sections of a configuration that both services have.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{ConfigError, check_range, choice, invalid},
    limits::LimitsConfig,
    tls::ServerTlsConfig,
};

/// Feedback of 4 MiB, and what else a profile has.
const MAX_REQUEST_BYTES: usize = 5 << 20;

/// `[server]`: where and how gRPC is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// The address of the service; port 0 takes a free one. Default: loopback.
    pub listen: SocketAddr,
    /// The address of the admin port (plain text, no authentication: keep it on loopback or inside the
    /// pod). Absent: none.
    pub admin_listen: Option<SocketAddr>,
    /// The largest message that is read, in bytes, 64 KiB to 1 GiB; of a client's requests 5 MiB at most.
    /// Default: 16 MiB.
    pub max_message_bytes: usize,
    /// How long running calls may go on once a shutdown was asked for, in seconds, 0 to 3600.
    /// Default: 20.
    pub drain_seconds: f64,
    /// TLS. Without it the service listens on loopback alone, unless `insecure` is set.
    pub tls: ServerTlsConfig,
    /// Whether to listen beyond loopback without TLS, where everybody on the way can read and change what
    /// is said. Default: false.
    pub insecure: bool,
    /// Whether server reflection answers. Default: true.
    pub reflection: bool,
    /// How often certificates, keys and tokens are looked at for changes, in seconds, 0.01 to 3600.
    /// Default: 5.
    pub reload_seconds: f64,
    /// What clients can hold of the server.
    pub limits: LimitsConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self::on_port(0)
    }
}

impl ServerConfig {
    /// The defaults, listening on this loopback port.
    pub fn on_port(port: u16) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            admin_listen: None,
            max_message_bytes: 16 << 20,
            drain_seconds: 20.0,
            tls: ServerTlsConfig::default(),
            insecure: false,
            reflection: true,
            reload_seconds: 5.0,
            limits: LimitsConfig::default(),
        }
    }

    /// The largest message that a client's request may be: a decoded one takes up to fifty times the room, so no more
    /// than feedback and vectors at their own bounds need.
    pub fn max_request_bytes(&self) -> usize {
        self.max_message_bytes.min(MAX_REQUEST_BYTES)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_range("server.max_message_bytes", self.max_message_bytes, (64 << 10)..=(1 << 30))?;
        check_range("server.drain_seconds", self.drain_seconds, 0.0..=3600.0)?;
        check_range("server.reload_seconds", self.reload_seconds, 0.01..=3600.0)?;
        self.tls.validate("server.tls")?;
        if !(self.tls.is_on() || self.insecure || self.listen.ip().to_canonical().is_loopback()) {
            let allowed = "a loopback address, as there is no TLS: give `server.tls.cert` and `server.tls.key`, listen \
                           on loopback, or set `server.insecure = true` (--insecure) where everybody who can reach or \
                           read the network may be trusted";
            return Err(invalid("server.listen", self.listen, allowed));
        }
        self.limits.validate()
    }

    /// How often files are looked at for changes.
    pub fn reload(&self) -> Duration {
        Duration::from_secs_f64(self.reload_seconds.clamp(0.01, 3600.0))
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        choice(&text)
    }
}

/// Whether log lines are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum LogColor {
    /// When stderr is a terminal and `NO_COLOR` is not set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl TryFrom<String> for LogColor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        choice(&text)
    }
}

/// `[log]`: what is logged to stderr, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A level (error, warn, info, debug, trace), or directives such as "info,attune_engine=debug".
    /// Default: info.
    pub filter: String,
    /// text or json. Default: text.
    pub format: LogFormat,
    /// auto, always or never. Default: auto.
    pub color: LogColor,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text, color: LogColor::Auto }
    }
}

impl LogConfig {
    /// Checks the filter.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] says what a filter looks like.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match tracing_subscriber::EnvFilter::try_new(&self.filter) {
            Ok(_) => Ok(()),
            Err(error) => Err(invalid(
                "log.filter",
                &self.filter,
                format!("a level or directives such as \"info,attune_engine=debug\" ({error})"),
            )),
        }
    }
}
