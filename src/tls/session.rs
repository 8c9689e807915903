//! One TLS session: ciphertext in, plaintext out, and back. Drives rustls's unbuffered API through
//! the handshake; behind it goes on with our own record layer, or with rustls's where
//! `tls.record_layer` says so.

use std::sync::Arc;

use rustls::crypto::SupportedKxGroup;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig};

use super::client_auth::ClientCertificate;
use super::failure::Failure;
use super::record::{self, Records, Secrets};
use crate::io::Time;
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::limits::{
    PARTIAL_BYTES_MAX, PARTIAL_HANDSHAKE_BYTES_MAX, RECORD_OVERHEAD_BYTES_MAX,
    RECORD_PAYLOAD_BYTES_MAX, SEND_BUFFER_BYTES,
};
use crate::telemetry::labels::{Group, HandshakeOutcome, HandshakeStep, Suite, Version};

/// The server's end of one TLS session.
pub struct Session {
    layer: Layer,
    /// What was agreed on, from when our own record layer has taken over until it is asked for.
    agreed: Option<Box<Agreed>>,
    /// Ciphertext of a record (or handshake message) whose rest has not arrived.
    partial: Vec<u8>,
    /// The record in [`Session::partial`] was incomplete at the last [`Session::mark`].
    partial_is_old: bool,
    /// The client's `close_notify` has arrived.
    client_closed: bool,
}

/// Who seals and opens.
enum Layer {
    Rustls {
        tls: Box<UnbufferedServerConnection>,
        /// Our own record layer takes over behind the handshake.
        lean: bool,
        /// Bytes of whole records that rustls has been shown and wants to see again.
        shown: usize,
        /// What our own record layer will derive its next keys from.
        secrets: Option<Secrets>,
    },
    Lean(Records),
    /// Our own record layer could not take over.
    None,
}

/// Lets our own record layer take over from rustls in the sessions of a configuration.
pub fn use_own_records(config: &mut ServerConfig) {
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(record::Listener);
}

/// What a handshake has agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Version.
    pub version: Version,
    /// Cipher suite.
    pub suite: Suite,
    /// Key exchange group.
    pub group: Group,
    /// ALPN protocol.
    pub alpn: Option<Box<[u8]>>,
    /// The client goes on with an earlier session.
    pub resumed: bool,
    /// The client's certificate, verified; `None`: it showed none.
    pub client_certificate: Option<Box<ClientCertificate>>,
}

/// Where a session's bytes go.
pub struct Sinks<'a> {
    /// Plaintext towards the server.
    pub plaintext: &'a mut Queue,
    /// Records towards the client.
    pub records: &'a mut Queue,
    /// Where both take their buffers.
    pub pool: &'a mut Pool,
    /// The time of this turn.
    pub now: Time,
}

