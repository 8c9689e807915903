//! Server name to certificate. Runs on the data plane: a look-up allocates nothing.

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::config::UnknownName;
use crate::limits::SERVER_NAME_BYTES_MAX;
use crate::telemetry::labels::{KeyType, Label as _};

/// A certificate and the names to serve it for.
#[derive(Debug, Clone)]
pub struct NamedCertificate {
    /// Normalized (`config::server_name::normalize`), exact or wildcard.
    pub names: Vec<String>,
    /// Chain and key.
    pub certified: Arc<CertifiedKey>,
}

/// A name that two certificates with the same kind of key claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTwice {
    /// The name.
    pub name: String,
    /// Index of the certificate that had it first.
    pub first: usize,
    /// Index of the certificate that has it too.
    pub second: usize,
}

/// One listener's table of names.
#[derive(Debug)]
pub struct Resolver {
    exact: HashMap<Box<str>, Choices>,
    /// `*.example.com` stands here as `example.com`.
    wildcard: HashMap<Box<str>, Choices>,
    /// For clients without a name or with an unknown one; `None`: they are refused.
    default: Option<Choices>,
}

/// The certificates of one name, the most wanted first. Never empty.
type Choices = Vec<Choice>;

#[derive(Debug, Clone)]
struct Choice {
    index: usize,
    /// What its key can sign with.
    schemes: Arc<[SignatureScheme]>,
    key: KeyType,
    certified: Arc<CertifiedKey>,
}

impl Resolver {
    /// A table of names; the first certificate is the default, together with those that share its
    /// first name.
    ///
    /// # Errors
    /// Every name that two certificates with the same kind of key claim.
    pub fn new(
        certificates: &[NamedCertificate],
        unknown_name: UnknownName,
    ) -> Result<Self, Vec<NameTwice>> {
        let mut resolver = Self { exact: HashMap::new(), wildcard: HashMap::new(), default: None };
        let mut twice = Vec::new();
        for (index, certificate) in certificates.iter().enumerate() {
            let choice = Choice {
                index,
                schemes: schemes(&certificate.certified),
                key: key_type(&certificate.certified),
                certified: Arc::clone(&certificate.certified),
            };
            for name in &certificate.names {
                let (table, key) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut resolver.wildcard, parent),
                    None => (&mut resolver.exact, name.as_str()),
                };
                if let Err(first) = insert(table.entry(key.into()), choice.clone()) {
                    twice.push(NameTwice { name: name.clone(), first, second: index });
                }
            }
            if index == 0 && unknown_name == UnknownName::Default {
                resolver.default = Some(vec![choice]);
            }
        }
        if !twice.is_empty() {
            return Err(twice);
        }
        if resolver.default.is_some() {
            let first_name = certificates.first().and_then(|first| first.names.first());
            let same_name = first_name.and_then(|name| match name.strip_prefix("*.") {
                Some(parent) => resolver.wildcard.get(parent),
                None => resolver.exact.get(name.as_str()),
            });
            if let Some(choices) = same_name.cloned() {
                resolver.default = Some(choices);
            }
        }
        Ok(resolver)
    }

    /// The types of all keys, each once.
    pub fn key_types(&self) -> Vec<KeyType> {
        let named = self.exact.values().chain(self.wildcard.values()).chain(&self.default);
        let mut types: Vec<KeyType> = named.flatten().map(|choice| choice.key).collect();
        types.sort_unstable_by_key(|key| key.index());
        types.dedup();
        types
    }

    /// Whether a client that asks for this name (or for none) is served.
    pub fn recognizes(&self, server_name: Option<&str>) -> bool {
        self.choices(server_name).is_some()
    }

    /// The certificate for a client: the first of its name that it can verify. When it can verify
    /// none, the first: the client then gets the alert `handshake_failure` for its lack of a
    /// common signature scheme, not one about its name (RFC 8446 section 4.4.2.2).
    pub fn select(
        &self,
        server_name: Option<&str>,
        offered: &[SignatureScheme],
    ) -> Option<&Arc<CertifiedKey>> {
        self.choose(server_name, offered).map(|choice| &choice.certified)
    }

    fn choose(&self, server_name: Option<&str>, offered: &[SignatureScheme]) -> Option<&Choice> {
        let choices = self.choices(server_name)?;
        let verifiable = |choice: &&Choice| choice.schemes.iter().any(|s| offered.contains(s));
        choices.iter().find(verifiable).or(choices.first())
    }

    fn choices(&self, server_name: Option<&str>) -> Option<&Choices> {
        server_name.and_then(|name| self.by_name(name)).or(self.default.as_ref())
    }

    fn by_name(&self, name: &str) -> Option<&Choices> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if !name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.by_lowercase_name(name);
        }
        let mut buffer = [0; SERVER_NAME_BYTES_MAX];
        let lowercase = buffer.get_mut(..name.len())?;
        lowercase.copy_from_slice(name.as_bytes());
        lowercase.make_ascii_lowercase();
        self.by_lowercase_name(str::from_utf8(lowercase).ok()?)
    }

    fn by_lowercase_name(&self, name: &str) -> Option<&Choices> {
        debug_assert!(!name.ends_with('.'), "the caller took the trailing dot off");
        self.exact.get(name).or_else(|| {
            // A wildcard stands for exactly one label (RFC 6125 section 6.4.3).
            let (label, parent) = name.split_once('.')?;
            if label.is_empty() {
                return None;
            }
            self.wildcard.get(parent)
        })
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let choice = self.choose(hello.server_name(), hello.signature_schemes())?;
        SHOWN.set(choice.key);
        Some(Arc::clone(&choice.certified))
    }
}

