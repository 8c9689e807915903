//! Listening sockets. Each worker makes its own for the same address, and the kernel spreads the
//! connections over them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::limits::NOT_SENT_BYTES;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, getsockname,
    setsockopt, socket, sockopt,
};

/// Length of an option that is a C `int`.
const INT_BYTES: libc::socklen_t = libc::c_int::BITS / 8;

/// A socket that listens on `address`, for this worker among others.
///
/// `SO_REUSEPORT` lets each worker have one; `SO_REUSEADDR` lets a restart bind while old
/// connections are still in TIME-WAIT; `IPV6_V6ONLY` keeps `[::]` and `0.0.0.0` apart, so that
/// both can be configured; `TCP_NODELAY` is inherited by every accepted socket (tcp(7)), which
/// saves a call each.
///
/// # Units
/// `backlog` in connections; the kernel cuts it to `net.core.somaxconn`.
///
/// # Errors
/// Those of bind(2) and listen(2): `EADDRINUSE`, when somebody listens there without
/// `SO_REUSEPORT` or as another user; `EACCES`, when the port is below
/// `net.ipv4.ip_unprivileged_port_start` and `CAP_NET_BIND_SERVICE` is missing; `EADDRNOTAVAIL`,
/// when no interface has the address.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let listener = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    setsockopt(&listener, sockopt::ReusePort, &true)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    bound_unsent(&listener)?;
    if address.is_ipv6() {
        setsockopt(&listener, sockopt::Ipv6V6Only, &true)?;
    }
    bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    // nix refuses more than the C library's SOMAXCONN, which is not the kernel's limit.
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    // SAFETY: listen(2) takes no pointer, and `listener` is an open descriptor that we own.
    let result = unsafe { libc::listen(listener.as_raw_fd(), backlog) };
    nix::errno::Errno::result(result)?;
    Ok(listener)
}

/// Bounds what the sockets accepted here hold unsent, which they inherit: a client that does not
/// read then costs the kernel that much, and we see progress in steps of that size (tcp(7),
/// `TCP_NOTSENT_LOWAT`).
fn bound_unsent(listener: &OwnedFd) -> io::Result<()> {
    static BYTES: u32 = NOT_SENT_BYTES;
    // SAFETY: the option's value is a static of the length given, and only read.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const BYTES).cast(),
            4,
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// Lets the kernel keep a client to itself until it has said something, for about so long, in whole
/// seconds (`TCP_DEFER_ACCEPT`, tcp(7)).
pub fn defer_accept(listener: &OwnedFd, longest: Duration) -> io::Result<()> {
    let seconds = libc::c_int::try_from(longest.as_secs()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option's value is a local of the length given, and only read.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            INT_BYTES,
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// A socket's inode: what the kernel calls it where it tells of all sockets (`sock_diag`).
pub fn inode(socket: &OwnedFd) -> io::Result<u32> {
    let inode = nix::sys::stat::fstat(socket)?.st_ino;
    u32::try_from(inode).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Lets a listening socket have the connections whose first packet this CPU takes in
/// (`SO_INCOMING_CPU`, socket(7)); of several sockets of an address, the one of that CPU. A CPU
/// without one leaves the choice to the hash.
///
/// Kernels before 6.2, and before stable updates of 6.1, choose by the hash all the same.
pub fn steer(listener: &OwnedFd, cpu: usize) -> io::Result<()> {
    let cpu = libc::c_int::try_from(cpu).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the option's value is a local of the length given, and only read.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            (&raw const cpu).cast(),
            INT_BYTES,
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}

/// The CPU that took in the last packet of a connected socket; `None`: not known.
pub(super) fn incoming_cpu(socket: &OwnedFd) -> Option<usize> {
    let (mut cpu, mut length): (libc::c_int, _) = (-1, INT_BYTES);
    // SAFETY: value and length are locals of the sizes that the option wants.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            (&raw mut cpu).cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(result).ok()?;
    usize::try_from(cpu).ok()
}

/// The address that the peer of a connected socket reached.
pub(super) fn local_address(socket: &OwnedFd) -> Option<SocketAddr> {
    let address: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::socket::getsockopt;

    use super::*;

    fn local(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn listener(address: SocketAddr) -> TcpListener {
        TcpListener::from(listen(address, 128).unwrap())
    }

    #[test]
    fn workers_share_an_address_and_both_get_connections() {
        let first = listener(local("127.0.0.1:0"));
        let address = first.local_addr().unwrap();
        let second = listener(address);
        let (mut at_first, mut at_second) = (0, 0);
        for _ in 0..2000 {
            let client = TcpStream::connect(address).unwrap();
            // The connection is established, so one of the two has it already.
            if first.accept().is_ok() {
                at_first += 1;
            } else {
                second.accept().unwrap();
                at_second += 1;
            }
            drop(client);
            if at_first > 0 && at_second > 0 {
                return;
            }
        }
        panic!("all connections went to one socket: {at_first}, {at_second}");
    }

    #[test]
    fn accepted_sockets_send_at_once() {
        let listener = listener(local("127.0.0.1:0"));
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(getsockopt(&accepted, sockopt::TcpNoDelay).unwrap());
        drop(client);
    }

    #[test]
    fn neither_blocks_nor_survives_exec() {
        let listener = listen(local("127.0.0.1:0"), 1).unwrap();
        let status = OFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFL).unwrap());
        assert!(status.contains(OFlag::O_NONBLOCK));
        let flags = FdFlag::from_bits_retain(fcntl(&listener, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
    }

    #[test]
    fn both_families_have_the_same_port() {
        let v6 = match listen(local("[::]:0"), 16) {
            Ok(v6) => TcpListener::from(v6),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                eprintln!("skipped: this machine has no IPv6");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let port = v6.local_addr().unwrap().port();
        let v4 = listener(SocketAddr::new(local("0.0.0.0:0").ip(), port));
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (_, peer) = v4.accept().unwrap();
        assert!(peer.is_ipv4());
    }

    #[test]
    fn a_port_that_somebody_else_has_is_an_error() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = listen(other.local_addr().unwrap(), 128).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_deferred_client_is_there_when_it_has_said_something() {
        use std::io::Write as _;
        let socket = listen(local("127.0.0.1:0"), 16).unwrap();
        defer_accept(&socket, Duration::from_secs(5)).unwrap();
        let listener = TcpListener::from(socket);
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let nobody = listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"a word").unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while listener.accept().is_err() {
            assert!(std::time::Instant::now() < deadline, "it is never accepted");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn any_backlog_is_taken() {
        for backlog in [0, 1, 4096, 65_535, 1 << 20, u32::MAX] {
            listen(local("127.0.0.1:0"), backlog).unwrap();
        }
    }
}
