//! Tests with authorities and revocation lists made on the spot.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use tempfile::TempDir;

use super::super::{CertificateProblem, Fault, Loaded, load_at};
use super::*;
use crate::config::Config;

/// 2030-01-01.
const NOW: u64 = 1_893_456_000;

/// A directory with a server's certificate, `ca.pem` and `crl.pem`, the latter two of `Clients`.
struct Site {
    directory: TempDir,
    authority: String,
    list: String,
}

fn params(name: &str, until: i32) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    params
}

fn authority(name: &str, until: i32) -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = params(name, until);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
}

fn list(issuer: &Issuer<'_, KeyPair>, until: i32) -> String {
    let revoked = |serial: u64| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: rcgen::date_time_ymd(2020, 2, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(until, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked(7), revoked(8)],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().pem().unwrap()
}

fn site() -> Site {
    let key = KeyPair::generate().unwrap();
    let (authority, issuer) = authority("Clients", 2060);
    let list = list(&issuer, 2050);
    let site = Site { directory: TempDir::new().unwrap(), authority, list };
    site.write("chain.pem", &params("server", 2060).self_signed(&key).unwrap().pem());
    site.write("key.pem", &key.serialize_pem());
    site.write("ca.pem", &site.authority);
    site.write("crl.pem", &site.list);
    site
}

impl Site {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn load(&self) -> Result<Loaded, Vec<CertificateProblem>> {
        let text = "[[backend]]\nname = \"app\"\n[[backend.server]]\naddress = \"a:1\"\n\
             [[listener]]\nname = \"x\"\nbind = [\"127.0.0.1:1\"]\nbackend = \"app\"\n\
             [[listener.certificate]]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n\
             [listener.client_auth]\nmode = \"optional\"\nca = \"ca.pem\"\ncrl = \"crl.pem\"\n";
        let config = Config::parse(text, &self.path("portcullis.toml")).unwrap();
        load_at(&config, UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[track_caller]
    fn problem(&self) -> CertificateProblem {
        let mut problems = self.load().unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }
}

#[test]
fn good_files_give_a_policy_and_its_description() {
    let site = site();
    let (other, _) = authority("Others", 2040);
    site.write("ca.pem", &format!("{}{other}", site.authority));
    let loaded = site.load().unwrap();
    let description = &loaded.client_auth[0];
    assert_eq!(description.mode, ClientAuthMode::Optional);
    assert_eq!(description.listener, 0);
    let [clients, others] = description.authorities.as_slice() else {
        panic!("{description:?}");
    };
    assert_eq!((clients.subject.as_str(), clients.lacks_list), ("Clients", false));
    assert_eq!((others.subject.as_str(), others.lacks_list), ("Others", true));
    assert_eq!(others.not_after, 2_208_988_800); // 2040-01-01
    let list = &description.revocation_lists[0];
    assert_eq!((list.issuer.as_str(), list.revoked), ("Clients", 2));
    assert_eq!(list.next_update, 2_524_608_000); // 2050-01-01
}

#[test]
fn every_file_that_cannot_be_read_is_told_with_line_and_key() {
    let site = site();
    std::fs::remove_file(site.path("ca.pem")).unwrap();
    std::fs::remove_file(site.path("crl.pem")).unwrap();
    let problems = site.load().unwrap_err();
    let shown: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{shown:?}");
    assert!(problems.iter().all(|problem| problem.fault == Fault::Missing), "{shown:?}");
    assert!(shown[0].contains("portcullis.toml:14: listener[0].client_auth.ca = "), "{shown:?}");
    assert!(shown[1].contains("portcullis.toml:15: listener[0].client_auth.crl = "), "{shown:?}");
}

#[test]
fn files_without_what_is_wanted_say_what_they_hold() {
    let site = site();
    site.write("ca.pem", &site.list);
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::NotInFile);
    assert!(problem.message.contains("only X509 CRL"), "{problem}");
    site.write("ca.pem", "");
    assert!(site.problem().message.contains("nor anything else in PEM"));
    site.write("ca.pem", &site.authority);
    site.write("crl.pem", &site.authority);
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::NotInFile);
    assert!(problem.message.contains("revocation list (BEGIN X509 CRL), only CERTIFICATE"));
    std::fs::write(site.path("crl.pem"), [0x30, 0x82]).unwrap();
    assert!(site.problem().message.contains("openssl crl -inform der"));
}

#[test]
fn damaged_files_are_malformed() {
    let site = site();
    // The base64 of 48 zero bytes in the place of a line: good PEM, bad DER.
    let spoilt = |pem: &str| {
        let line = pem.lines().nth(1).unwrap();
        pem.replace(line, &"A".repeat(line.len()))
    };
    for broken in [site.authority.replace("-----END", "----END"), spoilt(&site.authority)] {
        site.write("ca.pem", &broken);
        let problem = site.problem();
        assert_eq!(problem.fault, Fault::Malformed, "{problem}");
        assert_eq!(problem.at.key, "listener[0].client_auth.ca", "{problem}");
    }
    site.write("ca.pem", &site.authority);
    for broken in [site.list.replace("-----END", "----END"), spoilt(&site.list)] {
        site.write("crl.pem", &broken);
        let problem = site.problem();
        assert_eq!(problem.fault, Fault::Malformed, "{problem}");
        assert_eq!(problem.at.key, "listener[0].client_auth.crl", "{problem}");
    }
}

#[test]
fn what_is_past_its_time_is_refused_at_the_start() {
    let site = site();
    let (old, _) = authority("Old", 2029);
    site.write("ca.pem", &format!("{}{old}", site.authority));
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::Expired);
    assert!(problem.message.contains("certificate 2 in it (Old) expired"), "{problem}");
    let (authority, issuer) = authority("Clients", 2060);
    site.write("ca.pem", &authority);
    site.write("crl.pem", &list(&issuer, 2029));
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::Expired);
    assert!(problem.message.contains("was to be replaced by"), "{problem}");
}