thread_local! {
    /// rustls asks for a certificate without saying for which connection.
    static SHOWN: Cell<KeyType> = const { Cell::new(KeyType::None) };
}

/// The key of the certificate that the handshake step just done on this thread has shown, once.
pub fn take_shown_key() -> KeyType {
    SHOWN.replace(KeyType::None)
}

fn key_type(certified: &CertifiedKey) -> KeyType {
    // Lengths of a SubjectPublicKeyInfo in DER: of RSA a little more than the modulus's (RFC 8017
    // appendix A.1.1), of ECDSA twice the field's (RFC 5480 section 2).
    let spki = certified.key.public_key().map_or(0, |spki| spki.as_ref().len());
    match (certified.key.algorithm(), spki) {
        (SignatureAlgorithm::RSA, 1..=294) => KeyType::Rsa2048,
        (SignatureAlgorithm::RSA, 295..=422) => KeyType::Rsa3072,
        (SignatureAlgorithm::RSA, 423..) => KeyType::Rsa4096,
        (SignatureAlgorithm::ECDSA, 91) => KeyType::EcdsaP256,
        (SignatureAlgorithm::ECDSA, 120) => KeyType::EcdsaP384,
        (SignatureAlgorithm::ED25519, _) => KeyType::Ed25519,
        _ => KeyType::Other,
    }
}

/// `Err`: the certificate with the same kind of key that is there already.
fn insert(entry: Entry<'_, Box<str>, Choices>, choice: Choice) -> Result<(), usize> {
    let choices = entry.or_default();
    let kind = choice.certified.key.algorithm();
    let same = choices.iter().find(|other| other.certified.key.algorithm() == kind);
    if let Some(other) = same {
        return Err(other.index);
    }
    choices.push(choice);
    // An ECDSA signature costs us a tenth of an RSA one.
    choices.sort_by_key(|choice| match choice.certified.key.algorithm() {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::RSA => 2,
        _ => 1,
    });
    Ok(())
}

