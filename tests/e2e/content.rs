//! Every byte arrives, in order, and a reader that does not read costs bounded memory.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::pattern;
use crate::support::server::{NAME, Server};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Verifies `length` bytes of the pattern up to the end of the stream, then sends as many and ends.
fn mirror(mut stream: &TcpStream, length: u64) {
    pattern::verify(&mut stream, length);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "more than was sent");
    pattern::write(&mut stream, length).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Sends `length` bytes, ends, and verifies as many from the mirror.
fn both_ways(server: &Server, config: &Arc<rustls::ClientConfig>, length: u64) {
    let mut tls = client::try_connect(config, server.address, NAME).unwrap();
    pattern::write(&mut tls, length).unwrap();
    client::end_sending(&mut tls);
    pattern::verify(&mut tls, length);
    assert_eq!(tls.read(&mut [0]).unwrap(), 0, "no close_notify at the end");
}

#[track_caller]
fn assert_counted(server: &Server, connections: u32, total: u64) {
    server.wait_closed("finished", connections);
    let metrics = server.metrics();
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    let total = total as f64;
    for direction in ["inbound", "outbound"] {
        let counted = metrics.get(&format!("portcullis_{direction}_bytes_total"));
        assert_eq!(counted, total, "{direction}");
    }
}

#[test]
fn one_gibibyte_each_way_on_one_connection() {
    let server = Server::before(Backend::new(|stream| mirror(&stream, GIB)));
    both_ways(&server, &Arc::new(client::config()), GIB);
    assert_counted(&server, 1, GIB);
}

#[test]
fn one_gibibyte_each_way_on_a_hundred_connections() {
    let length = GIB / 100;
    let server = Server::before(Backend::new(move |stream| mirror(&stream, length)));
    let config = Arc::new(client::config());
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| both_ways(&server, &config, length));
        }
    });
    assert_counted(&server, 100, 100 * length);
}

#[test]
fn tls12_content_arrives_too() {
    let length = 64 * MIB;
    let server = Server::before(Backend::new(move |stream| mirror(&stream, length)));
    let config = client::config_with(client::provider(), &[&rustls::version::TLS12]);
    both_ways(&server, &Arc::new(config), length);
    assert_counted(&server, 1, length);
}

/// Both directions busy at the same time, with writes of many sizes.
#[test]
fn an_echo_of_every_size_is_the_same() {
    let server = Server::before(Backend::echo());
    let mut tls = client::connect(server.address);
    let mut bytes = Vec::new();
    pattern::write(&mut bytes, 70_000).unwrap();
    for length in [1, 2, 1369, 4096, 16_383, 16_384, 16_385, 32_768, 65_536, 70_000] {
        client::echo(&mut tls, &bytes[..length]);
    }
    client::finish(tls);
}

#[test]
fn small_records_are_relayed_whole() {
    let server = Server::before(Backend::echo());
    let mut config = client::config();
    config.max_fragment_size = Some(64);
    let mut tls = client::try_connect(&Arc::new(config), server.address, NAME).unwrap();
    let mut bytes = Vec::new();
    pattern::write(&mut bytes, 50_000).unwrap();
    client::echo(&mut tls, &bytes);
    client::finish(tls);
}

/// Connections that a slow reader holds up.
const SLOW: u64 = 8;

/// Bytes on each of them: more than the sockets on the way can hold.
const SLOW_BYTES: u64 = 128 * MIB;

/// What the server may need for them: a send buffer for each direction (128.7 KiB, src/limits.rs),
/// twice as many receive buffers as there are receives, rounded up to a power of two, and 4 MiB for
/// what the traffic touches once of the code and the allocator's memory.
const BOUND: u64 = SLOW * 2 * 129 * 1024 + 32 * 129 * 1024 + 4 * MIB;

/// Waits until `moved` stands still because somebody does not read.
fn wait_for_standstill(moved: &AtomicU64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = (moved.load(SeqCst), Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = moved.load(SeqCst);
        if now != last.0 {
            last = (now, Instant::now());
        } else if now > 0 && last.1.elapsed() > Duration::from_secs(1) {
            return now;
        }
        assert!(Instant::now() < deadline, "still moving after {now} bytes");
    }
}

/// A writer that counts what it could write.
struct Counted<'a, W>(W, &'a AtomicU64);

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1.fetch_add(count as u64, SeqCst);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[track_caller]
fn assert_bounded(server: &Server, before: u64, moved: u64) {
    assert!(moved < SLOW * SLOW_BYTES, "the sockets took it all: the reader was not slow enough");
    let now = server.process.resident_bytes();
    assert!(
        now <= before + BOUND,
        "{} KiB more for {SLOW} held-up connections, {} KiB are allowed",
        (now - before) / 1024,
        BOUND / 1024
    );
}

#[test]
fn a_client_that_reads_slowly_costs_bounded_memory_and_gets_every_byte() {
    let moved = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&moved);
    let server = Server::before(Backend::new(move |stream| {
        pattern::write(&mut Counted(&stream, &count), SLOW_BYTES).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // Until the client has read it all.
        _ = (&stream).read(&mut [0]);
    }));
    let before = server.process.resident_bytes();
    let clients: Vec<_> = (0..SLOW).map(|_| client::connect(server.address)).collect();
    let written = wait_for_standstill(&moved);
    assert_bounded(&server, before, written);
    for mut tls in clients {
        pattern::verify(&mut tls, SLOW_BYTES);
        client::finish(tls);
    }
    let now = server.process.resident_bytes();
    assert!(now <= before + BOUND, "{} KiB at the end", (now - before) / 1024);
}

#[test]
fn a_server_that_reads_slowly_costs_bounded_memory_and_gets_every_byte() {
    let moved = Arc::new(AtomicU64::new(0));
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let server = Server::before(Backend::new(move |stream| {
        while !gate.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        pattern::verify(&mut &stream, SLOW_BYTES);
        (&stream).write_all(b"verified").unwrap();
        _ = (&stream).read(&mut [0]);
    }));
    let before = server.process.resident_bytes();
    let config = Arc::new(client::config());
    std::thread::scope(|scope| {
        for _ in 0..SLOW {
            scope.spawn(|| {
                let mut tls = client::try_connect(&config, server.address, NAME).unwrap();
                pattern::write(&mut Counted(&mut tls, &moved), SLOW_BYTES).unwrap();
                let mut answer = [0; 8];
                tls.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"verified");
                client::finish(tls);
            });
        }
        // Let them go on in any case, or a failed assertion would wait for them for ever.
        let _opener = Opener(&open);
        let written = wait_for_standstill(&moved);
        assert_bounded(&server, before, written);
    });
}

/// Opens a gate when dropped.
struct Opener<'a>(&'a AtomicBool);

impl Drop for Opener<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
