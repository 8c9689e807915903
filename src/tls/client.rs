//! The client's end of a TLS session, for `portcullis load`: what clients offer, and one session.
//!
//! rustls does the handshake. Behind it our own record layer takes over, which costs less memory
//! and time, except where tickets of TLS 1.3 are wanted: they come behind the handshake, and only
//! rustls can keep them.

mod verify;

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls12Resumption, Tls13ClientSessionValue, WebPkiServerVerifier,
};
use rustls::crypto::CryptoProvider;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, NamedGroup,
    ProtocolVersion, RootCertStore,
};
use rustls_pki_types::{CertificateDer, ServerName};

use super::provider::{Cpu, provider};
use super::record::{self, ClientRecords};
use crate::config::{Tls, TlsVersion};
use crate::io::buffer::Pool;
use crate::io::queue::Queue;

/// Sessions that one returning client keeps: rustls rounds it to one server, of which it keeps one
/// session of TLS 1.2 or eight tickets of TLS 1.3.
const SESSIONS: usize = 8;

/// Why a session ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The server's fatal alert, by number (RFC 8446 section 6).
    Alert(u8),
    /// The server's certificate is not one that we trust.
    Certificate,
    /// Server and client have no version, suite or group in common, or the server broke the
    /// protocol of the handshake.
    Handshake,
    /// A record that is none, or not what the server sealed.
    Record,
    /// The server has changed its keys, which our record layer cannot follow.
    KeyUpdate,
    /// The keys have protected as many records as they may (RFC 8446 section 5.5).
    KeysUsedUp,
}

impl Fault {
    fn of(error: &Error) -> Self {
        match error {
            Error::AlertReceived(description) => Self::Alert((*description).into()),
            Error::InvalidCertificate(_) => Self::Certificate,
            Error::DecryptError | Error::PeerSentOversizedRecord | Error::InvalidMessage(_) => {
                Self::Record
            }
            _ => Self::Handshake,
        }
    }
}

/// An alert's name as rustls spells it, such as `HandshakeFailure`; `None`: not a registered one.
pub fn alert_name(number: u8) -> Option<&'static str> {
    AlertDescription::from(number).as_str()
}

/// Whether clients come back with an earlier session, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Every handshake is a full one. Tickets are asked for, as clients do, and forgotten.
    No,
    /// By ticket (RFC 5077) or, in TLS 1.3, by PSK with a new key exchange (`psk_dhe_ke`, RFC 8446
    /// section 4.2.9).
    Ticket,
    /// By a session ID that the server remembers (RFC 5246 section 7.3); tickets are not offered.
    SessionId,
}

/// What all clients of a load offer.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// Versions, suites in order, and groups in order.
    pub tls: Tls,
    /// ALPN protocols, in order.
    pub alpn: Vec<String>,
    /// The name asked for; of an address no name is sent (RFC 6066 section 3).
    pub server_name: String,
    /// Authorities that the server's certificate must come from; `None`: any certificate will do,
    /// and its signature is not looked at.
    pub authorities: Option<Vec<CertificateDer<'static>>>,
    /// Whether clients come back.
    pub resume: Resume,
}

/// Why [`Offer::new`] has no offer.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// It can be neither looked up nor asked for.
    #[error("{0:?} is no server name")]
    Name(String),
    /// rustls's reason.
    #[error("these TLS settings do not go together: {0}")]
    Settings(#[from] Error),
    /// A certificate that is none.
    #[error("the authorities cannot be used: {0}")]
    Authorities(String),
}

/// What one client offers, and the sessions it can come back with. Clones share those.
#[derive(Debug, Clone)]
pub struct Offer {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    resume: Resume,
    /// Tickets of TLS 1.3 received so far.
    tickets: Arc<AtomicU64>,
}

impl Offer {
    /// An offer without sessions.
    ///
    /// # Errors
    /// When the wishes contradict each other.
    pub fn new(wishes: &Wishes) -> Result<Self, OfferError> {
        let provider = provider(&wishes.tls, Cpu::detect());
        let name = ServerName::try_from(wishes.server_name.clone())
            .map_err(|_| OfferError::Name(wishes.server_name.clone()))?;
        let mut config = builder(&wishes.tls, wishes.authorities.as_deref(), &provider)?;
        config.alpn_protocols = wishes.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        config.enable_secret_extraction = true;
        // Room for none: unlike `disabled`, this asks for a ticket in TLS 1.2, too.
        config.resumption = Resumption::in_memory_sessions(0);
        let tickets = Arc::default();
        Ok(Self { config: Arc::new(config), name, resume: wishes.resume, tickets })
    }

    /// The same offer by another client: with sessions of its own, if clients come back.
    #[must_use]
    pub fn of_another_client(&self) -> Self {
        if self.resume == Resume::No {
            return self.clone();
        }
        let tickets = Arc::<AtomicU64>::default();
        let store = Store {
            sessions: ClientSessionMemoryCache::new(SESSIONS),
            tickets: Arc::clone(&tickets),
        };
        let tls12 = match self.resume {
            Resume::SessionId => Tls12Resumption::SessionIdOnly,
            Resume::No | Resume::Ticket => Tls12Resumption::SessionIdOrTickets,
        };
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::store(Arc::new(store)).tls12_resumption(tls12);
        Self { config: Arc::new(config), tickets, ..self.clone() }
    }

