//! A listener's terms: the certificates, versions, suites, groups and ALPN protocols it offers.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;

use super::client_auth::ClientAuthPolicy;
use super::resolver::{NameTwice, NamedCertificate, Resolver};
use super::resumption::bridge::Bridge;
use super::session;
use crate::config::{Listener, RecordLayer, Resumption, ResumptionMode, Tls, TlsVersion};
use crate::telemetry::labels::KeyType;

/// What one listener offers to its clients.
#[derive(Debug)]
pub struct Terms {
    config: Arc<ServerConfig>,
    /// `None`: whoever made the configuration resolves names; everyone is served.
    resolver: Option<Arc<Resolver>>,
    offers_tls13: bool,
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
        Self { config, resolver: None, offers_tls13: true }
    }

    /// The same terms with a configuration of their own, for one worker: a session then counts its
    /// reference to it on this core only.
    #[must_use]
    pub fn own_copy(&self) -> Self {
        Self {
            config: Arc::new((*self.config).clone()),
            resolver: self.resolver.clone(),
            offers_tls13: self.offers_tls13,
        }
    }

    /// The terms of a listener; `certificates` are its own, in the configuration's order.
    ///
    /// # Errors
    /// A name twice.
    pub fn build(
        listener: &Listener,
        tls: &Tls,
        resumption: &Resumption,
        provider: Arc<CryptoProvider>,
        certificates: &[NamedCertificate],
        client_auth: &ClientAuthPolicy,
    ) -> Result<Self, TermsError> {
        debug_assert!(!certificates.is_empty(), "a checked listener has one");
        let resolver =
            Resolver::new(certificates, listener.unknown_name).map_err(TermsError::NamesTwice)?;
        let resolver = Arc::new(resolver);
        let versions: Vec<_> = tls.versions.iter().map(|version| version_of(*version)).collect();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)?
            .with_client_cert_verifier(client_auth.verifier())
            .with_cert_resolver(Arc::clone(&resolver) as _);
        config.alpn_protocols = listener.alpn.iter().map(|name| name.clone().into()).collect();
        // The order of suites was chosen for this CPU.
        config.ignore_client_order = true;
        if tls.record_layer == RecordLayer::Lean {
            session::use_own_records(&mut config);
        }
        // Resumption never skips the key exchange, and no data comes before the handshake is done.
        config.max_early_data_size = 0;
        let bridge = Arc::new(Bridge::new(&listener.name, client_auth.fingerprint()));
        if resumption.mode == ResumptionMode::Off {
            // The ticketer that rustls starts with makes none.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            config.ticketer = Arc::clone(&bridge) as _;
            config.session_storage = Arc::clone(&bridge) as _;
            config.send_tls13_tickets = usize::from(resumption.tickets_per_handshake);
        }
        config.time_provider = bridge;
        let offers_tls13 = tls.versions.contains(&TlsVersion::Tls13);
        Ok(Self { config: Arc::new(config), resolver: Some(resolver), offers_tls13 })
    }

    /// Whether clients that speak TLS 1.3 get it.
    pub fn offers_tls13(&self) -> bool {
        self.offers_tls13
    }

    /// Whether a client that asks for this name (or for none) is served; if not, it gets the alert
    /// `unrecognized_name` (RFC 6066 section 3). Upper case and a trailing dot do no harm.
    pub fn recognizes(&self, server_name: Option<&str>) -> bool {
        self.resolver.as_ref().is_none_or(|resolver| resolver.recognizes(server_name))
    }

    /// The types of the keys that handshakes may sign with; none where nobody told us.
    pub fn key_types(&self) -> Vec<KeyType> {
        self.resolver.as_ref().map(|resolver| resolver.key_types()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

    use super::*;
    use crate::config::{CIPHER_SUITES, GROUPS, UnknownName};
    use crate::tls::provider::{Cpu, provider};

    fn listener(alpn: &[&str], unknown_name: UnknownName) -> Listener {
        Listener {
            name: "https".to_owned(),
            bind: Vec::new(),
            backend: 0,
            alpn: alpn.iter().map(ToString::to_string).collect(),
            backlog: None,
            defer_accept: None,
            connection_rate: None,
            unknown_name,
            certificates: Vec::new(),
            client_auth: None,
        }
    }

    fn tls(versions: &[TlsVersion]) -> Tls {
        Tls {
            versions: versions.to_vec(),
            cipher_suites: None,
            groups: GROUPS.map(str::to_owned).to_vec(),
            record_layer: RecordLayer::Lean,
        }
    }

    /// Terms for `a.example` and a client that trusts its certificate.
    fn terms(listener: &Listener, tls: &Tls) -> (Terms, ClientConfig) {
        let key = KeyPair::generate().expect("key");
        let names = vec!["a.example".to_owned()];
        let signed = CertificateParams::new(names.clone()).expect("names").self_signed(&key);
        let der = signed.expect("certificate").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
        let ours = provider(tls, Cpu { aes: true, sha256: true });
        let certified = CertifiedKey::from_der(vec![der.clone()], key, &ours).expect("match");
        let certificates = [NamedCertificate { names, certified: Arc::new(certified) }];
        let mut roots = RootCertStore::empty();
        roots.add(der).expect("root");
        let theirs = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(theirs)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (resumption, nobody) = (Resumption::default(), ClientAuthPolicy::none());
        let terms =
            Terms::build(listener, tls, &resumption, ours, &certificates, &nobody).expect("terms");
        (terms, client)
    }

    /// A whole handshake in memory.
    fn handshake(
        terms: &Terms,
        client: &Arc<ClientConfig>,
        name: &'static str,
    ) -> Result<(ServerConnection, ClientConnection), rustls::Error> {
        let name = ServerName::try_from(name).expect("name");
        let mut client = ClientConnection::new(Arc::clone(client), name)?;
        let mut server = ServerConnection::new(Arc::clone(terms.config()))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).expect("in memory");
            server.read_tls(&mut bytes.as_slice()).expect("in memory");
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes).expect("in memory");
            client.read_tls(&mut bytes.as_slice()).expect("in memory");
            client.process_new_packets()?;
        }
        Ok((server, client))
    }

    #[test]
    fn our_order_of_suites_and_of_protocols_is_in_force() {
        let listener = listener(&["h2", "http/1.1"], UnknownName::Default);
        let both = tls(&[TlsVersion::Tls12, TlsVersion::Tls13]);
        let (terms, mut client) = terms(&listener, &both);
        // rustls as a client prefers AES-256.
        client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
        let (server, _client) = handshake(&terms, &Arc::new(client), "a.example").expect("done");
        let suite = server.negotiated_cipher_suite().expect("a suite").suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(server.alpn_protocol(), Some(&b"h2"[..]));
    }

    #[test]
    fn foreign_protocols_are_refused_with_their_alert() {
        let listener = listener(&["h2"], UnknownName::Default);
        let (terms, mut client) = terms(&listener, &tls(&[TlsVersion::Tls13]));
        client.alpn_protocols = vec![b"spdy/3".to_vec()];
        let error = handshake(&terms, &Arc::new(client), "a.example").expect_err("refused");
        assert_eq!(error, rustls::Error::NoApplicationProtocol);
    }

    #[test]
    fn unknown_names_get_no_certificate_where_refused() {
        let strict = listener(&[], UnknownName::Refuse);
        let (terms, client) = terms(&strict, &tls(&[TlsVersion::Tls13]));
        assert!(!terms.recognizes(Some("b.example")));
        assert!(terms.recognizes(Some("a.example")));
        let client = Arc::new(client);
        assert!(handshake(&terms, &client, "b.example").is_err());
        assert!(handshake(&terms, &client, "a.example").is_ok());
    }

    #[test]
    fn every_suite_that_the_configuration_accepts_completes_a_handshake() {
        for suite in CIPHER_SUITES.into_iter().filter(|suite| !suite.contains("RSA")) {
            let version =
                if suite.starts_with("TLS_ECDHE_") { TlsVersion::Tls12 } else { TlsVersion::Tls13 };
            let tls = Tls { cipher_suites: Some(vec![suite.to_owned()]), ..tls(&[version]) };
            let (terms, client) = terms(&listener(&[], UnknownName::Default), &tls);
            assert!(handshake(&terms, &Arc::new(client), "a.example").is_ok(), "{suite}");
        }
    }

    #[test]
    fn wrapped_configuration_recognizes_everyone() {
        let (inner, _client) =
            terms(&listener(&[], UnknownName::Refuse), &tls(&[TlsVersion::Tls13]));
        assert!(Terms::new(Arc::clone(inner.config())).recognizes(None));
    }
}
