//! Certificates: PEM files in, each listener's [`Terms`] out, or every reason why not.
//!
//! Nothing here ever prints a byte of a key: errors of decoding are named, not quoted.

mod clients;
mod pem;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509Name};
use x509_parser::public_key::PublicKey;

pub use self::clients::{Authority, ClientAuthDescription, RevocationList};
use self::pem::{Wanted, read, sections, sections_of};
use crate::config::{CertificateFiles, Config, Position, server_name};
use crate::tls::client_auth::ClientAuthPolicy;
use crate::tls::provider::{Cpu, provider};
use crate::tls::resolver::{NameTwice, NamedCertificate};
use crate::tls::terms::{Terms, TermsError};

/// What the configuration's certificates give.
#[derive(Debug)]
pub struct Loaded {
    /// By index of the listener in the configuration.
    pub terms: Vec<Arc<Terms>>,
    /// Every certificate, in the order of the configuration.
    pub certificates: Vec<Description>,
    /// The same, with their keys.
    pub named: Vec<NamedCertificate>,
    /// Every policy for client certificates, in the order of the configuration.
    pub client_auth: Vec<ClientAuthDescription>,
}

/// What an operator wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Index of the listener.
    pub listener: usize,
    /// The file of the chain.
    pub chain: PathBuf,
    /// Names it is served for; empty: only as the listener's default.
    pub names: Vec<String>,
    /// Names of the configuration that the certificate does not cover: clients will refuse it.
    pub names_not_covered: Vec<String>,
    /// Kind and size of the key, such as `ECDSA P-256` or `RSA 2048`.
    pub key: String,
    /// Who issued it: common name, else the whole name.
    pub issuer: String,
    /// Issued by itself: no client trusts it unless told to.
    pub self_signed: bool,
    /// Certificates in the chain.
    pub chain_length: usize,
    /// Unix time from which it is valid, in seconds.
    pub not_before: i64,
    /// Unix time until which it is valid, in seconds.
    pub not_after: i64,
}

impl Description {
    /// Whole days until it expires; below zero: since it has.
    pub fn days_left(&self, now: SystemTime) -> i64 {
        days_left(self.not_after, now)
    }
}

/// Whole days until a Unix time in seconds; below zero: since then.
pub fn days_left(until: i64, now: SystemTime) -> i64 {
    (until - unix_seconds(now)).div_euclid(86_400)
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The chain's certificates do not follow each other from leaf to root.
    ChainOrder,
    /// The key needs a passphrase.
    Encrypted,
    /// Its time is over.
    Expired,
    /// The key is another certificate's.
    KeyMismatch,
    /// It does not parse, or is of a kind we cannot use.
    Malformed,
    /// There is no such file.
    Missing,
    /// Two certificates with the same kind of key serve one name.
    NameTwice,
    /// It is no authority's certificate.
    NotAuthority,
    /// There is no PEM section of the needed kind in it.
    NotInFile,
    /// Its time has not come.
    NotYetValid,
    /// We may not read it.
    Permission,
    /// The key file holds more than one.
    SeveralKeys,
    /// Two revocation lists are about the same certificates.
    SeveralLists,
    /// Another error of reading.
    Unreadable,
    /// No client can ask for it.
    Unreachable,
}

/// One thing that is wrong, where the configuration names it, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateProblem {
    /// The key of the configuration.
    pub at: Position,
    /// The file it names.
    pub path: PathBuf,
    /// What kind of problem.
    pub fault: Fault,
    /// What is wrong and what to do, for an operator.
    pub message: String,
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, path, .. } = self;
        let (file, line, key) = (at.file.display(), at.line, &at.key);
        let path = path.display();
        write!(f, "{file}:{line}: {key} = \"{path}\": {}", self.message)
    }
}

impl std::error::Error for CertificateProblem {}

/// The certificates of authorities in a PEM file, for a client that verifies a server.
///
/// # Errors
/// What is wrong with the file.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wanted = Wanted {
        what: "certificate (BEGIN CERTIFICATE)",
        file: "the file of the authorities",
        convert: "openssl x509",
    };
    sections_of(path, &wanted).map_err(|(_, why)| why)
}

