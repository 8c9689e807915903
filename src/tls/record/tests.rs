//! Tests of our record layer: what it says to whom, its limits, known records; and, in `streams`,
//! its likeness to rustls's.

mod harness;
mod streams;

use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::{CipherSuite, ConnectionTrafficSecrets};

use self::harness::{Forger, LEAN, RUSTLS, SUITES, Server, configs, is_tls13};
use super::frame::{ALERT, APPLICATION_DATA, HANDSHAKE, HEADER_BYTES};
use super::*;
use crate::limits::{AES_GCM_RECORDS_MAX, CHACHA20_RECORDS_MAX};
use crate::tls::session::Session;

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_PLEASE: [u8; 5] = [24, 0, 0, 1, 1];

/// Sends `records` and returns the alert that comes back, if one does.
fn alert_to(forger: &mut Forger, server: &mut Server, records: &[u8]) -> Option<(u8, u8)> {
    let result = server.receive(records);
    let answers = forger.open(&server.records());
    let alert =
        answers.last().filter(|(kind, _)| *kind == ALERT).map(|(_, told)| (told[0], told[1]));
    assert_eq!(result.is_err(), alert.is_some_and(|(level, _)| level == FATAL), "{answers:?}");
    alert
}

const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const NO_RENEGOTIATION: u8 = 100;

#[test]
fn our_alerts_are_those_of_the_rfc() {
    let too_much = vec![APPLICATION_DATA; RECORD_PAYLOAD_BYTES_MAX + 1];
    let in_both: &[(u8, &[u8], u8)] = &[
        (HANDSHAKE, &[], UNEXPECTED_MESSAGE),
        (HANDSHAKE, &[11, 0, 0, 1, 0], UNEXPECTED_MESSAGE),
        (ALERT, &[3, 0], ILLEGAL_PARAMETER),
        (ALERT, &[WARNING], DECODE_ERROR),
        (ALERT, &[WARNING, 0, WARNING], DECODE_ERROR),
        (ALERT, &[], UNEXPECTED_MESSAGE),
        (20, &[1], UNEXPECTED_MESSAGE),
        (24, &[1], UNEXPECTED_MESSAGE),
    ];
    let in_tls13: &[(u8, &[u8], u8)] = &[
        (HANDSHAKE, &[1], UNEXPECTED_MESSAGE),
        (HANDSHAKE, &[24, 0, 0, 1, 2], ILLEGAL_PARAMETER),
        (HANDSHAKE, &[24, 0, 0, 0], DECODE_ERROR),
        (HANDSHAKE, &[24, 0, 0, 2], DECODE_ERROR),
        (HANDSHAKE, &[24, 0, 0, 1, 0, 24], UNEXPECTED_MESSAGE),
        (0, &[], UNEXPECTED_MESSAGE),
        (0, &[0; 100], UNEXPECTED_MESSAGE),
        // One byte too many: of data, and of padding.
        (APPLICATION_DATA, &too_much, RECORD_OVERFLOW),
        (0, &too_much, RECORD_OVERFLOW),
    ];
    let in_tls12: &[(u8, &[u8], u8)] = &[
        (HANDSHAKE, &[24, 0, 0, 1, 0], UNEXPECTED_MESSAGE),
        (HANDSHAKE, &[1, 0, 0, 0], DECODE_ERROR),
        (APPLICATION_DATA, &too_much, RECORD_OVERFLOW),
    ];
    for suite in SUITES {
        let configs = configs(suite, 0);
        let own = if is_tls13(suite) { in_tls13 } else { in_tls12 };
        for (kind, content, alert) in in_both.iter().chain(own) {
            let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
            let record = forger.seal(*kind, content);
            let told = alert_to(&mut forger, &mut server, &record);
            assert_eq!(told, Some((FATAL, *alert)), "{suite:?} {kind} {content:?}");
        }
        // A message must not be interrupted.
        let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
        let begun: &[u8] = if is_tls13(suite) { &[24, 0] } else { &[1, 0] };
        let records = [forger.seal(HANDSHAKE, begun), forger.seal(APPLICATION_DATA, &[1])];
        let told = alert_to(&mut forger, &mut server, &records.concat());
        assert_eq!(told, Some((FATAL, UNEXPECTED_MESSAGE)), "{suite:?}");
        assert!(server.plaintext().is_empty());
    }
}

