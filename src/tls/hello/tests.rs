//! The peek against first flights of a real client, against the session's own parser, and against
//! whatever bytes there are.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::*;

/// First flight of a real client.
fn flight(name: &str, alpn: &[&[u8]], versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = AnyName::try_from(name).unwrap().to_owned();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn modern() -> Vec<u8> {
    flight("App.Example", &[b"h2", b"http/1.1"], rustls::ALL_VERSIONS)
}

/// The handshake message without its record.
fn message(flight: &[u8]) -> Vec<u8> {
    flight[RECORD_HEADER_BYTES..].to_vec()
}

fn record(payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[22, 3, 1][..], &len, payload].concat()
}

/// The message in records of these sizes, the last size repeated.
fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut rest = message;
    let mut bytes = Vec::new();
    let mut sizes = sizes.iter().copied().chain(std::iter::repeat(*sizes.last().unwrap()));
    while !rest.is_empty() {
        let (payload, behind) = rest.split_at(sizes.next().unwrap().min(rest.len()));
        bytes.extend(record(payload));
        rest = behind;
    }
    bytes
}

/// A minimal hello with these extensions.
fn hello_with(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, body) in extensions {
        list.extend(kind.to_be_bytes());
        list.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        list.extend(*body);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
    body.extend(list);
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    record(&[&[1][..], &len[1..], &body].concat())
}

fn sni(name: &[u8]) -> Vec<u8> {
    let len = u16::try_from(name.len()).unwrap();
    let mut body = (len + 3).to_be_bytes().to_vec();
    body.push(0);
    body.extend(len.to_be_bytes());
    body.extend(name);
    body
}

fn complete(bytes: &[u8]) -> Hello<'_> {
    match peek(bytes) {
        Peek::Complete(hello) => hello,
        other => panic!("not complete: {other:?}"),
    }
}

fn fault(bytes: &[u8]) -> Fault {
    match peek(bytes) {
        Peek::Malformed(fault) => fault,
        other => panic!("not malformed: {other:?}"),
    }
}

fn check_modern(bytes: &[u8], record_bytes: usize) {
    let hello = complete(bytes);
    assert_eq!(hello.server_name.unwrap().as_str(), "app.example");
    assert_eq!(hello.client.newest_version, 0x0304);
    assert!(!hello.named_address);
    assert_eq!(hello.record_bytes, record_bytes);
    assert!(hello.alpn_contains(b"h2"));
    assert!(hello.alpn_contains(b"http/1.1"));
    assert!(!hello.alpn_contains(b"http/1"));
    assert!(!hello.alpn_contains(b""));
}

#[test]
fn every_prefix_is_incomplete_whatever_the_fragmentation() {
    let message = message(&modern());
    let splits: [&[usize]; 6] =
        [&[1, 1, 1, 1, 1, 1, 500], &[3, 1, 2, 90], &[4, 500], &[40], &[100], &[16_384]];
    for sizes in splits {
        let bytes = records(&message, sizes);
        for end in 0..bytes.len() {
            let answer = peek(&bytes[..end]);
            assert!(matches!(answer, Peek::Incomplete), "{sizes:?} at {end}: {answer:?}");
        }
        check_modern(&bytes, bytes.len());
    }
}

#[test]
fn bytes_behind_the_hello_are_not_counted() {
    let mut bytes = modern();
    let record_bytes = bytes.len();
    bytes.extend([20, 3, 3, 0, 1, 1, 23, 3, 3]);
    check_modern(&bytes, record_bytes);
}

#[test]
fn old_client_without_alpn_offers_no_tls13() {
    let bytes = flight("a.example", &[], &[&rustls::version::TLS12]);
    let hello = complete(&bytes);
    assert_eq!(hello.server_name.unwrap().as_str(), "a.example");
    assert_eq!(hello.client.newest_version, TLS12);
    assert!(!hello.alpn_contains(b"h2"));
}

