//! Client certificates: the policy of a listener, and what is kept of a certificate that met it.
//!
//! A certificate that is shown must be good, in both modes: who may go without one cannot pass with
//! a bad one. With revocation lists every certificate below an authority needs a list of its issuer
//! that is not past its next update; an unknown status is refused (fail closed, as OpenSSL does).
//! An authority's own dates are no part of the path (RFC 5280 section 6.1.1) and are looked at when
//! it is loaded.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::ClientAuthMode;
use crate::limits::{
    CLIENT_AUTHORITY_NAMES_BYTES_MAX, CLIENT_INTERMEDIATES_MAX, CLIENT_NAME_BYTES_MAX,
};

/// Which client certificates a listener asks for and takes.
#[derive(Debug, Clone)]
pub struct ClientAuthPolicy {
    verifier: Arc<dyn ClientCertVerifier>,
    fingerprint: [u8; 8],
}

/// Why there is no policy; indexes are those of the lists given.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// An authority's certificate is of no use.
    #[error("{source}")]
    Authority {
        /// Which one.
        index: usize,
        /// What rustls says of it.
        source: Error,
    },
    /// The authorities' names have more bytes than [`CLIENT_AUTHORITY_NAMES_BYTES_MAX`].
    #[error("the names of the authorities have {0} bytes together")]
    Names(usize),
    /// A revocation list is of no use.
    #[error("{source}")]
    RevocationList {
        /// Which one.
        index: usize,
        /// What rustls says of it.
        source: VerifierBuilderError,
    },
}

impl ClientAuthPolicy {
    /// No certificate is asked for.
    pub fn none() -> Self {
        Self {
            verifier: WebPkiClientVerifier::no_client_auth(),
            fingerprint: fingerprint(None, &[], &[]),
        }
    }

    /// Certificates of `authorities`; without `crls` revocation is not checked.
    ///
    /// # Errors
    /// An authority or list that does not parse; names that a client could not be told.
    pub fn build(
        mode: ClientAuthMode,
        authorities: &[CertificateDer<'static>],
        crls: &[CertificateRevocationListDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, PolicyError> {
        let mut roots = RootCertStore::empty();
        for (index, authority) in authorities.iter().enumerate() {
            let added = roots.add(authority.clone());
            added.map_err(|source| PolicyError::Authority { index, source })?;
        }
        let names = roots.subjects().iter().map(|name| 2 + name.as_ref().len()).sum();
        if names > CLIENT_AUTHORITY_NAMES_BYTES_MAX {
            return Err(PolicyError::Names(names));
        }
        let roots = Arc::new(roots);
        let builder = || {
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
        };
        for (index, crl) in crls.iter().enumerate() {
            let alone = builder().with_crls([crl.clone()]).build();
            alone.map_err(|source| PolicyError::RevocationList { index, source })?;
        }
        let builder = builder().with_crls(crls.iter().cloned()).enforce_revocation_expiration();
        let verifier = match mode {
            ClientAuthMode::Required => builder,
            ClientAuthMode::Optional => builder.allow_unauthenticated(),
        }
        .build()
        // Nothing is left that could fail: the roots are there, and each list was tried.
        .map_err(|source| PolicyError::RevocationList { index: 0, source })?;
        Ok(Self {
            verifier: Arc::new(Bounded(verifier)),
            fingerprint: fingerprint(Some(mode), authorities, crls),
        })
    }

    /// What rustls asks about clients' certificates.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// Equal for policies that take the same certificates, whatever the order of their files; a
    /// session may be resumed only under the policy it began with. The first 8 bytes of SHA-256
    /// over the mode, the authorities and the revocation lists.
    pub fn fingerprint(&self) -> [u8; 8] {
        self.fingerprint
    }
}

fn fingerprint(
    mode: Option<ClientAuthMode>,
    authorities: &[CertificateDer<'_>],
    crls: &[CertificateRevocationListDer<'_>],
) -> [u8; 8] {
    let mut context = Context::new(&SHA256);
    context.update(match mode {
        None => b"none\0",
        Some(ClientAuthMode::Optional) => b"optional\0",
        Some(ClientAuthMode::Required) => b"required\0",
    });
    let mut update = |mut list: Vec<&[u8]>| {
        list.sort_unstable();
        list.dedup();
        context.update(&(list.len() as u64).to_be_bytes());
        for der in list {
            context.update(&(der.len() as u64).to_be_bytes());
            context.update(der);
        }
    };
    update(authorities.iter().map(AsRef::as_ref).collect());
    update(crls.iter().map(AsRef::as_ref).collect());
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    first
}

/// A verifier that refuses long chains unseen. Building a path tries the intermediates in every
/// order that their names allow: ten of one name, 4 KB from anybody, keep a worker busy for 0.4 s.
#[derive(Debug)]
struct Bounded(Arc<dyn ClientCertVerifier>);

/// More intermediates than [`CLIENT_INTERMEDIATES_MAX`].
#[derive(Debug, thiserror::Error)]
#[error("more than {CLIENT_INTERMEDIATES_MAX} intermediate certificates")]
pub(super) struct ChainTooLong;

impl ClientCertVerifier for Bounded {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if intermediates.len() > CLIENT_INTERMEDIATES_MAX {
            let too_long = OtherError(Arc::new(ChainTooLong));
            return Err(Error::InvalidCertificate(CertificateError::Other(too_long)));
        }
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What is remembered of a client's certificate; it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The first common name of its subject. `None`: it has none, or one that cannot be told
    /// whole: longer than [`CLIENT_NAME_BYTES_MAX`], with control characters, or no text.
    pub name: Option<Box<str>>,
    /// It was shown when the session began, not on this connection.
    pub resumed: bool,
}

impl ClientCertificate {
    /// Of a certificate that rustls has verified.
    pub(super) fn new(verified: &CertificateDer<'_>, resumed: bool) -> Self {
        Self { name: common_name(verified), resumed }
    }
}

/// A name is told whole or not at all: a part of it could be another client's.
fn common_name(certificate: &[u8]) -> Option<Box<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let fits = (1..=CLIENT_NAME_BYTES_MAX).contains(&name.len());
    (fits && !name.chars().any(char::is_control)).then(|| name.into())
}

#[cfg(test)]
mod tests;
