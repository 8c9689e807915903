//! Stage 1 of 5: accept. A client has connected; its `ClientHello` is not complete.
//!
//! A client that sends it byte by byte, or never, costs a slot, at most
//! `limits.client_hello_bytes` of memory, and no cryptography.

use std::sync::Arc;

use crate::io::Side;
use crate::telemetry::labels::{HandshakeOutcome, Limit, Span};
use crate::tls::hello::{self, Hello, Peek, TLS12};
use crate::tls::session::Session;

use super::close::Close;
use super::common::Common;
use super::context::Context;
use super::handshake::Handshake;
use super::{Event, Stage};

/// Alert `decode_error` (RFC 8446 section 6.2).
const ALERT_DECODE_ERROR: u8 = 50;
/// Alert `protocol_version` (RFC 8446 section 6.2).
const ALERT_PROTOCOL_VERSION: u8 = 70;
/// Alert `internal_error` (RFC 8446 section 6.2).
const ALERT_INTERNAL_ERROR: u8 = 80;
/// Alert `unrecognized_name` (RFC 6066 section 3).
const ALERT_UNRECOGNIZED_NAME: u8 = 112;

/// Waiting for the whole `ClientHello`.
#[derive(Debug, Default)]
pub struct Accept {
    /// Its bytes so far, when they did not come in one piece.
    received: Vec<u8>,
}

impl Accept {
    pub(super) fn begin(common: &mut Common, cx: &mut Context<'_>) -> Self {
        common.set_deadline(common.snapshot.timeouts.handshake, cx);
        common.receive(Side::Client, cx);
        Self::default()
    }

    pub(super) fn handle(
        self,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(_, bytes) => self.received(bytes, common, cx),
            Event::Ended(_) => fail(HandshakeOutcome::ClientClosed, None, common, cx),
            Event::Failed(_) => fail(HandshakeOutcome::ClientReset, None, common, cx),
            Event::Deadline => fail(HandshakeOutcome::Timeout, None, common, cx),
            Event::Sent(_) | Event::Connected(_) | Event::Closed(_) | Event::Settled => {
                common.receive(Side::Client, cx);
                Stage::Accept(self)
            }
        }
    }

    fn received(mut self, bytes: &mut [u8], common: &mut Common, cx: &mut Context<'_>) -> Stage {
        if self.received.is_empty() {
            // The usual case: the whole ClientHello in one receive, looked at where it is.
            match hello::peek(bytes) {
                Peek::Incomplete => {}
                Peek::Complete(hello) if hello.newest_version < TLS12 => {
                    return too_old(common, cx);
                }
                Peek::Complete(hello) => {
                    if hello.record_bytes > common.snapshot.client_hello_bytes {
                        return too_large(common, cx);
                    }
                    let name = name_of(&hello);
                    return welcome(name, bytes, common, cx);
                }
                refused => return refuse(&refused, common, cx),
            }
        }
        self.received.extend_from_slice(bytes);
        match hello::peek(&self.received) {
            _ if self.received.len() >= common.snapshot.client_hello_bytes => too_large(common, cx),
            Peek::Incomplete => {
                common.receive(Side::Client, cx);
                Stage::Accept(self)
            }
            Peek::Complete(hello) if hello.newest_version < TLS12 => too_old(common, cx),
            Peek::Complete(hello) => {
                let name = name_of(&hello);
                welcome(name, &mut self.received, common, cx)
            }
            refused => refuse(&refused, common, cx),
        }
    }
}

fn name_of(hello: &Hello<'_>) -> Option<Box<str>> {
    hello.server_name.as_ref().map(|name| Box::from(name.as_str()))
}

/// A whole `ClientHello`: look its name up and begin the handshake with the bytes at hand.
fn welcome(
    name: Option<Box<str>>,
    bytes: &mut [u8],
    common: &mut Common,
    cx: &mut Context<'_>,
) -> Stage {
    common.story.server_name = name;
    common.story.mark(Span::ClientHello, cx);
    let Some(terms) = common.terms() else {
        let alert = Some(ALERT_INTERNAL_ERROR);
        return fail(HandshakeOutcome::InternalError, alert, common, cx);
    };
    if !terms.recognizes(common.story.server_name.as_deref()) {
        let alert = Some(ALERT_UNRECOGNIZED_NAME);
        return fail(HandshakeOutcome::UnrecognizedName, alert, common, cx);
    }
    match Session::new(Arc::clone(terms.config())) {
        Ok(session) => {
            common.session = Some(Box::new(session));
            Handshake::default().received(bytes, common, cx)
        }
        Err(failure) => fail(failure.outcome(), Some(ALERT_INTERNAL_ERROR), common, cx),
    }
}

/// rustls would look at the missing extensions of such a client first, and blame those.
fn too_old(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    fail(HandshakeOutcome::NoSharedVersion, Some(ALERT_PROTOCOL_VERSION), common, cx)
}

fn too_large(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    cx.counters.limits.of(Limit::ClientHelloBytes).add(1);
    fail(HandshakeOutcome::ClientHelloTooLarge, Some(ALERT_DECODE_ERROR), common, cx)
}

/// Bytes that cannot become a `ClientHello`.
fn refuse(peek: &Peek<'_>, common: &mut Common, cx: &mut Context<'_>) -> Stage {
    match peek {
        // An alert would be noise to a client that does not speak TLS.
        Peek::PlainHttp => fail(HandshakeOutcome::PlainHttp, None, common, cx),
        Peek::NotTls => fail(HandshakeOutcome::NotTls, None, common, cx),
        Peek::Malformed(fault) => {
            fail(HandshakeOutcome::BadRecord, Some(fault.alert()), common, cx)
        }
        Peek::Incomplete | Peek::Complete(_) => {
            fail(HandshakeOutcome::InternalError, Some(ALERT_INTERNAL_ERROR), common, cx)
        }
    }
}

/// The handshake will not come to its end. The alert, if any, is flushed before the close.
fn fail(
    outcome: HandshakeOutcome,
    alert: Option<u8>,
    common: &mut Common,
    cx: &mut Context<'_>,
) -> Stage {
    if let Some(alert) = alert {
        common.outbound.append(&hello::alert_record(alert), cx.pool);
    }
    Close::handshake_failed(outcome, common, cx)
}
