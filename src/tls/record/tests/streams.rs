//! Streams of records, good and bad, through our record layer and through rustls's: the same fate.
//!
//! `PORTCULLIS_RECORDS` sets how many records the seeded test plays, 20,000 unless it is there.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;

use super::super::frame::{ALERT, APPLICATION_DATA, HANDSHAKE, HEADER_BYTES};
use super::super::{FATAL, WARNING};
use super::harness::{Configs, Dice, Forger, LEAN, RUSTLS, SUITES, Server, configs, is_tls13};
use super::{KEY_UPDATE, KEY_UPDATE_PLEASE};
use crate::limits::{KEY_UPDATES_MAX, PARTIAL_BYTES_MAX};
use crate::tls::failure::Failure;

/// One thing that a client does, or that happens to its bytes.
#[derive(Debug, Clone)]
enum Act {
    Data(usize),
    /// Data and zeros behind it: TLS 1.3 only.
    Padded(usize, usize),
    KeyUpdate {
        ours_too: bool,
    },
    /// A `KeyUpdate` in pieces of these many bytes.
    Pieces(Vec<u8>, usize),
    Record(u8, Vec<u8>),
    /// Bytes that nobody sealed.
    Raw(Vec<u8>),
    /// The server says something.
    Answer(usize),
    CloseNotify,
}

/// What befalls the records on their way.
#[derive(Debug, Clone, Copy)]
enum Accident {
    None,
    Drop(usize),
    Replay(usize),
    Swap(usize),
    /// A bit of a record's body.
    Flip(usize, usize),
    /// The stream ends within a record.
    Truncate(usize),
}

/// What both record layers are asked to agree about.
#[derive(Debug, PartialEq, Eq)]
struct Fate {
    plaintext: Vec<u8>,
    broken: bool,
    client_closed: bool,
    /// What the client sees: types and contents; of alerts see [`Fate::of`].
    answers: Vec<(u8, Vec<u8>)>,
}

impl Fate {
    /// Alerts that name a fault are left out where rustls says nothing or something else; that
    /// list is in `our_alerts_are_those_of_the_rfc`.
    fn of(broken: bool, server: &mut Server, mut answers: Vec<(u8, Vec<u8>)>) -> Self {
        answers.retain(|(kind, content)| *kind != ALERT || content[0] == WARNING);
        // Before an alert rustls answers a KeyUpdate, too; only data needs that.
        while answers.pop_if(|(kind, _)| *kind == HANDSHAKE).is_some() {}
        let client_closed = server.session.client_closed();
        Self { plaintext: server.plaintext(), broken, client_closed, answers }
    }
}

fn play(
    configs: &Configs,
    lean: usize,
    acts: &[Act],
    accident: Accident,
    chunks: &mut Dice,
) -> Fate {
    let early = chunks.one_in(4);
    let mut rounds: Vec<&[Act]> =
        acts.split_inclusive(|act| matches!(act, Act::Answer(_))).collect();
    let mut answers = Vec::new();
    let mut seen = 0;
    let first = if early && !rounds.is_empty() { rounds.remove(0) } else { &[] };
    let (mut forger, mut server, mut result) = Forger::meet(configs, lean, |forger| {
        let mut records = flight(forger, first);
        befall(&mut records, accident, &mut seen);
        records.concat()
    });
    let answer = |act: Option<&Act>, result: &Result<(), Failure>, server: &mut Server| {
        if let (Some(Act::Answer(len)), Ok(())) = (act, result) {
            server.seal(&vec![7; *len]).unwrap();
        }
    };
    answer(first.last(), &result, &mut server);
    answers.extend(server.records());
    for round in rounds {
        let mut records = flight(&mut forger, round);
        befall(&mut records, accident, &mut seen);
        let bytes = records.concat();
        let mut rest = bytes.as_slice();
        let most = [1, 7, 300, 5_000, 33_024][chunks.below(5)].max(bytes.len() / 200);
        while !rest.is_empty() && result.is_ok() {
            let (chunk, behind) = rest.split_at((1 + chunks.below(most)).min(rest.len()));
            result = server.receive(chunk);
            assert!(server.session.partial_bytes() <= PARTIAL_BYTES_MAX);
            rest = behind;
            if chunks.one_in(8) {
                server.session.rest();
            }
        }
        answer(round.last(), &result, &mut server);
        answers.extend(server.records());
        if result.is_err() {
            break;
        }
    }
    let answers = forger.open(&answers);
    Fate::of(result.is_err(), &mut server, answers)
}

