//! Clients and servers that break the rules or vanish. Each is counted under its reason, and an
//! established connection of somebody else does not notice.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use crate::support::backend::{Backend, Silent};
use crate::support::client::{self, Tls};
use crate::support::eventually;
use crate::support::server::{NAME, Server, Setup};

/// A server, and a connection through it that must stay unharmed.
struct Scene {
    server: Server,
    steady: Tls,
}

impl Scene {
    fn new() -> Self {
        Self::of(Setup::new(Backend::echo()))
    }

    fn of(setup: Setup) -> Self {
        let server = setup.start();
        let mut steady = client::connect(server.address);
        client::echo(&mut steady, b"established");
        Self { server, steady }
    }

    /// Checks that the established connection works, that new ones do, and that both handshakes
    /// are the only good ones.
    #[track_caller]
    fn end(mut self) {
        client::echo(&mut self.steady, b"unharmed");
        let mut fresh = client::connect(self.server.address);
        client::echo(&mut fresh, b"welcome");
        client::finish(fresh);
        client::finish(self.steady);
        self.server.wait_closed("finished", 2);
        self.server.wait_handshakes("ok", 2);
        self.server.wait_closed("internal_error", 0);
        self.server.wait_idle();
        assert_eq!(self.server.metrics().get("portcullis_panics_total"), 0.0);
    }
}

/// The bytes of a genuine `ClientHello`, in one record.
fn client_hello() -> Vec<u8> {
    let (_, hello) = started();
    hello
}

/// A client that has made its `ClientHello` but not sent it.
fn started() -> (ClientConnection, Vec<u8>) {
    let name = ServerName::try_from(NAME).unwrap();
    let mut connection = ClientConnection::new(Arc::new(client::config()), name).unwrap();
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello).unwrap();
    }
    (connection, hello)
}

/// Sends `bytes`, then waits for the server's end of the connection; what it said until then.
fn send_and_wait(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = client::tcp(address).unwrap();
    // The server may end while we still send.
    _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer);
    answer
}

/// The fatal alert (RFC 8446 section 6) that ends `answer`, if it is in the clear.
fn alert(answer: &[u8]) -> Option<u8> {
    match answer {
        [.., 0x15, 3, _, 0, 2, 2, description] => Some(*description),
        _ => None,
    }
}

#[test]
fn plain_http_is_told_from_noise() {
    let scene = Scene::new();
    for request in [
        &b"GET / HTTP/1.1\r\nHost: server.test\r\n\r\n"[..],
        b"POST /form HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
    ] {
        send_and_wait(scene.server.address, request);
    }
    scene.server.wait_handshakes("plain_http", 3);
    scene.server.wait_closed("handshake_failed", 3);
    scene.end();
}

#[test]
fn noise_is_not_tls() {
    let scene = Scene::new();
    let mut noise = vec![0xd7; 100_000];
    for (index, byte) in noise.iter_mut().enumerate().skip(1) {
        *byte = u8::try_from(index * index % 251).unwrap();
    }
    send_and_wait(scene.server.address, &noise);
    send_and_wait(scene.server.address, b"SSH-2.0-OpenSSH_9.2p1\r\n");
    send_and_wait(scene.server.address, &[0; 64]);
    scene.server.wait_handshakes("not_tls", 3);
    scene.end();
}

#[test]
fn a_record_longer_than_allowed_is_a_bad_record() {
    let scene = Scene::new();
    // A plaintext record holds at most 2^14 bytes (RFC 8446 section 5.1).
    let mut record = vec![22, 3, 1, 0xff, 0xff];
    record.resize(5 + 0xffff, 1);
    let answer = send_and_wait(scene.server.address, &record);
    scene.server.wait_handshakes("bad_record", 1);
    // record_overflow is what the RFC asks for; decode_error is allowed for any bad length.
    assert!(matches!(alert(&answer), None | Some(22 | 50)), "{answer:?}");
    scene.end();
}

#[test]
fn a_client_hello_that_does_not_parse_is_refused() {
    let scene = Scene::new();
    let mut hello = client_hello();
    // The length of the session id, behind headers, version and random.
    hello[5 + 4 + 2 + 32] = 0xff;
    send_and_wait(scene.server.address, &hello);
    scene.server.wait_closed("handshake_failed", 1);
    let metrics = scene.server.metrics();
    let counted = metrics.get("portcullis_handshakes_total{outcome=\"bad_record\"}")
        + metrics.get("portcullis_handshakes_total{outcome=\"bad_handshake\"}");
    assert_eq!(counted, 1.0);
    scene.end();
}

