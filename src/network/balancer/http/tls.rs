//! Where TLS ends: a certificate for each host.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::network::table::Certificate;

#[derive(Debug)]
struct ByHost {
    exact: HashMap<String, Arc<CertifiedKey>>,
    // By what follows the star, the longest first.
    wild: Vec<(String, Arc<CertifiedKey>)>,
    first: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByHost {
    fn resolve(&self, hello: ClientHello) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let wild = || self.wild.iter().find(|(rest, _)| name.ends_with(rest.as_str())).map(|(_, key)| key);
        Some(self.exact.get(&name).or_else(wild).unwrap_or(&self.first).clone())
    }
}

/// An error unless a chain and a key can be read, and go together.
pub fn certified(chain: &str, key: &str) -> Result<CertifiedKey, String> {
    let wrong = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| wrong("the certificate cannot be read as PEM", &error))?;
    if chain.is_empty() {
        return Err("there is no certificate in the PEM".into());
    }
    let private = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| wrong("the key cannot be read as PEM", &error))?;
    let key = any_supported_type(&private).map_err(|error| wrong("the key cannot be used", &error))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|error| wrong("the key is not that of the certificate", &error))?;
    Ok(certified)
}

/// A configuration with these certificates, nothing where there are none; an error says which one is none.
pub fn config(certificates: &[Certificate]) -> Result<Option<Arc<ServerConfig>>, String> {
    let (mut exact, mut wild, mut first) = (HashMap::new(), Vec::new(), None);
    for certificate in certificates {
        let hosts = certificate.hosts.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let made = certified(&certificate.chain, &certificate.key);
        let made = Arc::new(made.map_err(|error| format!("certificate for {hosts}: {error}"))?);
        first.get_or_insert_with(|| made.clone());
        for host in &certificate.hosts {
            match host.strip_prefix('*') {
                Some(rest) => wild.push((rest.to_owned(), made.clone())),
                None => _ = exact.insert(host.clone(), made.clone()),
            }
        }
    }
    let Some(first) = first else { return Ok(None) };
    wild.sort_by_key(|(rest, _): &(String, _)| std::cmp::Reverse(rest.len()));
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(ByHost { exact, wild, first }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}
