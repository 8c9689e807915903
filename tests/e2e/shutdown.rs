//! How the server ends.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::eventually;
use crate::support::server::{NAME, Server, Setup};

/// Waits until no new connection is taken.
fn wait_refused(server: &Server) {
    let config = std::sync::Arc::new(client::config());
    eventually("new connections are refused", || {
        client::try_connect(&config, server.address, NAME).err()
    });
}

#[test]
fn each_signal_drains_what_is_open_refuses_what_is_new_and_exits_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = Setup::new(Backend::echo()).workers(2).start();
        let mut open: Vec<_> = (0..8)
            .map(|_| {
                let mut tls = client::connect(server.address);
                client::echo(&mut tls, b"before");
                tls
            })
            .collect();
        server.signal(signal);
        wait_refused(&server);
        for tls in &mut open {
            client::echo(tls, b"in flight");
        }
        assert!(server.process.ended().is_none(), "{signal}: ended too early");
        open.into_iter().for_each(client::finish);
        let status = server.wait_exit();
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

#[test]
fn without_connections_it_exits_at_once() {
    let mut server = Server::before(Backend::echo());
    let start = Instant::now();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_second_signal_does_not_wait_for_connections() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = Server::before(Backend::echo());
        let mut tls = client::connect(server.address);
        client::echo(&mut tls, b"before");
        server.signal(signal);
        wait_refused(&server);
        client::echo(&mut tls, b"in flight");
        server.signal(signal);
        let status = server.wait_exit();
        assert!(status.signal().is_none(), "killed instead of ended: {status}");
        assert_eq!(status.code(), Some(128 + signal as i32), "{status}");
    }
}

#[test]
fn the_drain_ends_at_its_timeout_and_says_so() {
    let mut server = Setup::new(Backend::echo()).tables("[timeouts]\ndrain = \"700ms\"").start();
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"before");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    let records = server.wait_records(1);
    assert_eq!(records[0]["reason"], "drain_timeout", "{records:?}");
    let log = server.log();
    assert!(log.contains("drain_timeout; timeouts.drain is 700ms"), "{log}");
}

#[test]
fn a_handshake_that_the_drain_cuts_off_ends_as_draining() {
    let mut server = Setup::new(Backend::echo()).tables("[timeouts]\ndrain = \"700ms\"").start();
    let _silent = client::tcp(server.address).unwrap();
    server.wait_metric("portcullis_connections{state=\"client_hello\"}", 1.0);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    let records = server.wait_records(1);
    assert_eq!(records[0]["handshake"], "draining", "{records:?}");
    let log = server.log();
    assert!(log.contains("draining; timeouts.drain is 700ms"), "{log}");
}

#[test]
fn the_access_log_is_complete_at_the_exit() {
    let mut server = Setup::new(Backend::echo()).workers(2).start();
    for _ in 0..100 {
        let mut tls = client::connect(server.address);
        client::echo(&mut tls, b"logged");
        client::finish(tls);
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
    server.wait_records(100);
}
