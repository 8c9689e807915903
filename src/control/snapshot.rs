//! From configuration, certificates and resolved addresses to what the workers use.

use std::sync::Arc;

use crate::config::Config;
use crate::tls::terms::Terms;
use crate::worker::snapshot::{Backend, Listener, Server, Snapshot};

use super::resolve::Addresses;

/// Builds one snapshot. `terms` are by listener, `addresses` by backend and server; a server
/// without an address is left out.
///
/// # Panics
/// When there are not as many terms as listeners, or addresses as backends: a defect of ours.
pub fn build(config: &Config, terms: &[Arc<Terms>], addresses: &Addresses) -> Snapshot {
    assert_eq!(terms.len(), config.listeners.len());
    assert_eq!(addresses.0.len(), config.backends.len());
    let listeners = config
        .listeners
        .iter()
        .zip(terms)
        .map(|(listener, terms)| Listener {
            terms: Arc::clone(terms),
            backend: index(listener.backend),
        })
        .collect();
    let backends = config
        .backends
        .iter()
        .zip(&addresses.0)
        .map(|(backend, servers)| Backend {
            servers: (0..)
                .zip(servers)
                .flat_map(|(server, addresses)| {
                    addresses.iter().map(move |address| Server { server, address: address.clone() })
                })
                .collect(),
            send_proxy_protocol: backend.send_proxy_protocol,
        })
        .collect();
    Snapshot {
        listeners,
        backends,
        timeouts: config.timeouts.clone(),
        client_hello_bytes: config.limits.client_hello_bytes,
    }
}

#[expect(
    clippy::expect_used,
    reason = "a configuration of 65,536 backends is refused when it is read"
)]
fn index(position: usize) -> u16 {
    u16::try_from(position).expect("fewer than 65,536 backends")
}
