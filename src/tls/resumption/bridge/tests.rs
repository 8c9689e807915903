//! A worker's resumption with a real client and a real server in memory, and clocks to turn.

use rcgen::{CertificateParams, KeyPair};
use rustls::client::Resumption as ClientResumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection};

use super::*;
use crate::config::{GROUPS, Listener, RecordLayer, Resumption as Section, ResumptionMode};
use crate::config::{Tls, TlsVersion, UnknownName};
use crate::tls::client_auth::ClientAuthPolicy;
use crate::tls::hello::{Peek, TLS12, peek};
use crate::tls::provider::{Cpu, provider};
use crate::tls::resolver::NamedCertificate;
use crate::tls::resumption::name_fingerprint;
use crate::tls::terms::Terms;

const HOUR: u32 = 3600;
/// Some day in 2026, at the beginning of an epoch.
const START: u32 = 41_400 * 12 * HOUR;

/// Two listeners with one certificate, and what serves them: as many workers as are asked for.
struct Server {
    https: Terms,
    other: Terms,
    /// `https` on a box of the same fleet whose CPU has no AES: it picks other suites.
    slow: Terms,
    ratchet: Ratchet,
    workers: Vec<Rc<Resumption>>,
    unix: u32,
}

struct Client(Arc<ClientConfig>);

const TLS13_CLIENT: ClientTraits =
    ClientTraits { newest_version: TLS13, takes_tickets: true, offers_session: true };

/// How one handshake ended.
type Outcome = (HandshakeKind, Option<(ResumptionKind, ResumptionResult)>);

fn set_up(mode: ResumptionMode, version: TlsVersion) -> (Server, Client) {
    let key = KeyPair::generate().unwrap();
    let names = vec!["a.example".to_owned(), "b.example".to_owned()];
    let signed = CertificateParams::new(names.clone()).unwrap().self_signed(&key).unwrap();
    let der = signed.der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls = Tls {
        versions: vec![version],
        cipher_suites: None,
        groups: GROUPS.map(str::to_owned).to_vec(),
        record_layer: RecordLayer::Lean,
    };
    let ours = provider(&tls, Cpu { aes: true, sha256: true });
    let slow = provider(&tls, Cpu { aes: false, sha256: false });
    let certified = Arc::new(CertifiedKey::from_der(vec![der.clone()], key, &ours).unwrap());
    let terms = |name: &str, ours: &Arc<CryptoProvider>| {
        let listener = Listener {
            name: name.to_owned(),
            bind: Vec::new(),
            backend: 0,
            alpn: Vec::new(),
            backlog: None,
            defer_accept: None,
            connection_rate: None,
            unknown_name: UnknownName::Default,
            client_auth: None,
            certificates: Vec::new(),
        };
        let certificates =
            [NamedCertificate { names: names.clone(), certified: Arc::clone(&certified) }];
        let section = Section { mode, ..Section::default() };
        let nobody = ClientAuthPolicy::none();
        Terms::build(&listener, &tls, &section, Arc::clone(ours), &certificates, &nobody).unwrap()
    };
    let mut roots = RootCertStore::empty();
    roots.add(der).unwrap();
    let theirs = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(theirs)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = ClientResumption::in_memory_sessions(64);
    let ratchet = Ratchet::new(41_399, Zeroizing::new([1; SECRET_BYTES]));
    let mut server = Server {
        https: terms("https", &ours),
        other: terms("other", &ours),
        slow: terms("https", &slow),
        ratchet,
        workers: vec![],
        unix: START,
    };
    let shared = Arc::new(Shared::new(4096, 1 << 22));
    for _ in 0..3 {
        server.workers.push(Rc::new(Resumption::new(Beginnings {
            tickets: mode == ResumptionMode::Tickets,
            lifetime: 24 * HOUR,
            keys: server.keys(),
            shared: Arc::clone(&shared),
            ..Beginnings::for_tests()
        })));
    }
    (server, Client(Arc::new(client)))
}

impl Server {
    fn keys(&self) -> Arc<Keys> {
        let length = 12 * u64::from(HOUR);
        Arc::new(Keys::derive(&self.ratchet, u64::from(self.unix) / length, length).unwrap())
    }

    fn wait(&mut self, seconds: u32) {
        self.unix += seconds;
        let keys = self.keys();
        for worker in &self.workers {
            worker.set_keys(Arc::clone(&keys));
        }
    }
}

impl Client {
    /// A whole handshake, and the tickets after it.
    fn connect(
        &self,
        server: &Server,
        terms: &Terms,
        worker: usize,
        name: &'static str,
    ) -> Outcome {
        let (outcome, _) = self.try_connect(server, terms, worker, name, |_| {}).unwrap();
        outcome
    }