    /// Tickets of TLS 1.3 that this client has received so far.
    pub fn tickets(&self) -> u64 {
        self.tickets.load(Relaxed)
    }

    /// Whether the client wants the tickets that follow a handshake.
    pub fn wants_tickets(&self) -> bool {
        self.resume == Resume::Ticket
    }
}

fn builder(
    tls: &Tls,
    authorities: Option<&[CertificateDer<'static>]>,
    provider: &Arc<CryptoProvider>,
) -> Result<ClientConfig, OfferError> {
    let versions: Vec<_> = tls
        .versions
        .iter()
        .map(|version| match version {
            TlsVersion::Tls12 => &rustls::version::TLS12,
            TlsVersion::Tls13 => &rustls::version::TLS13,
        })
        .collect();
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&versions)?;
    let Some(authorities) = authorities else {
        let anyone = Arc::new(verify::Anyone::new(provider));
        let builder = builder.dangerous().with_custom_certificate_verifier(anyone);
        return Ok(builder.with_no_client_auth());
    };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| OfferError::Authorities(error.to_string()))?;
    Ok(builder.with_webpki_verifier(verifier).with_no_client_auth())
}

/// A client's sessions, which counts its tickets: that one has come is the only sign that a
/// returning client of TLS 1.3 may close.
#[derive(Debug)]
struct Store {
    sessions: ClientSessionMemoryCache,
    tickets: Arc<AtomicU64>,
}

impl ClientSessionStore for Store {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(server_name)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.sessions.set_tls12_session(server_name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions.tls12_session(server_name)
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.sessions.remove_tls12_session(server_name);
    }

    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        self.tickets.fetch_add(1, Relaxed);
        self.sessions.insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(
        &self,
        server_name: &ServerName<'static>,
    ) -> Option<Tls13ClientSessionValue> {
        self.sessions.take_tls13_ticket(server_name)
    }
}

/// What a handshake has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Version, such as `TLSv1_3`.
    pub version: &'static str,
    /// Suite, such as `TLS13_AES_128_GCM_SHA256`.
    pub suite: &'static str,
    /// Key exchange group, such as `X25519`; none in a resumed TLS 1.2 handshake.
    pub group: Option<&'static str>,
    /// The client has come back with an earlier session.
    pub resumed: bool,
}

/// Where a session's bytes go.
pub struct Sinks<'a> {
    /// What the server says, piece by piece.
    pub plaintext: &'a mut dyn FnMut(&[u8]),
    /// Records towards the server.
    pub records: &'a mut Queue,
    /// Where the queue takes its buffers.
    pub pool: &'a mut Pool,
    /// Room for one opened record: [`SCRATCH_BYTES`].
    pub scratch: &'a mut [u8],
}

/// Bytes of [`Sinks::scratch`].
pub const SCRATCH_BYTES: usize = crate::limits::PARTIAL_BYTES_MAX;

/// The client's end of one TLS session.
pub struct Session {
    layer: Layer,
    /// Ciphertext of a record whose rest has not arrived.
    partial: Vec<u8>,
}

enum Layer {
    Rustls {
        tls: Box<ClientConnection>,
        stays: bool,
    },
    Lean(Box<ClientRecords>),
    /// Our own record layer could not take over.
    None,
}

impl Session {
    /// A session whose `ClientHello` is in `records`.
    ///
    /// # Errors
    /// When rustls refuses the offer.
    pub fn begin(offer: &Offer, records: &mut Queue, pool: &mut Pool) -> Result<Self, Fault> {
        let tls = ClientConnection::new(Arc::clone(&offer.config), offer.name.clone());
        let mut tls = Box::new(tls.map_err(|error| Fault::of(&error))?);
        flush(&mut tls, records, pool);
        // Tickets of TLS 1.2 come within the handshake.
        let stays = offer.wants_tickets();
        Ok(Self { layer: Layer::Rustls { tls, stays }, partial: Vec::new() })
    }

    /// Whether nothing is left to be agreed on.
    pub fn is_established(&self) -> bool {
        match &self.layer {
            Layer::Rustls { tls, .. } => !tls.is_handshaking(),
            Layer::Lean(_) => true,
            Layer::None => false,
        }
    }

    /// The server's `close_notify` has arrived.
    pub fn server_closed(&self) -> bool {
        matches!(&self.layer, Layer::Lean(lean) if lean.server_closed())
    }

    /// Gives back what is needed only while bytes flow.
    pub fn rest(&mut self) {
        self.partial.shrink_to_fit();
        if let Layer::Lean(records) = &mut self.layer {
            records.rest();
        }
    }