#[test]
fn a_client_s_alert_is_not_answered() {
    for suite in SUITES {
        let configs = configs(suite, 0);
        let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
        let record = forger.seal(ALERT, &[FATAL, 40]);
        let result = server.receive(&record);
        assert_eq!(result, Err(Failure::Handshake(HandshakeOutcome::ClientAlert)));
        assert!(server.records().is_empty());

        // Of warnings a few are put up with; TLS 1.3 knows `user_canceled` only.
        let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
        for _ in 0..WARNING_ALERTS_MAX {
            let warning = forger.seal(ALERT, &[WARNING, 90]);
            assert_eq!(alert_to(&mut forger, &mut server, &warning), None);
        }
        let warning = forger.seal(ALERT, &[WARNING, 90]);
        let told = alert_to(&mut forger, &mut server, &warning);
        assert_eq!(told, Some((FATAL, UNEXPECTED_MESSAGE)));
    }
}

#[test]
fn strange_headers_are_refused() {
    for suite in SUITES {
        let configs = configs(suite, 0);
        for bit in 0..40 {
            let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
            let mut records = forger.seal(APPLICATION_DATA, &[1; 50]);
            records.extend(forger.seal(APPLICATION_DATA, &[1; 50]));
            records[bit / 8] ^= 1 << (bit % 8);
            let told = alert_to(&mut forger, &mut server, &records);
            let long = u16::from_be_bytes([records[3], records[4]]);
            let waits = usize::from(long) + HEADER_BYTES > records.len();
            let most = RECORD_PAYLOAD_BYTES_MAX + if is_tls13(suite) { 256 } else { 2048 };
            let expected = match bit / 8 {
                // Another type is refused as such; one that TLS 1.2 has only by its MAC.
                0 if is_tls13(suite) || !matches!(records[0], ALERT | HANDSHAKE) => {
                    Some((FATAL, UNEXPECTED_MESSAGE))
                }
                _ if usize::from(long) > most => Some((FATAL, RECORD_OVERFLOW)),
                _ if waits => None,
                _ => Some((FATAL, BAD_RECORD_MAC)),
            };
            assert_eq!(told, expected, "{suite:?} {bit}");
            assert!(server.plaintext().is_empty());
        }
    }
}

#[test]
fn renegotiation_is_refused_once_and_then_ends_the_session() {
    let configs = configs(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, 0);
    let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
    let hello = [&[1, 0, 0x40, 0][..], &[7; 0x4000]].concat();
    let mut ask = |forger: &mut Forger, size: usize| {
        let pieces: Vec<_> =
            hello.chunks(size).map(|piece| forger.seal(HANDSHAKE, piece)).collect();
        alert_to(forger, &mut server, &pieces.concat())
    };
    assert_eq!(ask(&mut forger, 3), Some((WARNING, NO_RENEGOTIATION)));
    assert_eq!(ask(&mut forger, 16_000), Some((FATAL, UNEXPECTED_MESSAGE)));
}

#[test]
fn floods_end_the_session() {
    for suite in SUITES {
        let configs = configs(suite, 0);
        let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
        for _ in 0..3 {
            for _ in 0..EMPTY_RECORDS_MAX {
                let empty = forger.seal(APPLICATION_DATA, &[]);
                assert_eq!(alert_to(&mut forger, &mut server, &empty), None);
            }
            let data = forger.seal(APPLICATION_DATA, &[1]);
            assert_eq!(alert_to(&mut forger, &mut server, &data), None);
        }
        let empties: Vec<_> =
            (0..=EMPTY_RECORDS_MAX).flat_map(|_| forger.seal(APPLICATION_DATA, &[])).collect();
        let told = alert_to(&mut forger, &mut server, &empties);
        assert_eq!(told, Some((FATAL, UNEXPECTED_MESSAGE)));
    }
}

