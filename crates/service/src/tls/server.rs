//! The server's side of TLS.

use std::{io, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{danger::HandshakeSignatureValid, verify_server_name},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{ServerTlsConfig, pem};
use crate::reload::{self, FileError, Files};

/// What new connections are met with.
pub(crate) type ServerTls = watch::Receiver<Arc<ServerConfig>>;

impl ServerTlsConfig {
    /// Reads the files, and again when they change. `None`: no TLS is configured.
    ///
    /// # Errors
    /// Names the file that cannot be used.
    pub(crate) fn load(&self, every: Duration) -> Result<Option<ServerTls>, FileError> {
        if !self.is_on() {
            return Ok(None);
        }
        let paths = [&self.cert, &self.key, &self.client_ca].into_iter().flatten().cloned().collect();
        let config = self.clone();
        reload::watch(paths, every, move |files| config.read(files)).map(Some)
    }

    fn read(&self, files: &Files) -> Result<ServerConfig, FileError> {
        let (cert, key) =
            (self.cert.as_deref().unwrap_or("".as_ref()), self.key.as_deref().unwrap_or("".as_ref()));
        let builder = ServerConfig::builder_with_provider(pem::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| FileError::new(cert, e))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(pem::roots(files, ca)?);
                let inner = WebPkiClientVerifier::builder_with_provider(roots, pem::provider())
                    .build()
                    .map_err(|e| FileError::new(ca, e))?;
                let names = self.client_names.iter().map(|name| ServerName::try_from(name.clone()));
                let names = names.collect::<Result<_, _>>().map_err(|e| FileError::new(ca, e))?;
                builder.with_client_cert_verifier(Arc::new(Named { inner, names }))
            }
        };
        let mut config = builder
            .with_single_cert(pem::certificates(files, cert)?, pem::key(files, key)?)
            .map_err(|e| FileError::new(key, format!("does not belong to {}: {e}", cert.display())))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed connection would show no certificate, and so outlive a name that was taken off the list.
        // Connections here live long; a full handshake costs them nothing.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Meets a client, within this time.
pub(crate) async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    within: Duration,
) -> io::Result<TlsStream<TcpStream>> {
    let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
    tokio::time::timeout(within, TlsAcceptor::from(config).accept(stream)).await.map_err(slow)?
}

/// Takes certificates that are vouched for and are for one of these names; no names: for any.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let named = |name: &ServerName<'_>| verify_server_name(&certificate, name).is_ok();
        if self.names.is_empty() || self.names.iter().any(named) {
            Ok(verified)
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