    /// Takes ciphertext in. Returns what was agreed on when the handshake has just ended.
    ///
    /// # Errors
    /// What ended the session. The alert that says so to the server is in `sinks.records`.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        sinks: &mut Sinks<'_>,
    ) -> Result<Option<Agreed>, Fault> {
        if self.partial.is_empty() {
            let (used, agreed) = self.process(bytes, sinks)?;
            self.partial.extend_from_slice(bytes.get(used..).unwrap_or_default());
            return Ok(agreed);
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(bytes);
        let (used, agreed) = self.process(&partial, sinks)?;
        partial.drain(..used);
        self.partial = partial;
        Ok(agreed)
    }

    /// Takes the whole records at the front of `bytes`; returns how many bytes they were.
    fn process(
        &mut self,
        bytes: &[u8],
        sinks: &mut Sinks<'_>,
    ) -> Result<(usize, Option<Agreed>), Fault> {
        let mut used = 0;
        let mut agreed = None;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            match &mut self.layer {
                Layer::Rustls { tls, stays } => {
                    if !record::is_tls(rest) {
                        return Err(Fault::Record);
                    }
                    // One by one: what is behind the handshake may be our own record layer's.
                    let whole = record::length(rest).filter(|length| *length <= rest.len());
                    let Some(length) = whole else {
                        return Ok((used, agreed));
                    };
                    let was_handshaking = tls.is_handshaking();
                    show(tls, rest.get(..length).unwrap_or_default(), sinks)?;
                    used += length;
                    if was_handshaking && !tls.is_handshaking() {
                        agreed = Some(agreement(tls));
                        if !*stays || tls.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
                            self.take_over()?;
                        }
                    }
                }
                Layer::Lean(records) => {
                    used += records.open(rest, sinks.scratch, sinks.plaintext)?;
                    return Ok((used, agreed));
                }
                Layer::None => return Err(Fault::Handshake),
            }
        }
    }

    /// Our own record layer goes on where rustls has ended.
    fn take_over(&mut self) -> Result<(), Fault> {
        let Layer::Rustls { tls, .. } = std::mem::replace(&mut self.layer, Layer::None) else {
            return Err(Fault::Handshake);
        };
        let tls13 = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        let secrets = tls.dangerous_extract_secrets().map_err(|error| Fault::of(&error))?;
        let records = ClientRecords::new(secrets, tls13).ok_or(Fault::Handshake)?;
        self.layer = Layer::Lean(Box::new(records));
        Ok(())
    }

    /// Seals `plaintext`; only once the session is established.
    ///
    /// # Errors
    /// When the session cannot send any more.
    pub fn send(
        &mut self,
        plaintext: &[u8],
        records: &mut Queue,
        pool: &mut Pool,
    ) -> Result<(), Fault> {
        match &mut self.layer {
            Layer::Rustls { tls, .. } => {
                let written = tls.writer().write_all(plaintext);
                flush(tls, records, pool);
                written.map_err(|_| Fault::KeysUsedUp)
            }
            Layer::Lean(lean) => lean.seal(plaintext, records, pool),
            Layer::None => Err(Fault::Handshake),
        }
    }

    /// Queues the `close_notify` that ends our direction.
    pub fn close(&mut self, records: &mut Queue, pool: &mut Pool) {
        match &mut self.layer {
            Layer::Rustls { tls, .. } => {
                tls.send_close_notify();
                flush(tls, records, pool);
            }
            Layer::Lean(lean) => lean.close(records, pool),
            Layer::None => {}
        }
    }
}

/// Shows rustls one whole record, and takes what it has to say.
fn show(tls: &mut ClientConnection, record: &[u8], sinks: &mut Sinks<'_>) -> Result<(), Fault> {
    let mut record = record;
    while !record.is_empty() {
        match tls.read_tls(&mut record) {
            // Behind a close_notify it takes nothing more.
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Err(Fault::Record),
        }
        let state = tls.process_new_packets();
        flush(tls, sinks.records, sinks.pool);
        let mut plain = state.map_err(|error| Fault::of(&error))?.plaintext_bytes_to_read();
        while plain > 0 {
            let mut reader = tls.reader();
            let part = reader.fill_buf().unwrap_or_default();
            let length = part.len();
            if length == 0 {
                break;
            }
            (sinks.plaintext)(part);
            reader.consume(length);
            plain -= length;
        }
    }
    Ok(())
}

/// Queues what rustls has to send.
fn flush(tls: &mut ClientConnection, records: &mut Queue, pool: &mut Pool) {
    let mut writer = Appender { records, pool };
    while tls.wants_write() {
        if tls.write_tls(&mut writer).is_err() {
            return;
        }
    }
}

struct Appender<'a> {
    records: &'a mut Queue,
    pool: &'a mut Pool,
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if !self.records.ended() {
            self.records.append(bytes, self.pool);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn agreement(tls: &ClientConnection) -> Agreed {
    let group = tls.negotiated_key_exchange_group().and_then(|group| group.name().as_str());
    Agreed {
        version: tls.protocol_version().and_then(|version| version.as_str()).unwrap_or("unknown"),
        suite: tls
            .negotiated_cipher_suite()
            .and_then(|suite| suite.suite().as_str())
            .unwrap_or("unknown"),
        group,
        resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
    }
}
