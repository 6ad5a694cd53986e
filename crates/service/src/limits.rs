//! What one client, or many, can hold of a server: connections, calls, and time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    clocks::Clocks,
    config::{ConfigError, check_range},
};

/// `[server.limits]`: with the size of a message, these bound what clients can make a server hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections at once, 1 to 65536; further ones wait to be accepted. Default: 1024.
    pub connections: usize,
    /// Calls at once on one connection, 1 to 65536; further ones wait at the client. Default: 1024.
    pub streams: u32,
    /// How long a new client may take to be met by TLS, and then to say what every client says first, and
    /// any client to answer when it is asked whether it is still there, in seconds, above 0, up to 3600.
    /// Default: 10.
    pub silent_seconds: f64,
    /// After how long a silence a client is asked whether it is still there, in seconds, above 0, up to
    /// 3600. Default: 30.
    pub keepalive_seconds: f64,
    /// The headers of a call, in bytes, 1 KiB to 1 MiB. Default: 16 KiB.
    pub header_bytes: u32,
    /// How long an answer may take that is no stream, and the head of one that is, in seconds, above 0, up
    /// to 3600. Default: 30.
    pub request_seconds: f64,
    /// How long a stream may take to its first item, the time in the queue included, in seconds, above 0,
    /// up to 86400. Default: 300.
    pub first_seconds: f64,
    /// How long a stream may be silent, or not be read, in seconds, above 0, up to 86400. Default: 120.
    pub idle_seconds: f64,
    /// How long a stream may go on, in seconds, above 0, up to 604800. Default: 3600; of a worker's streams,
    /// which stay open for all texts of a generator, 86400.
    pub lifetime_seconds: f64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 1024,
            streams: 1024,
            silent_seconds: 10.0,
            keepalive_seconds: 30.0,
            header_bytes: 16 << 10,
            request_seconds: 30.0,
            first_seconds: 300.0,
            idle_seconds: 120.0,
            lifetime_seconds: 3600.0,
        }
    }
}

impl LimitsConfig {
    /// Checks every range.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_range("server.limits.connections", self.connections, 1..=65_536)?;
        check_range("server.limits.streams", self.streams, 1..=65_536)?;
        check_range("server.limits.silent_seconds", self.silent_seconds, 0.001..=3600.0)?;
        check_range("server.limits.keepalive_seconds", self.keepalive_seconds, 0.001..=3600.0)?;
        check_range("server.limits.header_bytes", self.header_bytes, (1 << 10)..=(1 << 20))?;
        check_range("server.limits.request_seconds", self.request_seconds, 0.001..=3600.0)?;
        check_range("server.limits.first_seconds", self.first_seconds, 0.001..=86_400.0)?;
        check_range("server.limits.idle_seconds", self.idle_seconds, 0.001..=86_400.0)?;
        check_range("server.limits.lifetime_seconds", self.lifetime_seconds, 0.001..=604_800.0)
    }

    /// The clocks of every stream.
    pub fn clocks(&self) -> Clocks {
        Clocks {
            first: seconds(self.first_seconds),
            idle: seconds(self.idle_seconds),
            lifetime: seconds(self.lifetime_seconds),
        }
    }

    pub(crate) fn silent(&self) -> Duration {
        seconds(self.silent_seconds)
    }

    pub(crate) fn keepalive(&self) -> Duration {
        seconds(self.keepalive_seconds)
    }

    pub(crate) fn request(&self) -> Duration {
        seconds(self.request_seconds)
    }
}

/// Checked by `validate`; whoever skipped it gets the nearest that is a duration.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.001, 604_800.0))
}
