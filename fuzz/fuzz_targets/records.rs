//! Our record layer behind a TLS 1.3 handshake: whatever records a client seals, and whatever bytes
//! nobody sealed, in whatever pieces they come.
//!
//! What must hold: nothing panics; the server gets the data of the records that were sealed in
//! order with the right keys, up to the first that is wrong, and not a byte else; what is kept of
//! an incomplete record has its bound; who breaks the protocol is told so.

#![no_main]

use std::sync::{Arc, OnceLock};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use libfuzzer_sys::fuzz_target;
use portcullis::io::Time;
use portcullis::io::buffer::Pool;
use portcullis::io::queue::Queue;
use portcullis::limits::PARTIAL_BYTES_MAX;
use portcullis::tls::session::{Session, Sinks, use_own_records};
use rustls::crypto::cipher;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore,
    ServerConfig,
};

const NAME: &str = "fuzz.example";
const APPLICATION_DATA: u8 = 23;

/// One thing that the client does, taken from the front of the input.
enum Act<'a> {
    /// A record of this type.
    Seal(u8, &'a [u8]),
    /// Bytes that nobody sealed.
    Raw(&'a [u8]),
    /// The server answers.
    Answer(usize),
    /// What is not needed while nothing moves is given back.
    Rest,
}

fn act<'a>(input: &mut &'a [u8]) -> Option<Act<'a>> {
    let (&[what, length], rest) = input.split_first_chunk()?;
    let (content, rest) = rest.split_at(usize::from(length).min(rest.len()));
    *input = rest;
    Some(match what {
        0..128 => Act::Seal(APPLICATION_DATA, content),
        128..224 => Act::Seal(what % 32, content),
        224..240 => Act::Raw(content),
        240..248 => Act::Answer(usize::from(length) * 100),
        248.. => Act::Rest,
    })
}

/// The client's key, and the number of its next record.
struct Sealer {
    key: LessSafeKey,
    iv: cipher::Iv,
    next: u64,
}

impl Sealer {
    /// RFC 8446 section 5.2.
    fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut body = inner.to_vec();
        let [high, low] = u16::try_from(body.len() + 16).expect("255 bytes").to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let nonce = cipher::Nonce::new(&self.iv, self.next).0;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body);
        sealed.expect("there is room");
        self.next += 1;
        [&header[..], &body].concat()
    }
}

/// The data in what a record protects: behind it stand its type and any number of zeros.
fn data(inner: &[u8]) -> Option<&[u8]> {
    let end = inner.iter().rposition(|byte| *byte != 0)?;
    (inner[end] == APPLICATION_DATA).then_some(&inner[..end])
}

struct Server {
    session: Session,
    plaintext: Queue,
    records: Queue,
    pool: Pool,
}

impl Server {
    fn receive(&mut self, bytes: &mut [u8]) -> bool {
        let (plaintext, records) = (&mut self.plaintext, &mut self.records);
        let mut sinks = Sinks { plaintext, records, pool: &mut self.pool, now: Time::default() };
        self.session.receive(bytes, &mut sinks).is_ok()
    }

    fn take(queue: &mut Queue, pool: &mut Pool) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(buffer) = queue.take() {
            let len = buffer.unsent().len();
            bytes.extend_from_slice(buffer.unsent());
            queue.sent(buffer, len, pool);
        }
        bytes
    }
}

fn configs() -> &'static (Arc<ClientConfig>, Arc<ServerConfig>) {
    static CONFIGS: OnceLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let wanted = CipherSuite::TLS13_AES_128_GCM_SHA256;
        provider.cipher_suites.retain(|suite| suite.suite() == wanted);
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
        let provider = Arc::new(provider);
        let versions = &[&rustls::version::TLS13];
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a root");
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate and its key");
        server.send_tls13_tickets = 0;
        use_own_records(&mut server);
        (Arc::new(client), Arc::new(server))
    })
}

/// A whole handshake.
fn meet() -> (Sealer, Server) {
    let (client, server) = configs();
    let name = ServerName::try_from(NAME).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let session = Session::new(Arc::clone(server)).expect("a session");
    let (plaintext, records) = (Queue::default(), Queue::default());
    let mut server = Server { session, plaintext, records, pool: Pool::default() };
    while client.wants_write() {
        let mut flight = Vec::new();
        client.write_tls(&mut flight).expect("a Vec takes all");
        assert!(server.receive(&mut flight));
        let answer = Server::take(&mut server.records, &mut server.pool);
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("a slice gives all");
            client.process_new_packets().expect("a good server");
        }
    }
    assert!(server.session.is_established());
    let secrets = client.dangerous_extract_secrets().expect("secrets");
    let (next, ConnectionTrafficSecrets::Aes128Gcm { key, iv }) = secrets.tx else {
        panic!("another suite");
    };
    let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).expect("16 bytes");
    (Sealer { key: LessSafeKey::new(key), iv, next }, server)
}

fuzz_target!(|input: &[u8]| {
    let Some((pieces, mut input)) = input.split_first() else {
        return;
    };
    let (mut sealer, mut server) = meet();
    let mut expected = Vec::new();
    // The data sealed so far is all that may come; another record may have ended or changed things.
    let mut only_data = true;
    while let Some(act) = act(&mut input) {
        let mut bytes = match act {
            Act::Seal(kind, content) => {
                let inner = [content, &[kind]].concat();
                only_data &= data(&inner).is_some();
                expected.extend_from_slice(data(&inner).unwrap_or_default());
                sealer.seal(&inner)
            }
            Act::Raw(bytes) => {
                only_data &= bytes.is_empty();
                bytes.to_vec()
            }
            Act::Answer(len) => {
                let sealed =
                    server.session.seal(&vec![7; len], &mut server.records, &mut server.pool);
                assert!(sealed.is_ok(), "a fresh session can send");
                Vec::new()
            }
            Act::Rest => {
                server.session.rest();
                Vec::new()
            }
        };
        let mut holds = true;
        for piece in bytes.chunks_mut(1 + usize::from(*pieces)) {
            holds = holds && server.receive(piece);
        }
        assert!(server.session.partial_bytes() <= PARTIAL_BYTES_MAX);
        if !holds {
            break;
        }
    }
    let got = Server::take(&mut server.plaintext, &mut server.pool);
    assert!(expected.starts_with(&got), "bytes that were not sent, or not so");
    // Too many records without data end a session that is otherwise fine.
    assert!(!only_data || got == expected || server.records.pending() > 0, "bytes are missing");
});
