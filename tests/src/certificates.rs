//! Certificates as tests need them: right, and wrong in every way.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use attune_service::tls::{ClientTls, ClientTlsConfig};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use tonic::transport::Channel;

/// One who vouches for others.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Writes its own certificate.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, folder: &Path, file: &str) -> Result<PathBuf> {
        write(&folder.join(file), &self.certificate.pem())
    }

    /// Vouches for somebody who has these names, and writes `FILE.pem` and `FILE.key`.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn issue(&self, folder: &Path, file: &str, names: &[&str]) -> Result<Identity> {
        self.issue_until(folder, file, names, 2099)
    }

    /// `issue`, up to the beginning of a year.
    ///
    /// # Errors
    /// As `issue`.
    pub fn issue_until(&self, folder: &Path, file: &str, names: &[&str], year: i32) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = params(file, names)?;
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            key: write(&folder.join(format!("{file}.key")), &key.serialize_pem())?,
            cert: write(&folder.join(format!("{file}.pem")), &certificate.pem())?,
        })
    }
}

fn params(name: &str, names: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// A file is whole or not there, as by those who rotate certificates.
fn write(path: &Path, text: &str) -> Result<PathBuf> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)?;
    Ok(path.to_path_buf())
}

/// A connection by TLS to `https://HOST:PORT`, of one who trusts `ca` and shows `identity`.
///
/// # Errors
/// One of the two does not accept the other.
pub async fn tls(url: &str, ca: &Path, identity: Option<&Identity>) -> Result<Channel> {
    let config = ClientTlsConfig {
        ca: Some(ca.to_path_buf()),
        cert: identity.map(|i| i.cert.clone()),
        key: identity.map(|i| i.key.clone()),
        server_name: None,
    };
    let tls = ClientTls::load(&config, Duration::from_secs(3600))?;
    Ok(tls.connect(ClientTls::endpoint(url)?).await?)
}