/// One flight of the client's records.
fn flight(forger: &mut Forger, acts: &[Act]) -> Vec<Vec<u8>> {
    let tls13 = forger.kernel.protocol_version() == ProtocolVersion::TLSv1_3;
    let mut records = Vec::new();
    for act in acts {
        match act {
            Act::Padded(len, zeros) if tls13 => {
                let mut inner = pattern(*len);
                inner.push(APPLICATION_DATA);
                inner.resize(inner.len() + zeros, 0);
                records.push(forger.seal(0, &inner));
            }
            Act::Data(len) | Act::Padded(len, _) => {
                records.push(forger.seal(APPLICATION_DATA, &pattern(*len)));
            }
            Act::KeyUpdate { ours_too } if tls13 => {
                let message = if *ours_too { KEY_UPDATE_PLEASE } else { KEY_UPDATE };
                records.push(forger.seal(HANDSHAKE, &message));
                forger.next_keys();
            }
            Act::Pieces(message, size) if tls13 => {
                records.extend(message.chunks(*size).map(|piece| forger.seal(HANDSHAKE, piece)));
                forger.next_keys();
            }
            Act::Record(kind, content) => records.push(forger.seal(*kind, content)),
            Act::Raw(bytes) => records.push(bytes.clone()),
            Act::CloseNotify => records.push(forger.seal(ALERT, &[WARNING, 0])),
            Act::KeyUpdate { .. } | Act::Pieces(..) | Act::Answer(_) => {}
        }
    }
    records
}

/// Letters that tell a shift; some of them zero, as padding is.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 5).unwrap()).collect()
}

/// Lets `accident` happen to the record that it names, counted from the session's first.
fn befall(records: &mut Vec<Vec<u8>>, accident: Accident, seen: &mut usize) {
    let here = |number: usize| number.checked_sub(*seen).filter(|at| *at < records.len());
    let before = records.len();
    match accident {
        Accident::None => {}
        Accident::Drop(number) => {
            if let Some(at) = here(number) {
                records.remove(at);
            }
        }
        Accident::Replay(number) => {
            if let Some(at) = here(number) {
                records.insert(at, records[at].clone());
            }
        }
        Accident::Swap(number) => {
            if let Some(at) = here(number).filter(|at| at + 1 < records.len()) {
                records.swap(at, at + 1);
            }
        }
        Accident::Flip(number, bit) => {
            if let Some(at) = here(number) {
                // Headers are judged by `strange_headers_are_refused`.
                let body = &mut records[at][HEADER_BYTES..];
                if !body.is_empty() {
                    body[bit / 8 % body.len()] ^= 1 << (bit % 8);
                }
            }
        }
        Accident::Truncate(number) => {
            // What a header of another type gives away, we see before its record is whole.
            if let Some(at) = here(number).filter(|at| records[*at][0] == APPLICATION_DATA) {
                let half = records[at].len() / 2;
                records[at].truncate(half);
                records.truncate(at + 1);
            } else if number < *seen {
                records.clear();
            }
        }
    }
    *seen += before;
}

