//! Slow and silent peers, with raw sockets: each ends for its own reason, and nobody else is
//! harmed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::support::backend::Backend;
use crate::support::client::{self, Tls};
use crate::support::server::{NAME, Server, Setup};
use crate::support::{STUCK, eventually};

/// Between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(50);
/// More than all buffers on the way hold.
const LARGE: usize = 16 << 20;

const STALLED: &str = "[limits]\nmin_rate = \"64KiB\"\n[timeouts]\nstalled = \"1s\"\n";

/// A server that was set up so, and somebody who must not be harmed.
struct Scene {
    server: Server,
    steady: Tls,
}

impl Scene {
    fn of(setup: Setup) -> Self {
        let server = setup.start();
        let mut steady = client::connect(server.address);
        client::echo(&mut steady, b"before");
        Self { server, steady }
    }

    /// It ended so, the log says what to change, and the steady one is as it was.
    fn end(mut self, reason: &str, logged: &str) {
        self.server.wait_closed(reason, 1);
        eventually(logged, || self.server.log().contains(logged).then_some(()));
        client::echo(&mut self.steady, b"unharmed");
        client::finish(self.steady);
        self.server.wait_closed("finished", 1);
        self.server.wait_idle();
    }
}

fn client_hello() -> Vec<u8> {
    let name = ServerName::try_from(NAME).unwrap();
    let mut connection = ClientConnection::new(Arc::new(client::config()), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// Writes byte after byte, with a pause each, until the server has had enough.
fn drip(stream: &mut TcpStream, bytes: impl IntoIterator<Item = u8>) {
    let begun = Instant::now();
    for byte in bytes {
        if stream.write_all(&[byte]).is_err() {
            return;
        }
        assert!(begun.elapsed() < STUCK, "the server has no end of patience");
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn a_hello_that_trickles_in_has_its_own_deadline() {
    let setup = Setup::new(Backend::echo()).tables("[timeouts]\nclient_hello = \"1s\"");
    let scene = Scene::of(setup);
    let begun = Instant::now();
    let mut stream = client::tcp(scene.server.address).unwrap();
    drip(&mut stream, client_hello().into_iter().chain(std::iter::repeat(0)));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    scene.server.wait_handshakes("client_hello_timeout", 1);
    scene.end("handshake_failed", "timeouts.client_hello is 1s");
}

#[test]
fn a_hello_in_one_byte_records_is_refused() {
    let scene = Scene::of(Setup::new(Backend::echo()));
    let mut stream = client::tcp(scene.server.address).unwrap();
    let records: Vec<u8> =
        client_hello()[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
    // The server may have closed before the last of it.
    _ = stream.write_all(&records);
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 50], "decode_error");
    scene.server.wait_handshakes("client_hello_too_many_records", 1);
    let metrics = scene.server.metrics();
    assert_eq!(metrics.get("portcullis_limit_reached_total{limit=\"client_hello_records\"}"), 1.0);
    scene.end("handshake_failed", "more than 64 records");
}

/// Sends back what it is sent; to whoever says so, a large answer.
fn large_answers() -> Backend {
    Backend::new(|mut stream| {
        let mut asked = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut asked) {
            let is_large = &asked[..count] == b"large";
            let answer = if is_large { vec![7; LARGE] } else { asked[..count].to_vec() };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_client_that_does_not_read_its_answer_ends_as_too_slow() {
    for reads in [false, true] {
        let scene = Scene::of(Setup::new(large_answers()).tables(STALLED));
        let mut tls = client::connect(scene.server.address);
        tls.write_all(b"large").unwrap();
        tls.flush().unwrap();
        // 20 bytes a second of what it is sent, whatever that is. What has arrived can be read even
        // after the reset.
        let closed = "portcullis_connections_closed_total{reason=\"client_too_slow\"}";
        while reads && scene.server.metrics().get(closed) == 0.0 {
            tls.sock.read_exact(&mut [0]).unwrap();
            std::thread::sleep(PAUSE);
        }
        scene.end("client_too_slow", "limits.min_rate, 65536 bytes a second");
        drop(tls);
    }
}

#[test]
fn a_client_that_reads_fast_enough_gets_all() {
    let server = Setup::new(large_answers()).tables(STALLED).start();
    let stream = client::tcp(server.address).unwrap();
    // A large buffer, once full, takes nothing until a good part of it was read.
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::RcvBuf, &(64 * 1024)).unwrap();
    let mut tls = client::handshake(&Arc::new(client::config()), stream, NAME).unwrap();
    tls.write_all(b"large").unwrap();
    let begun = Instant::now();
    let mut got = 0;
    let mut piece = vec![0; 512 * 1024];
    while got < LARGE {
        got += tls.read(&mut piece).unwrap();
        // 4 MiB a second: far slower than the server sends.
        let due = Duration::from_micros(got as u64 / 4);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
    }
    client::finish(tls);
    server.wait_closed("finished", 1);
}

#[test]
fn a_server_that_does_not_read_ends_as_too_slow() {
    let backend = Backend::new(|mut stream| {
        // Echoes bytes up to one that says that a large request has begun.
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            if byte == *b"L" {
                std::thread::sleep(STUCK);
            }
            if stream.write_all(&byte).is_err() {
                return;
            }
        }
    });
    let scene = Scene::of(Setup::new(backend).tables(STALLED));
    let mut tls = client::connect(scene.server.address);
    // It fails in the midst: with a reset, when the server gives up.
    let error = tls.write_all(&vec![b'L'; LARGE]).unwrap_err();
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
    scene.end("server_too_slow", "the backend's servers took fewer than limits.min_rate");
}

#[test]
fn a_record_that_never_ends_ends_the_connection() {
    for drips in [false, true] {
        let scene = Scene::of(Setup::new(Backend::echo()).tables(STALLED));
        let mut tls = client::connect(scene.server.address);
        client::echo(&mut tls, b"fine so far");
        // A full record is announced.
        tls.sock.write_all(&[23, 3, 3, 0x40, 0x11, 1, 2, 3]).unwrap();
        if drips {
            drip(&mut tls.sock, std::iter::repeat(0));
        }
        scene.end("record_timeout", "timeouts.stalled, 1s");
    }
}
