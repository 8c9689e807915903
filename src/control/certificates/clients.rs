//! `[listener.client_auth]`: authorities and revocation lists in, a [`ClientAuthPolicy`] out.

use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{
    CertificateRevocationList, FromDer, ParsedExtension, X509Certificate, X509Version,
};

use super::pem::{Wanted, sections_of};
use super::{CertificateProblem, CryptoProvider, Fault, short_name, validity};
use crate::config::{ClientAuth, ClientAuthMode, NamedFile};
use crate::limits::CLIENT_AUTHORITY_NAMES_BYTES_MAX;
use crate::tls::client_auth::{ClientAuthPolicy, PolicyError};

/// What an operator wants to know of a policy for client certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuthDescription {
    /// Index of the listener.
    pub listener: usize,
    /// Whether a client may go without.
    pub mode: ClientAuthMode,
    /// The file of the authorities.
    pub ca: PathBuf,
    /// Who issues to clients, in the order of the file.
    pub authorities: Vec<Authority>,
    /// The file of the revocation lists.
    pub crl: Option<PathBuf>,
    /// What is revoked, in the order of the file.
    pub revocation_lists: Vec<RevocationList>,
}

/// An authority that issues certificates to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its common name, else its whole name.
    pub subject: String,
    /// Unix time until which it is valid, in seconds.
    pub not_after: i64,
    /// Revocation is checked, and no list is this authority's: what it issued is refused.
    pub lacks_list: bool,
}

/// A revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// Whose it is: common name, else the whole name.
    pub issuer: String,
    /// Unix time, in seconds, after which it counts no longer and its issuer's clients are refused.
    pub next_update: i64,
    /// Certificates that it revokes.
    pub revoked: usize,
}

/// Reads the files of one listener.
pub(super) fn policy(
    listener: usize,
    files: &ClientAuth,
    provider: &Arc<CryptoProvider>,
    now: i64,
) -> Result<(ClientAuthPolicy, ClientAuthDescription), Vec<CertificateProblem>> {
    let (ders, lists) = match (read_authorities(&files.ca), read_lists(files.crl.as_ref())) {
        (Ok(ders), Ok(lists)) => (ders, lists),
        (ders, lists) => return Err(ders.err().into_iter().chain(lists.err()).collect()),
    };
    let (authorities, revocation_lists) =
        describe(files, &ders, &lists, now).map_err(|problem| vec![problem])?;
    let policy = ClientAuthPolicy::build(files.mode, &ders, &lists, provider)
        .map_err(|error| vec![refused(files, &error)])?;
    let description = ClientAuthDescription {
        listener,
        mode: files.mode,
        ca: files.ca.path.clone(),
        authorities,
        crl: files.crl.as_ref().map(|crl| crl.path.clone()),
        revocation_lists,
    };
    Ok((policy, description))
}

fn problem(file: &NamedFile, fault: Fault, message: String) -> CertificateProblem {
    CertificateProblem { at: file.at.clone(), path: file.path.clone(), fault, message }
}

fn read_authorities(file: &NamedFile) -> Result<Vec<CertificateDer<'static>>, CertificateProblem> {
    let wanted = Wanted {
        what: "certificate (BEGIN CERTIFICATE)",
        file: "the file of the authorities that issue to clients",
        convert: "openssl x509",
    };
    sections_of(&file.path, &wanted).map_err(|(fault, why)| problem(file, fault, why))
}

