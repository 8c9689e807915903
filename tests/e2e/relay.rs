//! Ways to a server and ways to an end.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;

use crate::support::SOON;
use crate::support::backend::{self, Backend};
use crate::support::client::{self, Tls};
use crate::support::server::{NAME, Server, Setup};

/// Reads to the end and wants an error instead of one: a connection that was cut short.
#[track_caller]
fn assert_cut(tls: &mut Tls) {
    let mut rest = Vec::new();
    let error = tls.read_to_end(&mut rest).expect_err("ended with close_notify");
    assert!(
        matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof),
        "{error}"
    );
}

#[test]
fn a_unix_socket_is_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backend.sock");
    backend::echo_at(&path);
    let server = Server::before(format!("unix:{}", path.display()));
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"through a unix socket");
    client::finish(tls);
    server.wait_closed("finished", 1);
}

#[test]
fn a_host_name_is_resolved() {
    let echo = Backend::echo();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (from, to) = (stream.unwrap(), std::net::TcpStream::connect(echo.address));
            let to = to.unwrap();
            let (from2, to2) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            std::thread::spawn(move || {
                _ = std::io::copy(&mut &from, &mut &to);
                _ = to.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                _ = std::io::copy(&mut &to2, &mut &from2);
                _ = from2.shutdown(Shutdown::Write);
            });
        }
    });
    let server = Server::before(format!("localhost:{port}"));
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"by name");
    client::finish(tls);
}

#[test]
fn servers_take_turns() {
    let backends = [Backend::echo(), Backend::echo()];
    let mut setup = Setup::new(&backends[0]);
    setup.servers.push(backends[1].to_string());
    let server = setup.start();
    for _ in 0..10 {
        let mut tls = client::connect(server.address);
        client::echo(&mut tls, b"turn");
        client::finish(tls);
    }
    assert_eq!([backends[0].accepted(), backends[1].accepted()], [5, 5]);
}

#[test]
fn a_refused_connect_is_tried_on_the_other_server_unseen_by_the_client() {
    let alive = Backend::echo();
    for down in ["tcp", "unix"] {
        let dead = match down {
            "tcp" => backend::refusing().to_string(),
            _ => "unix:/nonexistent/backend.sock".to_owned(),
        };
        let mut setup = Setup::new(dead);
        setup.servers.push(alive.to_string());
        let server = setup.start();
        for _ in 0..6 {
            let mut tls = client::connect(server.address);
            client::echo(&mut tls, b"none the wiser");
            client::finish(tls);
        }
        server.wait_closed("finished", 6);
        let retries = server.metrics().get("portcullis_connect_retries_total");
        assert!(retries >= 1.0, "{down}: {retries} retries");
    }
}

#[test]
fn no_server_up_ends_the_connection_as_connect_failed() {
    let server = Server::before(backend::refusing());
    let mut tls = client::connect(server.address);
    let mut rest = Vec::new();
    // Whatever the end looks like, nothing may come before it.
    _ = tls.read_to_end(&mut rest);
    assert!(rest.is_empty());
    server.wait_closed("connect_failed", 1);
    server.wait_handshakes("ok", 1);
    server.wait_idle();
}

#[test]
fn client_half_close_still_receives_reply() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let server = Server::before(Backend::new(|mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).unwrap();
            stream.write_all(&request).unwrap();
            stream.write_all(b" answered").unwrap();
        }));
        let config = client::config_with(client::provider(), &[version]);
        let mut tls = client::try_connect(&Arc::new(config), server.address, NAME).unwrap();
        tls.write_all(b"question").unwrap();
        client::end_sending(&mut tls);
        let mut reply = String::new();
        tls.read_to_string(&mut reply).unwrap();
        assert_eq!(reply, "question answered");
        server.wait_closed("finished", 1);
    }
}

