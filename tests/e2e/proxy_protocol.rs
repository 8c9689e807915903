//! PROXY headers as real receivers understand them, and byte by byte.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc;

use crate::support::address;
use crate::support::backend::Backend;
use crate::support::client::{self, Tls};
use crate::support::peers::{haproxy, nginx, peer};
use crate::support::server::{NAME, Server, Setup};

/// Fetches `/` over an open connection; the body.
fn fetch(tls: &mut Tls) -> String {
    write!(tls, "GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).unwrap();
    answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no HTTP answer: {answer:?}"))
        .1
        .trim()
        .to_owned()
}

#[test]
fn nginx_learns_both_addresses_from_v1_and_v2() {
    let Some(program) = peer("nginx") else {
        return;
    };
    for version in ["v1", "v2"] {
        let origin = nginx(
            &program,
            "proxy_protocol",
            "location / { return 200 \"$proxy_protocol_addr $proxy_protocol_port \
             $proxy_protocol_server_addr $proxy_protocol_server_port\"; }",
        );
        let server = Setup::new(&origin).proxy_protocol(version).start();
        let mut tls = client::connect(server.address);
        let local = tls.sock.local_addr().unwrap();
        assert_eq!(
            fetch(&mut tls),
            format!(
                "{} {} {} {}",
                local.ip(),
                local.port(),
                server.address.ip(),
                server.address.port()
            ),
            "{version}"
        );
    }
}

/// With a wildcard bind, the header holds the address the client came to, not `0.0.0.0`.
#[test]
fn a_wildcard_bind_still_tells_the_clients_destination() {
    let Some(program) = peer("nginx") else {
        return;
    };
    let origin = nginx(
        &program,
        "proxy_protocol",
        "location / { return 200 \"$proxy_protocol_addr $proxy_protocol_server_addr \
         $proxy_protocol_server_port\"; }",
    );
    let mut setup = Setup::new(&origin).proxy_protocol("v2");
    setup.bind = address::free_at("0.0.0.0".parse().unwrap());
    let server = setup.start();
    for destination in ["127.0.0.1", "127.200.0.7"] {
        let ip: IpAddr = destination.parse().unwrap();
        let mut tls = client::connect(SocketAddr::new(ip, server.address.port()));
        assert_eq!(fetch(&mut tls), format!("127.0.0.1 {destination} {}", server.address.port()));
    }
}

#[test]
fn ipv6_addresses_are_told_as_such() {
    let Some(program) = peer("nginx") else {
        return;
    };
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: no IPv6 here");
        return;
    }
    for version in ["v1", "v2"] {
        let origin = nginx(
            &program,
            "proxy_protocol",
            "location / { return 200 \"$proxy_protocol_addr $proxy_protocol_server_addr\"; }",
        );
        let mut setup = Setup::new(&origin).proxy_protocol(version);
        setup.bind = address::free_at("::1".parse().unwrap());
        let server = setup.start();
        let mut tls = client::connect(server.address);
        assert_eq!(fetch(&mut tls), "::1 ::1", "{version}");
    }
}

#[test]
fn haproxy_learns_addresses_and_authority() {
    let Some(program) = peer("haproxy") else {
        return;
    };
    for (version, authority) in [("v1", ""), ("v2", NAME)] {
        let origin = haproxy(
            &program,
            "accept-proxy",
            " http-request return status 200 content-type text/plain lf-string \
             \"%[src]|%[src_port]|%[dst]|%[dst_port]|%[fc_rcvd_proxy]|%[fc_pp_authority]\"",
        );
        let server = Setup::new(&origin).proxy_protocol(version).start();
        let mut tls = client::connect(server.address);
        let local = tls.sock.local_addr().unwrap();
        assert_eq!(
            fetch(&mut tls),
            format!(
                "{}|{}|{}|{}|1|{authority}",
                local.ip(),
                local.port(),
                server.address.ip(),
                server.address.port()
            ),
            "{version}"
        );
    }
}

/// A PROXY v2 header taken apart, as the specification lays it out (section 2.2).
#[derive(Debug)]
pub(crate) struct Header {
    command: u8,
    family: u8,
    source: SocketAddr,
    destination: SocketAddr,
    values: Vec<(u8, Vec<u8>)>,
}

impl Header {
    fn read(stream: &mut impl Read) -> Self {
        let mut fixed = [0; 16];
        stream.read_exact(&mut fixed).unwrap();
        assert_eq!(&fixed[..12], b"\r\n\r\n\0\r\nQUIT\n");
        let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
        stream.read_exact(&mut rest).unwrap();
        let ip = |at: usize| -> [u8; 4] { rest[at..at + 4].try_into().unwrap() };
        let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        Self {
            command: fixed[12],
            family: fixed[13],
            source: (ip(0), port(8)).into(),
            destination: (ip(4), port(10)).into(),
            values: type_length_values(&rest[12..]),
        }
    }

