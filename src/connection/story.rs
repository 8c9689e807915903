//! What a connection remembers of itself for its access-log record and the histograms.

use std::net::SocketAddr;
use std::time::Duration;

use crate::io::Time;
use crate::telemetry::labels::{
    CloseReason, Group, HandshakeOutcome, ResumptionKind, ResumptionResult, Span, Suite, Version,
};
use crate::telemetry::record::Record;
use crate::tls::client_auth::ClientCertificate;

use super::context::Context;

/// The spans that the record has and that are remembered, in the order of its fields.
const RECORDED: [Span; 4] = [Span::ClientHello, Span::Handshake, Span::Queue, Span::Connect];

/// Times, bytes, names and negotiated values of one connection.
#[derive(Debug)]
pub struct Story {
    /// The client's address.
    pub client: SocketAddr,
    /// The address the client reached, where it is known.
    pub local: Option<SocketAddr>,
    /// Index of the listener.
    pub listener: u16,
    /// Name the client asked for.
    pub server_name: Option<Box<str>>,
    /// Negotiated ALPN protocol.
    pub alpn: Option<Box<str>>,
    /// How the handshake ended; `None` while it goes on.
    pub handshake: Option<HandshakeOutcome>,
    /// TLS version.
    pub version: Version,
    /// Cipher suite.
    pub suite: Suite,
    /// Key exchange group.
    pub group: Group,
    /// What the client offered to resume, and what came of it.
    pub resumption: Option<(ResumptionKind, ResumptionResult)>,
    /// The client's certificate, which was verified; `None`: it showed none.
    pub client_certificate: Option<Box<ClientCertificate>>,
    /// Index of the backend.
    pub backend: Option<u16>,
    /// Index of the connected server within its backend.
    pub server: Option<u16>,
    /// Plaintext bytes opened for the server.
    pub inbound_bytes: u64,
    /// Plaintext bytes sealed for the client.
    pub outbound_bytes: u64,
    accepted_at: Time,
    marked_at: Time,
    /// Microseconds of [`RECORDED`], up to 71 minutes each.
    spans: [u32; RECORDED.len()],
}

impl Story {
    /// The story of a client that was accepted just now.
    pub fn new(client: SocketAddr, local: Option<SocketAddr>, listener: u16, now: Time) -> Self {
        Self {
            client,
            local,
            listener,
            server_name: None,
            alpn: None,
            handshake: None,
            version: Version::None,
            suite: Suite::None,
            group: Group::None,
            resumption: None,
            client_certificate: None,
            backend: None,
            server: None,
            inbound_bytes: 0,
            outbound_bytes: 0,
            accepted_at: now,
            marked_at: now,
            spans: [0; RECORDED.len()],
        }
    }

    /// When the client was accepted.
    pub fn accepted_at(&self) -> Time {
        self.accepted_at
    }

    /// How long it has been relayed, if it is.
    pub fn relayed_for(&self, now: Time) -> Duration {
        now.since(self.marked_at)
    }

    /// Ends the span that began at the last mark.
    pub fn mark(&mut self, span: Span, cx: &Context<'_>) {
        let duration = cx.now.since(self.marked_at);
        self.marked_at = cx.now;
        self.record_span(span, duration, cx);
    }

    /// Begins a span now: what has been since the last mark belongs to none.
    pub fn begin_span(&mut self, cx: &Context<'_>) {
        self.marked_at = cx.now;
    }

    fn record_span(&mut self, span: Span, duration: Duration, cx: &Context<'_>) {
        cx.counters.span(span).observe(duration);
        let recorded = RECORDED.iter().zip(&mut self.spans).find(|(one, _)| **one == span);
        if let Some((_, sum)) = recorded {
            // A client may stand in line twice.
            let more = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
            *sum = sum.saturating_add(more);
        }
    }

    /// Ends the handshake's part of the story, once.
    pub fn handshake_ended(&mut self, outcome: HandshakeOutcome, cx: &Context<'_>) {
        debug_assert!(self.handshake.is_none(), "a handshake ends once");
        self.handshake = Some(outcome);
        cx.counters.handshakes.of(outcome).add(1);
    }

    /// Ends the story.
    pub fn end(&mut self, cx: &Context<'_>) {
        self.marked_at = cx.now;
        cx.counters.span(Span::Total).observe(self.total());
    }

    /// From the accept to the last mark, which is the end once that has been told.
    fn total(&self) -> Duration {
        self.marked_at.since(self.accepted_at)
    }

    /// The access-log record of a story that has ended.
    pub fn take_record(&mut self, worker: u16, reason: CloseReason) -> Record {
        let [client_hello_nanos, handshake_nanos, queue_nanos, connect_nanos] =
            self.spans.map(|micros| u64::from(micros) * 1000);
        let client_certificate = self.client_certificate.take();
        let total_nanos = u64::try_from(self.total().as_nanos()).unwrap_or(u64::MAX);
        Record {
            worker,
            listener: self.listener,
            client: self.client,
            server_name: self.server_name.take(),
            alpn: self.alpn.take(),
            handshake: self.handshake.unwrap_or(HandshakeOutcome::InternalError),
            version: self.version,
            suite: self.suite,
            group: self.group,
            resumption: self.resumption,
            client_verified: client_certificate.is_some(),
            client_name: client_certificate.and_then(|certificate| certificate.name),
            backend: self.backend,
            server: self.server,
            reason,
            inbound_bytes: self.inbound_bytes,
            outbound_bytes: self.outbound_bytes,
            client_hello_nanos,
            handshake_nanos,
            queue_nanos,
            connect_nanos,
            total_nanos,
        }
    }
}