/// A client's behaviour: mostly good, now and then not.
fn acts(dice: &mut Dice, count: usize) -> Vec<Act> {
    let mut acts: Vec<Act> = (0..count)
        .map(|_| match dice.below(40) {
            0..16 => Act::Data(1 + dice.below(2_000)),
            16..18 => Act::Data(16_384 - dice.below(2)),
            18..21 => Act::Data(0),
            21..24 => Act::Padded(dice.below(200), dice.below(3_000)),
            24..27 => Act::KeyUpdate { ours_too: dice.one_in(2) },
            27 => Act::Pieces(KEY_UPDATE_PLEASE.to_vec(), 1 + dice.below(4)),
            28 => Act::Pieces(KEY_UPDATE.to_vec(), 1 + dice.below(4)),
            29 => Act::Record(ALERT, vec![WARNING, 90]),
            _ => Act::Answer(1 + dice.below(20_000)),
        })
        .collect();
    // Of more we make an end where rustls goes on: see `key_updates_are_earned_by_data`.
    let updates =
        acts.iter_mut().filter(|act| matches!(act, Act::KeyUpdate { .. } | Act::Pieces(..)));
    for update in updates.skip(KEY_UPDATES_MAX.into()) {
        *update = Act::Data(1);
    }
    if dice.one_in(3) {
        let at = dice.below(acts.len());
        acts.insert(at, bad(dice));
    }
    if dice.one_in(2) {
        acts.push(Act::CloseNotify);
        acts.push(Act::Data(5));
    }
    acts
}

/// What breaks a session, or nearly does.
fn bad(dice: &mut Dice) -> Act {
    match dice.below(16) {
        0 => Act::Record(HANDSHAKE, [&KEY_UPDATE[..], &KEY_UPDATE].concat()),
        1 => Act::Record(HANDSHAKE, [&KEY_UPDATE[..], &[24]].concat()),
        2 => Act::Record(HANDSHAKE, vec![24, 0, 0, 1, 2]),
        3 => Act::Record(HANDSHAKE, vec![24, 0, 0, 2, 0, 0]),
        4 => Act::Record(HANDSHAKE, vec![11, 0, 0, 1, 0]),
        5 => Act::Record(HANDSHAKE, vec![24, 0, 0, 0]),
        6 => Act::Record(HANDSHAKE, vec![20, 0, 0, 1, 0]),
        7 => Act::Record(ALERT, vec![FATAL, dice.bytes(1)[0].max(1)]),
        8 => Act::Record(ALERT, vec![3, 0]),
        9 => Act::Record(ALERT, vec![WARNING]),
        10 => Act::Record(ALERT, vec![WARNING, 0, WARNING]),
        11 => Act::Record(20, vec![1]),
        12 => Act::Record(24, vec![1]),
        13 => Act::Raw([&[23, 3, 3, 0, 40][..], &dice.bytes(40)].concat()),
        14 => Act::Raw(vec![23, 3, 3, 0xff, 0xff]),
        _ => Act::Raw(vec![20, 3, 3, 0, 1, 1]),
    }
}

fn accident(dice: &mut Dice, records: usize) -> Accident {
    let at = dice.below(records);
    match dice.below(12) {
        0 => Accident::Drop(at),
        1 => Accident::Replay(at),
        2 => Accident::Swap(at),
        3 | 4 => Accident::Flip(at, dice.below(1 << 20)),
        5 => Accident::Truncate(at),
        _ => Accident::None,
    }
}

#[track_caller]
fn agree(configs: &Configs, acts: &[Act], accident: Accident, seed: u64) {
    let [theirs, ours] =
        [RUSTLS, LEAN].map(|lean| play(configs, lean, acts, accident, &mut Dice(seed)));
    let suite = configs.suite();
    assert!(
        theirs == ours,
        "{suite:?}, seed {seed}, {accident:?}, {acts:?}:\n rustls {}\n ours   {}",
        brief(&theirs),
        brief(&ours)
    );
}

fn brief(fate: &Fate) -> String {
    let answers: Vec<_> =
        fate.answers.iter().map(|(kind, content)| (*kind, content.len())).collect();
    let Fate { plaintext, broken, client_closed, .. } = fate;
    format!("{} bytes, broken {broken}, closed {client_closed}, {answers:?}", plaintext.len())
}