    fn try_connect(
        &self,
        server: &Server,
        terms: &Terms,
        worker: usize,
        name: &'static str,
        spoil: impl Fn(&mut Vec<u8>),
    ) -> Result<(Outcome, Made), rustls::Error> {
        let server_name = ServerName::try_from(name).unwrap();
        let mut client = ClientConnection::new(Arc::clone(&self.0), server_name).unwrap();
        let mut connection = ServerConnection::new(Arc::clone(terms.config())).unwrap();
        let mut attempt = None;
        for _ in 0..4 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            if attempt.is_none() {
                spoil(&mut bytes);
            }
            let attempt = attempt.get_or_insert_with(|| {
                let Peek::Complete(hello) = peek(&bytes) else {
                    panic!("a whole ClientHello");
                };
                Attempt::new(name_fingerprint(Some(name)), hello.client, terms.offers_tls13())
            });
            if connection.handshake_kind() != Some(HandshakeKind::Resumed) {
                attempt.begins_anew();
            }
            during(&server.workers[worker], attempt, server.unix, || {
                let mut bytes = bytes.as_slice();
                while !bytes.is_empty() {
                    connection.read_tls(&mut bytes).unwrap();
                    connection.process_new_packets()?;
                }
                Ok::<_, rustls::Error>(())
            })?;
            let mut bytes = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut bytes).unwrap();
            }
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
                client.process_new_packets()?;
            }
        }
        let kind = connection.handshake_kind().unwrap();
        assert_eq!(client.handshake_kind(), Some(kind));
        let attempt = attempt.unwrap();
        Ok(((kind, attempt.result(kind == HandshakeKind::Resumed)), attempt.made()))
    }
}

const FULL: Outcome = (HandshakeKind::Full, None);

fn resumed(kind: ResumptionKind) -> Outcome {
    (HandshakeKind::Resumed, Some((kind, ResumptionResult::Resumed)))
}

fn missed(kind: ResumptionKind, why: ResumptionResult) -> Outcome {
    (HandshakeKind::Full, Some((kind, why)))
}

/// Every way to resume. rustls as a client always takes tickets; in mode `cache` it gets none, and
/// offers session IDs in TLS 1.2 and names of sessions in TLS 1.3.
const WAYS: [(ResumptionMode, TlsVersion, ResumptionKind); 4] = [
    (ResumptionMode::Tickets, TlsVersion::Tls12, ResumptionKind::Ticket),
    (ResumptionMode::Tickets, TlsVersion::Tls13, ResumptionKind::Psk),
    (ResumptionMode::Cache, TlsVersion::Tls12, ResumptionKind::SessionId),
    (ResumptionMode::Cache, TlsVersion::Tls13, ResumptionKind::Psk),
];

#[test]
fn a_session_goes_on_at_every_worker() {
    for (mode, version, kind) in WAYS {
        let (server, client) = set_up(mode, version);
        assert_eq!(client.connect(&server, &server.https, 0, "a.example"), FULL);
        for worker in [1, 2, 0, 1] {
            let outcome = client.connect(&server, &server.https, worker, "a.example");
            assert_eq!(outcome, resumed(kind), "{mode:?} {version:?}");
        }
    }
}

/// The class of CVE-2025-23419.
#[test]
fn a_session_of_one_listener_never_goes_on_at_another() {
    for (mode, version, kind) in WAYS {
        let (server, client) = set_up(mode, version);
        client.connect(&server, &server.https, 0, "a.example");
        let outcome = client.connect(&server, &server.other, 0, "a.example");
        assert_eq!(outcome, missed(kind, ResumptionResult::OtherListener), "{mode:?} {version:?}");
    }
}

/// A client that shows one name's session at another; rustls's own would not.
#[test]
fn a_session_of_one_name_never_goes_on_at_another() {
    for (mode, version, kind) in WAYS {
        let (server, client) = set_up(mode, version);
        client.connect(&server, &server.https, 0, "a.example");
        let rename = |bytes: &mut Vec<u8>| {
            let at = bytes.windows(9).position(|part| part == b"a.example").unwrap();
            bytes[at] = b'b';
        };
        // The transcripts differ, so this ends in an error; what was decided before counts.
        let config = Arc::clone(server.https.config());
        let mut connection = ServerConnection::new(config).unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let mut returning = ClientConnection::new(Arc::clone(&client.0), name).unwrap();
        let mut bytes = Vec::new();
        returning.write_tls(&mut bytes).unwrap();
        rename(&mut bytes);
        let newest_version = if version == TlsVersion::Tls13 { TLS13 } else { TLS12 };
        let traits = ClientTraits { newest_version, takes_tickets: true, offers_session: true };
        let name = name_fingerprint(Some("b.example"));
        let mut attempt = Attempt::new(name, traits, version == TlsVersion::Tls13);
        during(&server.workers[0], &mut attempt, server.unix, || {
            connection.read_tls(&mut bytes.as_slice()).unwrap();
            connection.process_new_packets().unwrap();
        });
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        let result = attempt.result(false);
        assert_eq!(result, Some((kind, ResumptionResult::OtherName)), "{mode:?} {version:?}");
    }
}