/// Reads every certificate and key, and builds each listener's terms.
///
/// # Errors
/// Everything that is wrong with any of them; nothing is half loaded.
pub fn load(config: &Config) -> Result<Loaded, Vec<CertificateProblem>> {
    load_at(config, SystemTime::now())
}

/// [`load`] at another time than now.
///
/// # Errors
/// As [`load`].
pub fn load_at(config: &Config, now: SystemTime) -> Result<Loaded, Vec<CertificateProblem>> {
    let provider = provider(&config.tls, Cpu::detect());
    let mut loaded = Loaded {
        terms: Vec::with_capacity(config.listeners.len()),
        certificates: Vec::new(),
        named: Vec::new(),
        client_auth: Vec::new(),
    };
    let mut problems = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let mut named = Vec::with_capacity(listener.certificates.len());
        for files in &listener.certificates {
            match certificate(index, files, &provider, unix_seconds(now)) {
                Ok((certificate, description)) => {
                    loaded.named.push(certificate.clone());
                    named.push(certificate);
                    loaded.certificates.push(description);
                }
                Err(problem) => problems.push(problem),
            }
        }
        let client_auth = match &listener.client_auth {
            None => Ok(ClientAuthPolicy::none()),
            Some(files) => clients::policy(index, files, &provider, unix_seconds(now))
                .map(|(policy, description)| {
                    loaded.client_auth.push(description);
                    policy
                })
                .map_err(|found| problems.extend(found)),
        };
        let Ok(client_auth) = client_auth else {
            continue;
        };
        if named.len() != listener.certificates.len() {
            continue;
        }
        let files = &listener.certificates;
        problems.extend(unreachable(files, &named, listener.unknown_name));
        let (tls, resumption, provider) = (&config.tls, &config.resumption, Arc::clone(&provider));
        match Terms::build(listener, tls, resumption, provider, &named, &client_auth) {
            Ok(terms) => loaded.terms.push(Arc::new(terms)),
            Err(TermsError::NamesTwice(twice)) => {
                problems.extend(twice.iter().filter_map(|twice| name_twice(files, twice)));
            }
            Err(error @ TermsError::Offer(_)) => problems.extend(
                files
                    .first()
                    .map(|files| chain_problem(files, Fault::Malformed, error.to_string())),
            ),
        }
    }
    if problems.is_empty() { Ok(loaded) } else { Err(problems) }
}

fn unix_seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn chain_problem(
    files: &CertificateFiles,
    fault: Fault,
    message: impl Into<String>,
) -> CertificateProblem {
    CertificateProblem {
        at: files.chain_at.clone(),
        path: files.chain.clone(),
        fault,
        message: message.into(),
    }
}

fn key_problem(
    files: &CertificateFiles,
    fault: Fault,
    message: impl Into<String>,
) -> CertificateProblem {
    CertificateProblem {
        at: files.key_at.clone(),
        path: files.key.clone(),
        fault,
        message: message.into(),
    }
}

fn name_twice(files: &[CertificateFiles], twice: &NameTwice) -> Option<CertificateProblem> {
    let (first, second) = (files.get(twice.first)?, files.get(twice.second)?);
    let message = format!(
        "serves {:?}, which the certificate of line {} serves too, with the same kind of key; give \
         one of the two `names` without it, or remove one",
        twice.name, first.chain_at.line,
    );
    Some(chain_problem(second, Fault::NameTwice, message))
}

/// Certificates without a name serve only as the default.
fn unreachable(
    files: &[CertificateFiles],
    named: &[NamedCertificate],
    unknown_name: crate::config::UnknownName,
) -> Vec<CertificateProblem> {
    let is_default = |index| index == 0 && unknown_name == crate::config::UnknownName::Default;
    let nameless =
        named.iter().zip(files).enumerate().filter(|(index, (certificate, _))| {
            certificate.names.is_empty() && !is_default(*index)
        });
    nameless
        .map(|(_, (_, files))| {
            let message = "lists no DNS name (subjectAltName; common names do not count), so no \
                           client gets it; set `names`, or have it issued with its names";
            chain_problem(files, Fault::Unreachable, message)
        })
        .collect()
}

