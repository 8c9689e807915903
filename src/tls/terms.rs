//! A listener's terms: the certificates, versions, suites, groups and ALPN protocols it offers.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;

use super::resolver::{NameTwice, NamedCertificate, Resolver};
use crate::config::{Listener, Tls, TlsVersion};

/// What one listener offers to its clients.
#[derive(Debug)]
pub struct Terms {
    config: Arc<ServerConfig>,
    /// `None`: whoever made the configuration resolves names; everyone is served.
    resolver: Option<Arc<Resolver>>,
}

/// Why a listener has no terms.
#[derive(Debug, thiserror::Error)]
pub enum TermsError {
    /// Certificates with the same kind of key share names.
    #[error("two certificates with the same kind of key serve one name")]
    NamesTwice(Vec<NameTwice>),
    /// Suites, groups and versions do not fit together; a checked configuration's do.
    #[error("suites, groups and versions do not fit together: {0}")]
    Offer(#[from] rustls::Error),
}

impl Terms {
    /// Wraps a checked rustls configuration.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self {
            config,
            resolver: None,
        }
    }

    /// The terms of a listener; `certificates` are its own, in the configuration's order.
    ///
    /// # Errors
    /// A name twice.
    pub fn build(
        listener: &Listener,
        tls: &Tls,
        provider: Arc<CryptoProvider>,
        certificates: &[NamedCertificate],
    ) -> Result<Self, TermsError> {
        debug_assert!(!certificates.is_empty(), "a checked listener has one");
        let resolver =
            Resolver::new(certificates, listener.unknown_name).map_err(TermsError::NamesTwice)?;
        let resolver = Arc::new(resolver);
        let versions: Vec<_> = tls
            .versions
            .iter()
            .map(|version| version_of(*version))
            .collect();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&resolver) as _);
        config.alpn_protocols = listener
            .alpn
            .iter()
            .map(|name| name.clone().into())
            .collect();
        // The order of suites was chosen for this CPU.
        config.ignore_client_order = true;
        // A session resumes nowhere yet: no store, no tickets. The ticketer that rustls starts
        // with makes none.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            resolver: Some(resolver),
        })
    }

    /// Whether a client that asks for this name (or for none) is served; if not, it gets the alert
    /// `unrecognized_name` (RFC 6066 section 3). Upper case and a trailing dot do no harm.
    pub fn recognizes(&self, server_name: Option<&str>) -> bool {
        self.resolver
            .as_ref()
            .is_none_or(|resolver| resolver.recognizes(server_name))
    }

    /// For each new session.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

fn version_of(version: TlsVersion) -> &'static rustls::SupportedProtocolVersion {
    match version {
        TlsVersion::Tls12 => &rustls::version::TLS12,
        TlsVersion::Tls13 => &rustls::version::TLS13,
    }
}
