//! Stand-ins for modules that are being written elsewhere: configuration files, certificates,
//! topology and capacity. Deleted when they are merged.

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Config, Limits, Listener, Workers};
use crate::tls::terms::Terms;

/// For `Config::load`.
pub fn load(path: &Path) -> Result<Config, Vec<String>> {
    Err(vec![format!("{}: cannot read it yet", path.display())])
}

/// For `control::certificates::load`.
pub fn certificates(config: &Config) -> Result<Vec<Arc<Terms>>, Vec<String>> {
    config.listeners.iter().map(terms).collect()
}

fn terms(listener: &Listener) -> Result<Arc<Terms>, Vec<String>> {
    let files = listener.certificates.first().ok_or_else(Vec::new)?;
    let problem = |error: String| vec![error];
    let chain = CertificateDer::pem_file_iter(&files.chain)
        .and_then(Iterator::collect)
        .map_err(|error| problem(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| problem(e.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| problem(error.to_string()))?;
    config.alpn_protocols = listener.alpn.iter().map(|p| p.as_bytes().into()).collect();
    Ok(Arc::new(Terms::new(Arc::new(config))))
}

/// For `control::topology::workers`.
pub fn workers(workers: &Workers) -> Result<Vec<Option<usize>>, String> {
    Ok(vec![None; workers.count.unwrap_or(1)])
}

/// For `control::capacity::connections_per_worker`.
pub fn connections_per_worker(limits: &Limits, _workers: usize) -> Result<u32, String> {
    Ok(limits.connections_per_worker.unwrap_or(1000))
}