impl Session {
    /// A session that has seen nothing yet.
    ///
    /// # Errors
    /// When rustls refuses the configuration.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Failure> {
        let lean = config.enable_secret_extraction;
        let tls = UnbufferedServerConnection::new(config).map_err(|error| Failure::from(&error))?;
        let layer = Layer::Rustls { tls: Box::new(tls), lean, shown: 0, secrets: None };
        Ok(Self {
            layer,
            agreed: None,
            partial: Vec::new(),
            partial_is_old: false,
            client_closed: false,
        })
    }

    /// Gives back what an established session needs only while bytes flow; what is left are keys,
    /// counters and what is kept of an incomplete record. rustls's record layer keeps all it has.
    pub fn rest(&mut self) {
        if let Layer::Lean(records) = &mut self.layer {
            records.rest();
        }
    }

    /// Whether nothing is left that [`Session::rest`] would give back.
    pub fn is_resting(&self) -> bool {
        match &self.layer {
            Layer::Lean(records) => records.is_resting(),
            Layer::Rustls { .. } | Layer::None => true,
        }
    }

    /// Takes ciphertext in; plaintext and answers go to `sinks`.
    ///
    /// # Limits
    /// Keeps at most [`PARTIAL_BYTES_MAX`] of an incomplete record between calls, and during the
    /// handshake [`PARTIAL_HANDSHAKE_BYTES_MAX`] of an incomplete message.
    ///
    /// # Errors
    /// What ended the session. The alert that says so to the client is in `sinks.records` already.
    pub fn receive(&mut self, bytes: &mut [u8], sinks: &mut Sinks<'_>) -> Result<(), Failure> {
        if self.client_closed {
            return Ok(());
        }
        let bytes = self.complete(bytes, sinks)?;
        if self.partial.is_empty() {
            let used = self.process(bytes, sinks)?;
            self.keep(bytes.get(used..).unwrap_or_default())
        } else if bytes.is_empty() {
            Ok(())
        } else {
            let mut partial = std::mem::take(&mut self.partial);
            partial.extend_from_slice(bytes);
            let used = self.process(&mut partial, sinks)?;
            self.partial_is_old &= used == 0;
            self.keep(partial.get(used..).unwrap_or_default())
        }
    }

    /// Behind the handshake: completes the record that was kept, and only that, so that what
    /// follows it is opened where it is. Returns the bytes behind it.
    fn complete<'a>(
        &mut self,
        mut bytes: &'a mut [u8],
        sinks: &mut Sinks<'_>,
    ) -> Result<&'a mut [u8], Failure> {
        let Layer::Lean(records) = &mut self.layer else {
            return Ok(bytes);
        };
        while !self.partial.is_empty() && !bytes.is_empty() {
            // Its header first, which tells how long it is.
            let end = record::length(&self.partial).unwrap_or(record::HEADER_BYTES);
            let missing = end.saturating_sub(self.partial.len()).min(bytes.len());
            let (part, rest) = bytes.split_at_mut(missing);
            bytes = rest;
            self.partial.reserve_exact(part.len());
            self.partial.extend_from_slice(part);
            if records.open(&self.partial, sinks)? > 0 {
                self.client_closed = records.client_closed();
                self.partial = Vec::new();
                self.partial_is_old = false;
            }
        }
        Ok(bytes)
    }

    /// Keeps what is incomplete, in memory of its size. rustls bounds a message by its payload; on
    /// the wire, cut into small padded records, it could be ten thousand times as long.
    fn keep(&mut self, rest: &[u8]) -> Result<(), Failure> {
        if self.client_closed {
            return Ok(());
        }
        let most =
            if self.is_established() { PARTIAL_BYTES_MAX } else { PARTIAL_HANDSHAKE_BYTES_MAX };
        if rest.len() > most {
            return Err(Failure::Handshake(HandshakeOutcome::BadRecord));
        }
        self.partial = rest.to_vec();
        Ok(())
    }

    /// Processes whole records at the front of `bytes` and returns how many bytes they were.
    fn process(&mut self, bytes: &mut [u8], sinks: &mut Sinks<'_>) -> Result<usize, Failure> {
        let mut used = 0;
        loop {
            let (tls, lean, shown, secrets) = match &mut self.layer {
                Layer::Rustls { tls, lean, shown, secrets } => (tls, *lean, shown, secrets),
                Layer::Lean(records) => {
                    used += records.open(bytes.get(used..).unwrap_or_default(), sinks)?;
                    self.client_closed = records.client_closed();
                    return Ok(used);
                }
                Layer::None => return Err(Failure::CannotSend),
            };
            // Record by record, so that rustls opens none behind the client's Finished.
            let unseen = bytes.get(*shown..).unwrap_or_default();
            let next = record::length(unseen).filter(|length| lean && *length <= unseen.len());
            let end = next.map_or(bytes.len(), |length| *shown + length);
            let rest = bytes.get_mut(used..end).unwrap_or_default();
            let (UnbufferedStatus { discard, state }, told) =
                record::listen(|| tls.process_tls_records(rest));
            if told.is_some() {
                *secrets = told;
            }
            let mut waits = false;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|error| Failure::from(&error))?;
                        sinks.plaintext.append(record.payload, sinks.pool);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(sinks, |out| data.encode(out));
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.client_closed = true;
                    waits = true;
                }
                Ok(_) => waits = true,
                Err(error) => {
                    let rest = bytes.get_mut(used + discard..end).unwrap_or_default();
                    encode_alert(tls, rest, sinks);
                    return Err(Failure::from(&error));
                }
            }
            used += discard;
            if waits
                && let Some(length) = next
                && !self.client_closed
            {
                *shown += length;
                if !tls.is_handshaking() {
                    self.take_over()?;
                } else if *shown == bytes.len() {
                    *shown -= used;
                    return Ok(used);
                }
            } else if waits {
                *shown = shown.saturating_sub(used);
                return Ok(used);
            }
        }
    }

    /// Our own record layer takes over from rustls.
    fn take_over(&mut self) -> Result<(), Failure> {
        let layer = std::mem::replace(&mut self.layer, Layer::None);
        if let Layer::Rustls { tls, secrets, .. } = layer {
            self.agreed = Some(Box::new(Agreed::by(&tls)));
            self.layer = Layer::Lean(Records::take_over(*tls, secrets)?);
        }
        Ok(())
    }

    /// Seals `plaintext` into records.
    ///
    /// # Errors
    /// When the session cannot send any more: the keys' usage limit is reached.
    pub fn seal(
        &mut self,
        mut plaintext: &[u8],
        records: &mut Queue,
        pool: &mut Pool,
    ) -> Result<(), Failure> {
        if let Layer::Lean(layer) = &mut self.layer {
            return layer.seal(plaintext, records, pool);
        }
        while !plaintext.is_empty() {
            let (payload, rest) = plaintext.split_at(plaintext.len().min(RECORD_PAYLOAD_BYTES_MAX));
            // The second allowance is for a KeyUpdate that rustls may put before the record.
            let room = payload.len() + 3 * RECORD_OVERHEAD_BYTES_MAX;
            self.write_traffic(records, pool, room, |traffic, out| traffic.encrypt(payload, out))?;
            plaintext = rest;
        }
        Ok(())
    }

    /// Queues the `close_notify` that ends our direction (RFC 8446 section 6.1).
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the bare method is not general enough over its lifetimes"
    )]
    pub fn close(&mut self, records: &mut Queue, pool: &mut Pool) {
        if let Layer::Lean(layer) = &mut self.layer {
            return layer.close(records, pool);
        }
        let room = 3 * RECORD_OVERHEAD_BYTES_MAX;
        // A session that cannot send has ended with an alert or not begun: no close_notify is due.
        let _not_due =
            self.write_traffic(records, pool, room, |traffic, out| traffic.queue_close_notify(out));
    }

    fn write_traffic(
        &mut self,
        records: &mut Queue,
        pool: &mut Pool,
        room: usize,
        write: impl FnOnce(
            &mut WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), Failure> {
        let mut sent = Err(Failure::CannotSend);
        if let Layer::Rustls { tls, .. } = &mut self.layer
            && let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                tls.process_tls_records(&mut self.partial).state
        {
            records.write(room, pool, |out| match write(&mut traffic, out) {
                Ok(written) => {
                    sent = Ok(());
                    written
                }
                Err(_) => 0,
            });
        }
        sent
    }

    /// The client has ended its direction with `close_notify`.
    pub fn client_closed(&self) -> bool {
        self.client_closed
    }

    /// The client goes on with an earlier session; known from the answer to its `ClientHello` until
    /// [`Session::take_agreed`].
    pub fn is_resumed(&self) -> bool {
        match &self.layer {
            Layer::Rustls { tls, .. } => is_resumed(tls),
            Layer::Lean(_) | Layer::None => {
                self.agreed.as_ref().is_some_and(|agreed| agreed.resumed)
            }
        }
    }

    /// The client's first hello offered no group that we take, so that another one has to come, or
    /// has.
    pub fn asks_again(&self) -> bool {
        match &self.layer {
            Layer::Rustls { tls, .. } => {
                tls.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest)
            }
            Layer::Lean(_) | Layer::None => false,
        }
    }

    /// Which answer a `ClientHello` has got; `asked_again`: [`Session::asks_again`] before it came.
    pub fn answer(&self, asked_again: bool) -> HandshakeStep {
        if self.is_resumed() {
            HandshakeStep::Resumed
        } else if self.asks_again() && !asked_again {
            HandshakeStep::Retry
        } else {
            HandshakeStep::Full
        }
    }

    /// The handshake is complete.
    pub fn is_established(&self) -> bool {
        match &self.layer {
            Layer::Rustls { tls, .. } => !tls.is_handshaking(),
            Layer::Lean(_) => true,
            Layer::None => false,
        }
    }

    #[cfg(test)]
    pub(super) fn lean(&mut self) -> &mut Records {
        match &mut self.layer {
            Layer::Lean(records) => records,
            Layer::Rustls { .. } | Layer::None => panic!("another record layer"),
        }
    }

    /// Bytes kept between calls.
    pub fn partial_bytes(&self) -> usize {
        self.partial.len()
    }

    /// From now on it is watched whether the incomplete record that is kept, if one is, becomes
    /// complete.
    pub fn mark(&mut self) {
        self.partial_is_old = !self.partial.is_empty();
    }

    /// Whether the record that was incomplete at the last [`Session::mark`] still is.
    pub fn is_record_overdue(&self) -> bool {
        self.partial_is_old
    }

    /// What the handshake has agreed on, told once: a session has no use for it.
    pub fn take_agreed(&mut self) -> Option<Box<Agreed>> {
        match &self.layer {
            Layer::Rustls { tls, .. } => Some(Box::new(Agreed::by(tls))),
            Layer::Lean(_) | Layer::None => self.agreed.take(),
        }
    }
}

