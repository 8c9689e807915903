//! Claiming the listening addresses before any worker starts. Workers bind with `SO_REUSEPORT`,
//! which would let two servers share a port unnoticed; so each address is bound once without it.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, bind, getsockname,
    setsockopt, socket, sockopt,
};

use crate::config::Listener;
use crate::worker::Bind;

use super::backlog::Backlog;

/// A listening address that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} cannot listen on {address}: {source}{}",
    cure(*address, source).map_or_else(String::new, |cure| format!("\n{cure}"))
)]
pub struct AddressError {
    /// What wants to listen, as the configuration calls it.
    pub what: String,
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// Checks that every address is free and allowed, and settles port 0: the kernel chooses a port
/// here, once, so that all workers share it. `backlogs` are by listener.
pub fn claim(listeners: &[Listener], backlogs: &[Backlog]) -> Result<Vec<Bind>, AddressError> {
    let mut binds = Vec::new();
    for ((index, listener), backlog) in (0..).zip(listeners).zip(backlogs) {
        for address in &listener.bind {
            let settled = probe(*address).map_err(|errno| AddressError {
                what: format!("listener \"{}\"", listener.name),
                address: *address,
                source: errno.into(),
            })?;
            binds.push(Bind {
                listener: index,
                address: settled,
                backlog: backlog.connections,
                defer_accept: listener.defer_accept,
            });
        }
    }
    Ok(binds)
}

/// Binds once and lets go. `SO_REUSEADDR` forgives connections in `TIME_WAIT`, nothing else that
/// listens (socket(7)). `IPV6_V6ONLY` lets `0.0.0.0:443` and `[::]:443` stand side by side.
fn probe(address: SocketAddr) -> nix::Result<SocketAddr> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    settled(&socket, address)
}

fn settled(socket: &OwnedFd, wanted: SocketAddr) -> nix::Result<SocketAddr> {
    let storage: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    debug_assert!(storage.family().is_some());
    let port = match wanted {
        SocketAddr::V4(_) => {
            storage.as_sockaddr_in().map(|address| SocketAddrV4::from(*address).port())
        }
        SocketAddr::V6(_) => {
            storage.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address).port())
        }
    };
    let mut address = wanted;
    address.set_port(port.ok_or(Errno::EAFNOSUPPORT)?);
    Ok(address)
}

/// What to do about an address that cannot be bound.
pub(super) fn cure(address: SocketAddr, error: &io::Error) -> Option<String> {
    let port = address.port();
    match error.raw_os_error().map(Errno::from_raw)? {
        Errno::EADDRINUSE => Some(format!(
            "another server listens there (`ss -ltnp 'sport = :{port}'` shows which): stop it, or \
             choose another port"
        )),
        Errno::EACCES | Errno::EPERM => Some(format!(
            "port {port} needs a privilege: `AmbientCapabilities=CAP_NET_BIND_SERVICE` in the \
             systemd unit, or `setcap cap_net_bind_service=+ep` on the binary, or \
             `sysctl -w net.ipv4.ip_unprivileged_port_start={port}`"
        )),
        Errno::EADDRNOTAVAIL => Some(format!(
            "this host has no address {}: correct `bind`, or `sysctl -w \
             net.ipv4.ip_nonlocal_bind=1` when it comes later",
            address.ip()
        )),
        Errno::EAFNOSUPPORT => Some(
            "this kernel has no IPv6: remove the address from `bind`, or enable IPv6".to_owned(),
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UnknownName;

    fn listener(bind: &str) -> Listener {
        Listener {
            name: "https".into(),
            bind: vec![bind.parse().unwrap()],
            backend: 0,
            alpn: Vec::new(),
            backlog: Some(7),
            defer_accept: None,
            connection_rate: None,
            unknown_name: UnknownName::Default,
            certificates: Vec::new(),
            client_auth: None,
        }
    }

    fn claim_one(bind: &str) -> Result<Vec<Bind>, AddressError> {
        claim(&[listener(bind)], &[Backlog::configured(7, None)])
    }

    #[test]
    fn a_port_in_use_is_an_error_that_names_listener_address_and_cure() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap().to_string();
        let error = claim_one(&address).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\"https\""), "{text}");
        assert!(text.contains(&address), "{text}");
        assert!(text.contains("ss -ltnp"), "{text}");
    }

    #[test]
    fn a_server_with_reuseport_is_noticed_too() {
        let other =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&other, sockopt::ReusePort, &true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        bind(other.as_raw_fd(), &SockaddrStorage::from(any)).unwrap();
        nix::sys::socket::listen(&other, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let address = settled(&other, any).unwrap();
        let error = claim_one(&address.to_string()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn port_zero_becomes_a_port_that_can_be_bound() {
        let binds = claim_one("127.0.0.1:0").unwrap();
        assert_ne!(binds[0].address.port(), 0);
        assert_eq!(binds[0].backlog, 7);
        std::net::TcpListener::bind(binds[0].address).unwrap();
    }
}