#[test]
fn server_half_close_still_receives_what_the_client_sends() {
    let (sender, received) = mpsc::channel();
    let server = Server::before(Backend::new(move |mut stream| {
        stream.write_all(b"that is all from me").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        sender.send(rest).unwrap();
    }));
    let mut tls = client::connect(server.address);
    let mut greeting = String::new();
    // `Ok` at the end is the close_notify.
    tls.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "that is all from me");
    tls.write_all(b"but not from me").unwrap();
    client::end_sending(&mut tls);
    assert_eq!(received.recv_timeout(SOON).unwrap(), "but not from me");
    server.wait_closed("finished", 1);
}

#[test]
fn a_server_that_resets_is_a_reset_for_the_client_and_no_clean_end() {
    let server = Server::before(Backend::new(|mut stream| {
        let mut request = [0; 4];
        stream.read_exact(&mut request).unwrap();
        client::reset_at_close(&stream);
    }));
    let mut tls = client::connect(server.address);
    tls.write_all(b"go!\n").unwrap();
    assert_cut(&mut tls);
    server.wait_closed("server_reset", 1);
    server.wait_idle();
}

#[test]
fn a_client_that_ends_without_close_notify_is_counted_as_truncated() {
    let (sender, heard) = mpsc::channel();
    let (last, ended) = mpsc::channel();
    let server = Server::before(Backend::new(move |mut stream| {
        if stream.read_exact(&mut [0; 10]).is_ok() {
            _ = sender.send(());
        }
        // An end or a reset: the server must not wait for more.
        _ = stream.read_to_end(&mut Vec::new());
        _ = last.send(());
    }));
    let mut tls = client::connect(server.address);
    tls.write_all(b"half a sen").unwrap();
    heard.recv_timeout(SOON).unwrap();
    tls.sock.shutdown(Shutdown::Write).unwrap();
    ended.recv_timeout(SOON).unwrap();
    server.wait_closed("client_truncated", 1);

    // So soon that the server need not have been connected: it hears of nothing, or of a reset.
    let mut tls = client::connect(server.address);
    tls.write_all(b"half a sen").unwrap();
    tls.sock.shutdown(Shutdown::Write).unwrap();
    server.wait_closed("client_truncated", 2);
    server.wait_idle();
}

#[test]
fn a_client_that_resets_is_counted_and_ends_the_server_side() {
    let (sender, ended) = mpsc::channel();
    let server = Server::before(Backend::new(move |mut stream| {
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(&first).unwrap();
        _ = stream.read_to_end(&mut Vec::new());
        sender.send(()).unwrap();
    }));
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"hello");
    client::reset_at_close(&tls.sock);
    drop(tls);
    ended.recv_timeout(SOON).unwrap();
    server.wait_closed("client_reset", 1);
    server.wait_idle();
}

#[test]
fn the_client_may_send_before_the_server_is_connected() {
    // TLS 1.3 lets the first request follow the Finished in one segment.
    let server = Server::before(Backend::echo());
    for _ in 0..50 {
        let mut tls = client::connect(server.address);
        client::echo(&mut tls, b"at once");
        client::finish(tls);
    }
    server.wait_closed("finished", 50);
}

/// Nagle's algorithm holds a client's first request back until its Finished is acknowledged; left
/// to itself the kernel takes 40 ms for that.
#[test]
fn a_client_without_nodelay_does_not_wait_for_a_delayed_acknowledgement() {
    const CLIENTS: u32 = 50;
    let server = Server::before(Backend::echo().address);
    let config = Arc::new(client::config());
    let began = std::time::Instant::now();
    for _ in 0..CLIENTS {
        let tcp = client::tcp(server.address).unwrap();
        tcp.set_nodelay(false).unwrap();
        let mut tls = client::handshake(&config, tcp, NAME).unwrap();
        client::echo(&mut tls, b"at once");
    }
    let took = began.elapsed();
    assert!(took < CLIENTS * std::time::Duration::from_millis(30), "{took:?}");
}