fn records_to_play() -> usize {
    let wanted = std::env::var("PORTCULLIS_RECORDS").ok();
    wanted.map_or(20_000, |count| count.parse().expect("PORTCULLIS_RECORDS is a number"))
}

#[test]
fn any_stream_has_the_same_fate_as_with_rustls() {
    let all = SUITES.map(|suite| configs(suite, 0));
    let mut played = 0;
    let mut seed = 0;
    while played < records_to_play() {
        let configs = &all[usize::try_from(seed).unwrap() % all.len()];
        let mut dice = Dice(seed << 20);
        let most = [4, 30, 200][dice.below(3)];
        let count = 1 + dice.below(most);
        let acts = acts(&mut dice, count);
        let accident = accident(&mut dice, acts.len());
        agree(configs, &acts, accident, seed);
        played += acts.len();
        seed += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same with streams that shrink.
    #[test]
    fn short_streams_have_the_same_fate(
        seeds in proptest::collection::vec(any::<u64>(), 1..12),
        (number, kind, bit) in (0_usize..12, 0_usize..6, 0_usize..4096),
        suite in 0..SUITES.len(),
        chunks in any::<u64>(),
    ) {
        let accident = [
            Accident::None,
            Accident::Drop(number),
            Accident::Replay(number),
            Accident::Swap(number),
            Accident::Flip(number, bit),
            Accident::Truncate(number),
        ][kind];
        let acts: Vec<Act> = seeds.iter().flat_map(|seed| acts(&mut Dice(*seed), 1)).collect();
        agree(&configs(SUITES[suite], 0), &acts, accident, chunks);
    }
}

/// Writes what rustls wants to send into the session.
fn carry(client: &mut rustls::ClientConnection, server: &mut Server, dice: &mut Dice) {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let most = [1, 100, 40_000][dice.below(3)].max(bytes.len() / 50);
        let (chunk, behind) = rest.split_at((1 + dice.below(most)).min(rest.len()));
        server.receive(chunk).unwrap();
        rest = behind;
    }
}

#[test]
fn a_rustls_client_and_we_understand_each_other() {
    for (number, suite) in SUITES.into_iter().enumerate() {
        let configs = configs(suite, 2);
        let mut dice = Dice(u64::try_from(number).unwrap());
        let mut server = Server::new(&configs.servers[LEAN]);
        let name = ServerName::try_from("a.example").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&configs.client), name).unwrap();
        client.set_buffer_limit(None);
        for _ in 0..records_to_play() / 500 {
            let most = if dice.one_in(4) { 40_000 } else { 300 };
            let said = dice.bytes(most);
            client.writer().write_all(&said).unwrap();
            if dice.one_in(3) && is_tls13(suite) && !client.is_handshaking() {
                client.refresh_traffic_keys().unwrap();
            }
            client.writer().write_all(&said).unwrap();
            let most = if dice.one_in(4) { 40_000 } else { 300 };
            let answer = dice.bytes(most);
            let mut answered = false;
            let mut read: Vec<u8> = Vec::new();
            while read.len() < answer.len() {
                carry(&mut client, &mut server, &mut dice);
                if server.session.is_established() && !answered {
                    server.seal(&answer).unwrap();
                    answered = true;
                }
                let records = server.records();
                let mut rest = records.as_slice();
                while !rest.is_empty() {
                    client.read_tls(&mut rest).unwrap();
                    client.process_new_packets().unwrap();
                    let mut some = vec![0; 50_000];
                    if let Ok(len) = client.reader().read(&mut some) {
                        read.extend(&some[..len]);
                    }
                }
            }
            carry(&mut client, &mut server, &mut dice);
            assert_eq!(read, answer);
            assert_eq!(server.plaintext(), [&said[..], &said].concat());
        }
        server.session.close(&mut server.records, &mut server.pool);
        client.read_tls(&mut server.records().as_slice()).unwrap();
        assert!(client.process_new_packets().unwrap().peer_has_closed());
        client.send_close_notify();
        carry(&mut client, &mut server, &mut dice);
        assert!(server.session.client_closed());
    }
}
