//! TLS for those who connect to a service, and for a service that connects to others: settings, files,
//! and their reload.

mod client;
mod pem;
mod server;

use std::path::PathBuf;

use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, invalid};

pub use client::{ClientTls, Unreachable};
pub(crate) use server::{ServerTls, accept};

/// `[server.tls]`: the certificate that a service shows, and whose it asks for. The files are read again
/// when they change; running connections go on with what they began with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTlsConfig {
    /// The certificate chain, PEM, the service's own first. Absent: no TLS.
    pub cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    pub key: Option<PathBuf>,
    /// The certificates, PEM, of those who may vouch for clients. Absent: clients show no certificate.
    pub client_ca: Option<PathBuf>,
    /// DNS names or IP addresses, one of which a client's certificate must be for. Empty: any that
    /// `client_ca` vouches for.
    pub client_names: Vec<String>,
}

impl ServerTlsConfig {
    /// Whether connections are encrypted.
    pub fn is_on(&self) -> bool {
        self.cert.is_some()
    }

    /// Checks that what belongs together is there. `key` is where it stands in the configuration.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is missing.
    pub fn validate(&self, section: &str) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{section}.{name}");
        pair(section, &self.cert, &self.key)?;
        if let (Some(ca), None) = (&self.client_ca, &self.cert) {
            let allowed = format!("set only with `{}` and `{}`", key("cert"), key("key"));
            return Err(invalid(&key("client_ca"), ca.display(), allowed));
        }
        if let (Some(name), None) = (self.client_names.first(), &self.client_ca) {
            let allowed =
                format!("set only with `{}`, which says who vouches for the names", key("client_ca"));
            return Err(invalid(&key("client_names"), name, allowed));
        }
        for name in &self.client_names {
            if ServerName::try_from(name.as_str()).is_err() {
                return Err(invalid(&key("client_names"), name, "DNS names or IP addresses"));
            }
        }
        Ok(())
    }
}

/// How a client makes sure of a server, and which certificate it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTlsConfig {
    /// The certificates, PEM, of those who may vouch for the server. Absent: the system's.
    pub ca: Option<PathBuf>,
    /// The certificate chain to show, PEM. Absent: none.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must be for. Absent: the host of the address.
    pub server_name: Option<String>,
}

impl ClientTlsConfig {
    /// Checks that what belongs together is there. `section` is where it stands in the configuration.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names the key and what is missing.
    pub fn validate(&self, section: &str) -> Result<(), ConfigError> {
        pair(section, &self.cert, &self.key)?;
        match &self.server_name {
            Some(name) if ServerName::try_from(name.as_str()).is_err() => {
                Err(invalid(&format!("{section}.server_name"), name, "a DNS name or an IP address"))
            }
            _ => Ok(()),
        }
    }
}

fn pair(section: &str, cert: &Option<PathBuf>, key: &Option<PathBuf>) -> Result<(), ConfigError> {
    let needs = |set: &str, other: &str, path: &PathBuf| {
        let allowed = format!("set only together with `{section}.{other}`");
        Err(invalid(&format!("{section}.{set}"), path.display(), allowed))
    };
    match (cert, key) {
        (Some(cert), None) => needs("cert", "key", cert),
        (None, Some(key)) => needs("key", "cert", key),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_together_is_asked_for() {
        let path = |name: &str| Some(PathBuf::from(name));
        let full = ServerTlsConfig {
            cert: path("c"),
            key: path("k"),
            client_ca: path("ca"),
            client_names: vec!["generator.attune".into(), "10.0.0.1".into()],
        };
        full.validate("server.tls").unwrap();
        ServerTlsConfig::default().validate("server.tls").unwrap();
        for (config, named) in [
            (ServerTlsConfig { key: None, ..full.clone() }, "`server.tls.cert`"),
            (ServerTlsConfig { cert: None, ..full.clone() }, "`server.tls.key`"),
            (ServerTlsConfig { cert: None, key: None, ..full.clone() }, "`server.tls.client_ca`"),
            (ServerTlsConfig { client_ca: None, ..full.clone() }, "`server.tls.client_names`"),
            (ServerTlsConfig { client_names: vec!["a b".into()], ..full }, "`server.tls.client_names`"),
        ] {
            let error = config.validate("server.tls").unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let client = ClientTlsConfig { cert: path("c"), ..ClientTlsConfig::default() };
        assert!(client.validate("reward_tls").unwrap_err().to_string().contains("`reward_tls.key`"));
        let client = ClientTlsConfig { server_name: Some("".into()), ..ClientTlsConfig::default() };
        assert!(client.validate("reward_tls").unwrap_err().to_string().contains("server_name"));
    }
}