#[test]
fn a_session_ends_its_lifetime_after_the_full_handshake_however_often_it_was_renewed() {
    for (mode, version, kind) in WAYS {
        let (mut server, client) = set_up(mode, version);
        client.connect(&server, &server.https, 0, "a.example");
        for hours in 1..24 {
            server.wait(HOUR);
            let outcome = client.connect(&server, &server.https, hours % 3, "a.example");
            assert_eq!(outcome, resumed(kind), "{mode:?} {version:?} after {hours} hours");
        }
        server.wait(HOUR);
        let (outcome, result) = client.connect(&server, &server.https, 0, "a.example");
        assert_eq!(outcome, HandshakeKind::Full);
        // rustls as a client forgets by its own clock what we said ends now, or offers it.
        if let Some((_, why)) = result {
            assert!(
                matches!(why, ResumptionResult::Expired | ResumptionResult::NotFound),
                "{mode:?} {version:?}: {why}"
            );
        }
    }
}

#[test]
fn a_ticket_of_two_epochs_ago_is_unknown() {
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let (mut server, client) = set_up(ResumptionMode::Tickets, version);
        client.connect(&server, &server.https, 0, "a.example");
        server.wait(30 * HOUR);
        let (kind, result) = client.connect(&server, &server.https, 0, "a.example");
        assert_eq!(kind, HandshakeKind::Full);
        assert_eq!(result.unwrap().1, ResumptionResult::UnknownEpoch);
    }
}

#[test]
fn a_session_of_tls13_kept_here_goes_on_once() {
    let (server, client) = set_up(ResumptionMode::Cache, TlsVersion::Tls13);
    client.connect(&server, &server.https, 0, "a.example");
    // The same ClientHello twice, as one who recorded it would send it.
    let name = ServerName::try_from("a.example").unwrap();
    let mut returning = ClientConnection::new(Arc::clone(&client.0), name).unwrap();
    let mut bytes = Vec::new();
    returning.write_tls(&mut bytes).unwrap();
    let results = [0, 1].map(|worker: usize| {
        let config = Arc::clone(server.https.config());
        let mut connection = ServerConnection::new(config).unwrap();
        let mut attempt = Attempt::new(name_fingerprint(Some("a.example")), TLS13_CLIENT, true);
        during(&server.workers[worker], &mut attempt, server.unix, || {
            connection.read_tls(&mut bytes.as_slice()).unwrap();
            connection.process_new_packets().unwrap();
        });
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        attempt.result(resumed).unwrap().1
    });
    assert_eq!(results, [ResumptionResult::Resumed, ResumptionResult::NotFound]);
}

#[test]
fn clients_get_tickets_as_configured_and_one_for_each_they_used() {
    let (server, client) = set_up(ResumptionMode::Tickets, TlsVersion::Tls13);
    let made =
        |worker| client.try_connect(&server, &server.https, worker, "a.example", |_| {}).unwrap().1;
    assert_eq!(made(0), Made { tickets: 2, ..Made::default() });
    assert_eq!(made(1), Made { tickets: 1, ..Made::default() });
}

#[test]
fn a_ticket_of_tls12_is_renewed_once_per_epoch() {
    let (mut server, client) = set_up(ResumptionMode::Tickets, TlsVersion::Tls12);
    let made = |server: &Server| {
        client.try_connect(server, &server.https, 0, "a.example", |_| {}).unwrap().1.tickets
    };
    assert_eq!([made(&server), made(&server), made(&server)], [1, 0, 0]);
    server.wait(12 * HOUR);
    assert_eq!([made(&server), made(&server)], [1, 0]);
}

#[test]
fn a_client_whose_session_does_not_fit_gets_a_whole_new_one() {
    for (mode, version, kind) in WAYS {
        let (mut server, client) = set_up(mode, version);
        client.connect(&server, &server.https, 0, "a.example");
        server.wait(HOUR);
        let tried = client.try_connect(&server, &server.slow, 1, "a.example", |_| {});
        let (outcome, made) = tried.unwrap();
        let wanted = missed(kind, ResumptionResult::OtherParameters);
        assert_eq!(outcome, wanted, "{mode:?} {version:?}");
        let wanted = match (mode, version) {
            (ResumptionMode::Tickets, TlsVersion::Tls12) => (1, 0),
            (ResumptionMode::Tickets, TlsVersion::Tls13) => (2, 0),
            (_, TlsVersion::Tls12) => (0, 1),
            (_, TlsVersion::Tls13) => (0, 2),
        };
        assert_eq!((made.tickets, made.sessions), wanted, "{mode:?} {version:?}");
        // It goes on for a lifetime from this handshake on, not from the one before.
        for hours in [11, 12] {
            server.wait(hours * HOUR + HOUR / 4);
            let outcome = client.connect(&server, &server.slow, 2, "a.example");
            assert_eq!(outcome, resumed(kind), "{mode:?} {version:?}");
        }
    }
}