#[test]
fn tiny_records_end_the_session_when_a_second_brings_too_many() {
    let configs = configs(CipherSuite::TLS13_AES_128_GCM_SHA256, 0);
    let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
    let most = usize::from(TINY_RECORDS_PER_SECOND_MAX);
    let mut send = |count: usize, second: u64, server: &mut Server| {
        server.now = Time(second * 1_000_000_000);
        let mut told = None;
        for _ in 0..count / 512 {
            let records: Vec<_> =
                (0..512).flat_map(|_| forger.seal(APPLICATION_DATA, b"x")).collect();
            told = told.or(alert_to(&mut forger, server, &records));
            server.plaintext();
        }
        // Larger ones do not count.
        let record = forger.seal(APPLICATION_DATA, &[1; TINY_RECORD_BYTES]);
        told.or_else(|| alert_to(&mut forger, server, &record))
    };
    for second in 1..4 {
        assert_eq!(send(most, second, &mut server), None);
    }
    assert_eq!(send(512, 3, &mut server), Some((FATAL, UNEXPECTED_MESSAGE)));
}

#[test]
fn key_updates_are_earned_by_data() {
    let configs = configs(CipherSuite::TLS13_AES_128_GCM_SHA256, 0);
    let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
    let update = |forger: &mut Forger, server: &mut Server| {
        let record = forger.seal(HANDSHAKE, &KEY_UPDATE_PLEASE);
        forger.next_keys();
        alert_to(forger, server, &record)
    };
    for _ in 0..KEY_UPDATES_MAX {
        assert_eq!(update(&mut forger, &mut server), None);
    }
    // One record of data used to buy 32 more.
    for _ in 0..KEY_UPDATE_EARNED_RECORDS {
        let data = forger.seal(APPLICATION_DATA, &[1]);
        assert_eq!(alert_to(&mut forger, &mut server, &data), None);
    }
    assert_eq!(update(&mut forger, &mut server), None);
    assert_eq!(update(&mut forger, &mut server), Some((FATAL, UNEXPECTED_MESSAGE)));
}

/// However often a silent client asks, one answer goes before our next data.
#[test]
fn key_updates_of_a_client_that_does_not_read_take_no_memory() {
    let configs = configs(CipherSuite::TLS13_AES_256_GCM_SHA384, 0);
    let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
    for _ in 0..10 {
        let record = forger.seal(HANDSHAKE, &KEY_UPDATE_PLEASE);
        forger.next_keys();
        server.receive(&record).unwrap();
    }
    assert!(server.records.is_empty());
    server.seal(b"data").unwrap();
    server.seal(b"more").unwrap();
    assert_eq!(
        forger.open(&server.records()),
        [
            (HANDSHAKE, KEY_UPDATE.to_vec()),
            (APPLICATION_DATA, b"data".to_vec()),
            (APPLICATION_DATA, b"more".to_vec())
        ]
    );
}

#[test]
fn keys_are_changed_before_their_limit() {
    for suite in SUITES {
        let configs = configs(suite, 0);
        let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
        let most = if suite.as_str().unwrap().contains("CHACHA20") {
            CHACHA20_RECORDS_MAX
        } else {
            AES_GCM_RECORDS_MAX
        };
        server.session.lean().outbound.skip_to(most - 2);
        forger.inbound.skip_to(most - 2);
        server.seal(b"last but one").unwrap();
        if is_tls13(suite) {
            server.seal(b"first of the next").unwrap();
            let answers = forger.open(&server.records());
            let kinds: Vec<_> = answers.iter().map(|(kind, _)| *kind).collect();
            assert_eq!(kinds, [APPLICATION_DATA, HANDSHAKE, APPLICATION_DATA]);
        } else {
            assert_eq!(server.seal(b"no more"), Err(Failure::CannotSend));
            server.session.close(&mut server.records, &mut server.pool);
            let answers = forger.open(&server.records());
            assert_eq!(answers.last(), Some(&(ALERT, vec![WARNING, 0])));
        }
    }
}

#[test]
fn a_sequence_number_never_begins_anew() {
    let configs = configs(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, 0);
    let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
    server.session.lean().inbound.skip_to(u64::MAX);
    forger.outbound.skip_to(u64::MAX - 1);
    assert!(forger.outbound.seal(APPLICATION_DATA, b"x", &mut [0; 100]).is_ok());
    assert!(forger.outbound.seal(APPLICATION_DATA, b"x", &mut [0; 100]).is_err());
    server.session.lean().outbound.skip_to(u64::MAX);
    server.session.close(&mut server.records, &mut server.pool);
    assert!(server.records.is_empty());
}

