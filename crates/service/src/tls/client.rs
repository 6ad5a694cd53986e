//! The client's side of TLS.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{ClientTlsConfig, pem};
use crate::reload::{self, FileError, Files};

/// What connections to servers are made with. Clones share it.
#[derive(Debug, Clone)]
pub struct ClientTls {
    config: watch::Receiver<Arc<ClientConfig>>,
    server_name: Option<ServerName<'static>>,
}

/// A server that cannot be reached by TLS.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The address is none.
    #[error("`{0}` is no address; write it as https://HOST:PORT")]
    Address(String),
    /// No connection came about.
    #[error("{}", causes(.0))]
    Transport(#[from] tonic::transport::Error),
}

/// The whole story: tonic's own sentence is "transport error".
fn causes(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

impl ClientTls {
    /// Reads the files, and again, this often, when they change. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub fn load(config: &ClientTlsConfig, every: Duration) -> Result<Self, FileError> {
        let paths = [&config.cert, &config.key, &config.ca].into_iter().flatten().cloned().collect();
        // Checked by `validate`; whoever skipped it gets a name that no certificate is for.
        let server_name = config.server_name.clone().and_then(|name| ServerName::try_from(name).ok());
        let own = config.clone();
        let config = reload::watch(paths, every, move |files| own.read(files))?;
        Ok(Self { config, server_name })
    }

    /// How to reach an address that begins with https://, to be completed and given to
    /// [`ClientTls::connect`].
    ///
    /// # Errors
    /// [`Unreachable::Address`].
    pub fn endpoint(url: &str) -> Result<Endpoint, Unreachable> {
        let refuse = || Unreachable::Address(url.to_owned());
        let origin: Uri = url.parse().map_err(|_| refuse())?;
        let authority = origin.authority().filter(|_| origin.scheme_str() == Some("https"));
        // To tonic it is a plain connection, whatever it was built with: what encrypts is `connect`.
        let plain = format!("http://{}", authority.ok_or_else(refuse)?);
        Ok(Endpoint::from_shared(plain)?.origin(origin))
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The server cannot be reached, or one of the two does not accept the other's certificate.
    pub async fn connect(&self, endpoint: Endpoint) -> Result<Channel, Unreachable> {
        let tls = self.clone();
        let connector = tower::service_fn(move |uri: Uri| tls.clone().open(uri));
        Ok(endpoint.connect_with_connector(connector).await?)
    }

    /// A connection that is opened when it is needed, and again when it was lost.
    pub(crate) fn connect_lazily(&self, endpoint: Endpoint) -> Channel {
        let tls = self.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| tls.clone().open(uri)))
    }

    async fn open(self, uri: Uri) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = match self.server_name {
            Some(name) => name,
            None => ServerName::try_from(host.clone()).map_err(io::Error::other)?,
        };
        let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
        stream.set_nodelay(true)?;
        let config = Arc::clone(&self.config.borrow());
        Ok(TokioIo::new(TlsConnector::from(config).connect(name, stream).await?))
    }
}

impl ClientTlsConfig {
    fn read(&self, files: &Files) -> Result<ClientConfig, FileError> {
        let roots = match &self.ca {
            Some(ca) => pem::roots(files, ca)?,
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        let none = |e: rustls::Error| FileError::new("TLS".as_ref(), e);
        let builder = ClientConfig::builder_with_provider(pem::provider())
            .with_safe_default_protocol_versions()
            .map_err(none)?
            .with_root_certificates(roots);
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(pem::certificates(files, cert)?, pem::key(files, key)?)
                .map_err(|e| FileError::new(key, format!("does not belong to {}: {e}", cert.display())))?,
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}
