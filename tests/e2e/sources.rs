//! Sources of clients, told apart by loopback addresses: each limit bites the one that is over it
//! and nobody else, is counted, and lets go.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client::{self, Tls};
use crate::support::eventually;
use crate::support::server::{NAME, Server, Setup};

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 31);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 32);

fn limited(workers: usize, tables: &str) -> Server {
    Setup::new(Backend::echo()).workers(workers).tables(tables).start()
}

fn tcp(server: &Server, from: Ipv4Addr) -> TcpStream {
    client::tcp_from(from, server.address).unwrap()
}

fn try_connect(server: &Server, from: Ipv4Addr) -> std::io::Result<Tls> {
    client::handshake(&Arc::new(client::config()), tcp(server, from), NAME)
}

/// A whole conversation.
#[track_caller]
fn is_served(server: &Server, from: Ipv4Addr) {
    let mut tls = try_connect(server, from).unwrap();
    client::echo(&mut tls, b"served");
    client::finish(tls);
}

/// What a client that was refused reads.
fn read_end(mut stream: TcpStream) -> std::io::Result<usize> {
    stream.read(&mut [0; 16])
}

#[track_caller]
fn assert_reset(stream: TcpStream) {
    let error = read_end(stream).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

fn refused(server: &Server, limit: &str) -> f64 {
    server.metrics().get(&format!("portcullis_limit_reached_total{{limit=\"{limit}\"}}"))
}

/// Counted by its limit and by how its handshake ended, and in the log with its key.
#[track_caller]
fn assert_counted(server: &Server, limit: &str, count: u32, key: &str) {
    let selector = format!("portcullis_limit_reached_total{{limit=\"{limit}\"}}");
    server.wait_metric(&selector, f64::from(count));
    server.wait_handshakes(limit, count);
    let line = format!("limit {limit} reached");
    eventually(&line, || {
        let log = server.log();
        log.lines().any(|one| one.contains(&line) && one.contains(key)).then_some(())
    });
}

#[test]
fn connections_of_a_source_are_counted_over_all_workers_and_come_back_when_they_end() {
    let server = limited(2, "[limits.per_source]\nconnections = 4");
    let open = |from| (0..4).map(move |_| from);
    let mut inside: Vec<Tls> = open(ONE)
        .chain(open(OTHER))
        .map(|from| {
            let mut tls = try_connect(&server, from).unwrap();
            client::echo(&mut tls, b"in");
            tls
        })
        .collect();
    for _ in 0..6 {
        assert_reset(tcp(&server, ONE));
    }
    assert_counted(&server, "source_connections", 6, "limits.per_source.connections");
    for tls in &mut inside {
        client::echo(tls, b"unharmed");
    }
    let records = server.wait_records(6);
    for record in &records {
        assert_eq!(record["handshake"], "source_connections", "{record}");
        assert_eq!(record["reason"], "handshake_failed", "{record}");
        assert!(record["client"].as_str().unwrap().starts_with("127.0.0.31:"), "{record}");
    }
    inside.into_iter().for_each(client::finish);
    server.wait_idle();
    // Four at once again, and none of them is refused.
    let again: Vec<Tls> = open(ONE).map(|from| try_connect(&server, from).unwrap()).collect();
    again.into_iter().for_each(client::finish);
    assert_eq!(refused(&server, "source_connections"), 6.0);
}

#[test]
fn handshakes_of_a_source_that_do_not_end_hold_up_that_source_alone() {
    let server =
        limited(2, "[limits.per_source]\nhandshakes = 3\n[timeouts]\nhandshake = \"5s\"\n");
    let silent: Vec<TcpStream> = (0..3).map(|_| tcp(&server, ONE)).collect();
    server.wait_metric("portcullis_connections{state=\"client_hello\"}", 3.0);
    assert_reset(tcp(&server, ONE));
    assert_counted(&server, "source_handshakes", 1, "limits.per_source.handshakes");
    is_served(&server, OTHER);
    // Their timeout gives the places back.
    server.wait_handshakes("timeout", 3);
    is_served(&server, ONE);
    drop(silent);
    // Established connections do not count.
    let mut inside: Vec<Tls> = (0..6).map(|_| try_connect(&server, ONE).unwrap()).collect();
    for tls in &mut inside {
        client::echo(tls, b"in");
    }
    inside.into_iter().for_each(client::finish);
    assert_eq!(refused(&server, "source_handshakes"), 1.0);
}

#[test]
fn garbage_leaks_no_count() {
    let server = limited(
        2,
        "[limits.per_source]\nconnections = 2\nhandshakes = 2\nhandshake_cpu = \"10s\"\n",
    );
    let openings: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x05garbage",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x16\x03\x01\x40\x00\x01",
    ];
    for (round, opening) in (0_u32..40).zip(openings.iter().cycle()) {
        let mut stream = tcp(&server, ONE);
        _ = stream.write_all(opening);
        if round % 2 == 0 {
            client::reset_at_close(&stream);
        } else {
            _ = stream.shutdown(std::net::Shutdown::Write);
            _ = stream.read_to_end(&mut Vec::new());
        }
        drop(stream);
        server.wait_closed("handshake_failed", round + 1);
        server.wait_idle();
    }
    for _ in 0..4 {
        is_served(&server, ONE);
        server.wait_idle();
    }
    for limit in ["source_connections", "source_handshakes", "source_handshake_cpu"] {
        assert_eq!(refused(&server, limit), 0.0, "{limit}");
    }
}