/// Tickets leave under the keys that we take over, and what comes with the Finished is not lost.
#[test]
fn tickets_and_early_data_survive_the_change_of_record_layers() {
    let configs = configs(CipherSuite::TLS13_AES_128_GCM_SHA256, 2);
    for lean in [RUSTLS, LEAN] {
        let (mut forger, mut server, result) = Forger::meet(&configs, lean, |forger| {
            let mut records = forger.seal(APPLICATION_DATA, b"one ");
            records.extend(forger.seal(HANDSHAKE, &KEY_UPDATE_PLEASE));
            forger.next_keys();
            records.extend(forger.seal(APPLICATION_DATA, b"two "));
            records.extend(&forger.seal(APPLICATION_DATA, b"three")[..7]);
            records
        });
        result.unwrap();
        assert_eq!(server.plaintext(), b"one two ");
        assert_eq!(server.session.partial_bytes(), 7);
        let agreed = server.session.take_agreed().unwrap();
        assert_eq!(agreed.alpn.as_deref(), Some(&b"http/1.1"[..]));
        server.seal(b"answer").unwrap();
        let answers = forger.open(&server.records());
        let kinds: Vec<_> = answers.iter().map(|(kind, content)| (*kind, content[0])).collect();
        let ticket = (HANDSHAKE, 4);
        let expected = [ticket, ticket, (HANDSHAKE, 24), (APPLICATION_DATA, b'a')];
        // One message may hold both tickets' records or each its own.
        assert!(kinds.ends_with(&expected) || kinds.ends_with(&expected[1..]), "{kinds:?}");
    }
}

/// rustls panics when it is asked to send and not shown the pieces that it has seen.
#[test]
fn half_a_key_update_does_not_keep_an_answer_back() {
    let configs = configs(CipherSuite::TLS13_AES_128_GCM_SHA256, 0);
    for lean in [RUSTLS, LEAN] {
        let (mut forger, mut server, _) = Forger::meet(&configs, lean, |_| Vec::new());
        let half = forger.seal(HANDSHAKE, &KEY_UPDATE[..2]);
        server.receive(&half).unwrap();
        server.seal(b"answer").unwrap();
        let rest = forger.seal(HANDSHAKE, &KEY_UPDATE[2..]);
        forger.next_keys();
        let data = forger.seal(APPLICATION_DATA, b"more");
        server.receive(&[rest, data].concat()).unwrap();
        assert_eq!(server.plaintext(), b"more");
        assert_eq!(forger.open(&server.records()), [(APPLICATION_DATA, b"answer".to_vec())]);

        let half = forger.seal(HANDSHAKE, &KEY_UPDATE[..2]);
        server.receive(&half).unwrap();
        let data = forger.seal(APPLICATION_DATA, b"in between");
        assert!(server.receive(&data).is_err());
    }
}

#[test]
fn a_session_at_rest_holds_keys_and_counters_only() {
    for suite in SUITES {
        let configs = configs(suite, 0);
        let (mut forger, mut server, _) = Forger::meet(&configs, LEAN, |_| Vec::new());
        for round in 0..3_u8 {
            let data = forger.seal(APPLICATION_DATA, &[round; 9]);
            server.receive(&data).unwrap();
            server.seal(&[round; 9]).unwrap();
            assert_eq!(server.plaintext(), [round; 9]);
            assert_eq!(forger.open(&server.records()), [(APPLICATION_DATA, vec![round; 9])]);
            let records = server.session.lean();
            assert!(!records.inbound.is_resting() && !records.outbound.is_resting());
            server.session.rest();
            let records = server.session.lean();
            assert!(records.inbound.is_resting() && records.outbound.is_resting());
            assert_eq!(server.session.partial_bytes(), 0);
            assert_eq!(server.pool.lent(), 0);
        }
    }
    let sizes = [
        ("keys of one direction", size_of::<Keys>()),
        ("record layer", size_of::<Records>()),
        ("session", size_of::<Session>()),
    ];
    println!("{sizes:?}");
    assert!(size_of::<Keys>() <= 96);
    assert!(size_of::<Session>() <= 352);
}