#[test]
fn a_client_hello_without_end_stops_at_its_limit() {
    let scene =
        Scene::of(Setup::new(Backend::echo()).tables("[limits]\nclient_hello_bytes = \"16KiB\""));
    let mut stream = client::tcp(scene.server.address).unwrap();
    let mut record = vec![22, 3, 1, 0x10, 0x00];
    record.resize(5 + 0x1000, 0);
    // A handshake message, type 1, of 60,000 bytes.
    record[5..9].copy_from_slice(&[1, 0x00, 0xea, 0x60]);
    let mut sent = 0;
    while sent < 1 << 20 && stream.write_all(&record).is_ok() {
        sent += record.len();
        record[5..9].copy_from_slice(&[0; 4]);
    }
    _ = stream.read_to_end(&mut Vec::new());
    scene.server.wait_handshakes("client_hello_too_large", 1);
    scene.end();
}

#[test]
fn a_client_hello_in_one_byte_pieces_succeeds() {
    let scene = Scene::new();
    let (mut connection, hello) = started();
    let mut stream = client::tcp(scene.server.address).unwrap();
    for byte in hello {
        stream.write_all(&[byte]).unwrap();
        // Without a pause the kernel joins what the server has not yet read.
        std::thread::sleep(Duration::from_micros(200));
    }
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    let mut tls = rustls::StreamOwned::new(connection, stream);
    client::echo(&mut tls, b"patience");
    client::finish(tls);
    scene.server.wait_handshakes("ok", 2);
    scene.server.wait_closed("finished", 1);
    let Scene { server, steady } = scene;
    client::finish(steady);
    server.wait_closed("finished", 2);
}

/// A `ClientHello` split over many records (RFC 8446 section 5.1 allows it) succeeds.
#[test]
fn a_client_hello_in_many_records_succeeds() {
    let scene = Scene::new();
    let (mut connection, hello) = started();
    let mut stream = client::tcp(scene.server.address).unwrap();
    let mut records = Vec::new();
    for piece in hello[5..].chunks(100) {
        records.extend_from_slice(&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap()]);
        records.extend_from_slice(piece);
    }
    stream.write_all(&records).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    let mut tls = rustls::StreamOwned::new(connection, stream);
    client::echo(&mut tls, b"in pieces");
    client::finish(tls);
    scene.server.wait_handshakes("ok", 2);
}

#[test]
fn clients_that_vanish_before_their_hello_is_whole_are_counted() {
    let scene = Scene::new();
    let hello = client_hello();
    for length in [0, 1, 5, 100, hello.len() - 1] {
        let mut stream = client::tcp(scene.server.address).unwrap();
        stream.write_all(&hello[..length]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        _ = stream.read_to_end(&mut Vec::new());
    }
    scene.server.wait_handshakes("client_closed", 5);
    for length in [0, 1, 5, 100, hello.len() - 1] {
        let mut stream = client::tcp(scene.server.address).unwrap();
        stream.write_all(&hello[..length]).unwrap();
        client::reset_at_close(&stream);
        drop(stream);
        if length == 0 {
            // A reset before accept takes the connection out of the kernel's queue.
            eventually("the connection is gone", || {
                (scene.server.metrics().get("portcullis_connections") == 1.0).then_some(())
            });
        }
    }
    eventually("4 or 5 resets", || {
        let resets =
            scene.server.metrics().get("portcullis_handshakes_total{outcome=\"client_reset\"}");
        matches!(resets, 4.0 | 5.0).then_some(())
    });
    scene.end();
}

#[test]
fn clients_that_vanish_after_the_servers_flight_are_counted() {
    let scene = Scene::new();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        for reset in [false, true] {
            let config = client::config_with(client::provider(), &[version]);
            let mut stream = client::tcp(scene.server.address).unwrap();
            let name = ServerName::try_from(NAME).unwrap();
            let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
            while connection.wants_write() {
                connection.write_tls(&mut stream).unwrap();
            }
            // The first bytes of the answer: the server has done its part and waits for ours.
            stream.read_exact(&mut [0; 5]).unwrap();
            if reset {
                client::reset_at_close(&stream);
            } else {
                stream.shutdown(Shutdown::Write).unwrap();
                _ = stream.read_to_end(&mut Vec::new());
            }
        }
    }
    scene.server.wait_handshakes("client_closed", 2);
    scene.server.wait_handshakes("client_reset", 2);
    scene.end();
}

