//! Certificates made at run time: one authority per process, leaves per test.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
    RevokedCertParams, RsaKeySize, SerialNumber,
};
use rustls::pki_types::CertificateDer;

/// PEM files of one certificate.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
}

/// The kind of a leaf's key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Ecdsa,
    Rsa,
}

/// Issues certificates and revocation lists.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = Self::params(name);
        let certificate = params.self_signed(&key).unwrap();
        Self::of(&certificate, params, key)
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = Self::params(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self::of(&certificate, params, key)
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::CrlSign,
        ];
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    fn of(certificate: &rcgen::Certificate, params: CertificateParams, key: KeyPair) -> Self {
        Self {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A client's certificate for `name`, changed by `change`, written into `dir`.
    pub(crate) fn client(
        &self,
        dir: &Path,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Files {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        write(dir, name, &certificate, &key)
    }

    /// A list, in PEM, that revokes these serial numbers and counts until the year `until` begins.
    pub(crate) fn revocation_list(&self, revoked: &[u64], until: i32) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new("Test authority"))
}

/// The authority's certificate, for rustls clients.
pub(crate) fn authority_der() -> CertificateDer<'static> {
    authority().der.clone()
}

/// Writes the authority's certificate into `dir`, for command-line clients.
pub(crate) fn authority_file(dir: &Path) -> PathBuf {
    let path = dir.join("authority.pem");
    std::fs::write(&path, &authority().pem).unwrap();
    path
}

/// A valid certificate for `names`, written into `dir`.
pub(crate) fn leaf(dir: &Path, kind: Kind, names: &[&str]) -> Files {
    leaf_with(dir, kind, names, |_| {})
}

/// A certificate that ran out long ago, written into `dir`.
pub(crate) fn expired(dir: &Path, names: &[&str]) -> Files {
    leaf_with(dir, Kind::Ecdsa, names, |params| {
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    })
}

fn leaf_with(
    dir: &Path,
    kind: Kind,
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> Files {
    let key = match kind {
        Kind::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        Kind::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    };
    let names_owned: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names_owned).unwrap();
    params.distinguished_name.push(DnType::CommonName, names[0]);
    params.not_after = rcgen::date_time_ymd(2099, 12, 31);
    change(&mut params);
    let certificate = params.signed_by(&key, &authority().issuer).unwrap();
    let stem = format!("{}-{kind:?}", names[0].replace('*', "any")).to_lowercase();
    write(dir, &stem, &certificate, &key)
}

fn write(dir: &Path, stem: &str, certificate: &rcgen::Certificate, key: &KeyPair) -> Files {
    let files =
        Files { chain: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}.key")) };
    std::fs::write(&files.chain, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}
