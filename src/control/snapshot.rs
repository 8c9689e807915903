//! From configuration, certificates and resolved addresses to what the workers use.

use std::sync::Arc;

use crate::config::{Config, Connect};
use crate::tls::terms::Terms;
use crate::worker::admission::{Admission, Costs};
use crate::worker::snapshot::{Backend, Listener, Server, Snapshot};

use super::permits;
use super::resolve::Addresses;

/// Builds one snapshot. `terms` are by listener, `addresses` by backend and server, `permits` by
/// backend; a server without an address is left out, and its permits are of no use until then.
/// `costs` are those of handshakes.
///
/// # Panics
/// When there are not as many terms as listeners, or addresses or permits as backends: a defect of
/// ours.
pub fn build(
    config: &Config,
    terms: &[Arc<Terms>],
    costs: Costs,
    addresses: &Addresses,
    permits: &permits::All,
) -> Snapshot {
    assert_eq!(terms.len(), config.listeners.len());
    assert_eq!(addresses.0.len(), config.backends.len());
    assert_eq!(permits.len(), config.backends.len());
    for (permits, servers) in permits.iter().zip(&addresses.0) {
        for (server, addresses) in (0..).zip(servers) {
            if let Some(permits) = permits {
                permits.set_reachable(server, !addresses.is_empty());
            }
        }
    }
    let listeners = config
        .listeners
        .iter()
        .zip(terms)
        .map(|(listener, terms)| Listener {
            terms: Arc::clone(terms),
            backend: index(listener.backend),
            connection_rate: listener.connection_rate,
        })
        .collect();
    let backends = config
        .backends
        .iter()
        .zip(&addresses.0)
        .zip(permits)
        .map(|((backend, servers), permits)| Backend {
            servers: (0..)
                .zip(servers)
                .flat_map(|(server, addresses)| {
                    addresses.iter().map(move |address| Server { server, address: address.clone() })
                })
                .collect(),
            on_first_byte: backend.connect == Connect::OnFirstByte,
            send_proxy_protocol: backend.send_proxy_protocol,
            permits: permits.clone(),
        })
        .collect();
    Snapshot {
        listeners,
        backends,
        admission: Admission::new(&config.limits, costs),
        handshake: config.handshake,
        timeouts: config.timeouts.clone(),
        client_hello_bytes: config.limits.client_hello_bytes,
        min_rate: config.limits.min_rate,
    }
}

#[expect(
    clippy::expect_used,
    reason = "a configuration of 65,536 backends is refused when it is read"
)]
fn index(position: usize) -> u16 {
    u16::try_from(position).expect("fewer than 65,536 backends")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Address;

    #[test]
    fn a_server_stands_once_for_each_address_and_not_at_all_without_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = crate::control::tests::config(directory.path());
        config.listeners.clear();
        let server = config.backends[0].servers[0].clone();
        config.backends[0].servers = vec![server.clone(), server.clone(), server];
        let address = |ip: &str| Address::Inet(format!("{ip}:80").parse().unwrap());
        let addresses = Addresses(vec![vec![
            vec![address("10.0.0.1"), address("10.0.0.2")],
            vec![],
            vec![address("10.0.0.3")],
        ]]);
        let snapshot = build(&config, &[], Costs::default(), &addresses, &vec![None]);
        let seen: Vec<(u16, &Address)> = snapshot.backends[0]
            .servers
            .iter()
            .map(|server| (server.server, &server.address))
            .collect();
        let wanted =
            [(0, &address("10.0.0.1")), (0, &address("10.0.0.2")), (2, &address("10.0.0.3"))];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn permits_outlive_a_change_of_addresses_and_are_of_use_where_there_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = crate::control::tests::config(directory.path());
        config.listeners.clear();
        config.backends[0].servers[0].max_connections = Some(1);
        let permits = permits::make(&config, 1);
        let address = Address::Inet("10.0.0.1:80".parse().unwrap());
        for (addresses, taken) in [(vec![], false), (vec![address], true), (vec![], false)] {
            let addresses = Addresses(vec![vec![addresses]]);
            let snapshot = build(&config, &[], Costs::default(), &addresses, &permits);
            let permits = snapshot.backends[0].permits.as_ref().unwrap();
            assert_eq!(permits.take(0), taken);
        }
        assert_eq!(permits[0].as_ref().unwrap().in_use().next(), Some((1, Some(1))));
    }
}
