//! The shadow model: what each side of a conversation said, was told and heard, and the laws that
//! must hold between them, whatever the terminator and the network did.

use std::net::SocketAddr;

use portcullis::io::Address;
use portcullis::telemetry::labels::{CloseReason, HandshakeOutcome};
use portcullis::telemetry::record::Record;

use crate::faults::{ClientEnd, ConnectOutcome, Plan};
use crate::pattern::Pattern;
use crate::world::client_address;

/// One client and the server it reaches.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) plan: Plan,
    /// The client's address; no two conversations share one.
    pub(crate) address: SocketAddr,
    pub(crate) listener: usize,
    pub(crate) request: Pattern,
    pub(crate) reply: Pattern,
    pub(crate) client: Speaker,
    pub(crate) server: Speaker,
    /// No server may be connected before the client has said something.
    pub(crate) on_first_byte: bool,
    /// The worker has the client's socket.
    pub(crate) accepted: bool,
    /// Connects tried.
    pub(crate) tries: usize,
    /// Where to; never twice to one address.
    pub(crate) tried: Vec<Address>,
    /// The fatal error that ended the client's TLS, such as an alert from the terminator.
    pub(crate) tls_error: Option<rustls::Error>,
}

/// What one side did and saw.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what happened, independently")]
pub(crate) struct Speaker {
    /// Plaintext bytes said.
    pub(crate) sent: u64,
    /// Said that there is no more: `close_notify`, or a server's FIN.
    pub(crate) ended: bool,
    /// Plaintext bytes heard.
    pub(crate) got: u64,
    /// Heard that there is no more.
    pub(crate) saw_end: bool,
    /// Saw a reset or an end without `close_notify`.
    pub(crate) saw_failure: bool,
    /// Left its role.
    pub(crate) misbehaved: bool,
}

impl Conversation {
    pub(crate) fn new(seed: u64, number: usize, listener: usize, plan: Plan) -> Self {
        Self {
            plan,
            address: client_address(number),
            listener,
            request: Pattern::new(seed, number, false),
            reply: Pattern::new(seed, number, true),
            client: Speaker::default(),
            server: Speaker::default(),
            on_first_byte: false,
            accepted: false,
            tries: 0,
            tried: Vec::new(),
            tls_error: None,
        }
    }

    /// A further connect: the server of the former one, if it existed, is out of the conversation.
    pub(crate) fn connect(&mut self, address: &Address) -> ConnectOutcome {
        assert!(
            !self.on_first_byte || self.client.sent > 0,
            "connected although the client had said nothing"
        );
        assert_eq!(self.server.got, 0, "connected again although a server had got request bytes");
        assert!(!self.tried.contains(address), "tried a server again that had failed: {address:?}");
        self.tried.push(address.clone());
        self.server = Speaker::default();
        self.tries += 1;
        let outcomes = &self.plan.connects;
        outcomes.get(self.tries - 1).copied().unwrap_or(ConnectOutcome::Connected)
    }

    /// # Panics
    /// When a law is broken that holds at any time.
    pub(crate) fn check_now(&self) {
        assert!(
            self.server.got <= self.client.sent,
            "{}: the server got bytes that the client never sent",
            self.address
        );
        assert!(
            self.client.got <= self.server.sent,
            "{}: the client got bytes that the server never sent",
            self.address
        );
    }

    /// # Panics
    /// When a law is broken that holds when everything is over.
    pub(crate) fn check_at_end(&self, record: Option<&Record>) {
        self.check_now();
        let (client, server) = (&self.client, &self.server);
        let reason = record.map(|record| record.reason);
        // A connect that succeeded too late carries nothing; its end says nothing.
        let unused = server.got == 0
            && matches!(reason, Some(CloseReason::ConnectFailed | CloseReason::ConnectTimeout));
        if server.saw_end && !unused {
            assert!(
                client.ended,
                "the server saw a clean end that the client never sent: {self:#?} {record:#?}"
            );
            assert_eq!(
                server.got, client.sent,
                "the server saw a clean end before the last request byte: {self:#?} {record:#?}"
            );
        }
        if client.saw_end {
            assert!(
                server.ended || self.was_silent(),
                "the client saw close_notify but no server had ended: {self:#?} {record:#?}"
            );
            assert_eq!(
                client.got, server.sent,
                "the client saw close_notify before the last reply byte: {self:#?} {record:#?}"
            );
        }
        assert_eq!(
            record.is_some(),
            self.accepted,
            "{}: accepted is {}, but its record is {record:?}",
            self.address,
            self.accepted
        );
        if let Some(record) = record {
            self.check_record(record);
        }
    }

    fn check_record(&self, record: &Record) {
        let address = self.address;
        assert_ne!(record.reason, CloseReason::InternalError, "{address}: {record:?}");
        assert_ne!(record.handshake, HandshakeOutcome::InternalError, "{address}: {record:?}");
        let (handshake, reason) = (record.handshake, record.reason);
        let failed = reason == CloseReason::HandshakeFailed
            || (reason == CloseReason::DrainTimeout && handshake == HandshakeOutcome::Draining);
        assert_eq!(handshake != HandshakeOutcome::Ok, failed, "{address}: {record:?}");
        assert!(record.inbound_bytes <= self.client.sent, "{address}: {record:?}");
        assert!(record.outbound_bytes <= self.server.sent, "{address}: {record:?}");
        if record.reason == CloseReason::Finished {
            // A client that has its whole answer may leave without ceremony.
            assert!(self.client.ended || self.client.misbehaved, "{address}: {self:#?}");
            assert!(self.server.ended || self.was_silent(), "{address}: {self:#?}");
            assert_eq!(record.outbound_bytes, self.server.sent, "{address}");
            // A peer that left may not have read what was delivered to its system.
            let complete = self.client.ended && !self.client.misbehaved;
            if complete && !self.server.misbehaved {
                assert_eq!(record.inbound_bytes, self.client.sent, "{address}");
                assert_eq!(self.server.got, self.client.sent, "{address}: {self:#?}");
            }
            if !self.client.misbehaved {
                assert_eq!(self.client.got, self.server.sent, "{address}: {self:#?}");
            }
        }
    }

    /// The client ended without a byte, and no server had to hear of it.
    fn was_silent(&self) -> bool {
        self.on_first_byte && self.tries == 0 && self.client.sent == 0 && self.client.ended
    }

    /// Whether nothing but the terminator could have spoilt it: it has to be `finished`.
    pub(crate) fn must_finish(&self, tries_max: usize) -> bool {
        let failures = &self.plan.connects;
        let client = &self.plan.client;
        let waits = self.on_first_byte && client.request_len == 0;
        self.plan.is_kind()
            && !(waits && client.end == ClientEnd::AfterServer)
            && failures.len() < tries_max
            && failures.iter().all(|outcome| *outcome != ConnectOutcome::NoFiles)
    }
}