#[test]
fn nothing_is_resumed_where_resumption_is_off() {
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let (server, client) = set_up(ResumptionMode::Off, version);
        for _ in 0..2 {
            let (outcome, made) =
                client.try_connect(&server, &server.https, 0, "a.example", |_| {}).unwrap();
            assert_eq!((outcome, made), (FULL, Made::default()));
        }
    }
}

#[test]
fn every_session_that_leaves_for_a_handshake_is_counted() {
    let (server, _client) = set_up(ResumptionMode::Cache, TlsVersion::Tls13);
    let shared = Arc::new(Shared::new(64, 1 << 20));
    let own = Rc::new(Resumption::new(Beginnings {
        tickets: false,
        shared: Arc::clone(&shared),
        ..Beginnings::for_tests()
    }));
    let bridge = Bridge::new("https", [0; 8]);
    let mut attempt = Attempt::new([0; 8], TLS13_CLIENT, true);
    during(&own, &mut attempt, server.unix, || {
        // All of one shard, which has one place.
        for id in [1, 2, 3] {
            let mut id = vec![id; 32];
            id[0] = 0;
            assert!(bridge.put(id, vec![0]));
        }
        let mut elsewhere = vec![1; 32];
        elsewhere[0] = 1;
        assert!(bridge.put(elsewhere, vec![0]));
    });
    assert_eq!((shared.evicted(), attempt.made().left_shared), (2, 2));
}

#[test]
fn what_expired_in_a_workers_own_cache_has_expired() {
    let (mut server, _client) = set_up(ResumptionMode::Cache, TlsVersion::Tls12);
    let shared = Arc::new(Shared::new(64, 1 << 20));
    let own = Rc::new(Resumption::new(Beginnings {
        tickets: false,
        shared: Arc::clone(&shared),
        ..Beginnings::for_tests()
    }));
    let bridge = Bridge::new("https", [0; 8]);
    let traits = ClientTraits { newest_version: TLS12, takes_tickets: false, offers_session: true };
    let mut attempt = Attempt::new([0; 8], traits, false);
    during(&own, &mut attempt, server.unix, || bridge.put(vec![7; 32], vec![0]));
    // It had to leave the cache of all workers.
    shared.remove(&SessionId([7; 32])).unwrap();
    server.wait(25 * HOUR);
    let mut attempt = Attempt::new([0; 8], traits, false);
    during(&own, &mut attempt, server.unix, || assert_eq!(bridge.get(&[7; 32]), None));
    let wanted = (ResumptionKind::SessionId, ResumptionResult::Expired);
    assert_eq!(attempt.result(false), Some(wanted));
}

#[test]
fn offers_beyond_the_limit_are_not_looked_at() {
    let (server, _client) = set_up(ResumptionMode::Tickets, TlsVersion::Tls13);
    let bridge = Bridge::new("https", [0; 8]);
    let mut attempt = Attempt::new([0; 8], TLS13_CLIENT, true);
    let binding = Binding { listener: bridge.listener, policy: [0; 8], name: [0; 8] };
    let ticket = server.keys().seal([0; 12], b"state", &binding, START).unwrap();
    during(&server.workers[0], &mut attempt, server.unix, || {
        for _ in 0..PSK_IDENTITIES_MAX {
            assert_eq!(bridge.decrypt(b"garbage"), None);
        }
        assert_eq!(bridge.decrypt(&ticket), None);
    });
    let wanted = (ResumptionKind::Psk, ResumptionResult::Malformed);
    assert_eq!(attempt.result(false), Some(wanted));
}

#[test]
fn outside_of_a_handshake_rustls_finds_nothing_and_a_panic_gives_the_attempt_back() {
    let (server, _client) = set_up(ResumptionMode::Tickets, TlsVersion::Tls13);
    let bridge = Bridge::new("https", [0; 8]);
    assert!(!bridge.enabled());
    assert!(!bridge.can_cache());
    assert_eq!(bridge.encrypt(b"state"), None);
    assert!(!bridge.put(vec![0; 32], vec![0]));
    let mut attempt = Attempt::new([0; 8], TLS13_CLIENT, true);
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        during(&server.workers[0], &mut attempt, server.unix, || {
            bridge.decrypt(b"garbage");
            panic!("a defect");
        });
    }));
    assert!(caught.is_err());
    assert!(attempt.result(false).is_some());
    assert_eq!(bridge.encrypt(b"state"), None);
}
