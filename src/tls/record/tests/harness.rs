//! Both ends of a session for tests: our server, and a client that can seal anything.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::kernel::KernelConnection;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use rustls::{CipherSuite, ClientConfig, ProtocolVersion, RootCertStore, ServerConfig};

use super::super::frame::{self, HANDSHAKE, Record};
use super::super::keys::Keys;
use crate::io::Time;
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::limits::RECORD_OVERHEAD_BYTES_MAX;
use crate::tls::failure::Failure;
use crate::tls::session::{self, Session, Sinks};

pub(super) const SUITES: [CipherSuite; 6] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

pub(super) fn is_tls13(suite: CipherSuite) -> bool {
    u16::from(suite) >> 8 == 0x13
}

/// A small generator, so that a seed plays the same on every machine.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Both ends' configurations for one suite; `lean` is whose record layer serves.
pub(super) struct Configs {
    pub(super) servers: [Arc<ServerConfig>; 2],
    pub(super) client: Arc<ClientConfig>,
}

pub(super) const RUSTLS: usize = 0;
pub(super) const LEAN: usize = 1;

pub(super) fn configs(suite: CipherSuite, tickets: usize) -> Configs {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|one| one.suite() == suite);
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let provider = Arc::new(provider);
    let version: &[_] =
        if is_tls13(suite) { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS12] };
    let key = rcgen::KeyPair::generate().unwrap();
    let signed = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    let der = signed.self_signed(&key).unwrap().der().clone();
    let server = |lean| {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(version)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![der.clone()], key)
            .unwrap();
        if lean {
            session::use_own_records(&mut config);
        }
        config.send_tls13_tickets = tickets;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    };
    let mut roots = RootCertStore::empty();
    roots.add(der.clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(version)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Configs { servers: [server(false), server(true)], client: Arc::new(client) }
}

/// A session and what it has given out.
pub(super) struct Server {
    pub(super) session: Session,
    pub(super) plaintext: Queue,
    pub(super) records: Queue,
    pub(super) pool: Pool,
    pub(super) now: Time,
}

impl Server {
    pub(super) fn new(config: &Arc<ServerConfig>) -> Self {
        let session = Session::new(Arc::clone(config)).unwrap();
        let (plaintext, records) = (Queue::default(), Queue::default());
        Self { session, plaintext, records, pool: Pool::default(), now: Time::default() }
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut sinks = Sinks {
            plaintext: &mut self.plaintext,
            records: &mut self.records,
            pool: &mut self.pool,
            now: self.now,
        };
        self.session.receive(&mut bytes.to_vec(), &mut sinks)
    }

    pub(super) fn seal(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.session.seal(bytes, &mut self.records, &mut self.pool)
    }

    pub(super) fn take(queue: &mut Queue, pool: &mut Pool) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(buffer) = queue.take() {
            let len = buffer.unsent().len();
            bytes.extend_from_slice(buffer.unsent());
            queue.sent(buffer, len, pool);
        }
        bytes
    }

    pub(super) fn plaintext(&mut self) -> Vec<u8> {
        Self::take(&mut self.plaintext, &mut self.pool)
    }

    pub(super) fn records(&mut self) -> Vec<u8> {
        Self::take(&mut self.records, &mut self.pool)
    }
}

/// A client that can seal anything, valid or not.
pub(super) struct Forger {
    pub(super) outbound: Keys,
    pub(super) inbound: Keys,
    pub(super) kernel: KernelConnection<rustls::client::ClientConnectionData>,
}

impl Forger {
    /// A whole handshake. The client's last flight and what `first` seals arrive at once.
    pub(super) fn meet(
        configs: &Configs,
        lean: usize,
        first: impl FnOnce(&mut Self) -> Vec<u8>,
    ) -> (Self, Server, Result<(), Failure>) {
        let mut server = Server::new(&configs.servers[lean]);
        let name = ServerName::try_from("a.example").unwrap();
        let mut client =
            UnbufferedClientConnection::new(Arc::clone(&configs.client), name).unwrap();
        let mut incoming = Vec::new();
        let mut outgoing = Vec::new();
        loop {
            let UnbufferedStatus { mut discard, state } = client.process_tls_records(&mut incoming);
            match state.unwrap() {
                ConnectionState::EncodeTlsData(mut data) => {
                    let needs = data.encode(&mut []).expect_err("encoded into nothing");
                    let EncodeError::InsufficientSize(needs) = needs else {
                        panic!("encoded twice");
                    };
                    let InsufficientSizeError { required_size } = needs;
                    let at = outgoing.len();
                    outgoing.resize(at + required_size, 0);
                    data.encode(&mut outgoing[at..]).unwrap();
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::BlockedHandshake => {
                    incoming.drain(..std::mem::take(&mut discard));
                    server.receive(&std::mem::take(&mut outgoing)).unwrap();
                    let answer = server.records();
                    assert!(!answer.is_empty(), "both wait");
                    incoming.extend(answer);
                }
                ConnectionState::WriteTraffic(_) => {
                    incoming.drain(..discard);
                    break;
                }
                other => panic!("unexpected: {other:?}"),
            }
            incoming.drain(..discard);
        }
        assert!(incoming.is_empty());
        let (secrets, kernel) = client.dangerous_into_kernel_connection().unwrap();
        let tls13 = is_tls13(configs.suite());
        let mut forger = Self {
            outbound: Keys::new(secrets.tx, tls13).unwrap(),
            inbound: Keys::new(secrets.rx, tls13).unwrap(),
            kernel,
        };
        outgoing.extend(first(&mut forger));
        let result = server.receive(&outgoing);
        assert!(server.session.is_established());
        (forger, server, result)
    }

    pub(super) fn seal(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut record = vec![0; payload.len() + RECORD_OVERHEAD_BYTES_MAX];
        let len = self.outbound.seal(kind, payload, &mut record).unwrap();
        record.truncate(len);
        record
    }

    /// TLS 1.3 only.
    pub(super) fn next_keys(&mut self) {
        self.outbound = Keys::new(self.kernel.update_tx_secret().unwrap(), true).unwrap();
    }

    /// What the server has sealed: types and contents.
    pub(super) fn open(&mut self, mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let tls13 = self.kernel.protocol_version() == ProtocolVersion::TLSv1_3;
        let mut contents = Vec::new();
        while let Some(Record { header, body, rest }) = frame::split(bytes, tls13).unwrap() {
            let mut out = vec![0; body.len()];
            let opened = self.inbound.open(header, body, &mut out).expect("in order and whole");
            let (kind, len) = frame::content(header, &out[..opened], tls13).unwrap();
            out.truncate(len);
            if kind == HANDSHAKE && out.starts_with(&[24]) {
                self.inbound = Keys::new(self.kernel.update_rx_secret().unwrap(), true).unwrap();
            }
            contents.push((kind, out));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        contents
    }
}

impl Configs {
    pub(super) fn suite(&self) -> CipherSuite {
        self.client.crypto_provider().cipher_suites[0].suite()
    }
}
