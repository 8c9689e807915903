//! Addresses nobody else uses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A loopback address with a port that was free a moment ago. The IP address is not given to any
/// other caller in this process, so that nothing can take the port before it is used.
pub(crate) fn free() -> SocketAddr {
    free_at(IpAddr::V4(own_ip()))
}

/// A free port of `ip`.
pub(crate) fn free_at(ip: IpAddr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// An address of 127/8, derived from the process and a count.
fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = NEXT.fetch_add(1, Relaxed);
    let [.., high, low] = std::process::id().to_be_bytes();
    let [.., last] = (1 + count % 250).to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 250, low, last)
}