fn read_lists(
    file: Option<&NamedFile>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, CertificateProblem> {
    let wanted = Wanted {
        what: "revocation list (BEGIN X509 CRL)",
        file: "the file of the authorities' revocation lists",
        convert: "openssl crl",
    };
    file.map_or_else(
        || Ok(Vec::new()),
        |file| sections_of(&file.path, &wanted).map_err(|(fault, why)| problem(file, fault, why)),
    )
}

fn describe(
    files: &ClientAuth,
    ders: &[CertificateDer<'_>],
    lists: &[CertificateRevocationListDer<'_>],
    now: i64,
) -> Result<(Vec<Authority>, Vec<RevocationList>), CertificateProblem> {
    let mut scopes: Vec<Scope<'_>> = Vec::with_capacity(lists.len());
    let mut revocation_lists = Vec::with_capacity(lists.len());
    if let Some(file) = &files.crl {
        for (index, der) in lists.iter().enumerate() {
            let (list, scope) =
                describe_list(index, der, now).map_err(|(fault, why)| problem(file, fault, why))?;
            if scopes.contains(&scope) {
                let message = format!(
                    "revocation list {} in it ({}) is the second of its issuer, and only the first \
                     would count; leave the newer one",
                    index + 1,
                    list.issuer,
                );
                return Err(problem(file, Fault::SeveralLists, message));
            }
            revocation_lists.push(list);
            scopes.push(scope);
        }
    }
    let listed = |name: &[u8]| scopes.iter().any(|scope| scope.issuer == name);
    let mut authorities = Vec::with_capacity(ders.len());
    for (index, der) in ders.iter().enumerate() {
        let certificate =
            authority(index, der, now).map_err(|(fault, why)| problem(&files.ca, fault, why))?;
        authorities.push(Authority {
            subject: short_name(certificate.subject()),
            not_after: certificate.validity().not_after.timestamp(),
            lacks_list: files.crl.is_some() && !listed(certificate.subject().as_raw()),
        });
    }
    Ok((authorities, revocation_lists))
}

/// A certificate that may stand at the end of a client's chain.
fn authority<'a>(
    index: usize,
    der: &'a CertificateDer<'_>,
    now: i64,
) -> Result<X509Certificate<'a>, (Fault, String)> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| {
        let message = format!("certificate {} in it does not parse: {error}", index + 1);
        (Fault::Malformed, message)
    })?;
    // Before version 3 a certificate could not say what it is for.
    if certificate.version() == X509Version::V3 && !certificate.is_ca() {
        let message = format!(
            "certificate {} in it ({}) is no authority's (basicConstraints lacks CA:TRUE), so it \
             cannot have issued a client's; name the certificate that issued it ({})",
            index + 1,
            short_name(certificate.subject()),
            short_name(certificate.issuer()),
        );
        return Err((Fault::NotAuthority, message));
    }
    validity(index, &certificate, now)?;
    Ok(certificate)
}

/// Whose certificates a list is about: its issuer's name and its distribution point, in DER.
#[derive(PartialEq, Eq)]
struct Scope<'a> {
    issuer: &'a [u8],
    distribution_point: Option<Vec<u8>>,
}

fn describe_list<'a>(
    index: usize,
    der: &'a CertificateRevocationListDer<'_>,
    now: i64,
) -> Result<(RevocationList, Scope<'a>), (Fault, String)> {
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|error| {
        let message = format!("revocation list {} in it does not parse: {error}", index + 1);
        (Fault::Malformed, message)
    })?;
    let issuer = short_name(list.issuer());
    let which = format!("revocation list {} in it ({issuer})", index + 1);
    let Some(next_update) = list.next_update() else {
        let message = format!(
            "{which} does not say when the next one comes (nextUpdate, RFC 5280 section 5.1.2.5); \
             have it made with it"
        );
        return Err((Fault::Malformed, message));
    };
    if next_update.timestamp() < now {
        let message = format!(
            "{which} was to be replaced by {next_update}, and would have every client of its \
             issuer refused; put the newer one there"
        );
        return Err((Fault::Expired, message));
    }
    let description = RevocationList {
        issuer,
        next_update: next_update.timestamp(),
        revoked: list.iter_revoked_certificates().count(),
    };
    let distribution_point = list.extensions().iter().find_map(|extension| {
        let parsed = extension.parsed_extension();
        matches!(parsed, ParsedExtension::IssuingDistributionPoint(_))
            .then(|| extension.value.to_vec())
    });
    Ok((description, Scope { issuer: list.tbs_cert_list.issuer.as_raw(), distribution_point }))
}

/// What parses and yet cannot be used.
fn refused(files: &ClientAuth, error: &PolicyError) -> CertificateProblem {
    let (file, message) = match error {
        PolicyError::Authority { index, .. } => {
            (&files.ca, format!("certificate {} in it cannot be used: {error}", index + 1))
        }
        PolicyError::Names(_) => (
            &files.ca,
            format!(
                "{error}, and every client is told them all; at most \
                 {CLIENT_AUTHORITY_NAMES_BYTES_MAX} bytes: leave out authorities that issue to no \
                 client of this listener"
            ),
        ),
        PolicyError::RevocationList { index, .. } => (
            files.crl.as_ref().unwrap_or(&files.ca),
            format!(
                "revocation list {} in it cannot be used: {error}; it must be a whole list \
                 (version 2, no delta, not indirect) of the authority itself",
                index + 1,
            ),
        ),
    };
    problem(file, Fault::Malformed, message)
}

#[cfg(test)]
mod tests;
