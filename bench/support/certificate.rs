//! Certificates made for one run, and the clients' half of the TLS agreement.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, ProtocolVersion, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::work::{Handshake, Work};
use super::{Error, Result};

/// The name in every certificate, and the one clients ask for.
pub(crate) const NAME: &str = "bench.invalid";

/// Sessions that a client keeps: one of TLS 1.2, or eight tickets of TLS 1.3, each used once, the
/// newest first. rustls rounds this to servers, and there is one.
const SESSIONS: usize = 8;

/// The key of the certificate that servers present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeyKind {
    /// ECDSA on P-256.
    Ecdsa,
    /// RSA, 2048 bits.
    Rsa,
}

/// A self-signed certificate in three files; the directory's owner removes them.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// PEM, the certificate alone.
    pub(crate) chain: PathBuf,
    /// PEM, the private key alone.
    pub(crate) key: PathBuf,
    /// PEM, certificate and key in one file, as haproxy wants it.
    pub(crate) both: PathBuf,
    der: CertificateDer<'static>,
}

impl Certificate {
    /// Makes a certificate and writes its files into `directory`.
    pub(crate) fn create(kind: KeyKind, directory: &Path) -> Result<Self> {
        let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
        match kind {
            KeyKind::Ecdsa => {
                let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
                fs::write(&chain, made.cert.pem())?;
                fs::write(&key, made.signing_key.serialize_pem())?;
            }
            // aws-lc-rs can make RSA keys, but rcgen's feature for it is not ours; openssl is on
            // every machine that has the peers.
            KeyKind::Rsa => openssl_rsa(&chain, &key)?,
        }
        let both = directory.join("both.pem");
        fs::write(&both, fs::read_to_string(&chain)? + &fs::read_to_string(&key)?)?;
        let der = CertificateDer::from_pem_file(&chain)?;
        Ok(Self { chain, key, both, der })
    }

    /// What one client offers: one version, AES-128-GCM with SHA-256, X25519, and its own earlier
    /// sessions if `work` resumes. One offer for all servers is what makes them do the same
    /// cryptography.
    ///
    /// Without `check_signature` the client trusts the server's signature: it costs the server
    /// nothing less, and lets one client CPU keep up with one server CPU.
    pub(crate) fn client_config(
        &self,
        work: Work,
        check_signature: bool,
    ) -> Result<Arc<ClientConfig>> {
        let (version, cipher_suites, kx_groups) = if work.version == ProtocolVersion::TLSv1_2 {
            // The certificate's key decides between the two.
            let suites = vec![
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ];
            // P-256 is for the certificate's key (RFC 8422 section 5.1); servers choose X25519.
            (&rustls::version::TLS12, suites, vec![kx_group::X25519, kx_group::SECP256R1])
        } else {
            let suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
            (&rustls::version::TLS13, suites, vec![kx_group::X25519])
        };
        let provider =
            Arc::new(CryptoProvider { cipher_suites, kx_groups, ..aws_lc_rs::default_provider() });
        let verifier =
            Pinned { expected: self.der.clone(), provider: Arc::clone(&provider), check_signature };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = match work.handshake {
            // Room for none: unlike `disabled`, this asks for a ticket in TLS 1.2, too.
            Handshake::Full => Resumption::in_memory_sessions(0),
            Handshake::Ticket => Resumption::in_memory_sessions(SESSIONS),
            Handshake::SessionId => Resumption::in_memory_sessions(SESSIONS)
                .tls12_resumption(Tls12Resumption::SessionIdOnly),
        };
        Ok(Arc::new(config))
    }
}

/// A self-signed RSA-2048 certificate by the `openssl` command.
fn openssl_rsa(chain: &Path, key: &Path) -> Result<()> {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-sha256"])
        .args(["-subj", &format!("/CN={NAME}"), "-addext", &format!("subjectAltName=DNS:{NAME}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(chain)
        .arg("-keyout")
        .arg(key)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::from(format!("openssl req: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Accepts exactly one certificate.
#[derive(Debug)]
struct Pinned {
    expected: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
    check_signature: bool,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        if !self.check_signature {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        if !self.check_signature {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