    pub(crate) fn value(&self, kind: u8) -> Option<&[u8]> {
        let mut found = self.values.iter().filter(|(k, _)| *k == kind);
        let value = found.next().map(|(_, value)| value.as_slice());
        assert!(found.next().is_none(), "type {kind:#x} twice: {self:?}");
        value
    }
}

pub(crate) fn type_length_values(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut values = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        values.push((*kind, rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty(), "half a value at the end: {bytes:?}");
    values
}

/// A backend that takes the header apart, tells it, and echoes what follows.
pub(crate) fn header_backend() -> (Backend, mpsc::Receiver<Header>) {
    let (sender, receiver) = mpsc::channel();
    let backend = Backend::new(move |mut stream: TcpStream| {
        let header = Header::read(&mut stream);
        sender.send(header).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..count]).unwrap();
        }
    });
    (backend, receiver)
}

fn header_of(
    server: &Server,
    headers: &mpsc::Receiver<Header>,
    config: rustls::ClientConfig,
) -> Header {
    let mut tls = client::try_connect(&Arc::new(config), server.address, NAME).unwrap();
    let local = tls.sock.local_addr().unwrap();
    client::echo(&mut tls, b"the first payload follows the header");
    client::finish(tls);
    let header = headers.recv_timeout(crate::support::SOON).unwrap();
    assert_eq!(header.command, 0x21, "version 2, PROXY");
    assert_eq!(header.family, 0x11, "TCP over IPv4");
    assert_eq!(header.source, local);
    assert_eq!(header.destination, server.address);
    header
}

#[test]
fn v2_carries_alpn_authority_and_what_tls_negotiated() {
    let (backend, headers) = header_backend();
    let server =
        Setup::new(backend).proxy_protocol("v2").listener("alpn = [\"h2\", \"http/1.1\"]").start();
    for (version, name, suite) in [
        (&rustls::version::TLS13, "TLSv1.3", "TLS_"),
        (&rustls::version::TLS12, "TLSv1.2", "ECDHE-ECDSA-"),
    ] {
        let mut config = client::config_with(client::provider(), &[version]);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let header = header_of(&server, &headers, config);
        assert_eq!(header.value(0x01), Some(&b"http/1.1"[..]), "PP2_TYPE_ALPN");
        assert_eq!(header.value(0x02), Some(NAME.as_bytes()), "PP2_TYPE_AUTHORITY");
        let ssl = header.value(0x20).expect("PP2_TYPE_SSL");
        // PP2_CLIENT_SSL alone: the client sent no certificate, so there is none to have verified
        // and `verify` is not zero.
        assert_eq!(ssl[0], 0x01, "client flags");
        assert_ne!(ssl[1..5], [0; 4], "verify");
        let inside = type_length_values(&ssl[5..]);
        let text = |kind: u8| {
            let (_, value) = inside.iter().find(|(k, _)| *k == kind).unwrap();
            String::from_utf8(value.clone()).unwrap()
        };
        assert_eq!(text(0x21), name, "PP2_SUBTYPE_SSL_VERSION");
        let cipher = text(0x23);
        assert!(
            cipher.starts_with(suite) || cipher.starts_with("TLS_"),
            "PP2_SUBTYPE_SSL_CIPHER: {cipher}"
        );
    }
}

#[test]
fn v2_leaves_out_what_was_not_negotiated() {
    let (backend, headers) = header_backend();
    let server = Setup::new(backend).proxy_protocol("v2").start();
    let mut config = client::config();
    config.enable_sni = false;
    let header = header_of(&server, &headers, config);
    assert_eq!(header.value(0x01), None, "no ALPN");
    assert_eq!(header.value(0x02), None, "no authority");
    assert!(header.value(0x20).is_some(), "but TLS");
}

#[test]
fn v1_is_one_line_before_the_first_payload() {
    let (sender, lines) = mpsc::channel();
    let backend = Backend::new(move |mut stream: TcpStream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let server = Setup::new(backend).proxy_protocol("v1").start();
    let mut tls = client::connect(server.address);
    let local = tls.sock.local_addr().unwrap();
    tls.write_all(b"payload").unwrap();
    client::finish(tls);
    let got = lines.recv_timeout(crate::support::SOON).unwrap();
    assert_eq!(
        String::from_utf8(got).unwrap(),
        format!(
            "PROXY TCP4 {} {} {} {}\r\npayload",
            local.ip(),
            server.address.ip(),
            local.port(),
            server.address.port()
        )
    );
}