#[test]
fn client_that_connects_to_an_address_names_nothing() {
    let bytes = flight("192.0.2.1", &[], rustls::ALL_VERSIONS);
    let hello = complete(&bytes);
    assert_eq!(hello.server_name, None);
    assert!(!hello.named_address, "the client sent no server_name");
}

#[test]
fn address_as_a_name_counts_as_no_name() {
    for address in [&b"192.0.2.1"[..], b"2001:db8::1"] {
        let bytes = hello_with(&[(0, &sni(address))]);
        let hello = complete(&bytes);
        assert_eq!(hello.server_name, None);
        assert!(hello.named_address);
    }
}

#[test]
fn longest_name_is_kept_whole() {
    let label = "x".repeat(63);
    let name = format!("{label}.{label}.{label}.{}", "y".repeat(61));
    assert_eq!(name.len(), 253);
    let bytes = hello_with(&[(0, &sni(name.as_bytes()))]);
    assert_eq!(complete(&bytes).server_name.unwrap().as_str(), name);
}

#[test]
fn junk_as_a_name_is_refused() {
    let long = vec![b'a'; 300];
    for name in [&b"a b"[..], b"\xff", b"-a.example", b"a..example", b"a\0b", &long] {
        assert_eq!(fault(&hello_with(&[(0, &sni(name))])), Fault::ServerName, "{name:?}");
    }
    let two = [&[0, 8][..], &sni(b"a")[2..], &sni(b"b")[2..]].concat();
    assert_eq!(fault(&hello_with(&[(0, &two)])), Fault::ServerName);
    assert_eq!(fault(&hello_with(&[(0, &sni(b""))])), Fault::Decode);
    assert_eq!(fault(&hello_with(&[(0, &[0, 0])])), Fault::Decode);
}

#[test]
fn extension_twice_is_refused() {
    let name = sni(b"a.example");
    let versions = [2, 3, 4];
    let alpn = [0, 3, 2, b'h', b'2'];
    for (kind, body) in [(0, &name[..]), (43, &versions), (16, &alpn)] {
        let bytes = hello_with(&[(kind, body), (kind, body)]);
        assert_eq!(fault(&bytes), Fault::RepeatedExtension, "{kind}");
    }
}

#[test]
fn plain_http_is_told_apart_at_the_first_space() {
    for method in ["GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "DELETE", "PATCH", "TRACE"] {
        let request = format!("{method} / HTTP/1.1\r\n");
        for end in 0..=method.len() {
            assert!(matches!(peek(&request.as_bytes()[..end]), Peek::Incomplete), "{method} {end}");
        }
        for end in method.len() + 1..request.len() {
            assert!(matches!(peek(&request.as_bytes()[..end]), Peek::PlainHttp), "{method} {end}");
        }
    }
    assert!(matches!(peek(b"PRI * HTTP/2.0\r\n"), Peek::PlainHttp));
    assert!(matches!(peek(b"PRI * HT"), Peek::Incomplete));
}

#[test]
fn other_protocols_are_no_tls_as_soon_as_it_shows() {
    let ssl2 = [0x80, 0x2e];
    let version_9 = [22, 9];
    let alert = [21];
    for bytes in [&b"SSH-2.0-x"[..], b"GEX", b"PATH", b"\0", b"get /", &ssl2, &version_9, &alert] {
        assert!(matches!(peek(bytes), Peek::NotTls), "{bytes:?}");
    }
}