fn certificate(
    listener: usize,
    files: &CertificateFiles,
    provider: &CryptoProvider,
    now: i64,
) -> Result<(NamedCertificate, Description), CertificateProblem> {
    let chain = read_chain(files)?;
    let mut description = describe(listener, files, &chain, now)?;
    let key = read_key(files)?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        let message = format!(
            "holds a key that is damaged or of a kind we cannot use; usable are ECDSA P-256, P-384 \
             and P-521, RSA of 2048 to 8192 bits, and Ed25519; `openssl pkey -in {} -noout -check` \
             tells more",
            files.key.display(),
        );
        key_problem(files, Fault::Malformed, message)
    })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
        Err(_) => {
            let message = format!(
                "is not the key of the first certificate in {}, which has a key of {}; name the \
                 key it was issued for, or put the server's certificate first in the chain",
                files.chain.display(),
                description.key,
            );
            return Err(key_problem(files, Fault::KeyMismatch, message));
        }
    }
    if !files.names.is_empty() {
        let covered = |name: &String| !covers(&description.names, name);
        description.names_not_covered =
            files.names.iter().filter(|name| covered(name)).cloned().collect();
        description.names.clone_from(&files.names);
    }
    let named =
        NamedCertificate { names: description.names.clone(), certified: Arc::new(certified) };
    Ok((named, description))
}

/// Whether a name is listed, itself or by a wildcard.
fn covers(listed: &[String], name: &String) -> bool {
    let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
    listed.iter().any(|one| one == name || Some(one) == wildcard.as_ref())
}

fn read_chain(
    files: &CertificateFiles,
) -> Result<Vec<CertificateDer<'static>>, CertificateProblem> {
    let wanted = Wanted {
        what: "certificate (BEGIN CERTIFICATE)",
        file: "the file of the chain",
        convert: "openssl x509",
    };
    sections_of(&files.chain, &wanted).map_err(|(fault, why)| chain_problem(files, fault, why))
}

fn read_key(files: &CertificateFiles) -> Result<PrivateKeyDer<'static>, CertificateProblem> {
    let mut pem = read(&files.key).map_err(|(fault, why)| key_problem(files, fault, why))?;
    let key = parse_key(files, &pem);
    pem.fill(0);
    // Keeps the compiler from leaving the line above out, as nobody reads the bytes again.
    std::hint::black_box(&pem);
    key
}

fn parse_key(
    files: &CertificateFiles,
    pem: &[u8],
) -> Result<PrivateKeyDer<'static>, CertificateProblem> {
    let path = files.key.display();
    let text = String::from_utf8_lossy(pem);
    let encrypted = |line: &str| {
        let line = line.trim_end();
        line == "-----BEGIN ENCRYPTED PRIVATE KEY-----"
            || line.starts_with("Proc-Type:") && line.ends_with("ENCRYPTED")
    };
    if text.lines().any(encrypted) {
        let message = format!(
            "needs a passphrase, and at start-up nobody is there to type it; decrypt it: \
             openssl pkey -in {path} -out key.pem (then chmod 600 key.pem, and name it here)"
        );
        return Err(key_problem(files, Fault::Encrypted, message));
    }
    let mut keys: Vec<PrivateKeyDer<'static>> =
        PrivateKeyDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| {
            let message = "is damaged: the PEM section's base64 or its END line is wrong; copy the \
                           key again";
            key_problem(files, Fault::Malformed, message)
        })?;
    let key = keys.pop();
    if !keys.is_empty() {
        let message = format!(
            "holds {} keys; leave only the one of the first certificate in {}",
            keys.len() + 1,
            files.chain.display(),
        );
        return Err(key_problem(files, Fault::SeveralKeys, message));
    }
    key.ok_or_else(|| {
        let message = if pem.starts_with(&[0x30]) {
            format!("is DER, not PEM; convert it: openssl pkey -inform der -in {path} -out key.pem")
        } else {
            let found = sections(pem);
            format!(
                "holds no private key (BEGIN PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE \
                 KEY){found}; name the file of the key here"
            )
        };
        key_problem(files, Fault::NotInFile, message)
    })
}

