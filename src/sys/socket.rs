//! TEMP
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
/// L
pub fn listen(address: SocketAddr, backlog: u32) -> std::io::Result<OwnedFd> {
    use nix::sys::socket::*;
    let fam = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(fam, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(backlog.min(4096) as i32)?)?;
    Ok(fd)
}
/// A
pub fn local_address(fd: &OwnedFd) -> Option<SocketAddr> {
    let s = std::net::TcpStream::from(fd.try_clone().ok()?);
    s.local_addr().ok()
}
