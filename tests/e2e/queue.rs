//! `max_connections`: who finds every server busy waits in line, with those of all workers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::support::backend::Backend;
use crate::support::client::{self, Tls};
use crate::support::server::{Server, Setup};
use crate::support::{SOON, address, eventually};

/// Waits until so many connections are in this state.
#[track_caller]
fn wait_state(server: &Server, state: &str, count: f64) {
    let selector = format!("portcullis_connections{{state=\"{state}\"}}");
    eventually(&format!("{count} connections in state {state}"), || {
        (server.metrics().get(&selector) == count).then_some(())
    });
}

/// A server in front of `backend`, which may have so many connections.
fn limited(backend: impl ToString, max_connections: u32, queue: &str) -> Setup {
    let mut setup = Setup::new(backend).tables(&format!("[backend.queue]\n{queue}"));
    setup.max_connections = Some(max_connections);
    setup
}

/// A client that has come into line.
#[track_caller]
fn queue_up(server: &Server, line: f64) -> Tls {
    let tls = client::connect(server.address);
    wait_state(server, "queued", line);
    tls
}

/// Reads to the end, which must come without a byte before it.
fn assert_refused(mut tls: Tls) {
    let mut rest = Vec::new();
    // Whatever the end looks like.
    _ = tls.read_to_end(&mut rest);
    assert!(rest.is_empty());
}

/// Waits until no permit is left.
fn wait_free(server: &Server) {
    server.wait_idle();
    eventually("no connection to a server is counted", || {
        let metrics = server.metrics();
        let in_use = metrics.find("portcullis_server_connections");
        let waiting = metrics.find("portcullis_backend_waiting");
        (in_use == Some(0.0) && waiting == Some(0.0)).then_some(())
    });
}

/// A backend that holds every request back until the gate is open, and says in which order they
/// came and how many connections it had at once.
struct Gated {
    backend: Backend,
    gate: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    requests: Receiver<u8>,
}