fn describe(
    listener: usize,
    files: &CertificateFiles,
    chain: &[CertificateDer<'_>],
    now: i64,
) -> Result<Description, CertificateProblem> {
    let mut parsed = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| {
            let message = format!("certificate {} in it does not parse: {error}", index + 1);
            chain_problem(files, Fault::Malformed, message)
        })?;
        parsed.push(certificate);
    }
    for (index, certificate) in parsed.iter().enumerate() {
        if index == 0 || !is_self_signed(certificate) {
            validity(index, certificate, now)
                .map_err(|(fault, why)| chain_problem(files, fault, why))?;
        }
    }
    for (index, (below, above)) in parsed.iter().zip(parsed.iter().skip(1)).enumerate() {
        links(files, index, below, above)?;
    }
    let Some(leaf) = parsed.first() else {
        return Err(chain_problem(files, Fault::NotInFile, "holds no certificate"));
    };
    Ok(Description {
        listener,
        chain: files.chain.clone(),
        names: dns_names(leaf),
        names_not_covered: Vec::new(),
        key: key_kind(leaf),
        issuer: short_name(leaf.issuer()),
        self_signed: is_self_signed(leaf),
        chain_length: chain.len(),
        not_before: leaf.validity().not_before.timestamp(),
        not_after: leaf.validity().not_after.timestamp(),
    })
}

fn is_self_signed(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

fn validity(
    index: usize,
    certificate: &X509Certificate<'_>,
    now: i64,
) -> Result<(), (Fault, String)> {
    let validity = certificate.validity();
    let which = format!("certificate {} in it ({})", index + 1, short_name(certificate.subject()));
    if validity.not_after.timestamp() < now {
        let message = format!("{which} expired on {}; renew it", validity.not_after);
        return Err((Fault::Expired, message));
    }
    if validity.not_before.timestamp() > now {
        let message = format!(
            "{which} is not valid before {}; if that is over, this machine's clock is wrong (see \
             timedatectl)",
            validity.not_before,
        );
        return Err((Fault::NotYetValid, message));
    }
    Ok(())
}

/// Each certificate must be issued by the next: by name, and by key identifier where both say one
/// (RFC 5280 sections 4.1.2.4 and 4.2.1.1).
fn links(
    files: &CertificateFiles,
    index: usize,
    below: &X509Certificate<'_>,
    above: &X509Certificate<'_>,
) -> Result<(), CertificateProblem> {
    let names_match = below.issuer().as_raw() == above.subject().as_raw();
    let keys_match = match (authority_key(below), subject_key(above)) {
        (Some(wanted), Some(found)) => wanted == found,
        _ => true,
    };
    if names_match && keys_match {
        return Ok(());
    }
    let message = format!(
        "certificate {} in it ({}) is issued by ({}), but is followed by ({}){}; the server's \
         certificate stands first, then each issuer in turn",
        index + 1,
        short_name(below.subject()),
        short_name(below.issuer()),
        short_name(above.subject()),
        if names_match { ", which has the name but another key" } else { "" },
    );
    Err(chain_problem(files, Fault::ChainOrder, message))
}

fn authority_key<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

fn subject_key<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

/// DNS names of the subjectAltName extension, normalized, each once. The common name is not looked
/// at: no client of today does (RFC 9525 section 2).
fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let mut names: Vec<String> = Vec::new();
    for name in &extension.value.general_names {
        if let GeneralName::DNSName(name) = name
            && let Ok(name) = server_name::normalize(name)
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

fn key_kind(certificate: &X509Certificate<'_>) -> String {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => format!("RSA {}", key.key_size()),
        Ok(PublicKey::EC(key)) => match key.key_size() {
            528 => "ECDSA P-521".to_owned(),
            bits => format!("ECDSA P-{bits}"),
        },
        _ if certificate.public_key().algorithm.algorithm.to_id_string() == "1.3.101.112" => {
            "Ed25519".to_owned()
        }
        _ => "another kind".to_owned(),
    }
}

/// The common name, else the whole name.
fn short_name(name: &X509Name<'_>) -> String {
    let common = name.iter_common_name().next().and_then(|name| name.as_str().ok());
    let text = common.map_or_else(|| name.to_string(), str::to_owned);
    // Control characters of a certificate do not reach a terminal.
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests;
