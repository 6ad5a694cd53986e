//! Certificates and keys from PEM files.

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::reload::{FileError, Files};

/// The one implementation of the ciphers; its suites all have forward secrecy and authenticate what they
/// encrypt.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The certificates of a file, at least one.
pub(super) fn certificates(files: &Files, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(files.bytes(path)).collect();
    match found {
        Ok(found) if found.is_empty() => Err(FileError::new(path, "has no certificate in PEM form")),
        Ok(found) => Ok(found),
        Err(error) => Err(FileError::new(path, format!("is no PEM file: {error}"))),
    }
}

/// The private key of a file.
pub(super) fn key(files: &Files, path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(files.bytes(path))
        .map_err(|error| FileError::new(path, format!("has no private key in PEM form: {error}")))
}

/// The certificates of a file as those who may vouch for others.
pub(super) fn roots(files: &Files, path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(files, path)? {
        roots
            .add(certificate)
            .map_err(|e| FileError::new(path, format!("a certificate cannot be used: {e}")))?;
    }
    Ok(roots)
}