impl Gated {
    fn new() -> Self {
        let (gate, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (sender, requests) = channel();
        let now = AtomicUsize::new(0);
        let (opened, highest) = (Arc::clone(&gate), Arc::clone(&most));
        let backend = Backend::new(move |mut stream| {
            highest.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            let mut number = [0];
            stream.read_exact(&mut number).unwrap();
            sender.send(number[0]).unwrap();
            while !opened.load(SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            stream.write_all(b"served").unwrap();
            // Before its end is seen: nobody may come for this one before.
            now.fetch_sub(1, SeqCst);
        });
        Self { backend, gate, most, requests }
    }
}

#[test]
fn clients_of_all_workers_wait_in_one_line_and_are_served_in_order() {
    const CLIENTS: u8 = 20;
    let gated = Gated::new();
    // No timer wakes a worker by chance: whoever has a permit for its client has to.
    let server = limited(&gated.backend, 2, "timeout = \"5m\"")
        .tables("[timeouts]\nrest = \"1h\"\nhandshake = \"5m\"\nconnect = \"5m\"")
        .workers(2)
        .start();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut tls = match number {
            0 | 1 => client::connect(server.address),
            _ => queue_up(&server, f64::from(number - 1)),
        };
        tls.write_all(&[number]).unwrap();
        if number < 2 {
            assert_eq!(gated.requests.recv_timeout(SOON), Ok(number));
        }
        clients.push(tls);
    }
    server.wait_metric("portcullis_backend_waiting{backend=\"app\"}", f64::from(CLIENTS - 2));
    server.wait_metric("portcullis_server_connections", 2.0);
    assert_eq!(server.metrics().get("portcullis_server_connections_max"), 2.0);

    gated.gate.store(true, SeqCst);
    for tls in &mut clients {
        let mut answer = String::new();
        tls.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "served");
        client::end_sending(tls);
    }
    for place in 2..CLIENTS {
        let number = gated.requests.recv_timeout(SOON).unwrap();
        // Two are served at a time, and either may be the first to say its number.
        assert!(number.abs_diff(place) <= 2, "client {number} was served in place {place}");
    }
    assert_eq!(gated.most.load(SeqCst), 2);
    server.wait_closed("finished", u32::from(CLIENTS));
    wait_free(&server);
    let metrics = server.metrics();
    let waited = metrics.get("portcullis_stage_duration_seconds_count{stage=\"queue\"}");
    assert_eq!(waited, f64::from(CLIENTS - 2));
    let records = server.wait_records(usize::from(CLIENTS));
    let waited = records.iter().filter(|record| record["queue_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(waited.count(), usize::from(CLIENTS - 2));
}

#[test]
fn who_finds_the_line_full_is_refused_and_who_waits_is_not() {
    let server = limited(Backend::echo(), 1, "max = 1\ntimeout = \"1m\"").start();
    let mut inside = client::connect(server.address);
    client::echo(&mut inside, b"mine");
    let mut waiting = queue_up(&server, 1.0);
    for _ in 0..3 {
        assert_refused(client::connect(server.address));
    }
    server.wait_closed("queue_full", 3);
    let limit = |limit| format!("portcullis_limit_reached_total{{limit=\"{limit}\"}}");
    assert_eq!(server.metrics().get(&limit("backend_queue")), 3.0);
    assert_eq!(server.metrics().get(&limit("server_connections")), 1.0);
    for key in ["backend.queue.max clients", "every server of a backend has max_connections"] {
        eventually(key, || server.log().contains(key).then_some(()));
    }
    client::finish(inside);
    client::echo(&mut waiting, b"mine now");
    client::finish(waiting);
    wait_free(&server);
}

#[test]
fn who_waits_longer_than_the_timeout_is_told_apart() {
    let server = limited(Backend::echo(), 1, "timeout = \"300ms\"").start();
    let mut inside = client::connect(server.address);
    client::echo(&mut inside, b"mine");
    assert_refused(client::connect(server.address));
    server.wait_closed("queue_timeout", 1);
    eventually("the log names the key", || {
        server.log().contains("backend.queue.timeout because every server").then_some(())
    });
    let record = &server.wait_records(1)[0];
    assert_eq!(record["reason"], "queue_timeout", "{record}");
    assert!(record["queue_ms"].as_f64().unwrap() >= 300.0, "{record}");
    assert_eq!(record["backend"], "app", "{record}");
    assert!(record["server"].is_null(), "{record}");
    client::echo(&mut inside, b"unharmed");
    client::finish(inside);
    wait_free(&server);
}

#[test]
fn a_client_that_leaves_the_line_makes_room_for_the_next() {
    let server = limited(Backend::echo(), 1, "max = 1\ntimeout = \"1m\"").workers(2).start();
    let mut inside = client::connect(server.address);
    client::echo(&mut inside, b"mine");
    for _ in 0..5 {
        let leaves = queue_up(&server, 1.0);
        client::reset_at_close(&leaves.sock);
        drop(leaves);
        wait_state(&server, "queued", 0.0);
    }
    let mut stays = queue_up(&server, 1.0);
    client::finish(inside);
    client::echo(&mut stays, b"mine now");
    client::finish(stays);
    server.wait_closed("client_reset", 5);
    server.wait_closed("finished", 2);
    wait_free(&server);
}

#[test]
fn those_in_line_are_served_during_a_drain() {
    let mut server = limited(Backend::echo(), 1, "timeout = \"1m\"").workers(2).start();
    let mut inside = client::connect(server.address);
    client::echo(&mut inside, b"mine");
    let mut waiting = queue_up(&server, 1.0);
    server.signal(Signal::SIGTERM);
    eventually("it drains", || {
        matches!(crate::support::metrics::get(server.admin, "/healthz"), Ok((503, _))).then_some(())
    });
    client::echo(&mut inside, b"still mine");
    client::finish(inside);
    client::echo(&mut waiting, b"mine now");
    client::finish(waiting);
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// An echo server that can be stopped with all its connections.
struct Mortal {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    thread: JoinHandle<Vec<TcpStream>>,
}

impl Mortal {
    fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut streams = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(SeqCst) {
                    break;
                }
                let stream = stream.unwrap();
                streams.push(stream.try_clone().unwrap());
                std::thread::spawn(move || {
                    _ = std::io::copy(&mut &stream, &mut &stream);
                    _ = stream.shutdown(Shutdown::Write);
                });
            }
            streams
        });
        Self { stop, address, thread }
    }

    fn kill(self) {
        self.stop.store(true, SeqCst);
        let last = TcpStream::connect(self.address).unwrap();
        for stream in self.thread.join().unwrap() {
            // One may have ended.
            _ = stream.shutdown(Shutdown::Both);
        }
        drop(last);
    }
}

#[test]
fn a_server_that_was_killed_and_started_again_has_all_its_places() {
    let place = address::free();
    let mortal = Mortal::start(place);
    let server = limited(place, 2, "timeout = \"1m\"").workers(2).start();
    let mut inside: Vec<Tls> = (0..2).map(|_| client::connect(server.address)).collect();
    for tls in &mut inside {
        client::echo(tls, b"mine");
    }
    let waiting: Vec<Tls> = (1..=4_u8).map(|line| queue_up(&server, f64::from(line))).collect();
    mortal.kill();
    for tls in inside {
        assert_refused(tls);
    }
    // Each gets a place and finds nobody there.
    waiting.into_iter().for_each(assert_refused);
    server.wait_closed("connect_failed", 4);
    wait_free(&server);

    let _again = Mortal::start(place);
    let mut inside: Vec<Tls> = (0..2).map(|_| client::connect(server.address)).collect();
    for tls in &mut inside {
        client::echo(tls, b"mine again");
    }
    let mut waiting = queue_up(&server, 1.0);
    inside.into_iter().for_each(client::finish);
    client::echo(&mut waiting, b"mine, too");
    client::finish(waiting);
    wait_free(&server);
}