#[test]
fn a_client_that_does_not_trust_the_certificate_is_counted_by_its_alert() {
    let scene = Scene::new();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = ClientConfig::builder_with_provider(Arc::new(client::provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let refused = client::try_connect(&Arc::new(config), scene.server.address, NAME);
        assert!(refused.is_err());
    }
    scene.server.wait_handshakes("client_alert", 2);
    scene.end();
}

#[test]
fn a_forged_record_after_the_handshake_is_a_violation() {
    let scene = Scene::new();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = client::config_with(client::provider(), &[version]);
        let mut tls = client::try_connect(&Arc::new(config), scene.server.address, NAME).unwrap();
        client::echo(&mut tls, b"honest so far");
        let mut forged = vec![23, 3, 3, 0, 64];
        forged.resize(5 + 64, 0x5a);
        tls.sock.write_all(&forged).unwrap();
        let error = tls.read(&mut [0; 64]).unwrap_err();
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
    }
    scene.server.wait_closed("client_violation", 2);
    scene.server.wait_handshakes("ok", 3);
    let Scene { server, mut steady } = scene;
    client::echo(&mut steady, b"unharmed");
    client::finish(steady);
    server.wait_idle();
}

#[test]
fn a_client_that_vanishes_while_its_server_is_connected_leaves_nothing_behind() {
    let silent = Silent::new();
    let server = Setup::new(silent.address).tables("[timeouts]\nconnect = \"2s\"").start();
    for reset in [false, true] {
        let tls = client::connect(server.address);
        eventually("a connection that waits for its server", || {
            (server.metrics().get("portcullis_connections{state=\"connect\"}") == 1.0).then_some(())
        });
        if reset {
            client::reset_at_close(&tls.sock);
        }
        drop(tls);
        server.wait_idle();
    }
    server.wait_metric("portcullis_connections_closed_total", 2.0);
}

#[test]
fn servers_that_vanish_in_each_stage_are_told_to_the_client() {
    // Which stage, is chosen by the first byte that the client sends.
    let server = Server::before(Backend::new(|mut stream| {
        let mut stage = [0];
        if stream.read(&mut stage).unwrap_or(0) == 0 {
            return;
        }
        match stage[0] {
            b'c' => {}
            b'r' => client::reset_at_close(&stream),
            b'p' => _ = stream.write_all(b"part of an ans"),
            _ => {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    _ = stream.write_all(&buffer[..count]);
                }
            }
        }
    }));
    let mut steady = client::connect(server.address);
    steady.write_all(b"e").unwrap();
    client::echo(&mut steady, b"established");

    for (stage, expected) in [(b"c", &b""[..]), (b"p", b"part of an ans")] {
        let mut tls = client::connect(server.address);
        tls.write_all(stage).unwrap();
        let mut answer = Vec::new();
        tls.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, expected);
        client::end_sending(&mut tls);
    }
    server.wait_closed("finished", 2);

    let mut tls = client::connect(server.address);
    tls.write_all(b"r").unwrap();
    tls.read_to_end(&mut Vec::new()).unwrap_err();
    server.wait_closed("server_reset", 1);

    client::echo(&mut steady, b"unharmed");
    client::finish(steady);
    server.wait_closed("finished", 3);
    server.wait_idle();
}

#[test]
fn two_thousand_slowloris_clients_cost_a_slot_each_and_nothing_else() {
    const CLIENTS: u32 = 2000;
    let scene = Scene::of(Setup::new(Backend::echo()).tables("[timeouts]\nhandshake = \"5s\""));
    let Scene { server, mut steady } = scene;
    let hello = client_hello();
    let mut clients: Vec<TcpStream> =
        (0..CLIENTS).map(|_| client::tcp(server.address).unwrap()).collect();
    let mut slowest = Duration::ZERO;
    for byte in hello.iter().take(20) {
        for stream in &mut clients {
            // Those whose time is up get an error, which is what they deserve.
            _ = stream.write_all(&[*byte]);
        }
        let before = Instant::now();
        client::echo(&mut steady, b"established");
        let mut fresh = client::connect(server.address);
        client::echo(&mut fresh, b"new");
        slowest = slowest.max(before.elapsed());
        client::finish(fresh);
    }
    assert!(slowest < Duration::from_secs(3), "others waited {slowest:?}");
    server.wait_handshakes("timeout", CLIENTS);
    server.wait_handshakes("ok", 21);
    client::echo(&mut steady, b"unharmed");
    client::finish(steady);
    server.wait_idle();
}