/// Every scheme this key can sign with, found by asking it for each.
fn schemes(certified: &CertifiedKey) -> Arc<[SignatureScheme]> {
    [
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::ECDSA_NISTP521_SHA512,
        SignatureScheme::ED25519,
        SignatureScheme::RSA_PSS_SHA256,
        SignatureScheme::RSA_PSS_SHA384,
        SignatureScheme::RSA_PSS_SHA512,
        SignatureScheme::RSA_PKCS1_SHA256,
        SignatureScheme::RSA_PKCS1_SHA384,
        SignatureScheme::RSA_PKCS1_SHA512,
        SignatureScheme::ML_DSA_44,
        SignatureScheme::ML_DSA_65,
        SignatureScheme::ML_DSA_87,
    ]
    .into_iter()
    .filter(|scheme| certified.key.choose_scheme(&[*scheme]).is_some())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
    use rustls_pki_types::PrivateKeyDer;

    const ECDSA: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];
    const RSA: &[SignatureScheme] = &[SignatureScheme::RSA_PSS_SHA256];

    fn certificate(names: &[&str], kind: &'static rcgen::SignatureAlgorithm) -> NamedCertificate {
        let key = KeyPair::generate_for(kind).expect("key");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let signed = CertificateParams::new(names.clone()).expect("names").self_signed(&key);
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let chain = vec![signed.expect("certificate").der().clone()];
        let certified = CertifiedKey::from_der(chain, key, &provider).expect("match");
        NamedCertificate { names, certified: Arc::new(certified) }
    }

    fn index(
        certificates: &[NamedCertificate],
        found: Option<&Arc<CertifiedKey>>,
    ) -> Option<usize> {
        let found = found?;
        certificates.iter().position(|one| Arc::ptr_eq(&one.certified, found))
    }

    #[test]
    fn names_are_found_exact_then_by_wildcard_then_by_default() {
        let all = [
            certificate(&["default.example"], &PKCS_ECDSA_P256_SHA256),
            certificate(&["www.example.com"], &PKCS_ECDSA_P256_SHA256),
            certificate(&["*.example.com", "example.com"], &PKCS_ECDSA_P256_SHA256),
        ];
        let resolver = Resolver::new(&all, UnknownName::Default).expect("no name twice");
        for (name, expected) in [
            ("www.example.com", 1),
            ("WWW.Example.Com", 1),
            ("www.example.com.", 1),
            ("api.example.com", 2),
            ("API.EXAMPLE.COM.", 2),
            ("example.com", 2),
            ("a.b.example.com", 0),
            (".example.com", 0),
            ("com", 0),
            ("", 0),
        ] {
            assert_eq!(index(&all, resolver.select(Some(name), ECDSA)), Some(expected), "{name}");
        }
        assert_eq!(index(&all, resolver.select(None, ECDSA)), Some(0));
        let long = "A".repeat(300);
        assert_eq!(index(&all, resolver.select(Some(&long), ECDSA)), Some(0));
    }

    #[test]
    fn unknown_names_are_refused_where_configured() {
        let all = [certificate(&["*.example.com"], &PKCS_ECDSA_P256_SHA256)];
        let resolver = Resolver::new(&all, UnknownName::Refuse).expect("no name twice");
        assert!(resolver.recognizes(Some("a.example.com")));
        assert!(!resolver.recognizes(Some("example.com")));
        assert!(!resolver.recognizes(None));
        assert!(resolver.select(None, ECDSA).is_none());
    }

    #[test]
    fn ecdsa_goes_to_all_who_can_verify_it_and_rsa_to_the_rest() {
        let all = [
            certificate(&["example.com"], &PKCS_RSA_SHA256),
            certificate(&["example.com"], &PKCS_ECDSA_P256_SHA256),
        ];
        let resolver = Resolver::new(&all, UnknownName::Default).expect("kinds differ");
        let both = [RSA, ECDSA].concat();
        for name in [Some("example.com"), Some("other.example"), None] {
            assert_eq!(index(&all, resolver.select(name, &both)), Some(1));
            assert_eq!(index(&all, resolver.select(name, ECDSA)), Some(1));
            assert_eq!(index(&all, resolver.select(name, RSA)), Some(0));
            assert!(resolver.select(name, &[]).is_some(), "for the right alert");
        }
    }

    #[test]
    fn same_name_with_same_kind_of_key_is_an_error() {
        let all = [
            certificate(&["a.example", "b.example"], &PKCS_ECDSA_P256_SHA256),
            certificate(&["c.example", "b.example"], &PKCS_ECDSA_P256_SHA256),
        ];
        let twice = Resolver::new(&all, UnknownName::Default).expect_err("b.example");
        let expected = NameTwice { name: "b.example".to_owned(), first: 0, second: 1 };
        assert_eq!(twice, [expected]);
    }
}