#[test]
fn a_certificate_that_is_no_authority_is_refused() {
    let site = site();
    let key = KeyPair::generate().unwrap();
    let mut leaf = params("alice", 2060);
    leaf.is_ca = IsCa::ExplicitNoCa;
    site.write("ca.pem", &leaf.self_signed(&key).unwrap().pem());
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::NotAuthority);
    assert!(problem.message.contains("(alice)"), "{problem}");
}

#[test]
fn more_authorities_than_a_client_can_be_told_are_refused() {
    let site = site();
    let many: String = (0..60).map(|n| authority(&format!("{n:300}"), 2060).0).collect();
    site.write("ca.pem", &many);
    let problem = site.problem();
    assert!(problem.message.contains("at most 15360 bytes"), "{problem}");
}

#[test]
fn a_list_of_a_kind_that_is_not_understood_is_refused() {
    let site = site();
    let (authority, issuer) = authority("Clients", 2060);
    site.write("ca.pem", &authority);
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2050, 1, 1),
        // More than the 20 bytes of RFC 5280 section 5.2.3.
        crl_number: SerialNumber::from_slice(&[1; 21]),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    site.write("crl.pem", &params.signed_by(&issuer).unwrap().pem().unwrap());
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::Malformed);
    assert!(problem.message.contains("revocation list 1 in it cannot be used"), "{problem}");
    assert_eq!(problem.at.key, "listener[0].client_auth.crl", "{problem}");
}

/// webpki looks at the first one only: an older one in front would hide what was revoked since.
#[test]
fn two_lists_of_one_issuer_are_refused() {
    let site = site();
    let (authority, issuer) = authority("Clients", 2060);
    site.write("ca.pem", &authority);
    site.write("crl.pem", &(list(&issuer, 2040) + &list(&issuer, 2050)));
    let problem = site.problem();
    assert_eq!(problem.fault, Fault::SeveralLists);
    assert!(problem.message.contains("revocation list 2 in it (Clients)"), "{problem}");
}

#[test]
fn time_until_the_next_update_is_counted_in_days() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(super::super::days_left(86_400, at(1)), 0);
    assert_eq!(super::super::days_left(86_400, at(86_401)), -1);
}