impl Agreed {
    fn by(tls: &UnbufferedServerConnection) -> Self {
        let resumed = is_resumed(tls);
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        Self {
            version: version(tls),
            suite: suite(tls),
            group: group(tls),
            alpn: tls.alpn_protocol().map(Box::from),
            resumed,
            client_certificate: certificate
                .map(|der| Box::new(ClientCertificate::new(der, resumed))),
        }
    }
}

fn is_resumed(tls: &UnbufferedServerConnection) -> bool {
    tls.handshake_kind() == Some(HandshakeKind::Resumed)
}

fn version(tls: &UnbufferedServerConnection) -> Version {
    match tls.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => Version::Tls12,
        Some(ProtocolVersion::TLSv1_3) => Version::Tls13,
        _ => Version::None,
    }
}

fn suite(tls: &UnbufferedServerConnection) -> Suite {
    match tls.negotiated_cipher_suite().map(|suite| suite.suite()) {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => Suite::Tls13Aes128GcmSha256,
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => Suite::Tls13Aes256GcmSha384,
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => Suite::Tls13Chacha20Poly1305Sha256,
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) => {
            Suite::EcdheEcdsaAes128GcmSha256
        }
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384) => {
            Suite::EcdheEcdsaAes256GcmSha384
        }
        Some(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256) => {
            Suite::EcdheEcdsaChacha20Poly1305Sha256
        }
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) => Suite::EcdheRsaAes128GcmSha256,
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384) => Suite::EcdheRsaAes256GcmSha384,
        Some(CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256) => {
            Suite::EcdheRsaChacha20Poly1305Sha256
        }
        _ => Suite::None,
    }
}

