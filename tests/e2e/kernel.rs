//! What the kernel does with clients before we accept them, as our metrics show it.

use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::backend::Backend;
use crate::support::client::{self, Tls};
use crate::support::eventually;
use crate::support::server::{Server, Setup};

#[test]
fn what_waits_to_be_accepted_is_shown() {
    let server = Setup::new(Backend::echo())
        .listener("backlog = 77")
        .tables("[limits]\nconnections_per_worker = 2")
        .start();
    let inside: Vec<Tls> = (0..2).map(|_| client::connect(server.address)).collect();
    let waiting: Vec<TcpStream> = (0..5).map(|_| client::tcp(server.address).unwrap()).collect();
    server.wait_metric("portcullis_listener_accept_queue{worker=\"0\",listener=\"front\"}", 5.0);
    let metrics = server.metrics();
    let address = server.address;
    for (name, value) in [("backlog", 77.0), ("drops_total", 0.0)] {
        let selector = format!("portcullis_listener_{name}{{address=\"{address}\"}}");
        assert_eq!(metrics.find(&selector), Some(value), "{selector}");
    }
    drop((inside, waiting));
    server.wait_idle();
    server.wait_metric("portcullis_listener_accept_queue", 0.0);
}

/// Whether all threads of a process are stopped by a signal (proc(5)).
fn has_stopped(id: u32) -> bool {
    std::fs::read_dir(format!("/proc/{id}/task")).unwrap().all(|task| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        status.contains("State:\tT")
    })
}

/// The server is stopped, as if its core were busy with something else; its queue holds two.
#[test]
fn clients_that_the_kernel_drops_are_counted_at_the_listener_that_dropped_them() {
    let server = Setup::new(Backend::echo()).listener("backlog = 1").start();
    let drops = |server: &Server| {
        let metrics = server.metrics();
        let listener = metrics.find("portcullis_listener_drops_total{listener=\"front\"}");
        (listener.unwrap(), metrics.find("portcullis_kernel_listen_drops_total").unwrap())
    };
    let (none, before) = drops(&server);
    assert_eq!(none, 0.0);
    server.signal(Signal::SIGSTOP);
    eventually("every thread has stopped", || has_stopped(server.process.id()).then_some(()));
    let patience = Duration::from_millis(200);
    let attempts: Vec<_> =
        (0..8).map(|_| TcpStream::connect_timeout(&server.address, patience)).collect();
    server.signal(Signal::SIGCONT);
    let refused = attempts.iter().filter(|attempt| attempt.is_err()).count();
    assert!(refused >= 5, "{refused} of 8 found no room");
    let (here, everywhere) = drops(&server);
    assert!(here >= 5.0, "{here} drops of {refused} attempts");
    assert!(everywhere - before >= here, "{everywhere} in all, {here} here");
    let line = "listener front: the kernel has dropped";
    eventually(line, || server.log().contains(line).then_some(()));
    drop(attempts);
    let mut fresh = client::connect(server.address);
    client::echo(&mut fresh, b"room again");
    client::finish(fresh);
}

#[test]
fn a_deferred_client_is_not_seen_before_it_speaks() {
    let server = Setup::new(Backend::echo()).listener("defer_accept = \"30s\"").start();
    let silent = client::tcp(server.address).unwrap();
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"deferred, and served");
    client::finish(tls);
    server.wait_closed("finished", 1);
    assert_eq!(server.metrics().get("portcullis_connections_accepted_total"), 1.0);
    drop(silent);
}
