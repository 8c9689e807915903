//! Connections that wait: what they give back, and that nothing is lost when they go on.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::server::{NAME, Server, Setup};
use crate::support::{SOON, STUCK};

const IDLE: &str = "portcullis_connections{state=\"idle\"}";

fn resting(setup: Setup) -> Server {
    setup.tables("[timeouts]\nrest = \"30ms\"").start()
}

#[test]
fn whoever_speaks_first_after_a_rest_is_heard() {
    let server = resting(Setup::new(Backend::new(|mut stream| {
        let mut request = [0; 3];
        while stream.read_exact(&mut request).is_ok() {
            stream.write_all(&request).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            stream.write_all(b"!").unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
    })));
    let mut tls = client::connect(server.address);
    for _ in 0..3 {
        server.wait_metric(IDLE, 1.0);
        client::echo(&mut tls, b"hi?");
        // By now both sides rest, and the server speaks.
        let mut more = [0];
        tls.read_exact(&mut more).unwrap();
        assert_eq!(more, *b"!");
    }
    client::finish(tls);
    server.wait_closed("finished", 1);
    server.wait_idle();
    assert!(server.metrics().get("portcullis_connection_rests_total") >= 4.0);
}

#[test]
fn large_answers_follow_a_rest_without_a_byte_lost() {
    let server = resting(Setup::new(Backend::echo()));
    let mut clients: Vec<_> = (0..8).map(|_| client::connect(server.address)).collect();
    for round in 0..4_u8 {
        server.wait_metric(IDLE, 8.0);
        for tls in &mut clients {
            client::echo(tls, &vec![round; 60_000]);
        }
    }
    clients.into_iter().for_each(client::finish);
    server.wait_closed("finished", 8);
}

/// The timer and the next byte come at the same time, again and again.
#[test]
fn a_byte_that_meets_the_timer_is_not_lost() {
    let server = Setup::new(Backend::echo()).tables("[timeouts]\nrest = \"10ms\"").start();
    let mut clients: Vec<_> = (0..20).map(|_| client::connect(server.address)).collect();
    for round in 0..20 {
        // Ticks of the server's timers have 8 ms.
        std::thread::sleep(Duration::from_micros(9_500 + 500 * round));
        for tls in &mut clients {
            client::echo(tls, b"just then");
        }
    }
    clients.into_iter().for_each(client::finish);
    server.wait_closed("finished", 20);
}

#[test]
fn ends_and_resets_reach_a_connection_at_rest() {
    let (sender, ended) = mpsc::channel();
    let server = resting(Setup::new(Backend::new(move |mut stream| {
        sender.send(stream.read(&mut [0; 9]).map_err(|error| error.kind())).unwrap();
    })));
    let at_rest = || {
        let tls = client::connect(server.address);
        server.wait_metric(IDLE, 1.0);
        tls
    };
    let tls = at_rest();
    client::reset_at_close(&tls.sock);
    drop(tls);
    server.wait_closed("client_reset", 1);
    assert_eq!(ended.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));

    let tls = at_rest();
    tls.sock.shutdown(Shutdown::Write).unwrap();
    server.wait_closed("client_truncated", 1);
    assert_eq!(ended.recv_timeout(SOON).unwrap(), Err(ErrorKind::ConnectionReset));

    client::finish(at_rest());
    server.wait_closed("finished", 1);
    assert_eq!(ended.recv_timeout(SOON).unwrap(), Ok(0));
}

#[test]
fn a_rest_does_not_put_the_idle_timeout_off() {
    let server =
        Setup::new(Backend::echo()).tables("[timeouts]\nrest = \"20ms\"\nidle = \"600ms\"").start();
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"hello");
    let began = std::time::Instant::now();
    server.wait_metric(IDLE, 1.0);
    assert!(tls.read(&mut [0]).is_err());
    let took = began.elapsed();
    assert!((Duration::from_millis(400)..Duration::from_secs(5)).contains(&took), "{took:?}");
    server.wait_closed("idle_timeout", 1);
}

const SILENT: &str = "portcullis_connections{state=\"first_byte\"}";

#[test]
fn on_first_byte_a_silent_client_costs_no_connection_to_a_server() {
    let echo = Backend::echo();
    let server = resting(Setup::new(&echo).on_first_byte());
    let silent: Vec<_> = (0..5).map(|_| client::connect(server.address)).collect();
    server.wait_metric(SILENT, 5.0);
    // They rest by now.
    server.wait_metric("portcullis_connection_rests_total", 5.0);
    assert_eq!(echo.accepted(), 0);
    for mut tls in silent {
        client::echo(&mut tls, b"now then");
        client::finish(tls);
    }
    assert_eq!(echo.accepted(), 5);
    server.wait_closed("finished", 5);
    for record in server.wait_records(5) {
        assert_eq!(record["backend"], "app");
    }
}

