//! Symptom: a client that went away in the middle of its answer was counted as `finished`.
//!
//! Cause: the failed send emptied the queue before anybody looked whether something was in it.
//!
//! Scenario:
//! 1. The client asks and ends its side with `close_notify`.
//! 2. The server answers a little more than the kernel takes for the client, and ends.
//! 3. The client resets while the rest is in our queue. That is no orderly end.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, sockopt};

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::server::{NAME, Server};
use crate::support::{SOON, STUCK};

/// Bytes that the server writes at once.
const PIECE: usize = 16 * 1024;

/// Bytes of an answer's end, which are received together with the end itself.
const LAST: usize = 48 * 1024;

/// How long no byte moves before we believe that none will.
const STALLED: Duration = Duration::from_millis(150);

/// A TCP connection of small segments and a small window: the kernel of its peer keeps few bytes
/// for it, and takes few at a time.
fn narrow(address: SocketAddr) -> TcpStream {
    let (family, flags) = (socket::AddressFamily::Inet, socket::SockFlag::SOCK_CLOEXEC);
    let socket = socket::socket(family, socket::SockType::Stream, flags, None).unwrap();
    socket::setsockopt(&socket, sockopt::TcpMaxSeg, &536).unwrap();
    socket::setsockopt(&socket, sockopt::RcvBuf, &8192).unwrap();
    socket::connect(socket.as_raw_fd(), &socket::SockaddrStorage::from(address)).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(STUCK)).unwrap();
    stream
}

/// Bytes passed on to clients so far.
fn passed_on(server: &Server) -> f64 {
    server.metrics().get("portcullis_outbound_bytes_total")
}

/// Whether `total` bytes have been passed on, or will be within a moment.
fn takes(server: &Server, total: f64) -> bool {
    let deadline = Instant::now() + STALLED;
    loop {
        if passed_on(server) >= total {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Answers in pieces until one is not passed on, or until `most` bytes are, and says how many were.
fn answer(server: &Server, origin: &mut TcpStream, most: usize) -> usize {
    let (before, mut sent) = (passed_on(server), 0);
    while sent < most {
        origin.write_all(&[b'a'; PIECE]).unwrap();
        if !takes(server, before + bytes(sent + PIECE)) {
            break;
        }
        sent += PIECE;
    }
    sent
}

fn bytes(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

#[test]
fn an_answer_cut_by_the_client_is_not_finished() {
    let (sender, accepted) = mpsc::channel();
    let server = Server::before(Backend::new(move |stream| sender.send(stream).unwrap()));
    let config = Arc::new(client::config());
    let open = || {
        let mut tls = client::handshake(&config, narrow(server.address), NAME).unwrap();
        let mut origin = accepted.recv_timeout(SOON).unwrap();
        client::end_sending(&mut tls);
        // Its end is there: the client has nothing more to say.
        assert_eq!(origin.read(&mut [0]).unwrap(), 0);
        (tls, origin)
    };
    let (tls, mut origin) = open();
    let most = answer(&server, &mut origin, usize::MAX);
    client::reset_at_close(&tls.sock);
    drop((tls, origin));
    server.wait_idle();

    // Only some lengths leave a part in the queue and still have their end received.
    let mut cut = 0;
    for attempt in 0..12 {
        let (tls, mut origin) = open();
        answer(&server, &mut origin, most.saturating_sub(attempt * PIECE / 2));
        let whole = passed_on(&server) + bytes(LAST);
        origin.write_all(&vec![b'z'; LAST]).unwrap();
        origin.shutdown(Shutdown::Write).unwrap();
        takes(&server, whole);
        if server.metrics().get("portcullis_connections{state=\"relay\"}") == 1.0 {
            cut += 1;
        }
        client::reset_at_close(&tls.sock);
        drop(tls);
        server.wait_idle();
    }
    assert!(cut > 0, "the kernel took every answer whole");
    // The first one too.
    server.wait_closed("client_reset", 1 + cut);
}
