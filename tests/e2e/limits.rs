//! Limits bite without harm: what does not fit waits, and what waits too long ends.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use crate::support::backend::{Backend, Silent};
use crate::support::client::{self, Tls};
use crate::support::eventually;
use crate::support::server::{Server, Setup};

/// CPU time that a second of waiting may cost the whole process.
const QUIET: Duration = Duration::from_millis(200);

/// Waits for the log line that names a key and its value.
#[track_caller]
fn wait_logged(server: &Server, what: &str) {
    eventually(what, || server.log().contains(what).then_some(()));
}

/// CPU time used within one second.
fn cpu_of_one_second(server: &Server) -> Duration {
    let before = server.process.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    server.process.cpu_time().saturating_sub(before)
}

fn open(server: &Server, count: usize) -> Vec<Tls> {
    (0..count)
        .map(|_| {
            let mut tls = client::connect(server.address);
            client::echo(&mut tls, b"in");
            tls
        })
        .collect()
}

#[test]
fn a_full_worker_pauses_accept_quietly_and_goes_on_when_there_is_room() {
    let server = Setup::new(Backend::echo()).tables("[limits]\nconnections_per_worker = 8").start();
    let mut inside = open(&server, 8);
    // The kernel still takes these; the server does not.
    let waiting: Vec<_> = (0..20).map(|_| client::tcp(server.address).unwrap()).collect();
    eventually("accept pauses", || {
        (server.metrics().get("portcullis_accept_paused") == 1.0).then_some(())
    });
    let used = cpu_of_one_second(&server);
    assert!(used < QUIET, "{used:?} of CPU time in a second of waiting");
    for tls in &mut inside {
        client::echo(tls, b"unharmed");
    }
    assert_eq!(server.metrics().get("portcullis_connections_accepted_total"), 8.0);
    let mentions =
        |log: &str| log.lines().filter(|line| line.contains("connections_per_worker")).count();
    eventually("the log says so", || (mentions(&server.log()) > 0).then_some(()));

    // Room for all: the waiting ones are served in their turn.
    inside.into_iter().for_each(client::finish);
    let config = std::sync::Arc::new(client::config());
    for stream in waiting {
        let mut tls = client::handshake(&config, stream, crate::support::server::NAME).unwrap();
        client::echo(&mut tls, b"at last");
        client::finish(tls);
    }
    server.wait_closed("finished", 28);
    server.wait_idle();
    eventually("accept goes on", || {
        (server.metrics().get("portcullis_accept_paused") == 0.0).then_some(())
    });
    assert!(
        server.metrics().get("portcullis_limit_reached_total{limit=\"connections_per_worker\"}")
            >= 1.0
    );
    let log = server.log();
    assert_eq!(mentions(&log), 1, "{log}");
}

/// Each listening address takes its share of the descriptors too.
#[test]
fn a_worker_on_many_addresses_holds_as_many_connections_as_it_says() {
    let mut setup = Setup::new(Backend::echo());
    setup.descriptors = Some(400);
    let files = setup.certificates[0].0.clone();
    for name in ["second", "third", "fourth"] {
        setup = setup.tables(&format!(
            "[[listener]]\nname = \"{name}\"\nbind = [\"{}\"]\nbackend = \"app\"\n\
             [[listener.certificate]]\nchain = \"{}\"\nkey = \"{}\"",
            crate::support::address::free(),
            files.chain.display(),
            files.key.display()
        ));
    }
    let server = setup.start();
    // (400 - 64 of the worker - 4 x 32 of the addresses) / 2
    wait_logged(&server, " 104 connections each");
    let mut inside = open(&server, 104);
    let waiting = client::tcp(server.address).unwrap();
    eventually("accept pauses", || {
        (server.metrics().get("portcullis_accept_paused") == 1.0).then_some(())
    });
    for tls in &mut inside {
        client::echo(tls, b"unharmed");
    }
    assert_eq!(server.metrics().get("portcullis_connections{state=\"relay\"}"), 104.0);
    drop(waiting);
    inside.into_iter().for_each(client::finish);
    server.wait_idle();
}

