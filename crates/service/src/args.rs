//! The flags that every service has.

use std::{net::SocketAddr, path::PathBuf};

use crate::config::ConfigError;

/// The flags that every service has; flatten it into the service's own with `#[command(flatten)]`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServiceArgs {
    /// A TOML file with settings. Environment variables and flags go before it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The address to serve gRPC on; port 0 takes a free one, which is printed.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// The service's certificate chain, PEM; with --tls-key, the service speaks TLS.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Listen beyond loopback without TLS: everybody on the way can read and change what is said.
    #[arg(long)]
    pub insecure: bool,
    /// The address to serve /live, /ready, /metrics and gRPC health on, in plain text.
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// What to log: a level (error, warn, info, debug, trace), or a filter such as
    /// "info,attune_engine=debug".
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Any setting by its key in the file, such as `--set server.drain_seconds=5`; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ServiceArgs {
    /// The flags that were given, as overrides for [`crate::config::Merged::of`].
    ///
    /// # Errors
    /// [`ConfigError::Flag`] for a `--set` without `=`.
    pub fn overrides(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let mut all = Vec::new();
        for text in &self.set {
            let (key, value) =
                text.split_once('=').ok_or_else(|| ConfigError::Flag { flag: text.clone() })?;
            all.push((key.trim().to_owned(), value.to_owned()));
        }
        all.extend(self.listen.map(|a| ("server.listen".to_owned(), a.to_string())));
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        all.extend(self.tls_cert.as_ref().map(|file| ("server.tls.cert".to_owned(), path(file))));
        all.extend(self.tls_key.as_ref().map(|file| ("server.tls.key".to_owned(), path(file))));
        all.extend(self.insecure.then(|| ("server.insecure".to_owned(), true.to_string())));
        all.extend(self.admin_listen.map(|a| ("server.admin_listen".to_owned(), a.to_string())));
        all.extend(self.log.clone().map(|f| ("log.filter".to_owned(), f)));
        Ok(all)
    }
}
