//! Tests of start-up and shutdown with workers that serve nobody.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use nix::sys::signal::{self, Signal as Number};

use super::*;
use crate::config::{
    Admin, Backend, CertificateFiles, Limits, Listener, Log, Position, RecordLayer, Resumption,
    Server, Steering, Timeouts, Tls, TlsVersion, UnknownName, Workers,
};

pub(super) fn config(directory: &Path) -> Config {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let at = || Position { file: "test".into(), line: 1, key: "key".into() };
    let second = Duration::from_secs(1);
    Config {
        workers: Workers { count: Some(2), cpus: None, steering: Steering::Hash },
        listeners: vec![Listener {
            name: "https".into(),
            bind: vec!["127.0.0.1:0".parse().unwrap()],
            backend: 0,
            alpn: Vec::new(),
            backlog: Some(1),
            defer_accept: None,
            connection_rate: None,
            unknown_name: UnknownName::Default,
            certificates: vec![CertificateFiles {
                chain,
                key,
                names: Vec::new(),
                chain_at: at(),
                key_at: at(),
            }],
            client_auth: None,
        }],
        backends: vec![Backend {
            name: "app".into(),
            servers: vec![Server {
                address: ServerAddress::Host { host: "127.0.0.1".into(), port: 1 },
                address_at: at(),
                max_connections: None,
            }],
            connect: crate::config::defaults::CONNECT_WHEN,
            send_proxy_protocol: None,
            queue: crate::config::BackendQueue::default(),
        }],
        tls: Tls {
            versions: vec![TlsVersion::Tls12, TlsVersion::Tls13],
            cipher_suites: None,
            groups: vec!["X25519".into()],
            record_layer: RecordLayer::Lean,
        },
        resumption: Resumption::default(),
        limits: Limits { connections_per_worker: Some(10), ..Limits::default() },
        handshake: crate::config::Handshake::default(),
        timeouts: Timeouts {
            handshake: second,
            connect: second,
            idle: second,
            rest: second,
            half_closed: second,
            drain: second,
            ..Timeouts::default()
        },
        admin: None,
        access_log: None,
        log: Log { level: tracing::Level::INFO },
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// One test, because signals reach the whole process.
#[test]
fn a_run_serves_its_admin_endpoint_drains_on_sigterm_and_tells_a_lost_worker() {
    let directory = tempfile::tempdir().unwrap();

    // A run that is told to end.
    let mut wanted = config(directory.path());
    let admin: SocketAddr = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap()
    };
    wanted.admin = Some(Admin { bind: admin });
    let moments = RefCell::new(Vec::new());
    let mut asked = None;
    let ended = run_with(
        wanted,
        |moment, _| {
            moments.borrow_mut().push(match moment {
                Moment::Ready(listening) => {
                    assert_ne!(listening[0].port(), 0);
                    asked = Some(std::thread::spawn(move || {
                        let answer = get(admin, "/readyz");
                        signal::raise(Number::SIGHUP).unwrap();
                        signal::raise(Number::SIGTERM).unwrap();
                        answer
                    }));
                    "ready"
                }
                Moment::Second => "second",
                Moment::Draining => "draining",
                Moment::Ended => "ended",
            });
        },
        supervisor::tests::obedient,
    );
    assert!(matches!(ended, Ok(Ended::Drained)), "{ended:?}");
    let answer = asked.unwrap().join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(moments.borrow().first(), Some(&"ready"));
    assert!(moments.borrow().contains(&"draining"));
    assert_eq!(moments.borrow().last(), Some(&"ended"));

    // A run whose second worker panics: the first is drained.
    let ended = run_with(
        config(directory.path()),
        |_, _| {},
        |start, ready| {
            if start.index == 1 {
                ready(Ok(Vec::new()));
                drop(start);
                std::panic::resume_unwind(Box::new("defect"));
            }
            supervisor::tests::obedient(start, ready);
        },
    );
    let failure = ended.unwrap_err();
    assert_eq!(failure.exit_code(), 71);
    assert!(failure.to_string().contains("worker 1"), "{failure}");

    // A run whose workers do not drain: the second signal ends it.
    let stubborn = |start: Start, ready: Ready| {
        ready(Ok(Vec::new()));
        let mut commands = start.mailbox.commands;
        while !matches!(commands.pop(), Ok(Command::Stop)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let ended = run_with(
        config(directory.path()),
        |moment, _| match moment {
            Moment::Ready(_) => signal::raise(Number::SIGTERM).unwrap(),
            Moment::Draining => signal::raise(Number::SIGINT).unwrap(),
            Moment::Second | Moment::Ended => {}
        },
        stubborn,
    );
    assert!(matches!(ended, Ok(Ended::Signalled(2))), "{ended:?}");
}

#[test]
fn names_write_addresses_as_the_configuration_does() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    let server = &mut config.backends[0].servers[0];
    server.address = ServerAddress::Host { host: "::1".into(), port: 80 };
    assert_eq!(names(&config).backends[0].servers, ["[::1]:80"]);
}
