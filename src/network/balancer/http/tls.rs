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

/// A configuration with these certificates; an error says which one is none.
pub fn config(certificates: &[Certificate]) -> Result<Arc<ServerConfig>, String> {
    let (mut exact, mut wild, mut first) = (HashMap::new(), Vec::new(), None);
    for certificate in certificates {
        let hosts = certificate.hosts.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let wrong = |what: &str, error: &dyn std::fmt::Display| format!("certificate for {hosts}: {what}: {error}");
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| wrong("its chain cannot be read as PEM", &error))?;
        if chain.is_empty() {
            return Err(wrong("its file", &"holds no certificate"));
        }
        let private = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
            .map_err(|error| wrong("its key cannot be read as PEM", &error))?;
        let key = any_supported_type(&private).map_err(|error| wrong("its key cannot be used", &error))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| wrong("its key is not that of the certificate", &error))?;
        let certified = Arc::new(certified);
        first.get_or_insert_with(|| certified.clone());
        for host in &certificate.hosts {
            match host.strip_prefix('*') {
                Some(rest) => wild.push((rest.to_owned(), certified.clone())),
                None => _ = exact.insert(host.clone(), certified.clone()),
            }
        }
    }
    let Some(first) = first else { return Err("there is no certificate".into()) };
    wild.sort_by_key(|(rest, _)| std::cmp::Reverse(rest.len()));
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(ByHost { exact, wild, first }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