#[test]
fn broken_records_are_refused_as_soon_as_they_show() {
    assert_eq!(fault(&[22, 3, 1, 0, 0]), Fault::EmptyRecord);
    assert_eq!(fault(&[22, 3, 1, 0x40, 0x01]), Fault::RecordTooLong);
    assert!(matches!(peek(&[22, 3, 1, 0x40, 0x00]), Peek::Incomplete));
    assert_eq!(fault(&[22, 3, 1, 0, 4, 2]), Fault::UnexpectedMessage);
    assert_eq!(fault(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Fault::MessageTooLong);
    assert_eq!(fault(&[22, 3, 1, 0, 6, 1, 0, 0, 1]), Fault::TrailingData);

    let first = record(&message(&modern())[..50]);
    for (second, expected) in [
        (&[20][..], Fault::UnexpectedMessage),
        (&[22, 2], Fault::RecordVersion),
        (&[22, 3, 3, 0, 0], Fault::EmptyRecord),
        (&[22, 3, 3, 0xff, 0xff], Fault::RecordTooLong),
    ] {
        assert_eq!(fault(&[&first, second].concat()), expected);
    }
}

#[test]
fn a_record_too_many_is_refused_when_it_begins() {
    let message = message(&modern());
    let most = CLIENT_HELLO_RECORDS_MAX as usize;
    let mut sizes = vec![1; most];
    *sizes.last_mut().unwrap() = message.len() - (most - 1);
    let bytes = records(&message, &sizes);
    check_modern(&bytes, bytes.len());

    let bytes = records(&message, &[1]);
    let allowed = most * (RECORD_HEADER_BYTES + 1);
    assert!(matches!(peek(&bytes[..allowed]), Peek::Incomplete));
    assert_eq!(fault(&bytes[..=allowed]), Fault::TooManyRecords);
    assert_eq!(fault(&bytes), Fault::TooManyRecords);
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    let extensions: [(u16, &[u8]); 6] = [
        (0, &[0, 9, 0, 0, 1, b'a']),
        (0, &[0, 4, 0, 0, 1, b'a', 0]),
        (16, &[0, 3, 3, b'h', b'2']),
        (16, &[0, 0]),
        (43, &[3, 3, 4]),
        (43, &[3, 3, 4, 3]),
    ];
    for extension in extensions {
        assert_eq!(fault(&hello_with(&[extension])), Fault::Decode, "{extension:?}");
    }
    assert_eq!(fault(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 3]), Fault::Decode);
}

#[test]
fn a_client_takes_our_alert_for_what_it_says() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = AnyName::try_from("a.example").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    client.read_tls(&mut &alert_record(112)[..]).unwrap();
    assert_eq!(
        client.process_new_packets().unwrap_err(),
        rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName)
    );
}

/// What the session makes of the bytes: the name, when it accepts them.
fn accepted_by_session(bytes: &[u8]) -> Option<(Option<String>, bool)> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let h2 = hello.alpn().is_some_and(|mut offers| offers.any(|offer| offer == b"h2"));
                return Some((hello.server_name().map(str::to_owned), h2));
            }
            Err(_) => return None,
        }
    }
    None
}

fn answer(bytes: &[u8]) -> Option<(Option<String>, bool)> {
    match peek(bytes) {
        Peek::Complete(hello) => {
            assert!(hello.record_bytes <= bytes.len());
            let name = hello.server_name.map(|name| name.as_str().to_owned());
            Some((name, hello.alpn_contains(b"h2")))
        }
        Peek::Incomplete | Peek::PlainHttp | Peek::NotTls | Peek::Malformed(_) => None,
    }
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _answer = answer(&bytes);
        let _framed = answer(&record(&[&[1, 0, 1, 0][..], &bytes].concat()));
    }

    #[test]
    fn any_fragmentation_gives_the_same_answer(
        mut sizes in proptest::collection::vec(1_usize..600, 1..40),
    ) {
        sizes.push(600);
        let bytes = records(&message(&modern()), &sizes);
        check_modern(&bytes, bytes.len());
    }

    #[test]
    fn what_the_session_accepts_is_read_the_same(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        sizes in proptest::collection::vec(1_usize..2000, 1..5),
    ) {
        let mut message = message(&modern());
        for (at, value) in changes {
            let at = at.index(message.len());
            message[at] = value;
        }
        if let Some(cut) = cut {
            message.truncate(cut.index(message.len()).max(1));
        }
        let bytes = records(&message, &sizes);
        let most = CLIENT_HELLO_RECORDS_MAX as usize;
        prop_assume!(bytes.len() <= message.len() + most * RECORD_HEADER_BYTES);
        let ours = answer(&bytes);
        if let Some(theirs) = accepted_by_session(&bytes) {
            prop_assert_eq!(ours, Some(theirs));
        }
    }
}
