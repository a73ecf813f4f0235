//! The control API's certificate: the owner's, or one that the daemon makes for itself once and keeps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::agent;
use crate::model::id::sha256_hex;
use crate::model::{Error, Kind, Result};
use crate::store::file;

/// The certificate that the control API shows, with its fingerprint, which clients pin.
pub fn own_face(data: &Path, given: Option<&(PathBuf, PathBuf)>) -> Result<(Arc<CertifiedKey>, String)> {
    let (certificate, key) = match given {
        Some(paths) => paths.clone(),
        None => own(data)?,
    };
    let wrong = |path: &Path, error: &dyn std::fmt::Display| {
        Error::new(Kind::Invalid, path.display().to_string(), "cannot be read as PEM").cause(error)
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(&certificate, &error))?;
    let first =
        chain.first().ok_or_else(|| Error::invalid(certificate.display().to_string(), "holds no certificate"))?;
    let fingerprint = sha256_hex(first);
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| wrong(&key, &error))?;
    let face = agent::tls::certified(chain, private).map_err(|error| {
        Error::new(Kind::Invalid, certificate.display().to_string(), "does not go with its key").cause(error)
    })?;
    Ok((face, fingerprint))
}

/// The TLS configuration with that certificate alone, as a server takes it.
pub fn server_config(face: Arc<CertifiedKey>) -> Result<watch::Sender<Arc<rustls::ServerConfig>>> {
    Ok(watch::Sender::new(agent::tls::server(face, None)?))
}

/// The same for HTTP/1.1, with nothing that is followed.
pub fn plain_config(face: Arc<CertifiedKey>) -> Result<Arc<rustls::ServerConfig>> {
    let mut config = (*agent::tls::server(face, None)?).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn own(data: &Path) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (data.join("control.crt"), data.join("control.key"));
    let holds = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
    if holds(&certificate) && holds(&key) {
        return Ok((certificate, key));
    }
    let made = rcgen::generate_simple_self_signed(vec!["neap".to_owned()])
        .map_err(|error| Error::internal("control API", "cannot make a certificate").cause(error))?;
    let failed =
        |error: std::io::Error| Error::io(data.display().to_string(), "write the control API's certificate", &error);
    file::replace(&key, made.signing_key.serialize_pem().as_bytes(), 0o600).map_err(failed)?;
    file::replace(&certificate, made.cert.pem().as_bytes(), 0o644).map_err(failed)?;
    Ok((certificate, key))
}
