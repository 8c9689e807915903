//! What the benchmarks share: a server process under test, a plaintext origin behind it, and TLS
//! clients in front of it.
//!
//! The process under test has CPUs of its own where there are enough; origin and clients share
//! others. What is measured is the CPU time of the process under test alone, so the cost of origin
//! and clients is never in a figure.

#![allow(dead_code, reason = "each benchmark uses its own part")]

pub(crate) mod certificate;
pub(crate) mod choice;
pub(crate) mod client;
pub(crate) mod cpu;
pub(crate) mod knocks;
pub(crate) mod loading;
pub(crate) mod measure;
pub(crate) mod origin;
pub(crate) mod program;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod spread;
pub(crate) mod strace;
pub(crate) mod work;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket,
    sockopt,
};

/// Errors end the measurement and are printed once, in `main`.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
/// Shorthand for [`Error`].
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Waits for events, 50 ms at most; without one also when a signal comes, or when the machine was
/// stopped for a moment.
fn wait(epoll: &Epoll, events: &mut [EpollEvent]) -> Result<usize> {
    match epoll.wait(events, 50_u8) {
        Err(Errno::EINTR) => Ok(0),
        ready => Ok(ready?),
    }
}

/// A request's or an answer's bytes; both ends know them, so that the first answer can be checked.
pub(crate) static PAYLOAD: [u8; 64 * 1024] = {
    let mut bytes = [0; 64 * 1024];
    let mut at = 0;
    while at < bytes.len() {
        #[expect(
            clippy::indexing_slicing,
            clippy::cast_possible_truncation,
            reason = "const context; the bounds are the loop's and the modulus"
        )]
        {
            // 251 is prime: no record or buffer size is a multiple of the pattern.
            bytes[at] = (at % 251) as u8;
        }
        at += 1;
    }
    bytes
};

/// At most the first `bytes` of [`PAYLOAD`].
pub(crate) fn payload(bytes: u64) -> &'static [u8] {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    PAYLOAD.get(..length).unwrap_or(&PAYLOAD)
}

/// Lets this process and the servers it starts open as many files as the hard limit allows.
pub(crate) fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// A non-blocking listener on a free port of 127.0.0.1, with a queue that 1000 connects fit in.
pub(crate) fn listener() -> Result<(std::net::TcpListener, SocketAddr)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    let any_port = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    bind(socket.as_raw_fd(), &any_port)?;
    listen(&socket, Backlog::new(4096)?)?;
    let listener = std::net::TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// A port of 127.0.0.1 that nobody listens on now, for a server to listen on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