fn known_keys(key: [u8; 16], iv: [u8; 12], next: u64) -> Keys {
    let mut padded = [0; 32];
    padded[..16].copy_from_slice(&key);
    let (key, iv) = (AeadKey::from(padded), Iv::from(iv));
    Keys::new((next, ConnectionTrafficSecrets::Aes128Gcm { key, iv }), true).unwrap()
}

/// RFC 8448 section 3: the records behind the handshake, in both directions.
#[test]
fn known_records_are_sealed_and_opened() {
    let client = known_keys(
        *b"\x17\x42\x2d\xda\x59\x6e\xd5\xd9\xac\xd8\x90\xe3\xc6\x3f\x50\x51",
        *b"\x5b\x78\x92\x3d\xee\x08\x57\x90\x33\xe5\x23\xd9",
        0,
    );
    // Its first record was a ticket.
    let server = known_keys(
        *b"\x9f\x02\x28\x3b\x6c\x9c\x07\xef\xc2\x6b\xb9\xf2\xac\x92\xe3\x56",
        *b"\xcf\x78\x2b\x88\xdd\x83\x54\x9a\xad\xf1\xe9\x84",
        1,
    );
    let data: Vec<u8> = (0..50).collect();
    let of_client: [&[u8]; 2] = [
        b"\x17\x03\x03\x00\x43\xa2\x3f\x70\x54\xb6\x2c\x94\xd0\xaf\xfa\xfe\x82\x28\xba\x55\xcb\
          \xef\xac\xea\x42\xf9\x14\xaa\x66\xbc\xab\x3f\x2b\x98\x19\xa8\xa5\xb4\x6b\x39\x5b\xd5\x4a\
          \x9a\x20\x44\x1e\x2b\x62\x97\x4e\x1f\x5a\x62\x92\xa2\x97\x70\x14\xbd\x1e\x3d\xea\xe6\x3a\
          \xee\xbb\x21\x69\x49\x15\xe4",
        b"\x17\x03\x03\x00\x13\xc9\x87\x27\x60\x65\x56\x66\xb7\x4d\x7f\xf1\x15\x3e\xfd\x6d\xb6\xd0\
          \xb0\xe3",
    ];
    let of_server: [&[u8]; 2] = [
        b"\x17\x03\x03\x00\x43\x2e\x93\x7e\x11\xef\x4a\xc7\x40\xe5\x38\xad\x36\x00\x5f\xc4\xa4\x69\
          \x32\xfc\x32\x25\xd0\x5f\x82\xaa\x1b\x36\xe3\x0e\xfa\xf9\x7d\x90\xe6\xdf\xfc\x60\x2d\xcb\
          \x50\x1a\x59\xa8\xfc\xc4\x9c\x4b\xf2\xe5\xf0\xa2\x1c\x00\x47\xc2\xab\xf3\x32\x54\x0d\xd0\
          \x32\xe1\x67\xc2\x95\x5d",
        b"\x17\x03\x03\x00\x13\xb5\x8f\xd6\x71\x66\xeb\xf5\x99\xd2\x47\x20\xcf\xbe\x7e\xfa\x7a\x88\
          \x64\xa9",
    ];
    for (mut keys, known) in [(client, of_client), (server, of_server)] {
        let first = keys.next();
        for (known, (kind, content)) in
            known.into_iter().zip([(APPLICATION_DATA, &data[..]), (ALERT, &[WARNING, 0][..])])
        {
            let mut record = [0; 100];
            let len = keys.seal(kind, content, &mut record).unwrap();
            assert_eq!(record[..len], *known);
        }
        keys.skip_to(first);
        for (known, content) in known.into_iter().zip([&data[..], &[WARNING, 0]]) {
            let Record { header, body, .. } = frame::split(known, true).unwrap().unwrap();
            let mut opened = [0; 100];
            let len = keys.open(header, body, &mut opened).unwrap();
            assert_eq!(opened[..content.len()], *content);
            assert_eq!(len, content.len() + 1);
        }
    }
}
