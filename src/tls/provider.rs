//! The crypto provider: aws-lc-rs, its suites in the order that is best on this CPU.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{CipherSuite, SupportedCipherSuite};

use crate::config;

/// What of this CPU decides the order of suites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    /// AES rounds and carry-less multiplication: AES-GCM in hardware.
    pub aes: bool,
    /// SHA-256 in hardware. Neither x86-64's nor the common `AArch64` extensions speed SHA-384 up.
    pub sha256: bool,
}

impl Cpu {
    /// The CPU we run on.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self {
            aes: std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq"),
            sha256: std::is_x86_feature_detected!("sha"),
        };
        #[cfg(target_arch = "aarch64")]
        return Self {
            // "aes" includes PMULL, the carry-less multiplication.
            aes: std::arch::is_aarch64_feature_detected!("aes"),
            sha256: std::arch::is_aarch64_feature_detected!("sha2"),
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return Self { aes: false, sha256: false };
    }
}

/// Suites in order of preference, and why in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuiteOrder {
    /// IANA names, the most wanted first; TLS 1.3 before TLS 1.2.
    pub names: Vec<&'static str>,
    /// One sentence for an operator.
    pub why: &'static str,
}

/// The order of suites: the operator's, else the best for this CPU.
pub fn suite_order(tls: &config::Tls, cpu: Cpu) -> SuiteOrder {
    if let Some(wanted) = &tls.cipher_suites {
        let known = |name: &String| config::CIPHER_SUITES.into_iter().find(|known| known == name);
        return SuiteOrder {
            names: wanted.iter().filter_map(known).collect(),
            why: "as tls.cipher_suites orders them.",
        };
    }
    let (ciphers, why) = match (cpu.aes, cpu.sha256) {
        (true, true) => (
            ["AES_128_GCM", "AES_256_GCM", "CHACHA20"],
            "this CPU does AES and SHA-256 in hardware, but not SHA-384: AES-128-GCM-SHA256 costs \
             least.",
        ),
        (true, false) => (
            ["AES_128_GCM", "AES_256_GCM", "CHACHA20"],
            "this CPU does AES in hardware, but no SHA: the hashes cost about the same, and \
             AES-128 has the fewest rounds.",
        ),
        (false, _) => (
            ["CHACHA20", "AES_128_GCM", "AES_256_GCM"],
            "this CPU has no AES in hardware: ChaCha20 is faster in software.",
        ),
    };
    let offered = |is_13: bool| {
        tls.versions.iter().any(|version| match version {
            config::TlsVersion::Tls12 => !is_13,
            config::TlsVersion::Tls13 => is_13,
        })
    };
    let mut names = Vec::with_capacity(config::CIPHER_SUITES.len());
    for is_13 in [true, false] {
        for cipher in ciphers.into_iter().filter(|_| offered(is_13)) {
            // ECDSA stands before RSA in the list; which of the two is used depends on the
            // certificate alone.
            names.extend(
                config::CIPHER_SUITES.into_iter().filter(|name| {
                    name.contains(cipher) && name.starts_with("TLS_ECDHE_") != is_13
                }),
            );
        }
    }
    SuiteOrder { names, why }
}

/// The provider of the handshakes.
pub fn provider(tls: &config::Tls, cpu: Cpu) -> Arc<CryptoProvider> {
    let suites = suite_order(tls, cpu).names;
    Arc::new(CryptoProvider {
        cipher_suites: suites.into_iter().filter_map(suite).collect(),
        kx_groups: tls.groups.iter().filter_map(|name| group(name)).collect(),
        ..default_provider()
    })
}

fn suite(name: &str) -> Option<SupportedCipherSuite> {
    ALL_CIPHER_SUITES
        .iter()
        .copied()
        .find(|suite| iana_name(suite.suite()).is_some_and(|known| known == name))
}

/// The name as IANA registers it; rustls spells those of TLS 1.3 differently.
fn iana_name(suite: CipherSuite) -> Option<String> {
    let name = suite.as_str()?;
    Some(name.replacen("TLS13_", "TLS_", 1))
}

fn group(name: &str) -> Option<&'static dyn SupportedKxGroup> {
    Some(match name {
        "X25519MLKEM768" => kx_group::X25519MLKEM768,
        "X25519" => kx_group::X25519,
        "P-256" => kx_group::SECP256R1,
        "P-384" => kx_group::SECP384R1,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{GROUPS, RecordLayer, Tls, TlsVersion};

    fn tls() -> Tls {
        Tls {
            versions: vec![TlsVersion::Tls12, TlsVersion::Tls13],
            cipher_suites: None,
            groups: GROUPS.map(str::to_owned).to_vec(),
            record_layer: RecordLayer::Lean,
        }
    }

    fn order(aes: bool, sha256: bool) -> Vec<&'static str> {
        suite_order(&tls(), Cpu { aes, sha256 }).names
    }

    #[test]
    fn hardware_decides_the_first_suite_of_each_version() {
        let names = order(true, true);
        assert_eq!(names[0], "TLS_AES_128_GCM_SHA256");
        assert_eq!(names[3], "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256");
        assert_eq!(names[4], "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
        let names = order(false, false);
        assert_eq!(names[0], "TLS_CHACHA20_POLY1305_SHA256");
        assert_eq!(names[3], "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256");
    }

    #[test]
    fn provider_has_every_suite_and_group_that_the_configuration_accepts() {
        for (aes, sha256) in [(true, true), (true, false), (false, false)] {
            let names = order(aes, sha256);
            let provider = provider(&tls(), Cpu { aes, sha256 });
            let offered: Vec<String> = provider
                .cipher_suites
                .iter()
                .filter_map(|suite| iana_name(suite.suite()))
                .collect();
            assert_eq!(offered, names);
            assert_eq!(offered.len(), config::CIPHER_SUITES.len());
            assert_eq!(provider.kx_groups.len(), GROUPS.len());
        }
    }

    #[test]
    fn operator_overrules_the_order() {
        let wanted = ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"];
        let tls = Tls {
            versions: vec![TlsVersion::Tls13],
            cipher_suites: Some(wanted.map(str::to_owned).to_vec()),
            groups: vec!["P-256".to_owned()],
            ..tls()
        };
        let cpu = Cpu::detect();
        assert_eq!(suite_order(&tls, cpu).names, wanted);
        let provider = provider(&tls, cpu);
        assert_eq!(provider.cipher_suites.len(), 2);
        assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::secp256r1);
    }

    #[test]
    fn one_version_has_only_its_own_suites() {
        let tls = Tls { versions: vec![TlsVersion::Tls13], ..tls() };
        assert_eq!(suite_order(&tls, Cpu::detect()).names.len(), 3);
    }
}