#[test]
fn at_the_descriptor_limit_the_server_neither_spins_nor_dies() {
    let mut setup = Setup::new(Backend::echo());
    setup.descriptors = Some(100);
    let server = setup.start();
    let mut first = client::connect(server.address);
    client::echo(&mut first, b"in");
    let crowd: Vec<_> = (0..300).map(|_| client::tcp(server.address).unwrap()).collect();
    let used = cpu_of_one_second(&server);
    assert!(used < QUIET, "{used:?} of CPU time in a second of waiting");
    client::echo(&mut first, b"unharmed");
    drop(crowd);
    let mut fresh = client::connect(server.address);
    client::echo(&mut fresh, b"room again");
    client::finish(fresh);
    client::finish(first);
    server.wait_idle();
}

#[test]
fn an_idle_server_uses_no_cpu() {
    let server = Server::before(Backend::echo());
    let mut inside = open(&server, 50);
    let used = cpu_of_one_second(&server);
    assert!(used < QUIET, "{used:?} of CPU time in an idle second");
    for tls in &mut inside {
        client::echo(tls, b"awake");
    }
}

#[test]
fn a_handshake_that_takes_too_long_ends_as_timeout() {
    let server = Setup::new(Backend::echo()).tables("[timeouts]\nhandshake = \"500ms\"").start();
    let start = Instant::now();
    let mut stream = client::tcp(server.address).unwrap();
    _ = stream.read_to_end(&mut Vec::new());
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    server.wait_handshakes("timeout", 1);
    server.wait_closed("handshake_failed", 1);
    wait_logged(&server, "timeouts.handshake is 500ms");
    server.wait_idle();
}

#[test]
fn a_server_that_never_answers_ends_as_connect_timeout() {
    let silent = Silent::new();
    let server = Setup::new(silent.address).tables("[timeouts]\nconnect = \"300ms\"").start();
    let mut tls = client::connect(server.address);
    let mut rest = Vec::new();
    _ = tls.read_to_end(&mut rest);
    assert!(rest.is_empty());
    server.wait_closed("connect_timeout", 1);
    wait_logged(&server, "timeouts.connect, 300ms");
    server.wait_idle();
}

#[test]
fn a_server_that_never_answers_is_left_for_another() {
    let silent = Silent::new();
    let mut setup = Setup::new(silent.address).tables("[timeouts]\nconnect = \"300ms\"");
    setup.servers.push(Backend::echo().to_string());
    let server = setup.start();
    for _ in 0..4 {
        let mut tls = client::connect(server.address);
        client::echo(&mut tls, b"by the other");
        client::finish(tls);
    }
    server.wait_closed("finished", 4);
}

#[test]
fn an_idle_connection_ends_and_a_busy_one_does_not() {
    let server = Setup::new(Backend::echo()).tables("[timeouts]\nidle = \"2s\"").start();
    let mut busy = client::connect(server.address);
    let mut idle = client::connect(server.address);
    client::echo(&mut idle, b"last words");
    let start = Instant::now();
    // Twice the timeout, with a byte now and then.
    while start.elapsed() < Duration::from_secs(4) {
        client::echo(&mut busy, b".");
        std::thread::sleep(Duration::from_millis(200));
    }
    server.wait_closed("idle_timeout", 1);
    wait_logged(&server, "timeouts.idle is 2s");
    _ = idle.read_to_end(&mut Vec::new());
    client::echo(&mut busy, b"still here");
    client::finish(busy);
    server.wait_closed("finished", 1);
    server.wait_idle();
}

/// A backend that ends its side if told to, and never ends the connection.
fn one_sided(ends: bool) -> Backend {
    Backend::new(move |mut stream| {
        stream.write_all(b"hello").unwrap();
        if ends {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        // Takes what comes; the server that is tested must end this.
        let mut buffer = [0; 1024];
        while let Ok(1..) = stream.read(&mut buffer) {}
        if !ends {
            std::thread::sleep(crate::support::STUCK);
        }
    })
}

#[test]
fn a_half_closed_connection_ends_whichever_side_stays_silent() {
    for server_ends in [true, false] {
        let server = Setup::new(one_sided(server_ends))
            .tables("[timeouts]\nhalf_closed = \"700ms\"")
            .start();
        let mut tls = client::connect(server.address);
        tls.read_exact(&mut [0; 5]).unwrap();
        if server_ends {
            assert_eq!(tls.read(&mut [0]).unwrap(), 0);
        } else {
            client::end_sending(&mut tls);
        }
        server.wait_closed("half_closed_timeout", 1);
        wait_logged(&server, "timeouts.half_closed is 700ms");
        server.wait_idle();
    }
}
