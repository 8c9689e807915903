//! Symptom: a server that answered an upload early and refused the rest of it was not heard: its
//! answer arrived cut short.
//!
//! Cause: the failed send to the server ended the connection, although the server's answer and its
//! end were there to be read.
//!
//! Scenario:
//! 1. The client begins to upload; the server writes its whole answer and its end.
//! 2. The server closes with unread bytes once its peer's kernel has all: from now on it resets.
//! 3. The client uploads on and reads slowly. As without us, it must get the whole answer.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{self, Tls};
use crate::support::eventually;
use crate::support::pattern;
use crate::support::server::Server;
use crate::{keep_little, read_slowly};

const ANSWER_BYTES: u64 = 2_000_000;
const BYTES_A_SECOND: u64 = 800_000;

/// Whether the peer's kernel has acknowledged everything, our end included: the state `FIN_WAIT2`
/// in `/proc/net/tcp` (proc(5)).
fn all_is_acknowledged(stream: &TcpStream) -> bool {
    let hex = |address: SocketAddr| {
        let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
        let ip = u32::from_ne_bytes(address.ip().octets());
        format!("{ip:08X}:{:04X}", SocketAddrV4::port(&address))
    };
    let ends = [stream.local_addr().unwrap(), stream.peer_addr().unwrap()].map(hex);
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let waits = format!("{} {} 05 ", ends[0], ends[1]);
    table.lines().any(|line| line.contains(&waits))
}

/// A TLS client that reads on when it cannot write: rustls' own stream wants to write first.
struct Listening(Tls);

impl Read for Listening {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let Tls { conn, sock } = &mut self.0;
        loop {
            match conn.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => conn.read_tls(sock)?,
                result => return result,
            };
            conn.process_new_packets().map_err(std::io::Error::other)?;
        }
    }
}

impl Write for Listening {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        self.0.write(from)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn refuses_uploads() -> Backend {
    Backend::new(|mut stream| {
        stream.read_exact(&mut [0; 4]).unwrap();
        pattern::write(&mut stream, ANSWER_BYTES).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        eventually("an answer that has been taken", || all_is_acknowledged(&stream).then_some(()));
        // Unread bytes make the close a reset.
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        _ = stream.peek(&mut [0]);
    })
}

/// Uploads a little after each read, for as long as that is taken.
fn assert_hears_the_whole_answer(stream: &mut (impl Read + Write), way: &str) {
    stream.write_all(b"POST").unwrap();
    stream.write_all(&[b'u'; 1000]).unwrap();
    let mut taken = true;
    let (answer, end) = read_slowly(stream, BYTES_A_SECOND, |stream| {
        taken = taken && stream.write_all(&[b'u'; 1000]).and_then(|()| stream.flush()).is_ok();
    });
    assert_eq!(answer.len() as u64, ANSWER_BYTES, "{way}, which ended as {end:?}");
    pattern::verify(&mut &*answer, ANSWER_BYTES);
}

#[test]
fn an_answer_survives_a_refused_upload() {
    let backend = refuses_uploads();
    let mut direct = client::tcp(backend.address).unwrap();
    keep_little(&direct);
    assert_hears_the_whole_answer(&mut direct, "directly");

    let server = Server::before(backend);
    let tls = client::connect(server.address);
    keep_little(&tls.sock);
    assert_hears_the_whole_answer(&mut Listening(tls), "through the server");
    server.wait_closed("server_reset", 1);
    server.wait_idle();
}
