//! Policies and names, with certificates made on the spot.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, SerialNumber,
};

use super::*;
use crate::telemetry::labels::HandshakeOutcome;
use crate::tls::failure::Failure;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn authority(name: &str) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let der = params.self_signed(&key).unwrap().der().clone();
    (der, Issuer::new(params, key))
}

fn list(issuer: &Issuer<'_, KeyPair>, number: u64) -> CertificateRevocationListDer<'static> {
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(2060, 1, 1),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().der().clone()
}

fn with_names(names: &[&str]) -> CertificateDer<'static> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for name in names {
        params.distinguished_name.push(DnType::CommonName, *name);
    }
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
}

#[test]
fn fingerprint_tells_policies_apart_and_does_not_mind_the_order() {
    let ((one, issuer), (two, _)) = (authority("one"), authority("two"));
    let lists = [list(&issuer, 1), list(&issuer, 2)];
    let print = |mode, authorities: &[CertificateDer<'static>], lists: &[_]| {
        ClientAuthPolicy::build(mode, authorities, lists, &provider()).unwrap().fingerprint()
    };
    let required = ClientAuthMode::Required;
    let both = print(required, &[one.clone(), two.clone()], &lists);
    let [first, second] = lists.clone();
    let turned = [second.clone(), first.clone(), second.clone()];
    assert_eq!(print(required, &[two.clone(), one.clone(), two.clone()], &turned), both);
    let others = [
        both,
        print(ClientAuthMode::Optional, &[one.clone(), two.clone()], &lists),
        print(required, std::slice::from_ref(&one), &lists),
        print(required, &[one.clone(), two.clone()], &[first]),
        print(required, &[one, two], &[]),
        ClientAuthPolicy::none().fingerprint(),
    ];
    let different: std::collections::HashSet<_> = others.iter().collect();
    assert_eq!(different.len(), others.len(), "{others:?}");
    // Tickets outlive a restart, so that this value must not change by accident: it is what
    // `printf 'none\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' | sha256sum` begins with.
    let none = ClientAuthPolicy::none().fingerprint();
    assert_eq!(none, [0xb1, 0x4c, 0x26, 0xbd, 0x81, 0xc6, 0xa8, 0xdf]);
}

#[test]
fn long_chains_are_refused_before_anything_is_verified() {
    let (root, _) = authority("root");
    let policy =
        ClientAuthPolicy::build(ClientAuthMode::Required, &[root], &[], &provider()).unwrap();
    let stranger = with_names(&["stranger"]);
    let chain = vec![stranger.clone(); CLIENT_INTERMEDIATES_MAX + 1];
    let now = UnixTime::now();
    let verifier = policy.verifier();
    let error = verifier.verify_client_cert(&stranger, &chain, now).unwrap_err();
    let Error::InvalidCertificate(CertificateError::Other(why)) = error else {
        panic!("{error}");
    };
    assert!(why.0.is::<ChainTooLong>(), "{why}");
    let error = verifier.verify_client_cert(&stranger, &chain[1..], now).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer));
}

/// Fails closed, and says whose fault it is.
#[test]
fn a_list_past_its_next_update_counts_no_longer() {
    let (root, issuer) = authority("root");
    let key = KeyPair::generate().unwrap();
    let client = CertificateParams::new(Vec::new()).unwrap().signed_by(&key, &issuer).unwrap();
    let lists = [list(&issuer, 1)];
    let policy =
        ClientAuthPolicy::build(ClientAuthMode::Required, &[root], &lists, &provider()).unwrap();
    let verify = |year: u64| {
        let now = UnixTime::since_unix_epoch(Duration::from_hours(24 * 365 * (year - 1970)));
        policy.verifier().verify_client_cert(client.der(), &[], now).map(|_| ())
    };
    assert_eq!(verify(2050), Ok(()));
    let failure = Failure::from(&verify(2062).unwrap_err());
    assert_eq!(failure.outcome(), HandshakeOutcome::ClientCertificateStatusUnknown);
}

#[test]
fn names_that_no_client_could_be_told_are_refused() {
    let many: Vec<_> = (0..60).map(|n| authority(&format!("{n:300}")).0).collect();
    let error = ClientAuthPolicy::build(ClientAuthMode::Required, &many, &[], &provider());
    assert!(matches!(error, Err(PolicyError::Names(bytes)) if bytes > 60 * 300), "{error:?}");
}

#[test]
fn common_name_is_told_whole_or_not_at_all() {
    let longest = "é".repeat(CLIENT_NAME_BYTES_MAX / 2) + "x";
    assert_eq!(longest.len(), CLIENT_NAME_BYTES_MAX);
    assert_eq!(common_name(&with_names(&["alice"])).as_deref(), Some("alice"));
    assert_eq!(common_name(&with_names(&[&longest])).as_deref(), Some(longest.as_str()));
    for untold in [&format!("{longest}x"), "", "a\0b", "a\r\nb", "a\u{85}b"] {
        assert_eq!(common_name(&with_names(&[untold])), None, "{untold:?}");
    }
    assert_eq!(common_name(&with_names(&[])), None);
    assert_eq!(common_name(b""), None);
    let whole = with_names(&["alice"]);
    for length in 0..whole.len() {
        assert_eq!(common_name(&whole[..length]), None, "cut at {length}");
    }
}