#[test]
fn a_source_that_has_used_up_its_budget_is_refused_before_any_cryptography() {
    // The least there is: a few handshakes use it up.
    let server = limited(1, "[limits.per_source]\nhandshake_cpu = \"1ms\"");
    assert!(server.log().contains("a handshake with a key of ECDSA P-256 costs"));
    let mut done = 0;
    let refusal = loop {
        match try_connect(&server, ONE) {
            Ok(tls) => client::finish(tls),
            Err(error) => break error,
        }
        done += 1;
        assert!(done < 1000, "the budget never ends");
    };
    assert_eq!(refusal.kind(), ErrorKind::ConnectionReset, "{refusal}");
    assert_counted(&server, "source_handshake_cpu", 1, "limits.per_source.handshake_cpu");
    // Each that was done had its step, and the one that was refused had none.
    let steps = "portcullis_handshake_steps_total{step=\"full\"}";
    assert_eq!(server.metrics().get(steps), f64::from(done));
    is_served(&server, OTHER);
    // In time the source may come again.
    eventually("the source comes again", || {
        std::thread::sleep(Duration::from_millis(50));
        try_connect(&server, ONE).ok().map(client::finish)
    });
}

#[test]
fn networks_that_are_allowed_are_not_limited() {
    let server = limited(
        1,
        "[limits.per_source]\nconnections = 1\nallow = [\"127.0.0.32\"]\nhandshake_cpu = \"1ms\"",
    );
    let inside: Vec<Tls> = (0..8).map(|_| try_connect(&server, OTHER).unwrap()).collect();
    let one = try_connect(&server, ONE).unwrap();
    assert_reset(tcp(&server, ONE));
    inside.into_iter().for_each(client::finish);
    client::finish(one);
}

#[test]
fn a_prefix_makes_a_network_one_source() {
    let server = limited(1, "[limits.per_source]\nconnections = 1\nipv4_prefix = 24");
    let one = try_connect(&server, ONE).unwrap();
    assert_reset(tcp(&server, OTHER));
    is_served(&server, Ipv4Addr::new(127, 0, 1, 31));
    client::finish(one);
}

#[test]
fn new_connections_are_refused_above_a_rate_of_all_or_of_a_listener() {
    for (tables, listener, limit, key) in [
        ("[limits]\nconnection_rate = 3", "", "connection_rate", "limits.connection_rate"),
        ("", "connection_rate = 3", "listener_connection_rate", "connection_rate of their"),
    ] {
        let server =
            Setup::new(Backend::echo()).workers(2).tables(tables).listener(listener).start();
        let first: Vec<TcpStream> = (0..3).map(|_| tcp(&server, ONE)).collect();
        // One more a third of a second later, if the machine is slow.
        let more: Vec<TcpStream> = (0..20).map(|_| tcp(&server, OTHER)).collect();
        let refused = eventually("all are let in or refused", || {
            let metrics = server.metrics();
            let inside = metrics.get("portcullis_connections{state=\"client_hello\"}");
            let refused =
                metrics.get(&format!("portcullis_limit_reached_total{{limit=\"{limit}\"}}"));
            (1..=20).find(|count| f64::from(*count) == refused && inside + refused == 23.0)
        });
        assert_counted(&server, limit, refused, key);
        drop((first, more));
        eventually("there is room again", || {
            std::thread::sleep(Duration::from_millis(100));
            try_connect(&server, ONE).ok().map(client::finish)
        });
    }
}

#[test]
fn a_refusal_is_a_reset_or_an_end_as_configured() {
    for (refuse, ends) in [("reset", false), ("close", true)] {
        let tables =
            format!("[limits]\nrefuse = \"{refuse}\"\n[limits.per_source]\nconnections = 1");
        let server = limited(1, &tables);
        let inside = try_connect(&server, ONE).unwrap();
        let refused = tcp(&server, ONE);
        if ends {
            assert_eq!(read_end(refused).unwrap(), 0, "{refuse}");
        } else {
            assert_reset(refused);
        }
        client::finish(inside);
    }
}
