//! What handshakes cost on this machine, rehearsed with each kind of key that is configured.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::telemetry::labels::KeyType;
use crate::tls::rehearsal::{Rehearsal, Took};
use crate::worker::admission::Costs;

use super::certificates::Loaded;

/// How often each kind of key is rehearsed, at least: the first time finds nothing in the caches.
const ROUNDS_MIN: u32 = 3;

/// How long a kind of key is rehearsed, unless [`ROUNDS_MIN`] rounds take longer. Its best time is
/// what counts, which others' work on the machine spoils least.
const PATIENCE: Duration = Duration::from_millis(20);

/// What handshakes with one kind of key cost, in the cheapest group offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCost {
    /// Kind and size of the key, such as `RSA 2048`.
    pub key: String,
    /// The same, as far as workers tell keys apart.
    pub kind: KeyType,
    /// The first step of a full handshake: key exchange and signature.
    pub full: Duration,
    /// The first step of one that resumes a session.
    pub resumed: Duration,
    /// The client's Finished, and its tickets.
    pub later: Duration,
}

/// Rehearses with each kind of key once, in the order of the configuration.
pub fn measure(config: &Config, loaded: &Loaded) -> Vec<KeyCost> {
    let mut costs: Vec<KeyCost> = Vec::new();
    for (certificate, named) in loaded.certificates.iter().zip(&loaded.named) {
        if costs.iter().any(|cost| cost.key == certificate.key) {
            continue;
        }
        let listener = config.listeners.get(certificate.listener);
        let rehearsal = listener.and_then(|listener| Rehearsal::new(config, listener, named));
        let Some((kind, [full, resumed, later])) = rehearsal.and_then(rehearse) else {
            tracing::warn!(
                "what a handshake with {} costs could not be measured: it will be charged by the \
                 time that it takes",
                certificate.chain.display()
            );
            continue;
        };
        costs.push(KeyCost { key: certificate.key.clone(), kind, full, resumed, later });
    }
    costs
}

/// What workers charge, measured and told in the log; nothing where nobody limits it
/// (`limits.per_source.handshake_cpu`).
pub fn for_workers(config: &Config, loaded: &Loaded) -> Costs {
    let mut costs = Costs::default();
    if config.limits.per_source.handshake_cpu.is_none() {
        return costs;
    }
    for KeyCost { key, kind, full, resumed, later } in measure(config, loaded) {
        tracing::info!(
            "a handshake with a key of {key} costs {:.1?}, resumed {:.1?}",
            full + later,
            resumed + later
        );
        costs.add(kind, full, resumed, later);
    }
    costs
}

/// The key, and the best times of a full handshake's first step, a resumed one's, and the later
/// ones. Each round is a client that comes twice.
fn rehearse(mut rehearsal: Rehearsal) -> Option<(KeyType, [Duration; 3])> {
    let start = Instant::now();
    let mut clock = || start.elapsed();
    let mut kind = KeyType::Other;
    let mut best = [Duration::MAX; 3];
    let mut keep = |took: Took| {
        let [full, resumed, later] = &mut best;
        let first = if took.resumed { resumed } else { full };
        *first = took.first.min(*first);
        *later = took.later.min(*later);
    };
    for round in 0.. {
        if round >= ROUNDS_MIN && start.elapsed() > PATIENCE {
            break;
        }
        rehearsal.forget();
        let first = rehearsal.handshake(&mut clock)?;
        kind = first.key;
        keep(first);
        keep(rehearsal.handshake(&mut clock)?);
    }
    best.iter().all(|time| *time < Duration::MAX).then_some((kind, best))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CertificateFiles, TlsVersion};
    use crate::control::certificates;

    /// A second certificate with an RSA key of so many bits, for another name.
    fn with_rsa(config: &mut Config, directory: &std::path::Path, size: rcgen::RsaKeySize) {
        let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
        let params = rcgen::CertificateParams::new(vec!["rsa.example".to_owned()]).unwrap();
        let (chain, file) = (directory.join("rsa.pem"), directory.join("rsa.key.pem"));
        std::fs::write(&chain, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&file, key.serialize_pem()).unwrap();
        let files = config.listeners[0].certificates[0].clone();
        let rsa = CertificateFiles { chain, key: file, ..files };
        config.listeners[0].certificates.push(rsa);
    }

    #[test]
    fn each_kind_of_key_is_measured_in_each_version_and_a_large_one_weighs_more() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = crate::control::tests::config(directory.path());
        with_rsa(&mut config, directory.path(), rcgen::RsaKeySize::_4096);
        // The same kind twice is measured once.
        let again = config.listeners[0].clone();
        config.listeners.push(again);
        for versions in [vec![TlsVersion::Tls13], vec![TlsVersion::Tls12]] {
            config.tls.versions = versions;
            config.tls.groups = vec!["P-256".to_owned(), "X25519".to_owned()];
            let loaded = certificates::load(&config).unwrap();
            let costs = measure(&config, &loaded);
            let kinds: Vec<_> = costs.iter().map(|cost| (cost.key.as_str(), cost.kind)).collect();
            let wanted = [("ECDSA P-256", KeyType::EcdsaP256), ("RSA 4096", KeyType::Rsa4096)];
            assert_eq!(kinds, wanted);
            // A factor of 30 where nothing disturbs.
            assert!(costs[1].full > 3 * costs[0].full, "{costs:?}");
            for cost in &costs {
                let KeyCost { full, resumed, later, .. } = cost;
                assert!(!later.is_zero() && resumed < full, "{cost:?}");
            }
        }
    }
}
