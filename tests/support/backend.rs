//! Backends of our own: one thread per connection, any behaviour.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::socket;

use super::{STUCK, address};

/// A TCP backend that runs until the test process ends.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

impl Backend {
    /// Runs `serve` for each connection, in a thread of its own.
    pub(crate) fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address::free()).unwrap();
        let backend = Self { address: listener.local_addr().unwrap(), accepted: Arc::default() };
        let accepted = Arc::clone(&backend.accepted);
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(2 * STUCK)).unwrap();
                stream.set_nodelay(true).unwrap();
                accepted.fetch_add(1, Relaxed);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        backend
    }

    /// Sends back what it receives, and ends when the client has ended.
    pub(crate) fn echo() -> Self {
        Self::new(|stream| {
            // A client that vanishes is part of many tests.
            _ = echo(&mut &stream, &mut &stream);
            _ = stream.shutdown(Shutdown::Write);
        })
    }

    /// Connections it has got.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }
}

fn echo(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

/// An echo server on a Unix socket.
pub(crate) fn echo_at(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || {
                _ = echo(&mut &stream, &mut &stream);
                _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
}

/// An address where nobody listens.
pub(crate) fn refusing() -> SocketAddr {
    address::free()
}

/// A backend that never answers a SYN: its accept queue is full, and Linux drops the SYN of a
/// connection for which there is no room (tcp(7), `tcp_abort_on_overflow` = 0).
#[derive(Debug)]
pub(crate) struct Silent {
    pub(crate) address: SocketAddr,
    _listener: std::os::fd::OwnedFd,
    _queued: Vec<TcpStream>,
}

impl Silent {
    pub(crate) fn new() -> Self {
        let listener = socket::socket(
            socket::AddressFamily::Inet,
            socket::SockType::Stream,
            socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let wanted = address::free();
        let name = socket::SockaddrStorage::from(wanted);
        socket::bind(listener.as_raw_fd(), &name).unwrap();
        socket::listen(&listener, socket::Backlog::new(0).unwrap()).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&wanted, Duration::from_millis(300)) {
            queued.push(stream);
            assert!(queued.len() < 16, "the accept queue never fills up");
        }
        Self { address: wanted, _listener: listener, _queued: queued }
    }
}