fn group(tls: &UnbufferedServerConnection) -> Group {
    match tls.negotiated_key_exchange_group().map(SupportedKxGroup::name) {
        Some(NamedGroup::X25519) => Group::X25519,
        Some(NamedGroup::secp256r1) => Group::Secp256r1,
        Some(NamedGroup::secp384r1) => Group::Secp384r1,
        Some(NamedGroup::X25519MLKEM768) => Group::X25519Mlkem768,
        _ => Group::None,
    }
}

impl std::fmt::Debug for Session {
    // Never keys or bytes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("established", &self.is_established())
            .finish_non_exhaustive()
    }
}

/// After an error rustls holds an alert to send; asked once more, it hands it over. `rest` is what
/// it was shown and has not discarded: pieces of a message, which it panics without.
fn encode_alert(tls: &mut UnbufferedServerConnection, rest: &mut [u8], sinks: &mut Sinks<'_>) {
    loop {
        match tls.process_tls_records(rest).state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(sinks, |out| data.encode(out));
            }
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(_) | Err(_) => return,
        }
    }
}

/// Encodes into the records queue, asking once more with the size that rustls wants.
fn encode(sinks: &mut Sinks<'_>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    if sinks.records.ended() {
        // Our direction has ended with `close_notify`: nothing may follow it. rustls still wants
        // the record (an answer to a KeyUpdate, an alert) taken off its hands.
        let mut nowhere = sinks.pool.take(SEND_BUFFER_BYTES);
        let _dropped = encode(nowhere.spare());
        sinks.pool.give(nowhere);
        return;
    }
    let mut required = 0;
    let mut attempt = |room: usize, required: &mut usize| {
        sinks.records.write(room, sinks.pool, |out| match encode(out) {
            Ok(written) => written,
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                *required = required_size;
                0
            }
            Err(EncodeError::AlreadyEncoded) => 0,
        })
    };
    if attempt(1, &mut required) == 0 && required > 0 {
        attempt(required, &mut required);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::server::ResolvesServerCertUsingSni;

    fn session() -> Session {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        Session::new(Arc::new(config)).unwrap()
    }

    /// A handshake message in records of one byte each: ten thousand times its payload on the wire.
    #[test]
    fn an_incomplete_message_is_bounded_by_its_bytes_on_the_wire() {
        let mut session = session();
        let (mut plaintext, mut records) = (Queue::default(), Queue::default());
        let mut pool = Pool::default();
        // The header of a ClientHello of 60,000 bytes, then its body.
        let message = [1, 0, 0xea, 0x60].into_iter().chain(std::iter::repeat(0));
        let mut result = Ok(());
        for byte in message.take(60_000) {
            let mut record = [22, 3, 1, 0, 1, byte];
            let mut sinks = Sinks {
                plaintext: &mut plaintext,
                records: &mut records,
                pool: &mut pool,
                now: Time::default(),
            };
            result = session.receive(&mut record, &mut sinks);
            assert!(session.partial_bytes() <= PARTIAL_HANDSHAKE_BYTES_MAX);
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(Failure::Handshake(HandshakeOutcome::BadRecord)));
    }
}