#[test]
fn on_first_byte_the_first_request_may_come_with_the_handshake_and_be_large() {
    let server = Setup::new(Backend::echo()).on_first_byte().start();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = client::config_with(client::provider(), &[version]);
        let config = std::sync::Arc::new(config);
        for _ in 0..10 {
            let mut tls = client::try_connect(&config, server.address, NAME).unwrap();
            client::echo(&mut tls, &vec![7; 100_000]);
            client::finish(tls);
        }
    }
    server.wait_closed("finished", 20);
}

#[test]
fn on_first_byte_a_client_that_ends_without_a_byte_is_answered_and_no_server_hears_of_it() {
    let echo = Backend::echo();
    let server = resting(Setup::new(&echo).on_first_byte());
    client::finish(client::connect(server.address));
    let tls = client::connect(server.address);
    server.wait_metric("portcullis_connection_rests_total", 1.0);
    client::finish(tls);
    server.wait_closed("finished", 2);
    let tls = client::connect(server.address);
    server.wait_handshakes("ok", 3);
    client::reset_at_close(&tls.sock);
    drop(tls);
    server.wait_closed("client_reset", 1);
    server.wait_idle();
    assert_eq!(echo.accepted(), 0);
    for record in server.wait_records(3) {
        assert_eq!(record["backend"], serde_json::Value::Null);
    }
}

#[test]
fn on_first_byte_a_client_has_the_idle_timeout_to_speak() {
    let server = Setup::new(Backend::echo())
        .on_first_byte()
        .tables("[timeouts]\nidle = \"300ms\"\nrest = \"50ms\"")
        .start();
    let mut tls = client::connect(server.address);
    assert!(tls.read(&mut [0]).is_err());
    server.wait_closed("idle_timeout", 1);
}

#[test]
fn on_first_byte_the_proxy_header_comes_first() {
    let (sender, heard) = mpsc::channel();
    let backend = Backend::new(move |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let server = resting(Setup::new(&backend).on_first_byte().proxy_protocol("v1"));
    let mut tls = client::connect(server.address);
    server.wait_metric("portcullis_connection_rests_total", 1.0);
    let port = tls.sock.local_addr().unwrap().port();
    tls.write_all(b"hello").unwrap();
    client::finish(tls);
    let all = String::from_utf8(heard.recv_timeout(SOON).unwrap()).unwrap();
    assert!(all.starts_with("PROXY TCP4 "), "{all}");
    assert!(all.contains(&format!(" {port} ")) && all.ends_with("\r\nhello"), "{all}");
}

/// Full handshakes of clients that come, stay for a moment all together, and go, all but one of
/// each `staying`; returns those who stay.
fn storm(server: &Server, staying: usize) -> Vec<client::Tls> {
    const CLIENTS: usize = 4000;
    let config = std::sync::Arc::new(client::config());
    let connect = || client::try_connect(&config, server.address, NAME).unwrap();
    // What is made once and stays.
    drop(std::iter::repeat_with(connect).take(20).collect::<Vec<_>>());
    server.wait_idle();
    let before = server.process.resident_bytes();
    let open: Vec<_> = std::iter::repeat_with(connect).take(CLIENTS).collect();
    let most = server.process.resident_bytes();
    assert!(most > before + 600 * CLIENTS as u64, "{before} to {most}: that was no storm");
    let (stay, go): (Vec<_>, Vec<_>) =
        open.into_iter().enumerate().partition(|(number, _)| number % staying == staying / 2);
    drop(go);
    let began = std::time::Instant::now();
    loop {
        let after = server.process.resident_bytes();
        if after <= before + (most - before) / 4 {
            return stay.into_iter().map(|(_, client)| client).collect();
        }
        assert!(began.elapsed() < STUCK, "{before} before, {most} in between, {after} after");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn the_memory_of_a_storm_goes_back() {
    let server = Setup::new(Backend::echo()).on_first_byte().start();
    assert_eq!(storm(&server, usize::MAX).len(), 0);
    server.wait_idle();
}

#[test]
fn a_few_who_stay_do_not_hold_the_memory_of_those_who_go() {
    let server = Setup::new(Backend::echo()).on_first_byte().start();
    let mut stay = storm(&server, 100);
    server.wait_metric(SILENT, 40.0);
    for tls in &mut stay {
        client::echo(tls, b"still here");
    }
    stay.into_iter().for_each(client::finish);
    server.wait_idle();
}
