//! Listening TCP sockets of this network namespace with their queues, as `sock_diag(7)` tells them:
//! `/proc/net/tcp` does not show how long a listener's queue may become.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// Connections that may wait: the smaller of listen(2)'s backlog and `net.core.somaxconn` then.
    pub backlog: u32,
    /// Its inode, as a descriptor's link in `/proc` shows it.
    pub inode: u32,
    /// Connection attempts that the kernel has dropped here since it was made; `None`: this kernel
    /// does not tell.
    pub drops: Option<u32>,
}

const HEADER_BYTES: usize = 16; // struct nlmsghdr
const REQUEST_BYTES: usize = 56; // struct inet_diag_req_v2
const ANSWER_BYTES: usize = 72; // struct inet_diag_msg; attributes follow
const ATTRIBUTE_HEADER_BYTES: usize = 4; // struct nlattr
const SOCKET_MEMORY: u16 = 7; // INET_DIAG_SKMEMINFO
const SOCKET_MEMORY_DROPS: usize = 8; // SK_MEMINFO_DROPS
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301; // NLM_F_REQUEST | NLM_F_DUMP
const DONE: u16 = 3; // NLMSG_DONE
const ERROR: u16 = 2; // NLMSG_ERROR
const LISTEN: u32 = 1 << 10; // 1 << TCP_LISTEN
const TCP: u8 = 6; // IPPROTO_TCP
const IPV4: u8 = 2; // AF_INET
const IPV6: u8 = 10; // AF_INET6

/// All of them, IPv4 and IPv6.
///
/// # Errors
/// Those of netlink(7).
pub fn listeners() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for family in [IPV4, IPV6] {
        dump(family, &mut found)?;
    }
    Ok(found)
}

fn dump(family: u8, found: &mut Vec<Listener>) -> io::Result<()> {
    let protocol = SockProtocol::NetlinkSockDiag;
    let netlink =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    send(netlink.as_raw_fd(), &request(family), MsgFlags::empty())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, after)) = message(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let error = number(body, 0).map_or(0, u32::cast_signed);
                    return Err(io::Error::from_raw_os_error(-error));
                }
                _ => found.extend(listener(body)),
            }
            rest = after;
        }
    }
}

fn request(family: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    bytes.extend(72_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, TCP, 1 << (SOCKET_MEMORY - 1), 0]);
    bytes.extend(LISTEN.to_ne_bytes());
    bytes.resize(HEADER_BYTES + REQUEST_BYTES, 0);
    bytes
}

/// The first message's kind and body, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(number(bytes, 0)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER_BYTES..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// A `struct inet_diag_msg`.
fn listener(body: &[u8]) -> Option<Listener> {
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let source: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let address = match *body.first()? {
        IPV4 => {
            let [a, b, c, d, ..] = source;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => IpAddr::V6(Ipv6Addr::from(source)),
    };
    Some(Listener {
        address: SocketAddr::new(address, port),
        waiting: number(body, 56)?,
        backlog: number(body, 60)?,
        inode: number(body, 68)?,
        drops: attribute(body.get(ANSWER_BYTES..)?, SOCKET_MEMORY)
            .and_then(|memory| number(memory, SOCKET_MEMORY_DROPS * 4)),
    })
}

/// What the first attribute of a kind holds.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some([low, high, kind @ ..]) = rest.first_chunk::<ATTRIBUTE_HEADER_BYTES>() {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let value = rest.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if u16::from_ne_bytes(*kind) == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::listen;

    #[test]
    fn a_listener_is_found_with_the_length_of_its_queue() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = listen(any.parse().unwrap(), 77) else {
                eprintln!("skipped: cannot listen on {any}");
                continue;
            };
            let listener = std::net::TcpListener::from(listener);
            let address = listener.local_addr().unwrap();
            let _waiting = std::net::TcpStream::connect(address).unwrap();
            let found = listeners().unwrap();
            let found = found.iter().find(|found| found.address == address).unwrap();
            assert_eq!((found.waiting, found.backlog), (1, 77));
            let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
            let link = std::fs::read_link(link).unwrap();
            assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", found.inode));
            assert_eq!(found.drops, Some(0));
        }
    }

    #[test]
    fn what_a_full_queue_drops_is_told_of_the_socket_that_dropped_it() {
        let listeners = [0, 100].map(|backlog| {
            std::net::TcpListener::from(listen("127.0.0.1:0".parse().unwrap(), backlog).unwrap())
        });
        let [full, other] = listeners.each_ref().map(|one| one.local_addr().unwrap());
        // One fits into a queue of none; the others' SYNs are dropped.
        let patience = std::time::Duration::from_millis(300);
        let attempts = [(); 3].map(|()| std::net::TcpStream::connect_timeout(&full, patience));
        let _waits = std::net::TcpStream::connect(other).unwrap();
        assert!(attempts.iter().any(Result::is_err), "the queue never fills up");
        let found = super::listeners().unwrap();
        let drops = |address| found.iter().find(|found| found.address == address).unwrap().drops;
        assert!(drops(full) > Some(0), "{found:?}");
        assert_eq!(drops(other), Some(0));
    }

    #[test]
    fn attributes_are_found_and_broken_ones_are_none() {
        let one = [8_u8, 0, 1, 0, 9, 9, 9, 9];
        let two = [6_u8, 0, 7, 0, 5, 6, 0, 0];
        let both = [one, two].concat();
        assert_eq!(attribute(&both, 7), Some(&[5, 6][..]));
        assert_eq!(attribute(&both, 8), None);
        assert_eq!(attribute(&[3, 0, 7, 0], 7), None);
        assert_eq!(attribute(&[200, 0, 7, 0, 1], 7), None);
        assert_eq!(attribute(&[0, 0], 7), None);
    }
}
