//! Stage 1 of 5: accept. A client has connected; its `ClientHello` is not complete.
//!
//! A client that sends it byte by byte, or never, costs a slot, at most
//! `limits.client_hello_bytes` of memory, and no cryptography. It has `timeouts.handshake` for its
//! first byte, as for everything up to its Finished, and from there `timeouts.client_hello`.

use crate::io::{Side, Time};
use crate::telemetry::labels::{HandshakeOutcome, HandshakeQueue, Limit, Span};
use crate::tls::hello::{self, ClientTraits, Fault, Peek, TLS12};
use crate::tls::resumption;
use crate::tls::resumption::bridge::Attempt;

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
pub(super) const ALERT_INTERNAL_ERROR: u8 = 80;
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
        common.set_deadline_at(handshake_ends_at(common));
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
            Event::ReceiveFailed(_) | Event::SendFailed(_) => {
                fail(HandshakeOutcome::ClientReset, None, common, cx)
            }
            Event::Deadline => {
                let over = cx.now >= handshake_ends_at(common);
                let outcome = if over {
                    HandshakeOutcome::Timeout
                } else {
                    HandshakeOutcome::ClientHelloTimeout
                };
                fail(outcome, None, common, cx)
            }
            Event::Sent(_)
            | Event::Connected(_)
            | Event::Closed(_)
            | Event::Readable(_)
            | Event::Settled => {
                common.receive(Side::Client, cx);
                Stage::Accept(self)
            }
        }
    }

    fn received(self, bytes: &mut [u8], common: &mut Common, cx: &mut Context<'_>) -> Stage {
        // The usual case is the whole ClientHello in one receive, looked at where it is.
        let mut received = self.received;
        let is_first = received.is_empty();
        let bytes = if is_first {
            bytes
        } else {
            received.extend_from_slice(bytes);
            received.as_mut_slice()
        };
        match judge(bytes, common.snapshot.client_hello_bytes) {
            Verdict::Wait => {
                let received = if is_first {
                    let ends_at = cx.now + common.snapshot.timeouts.client_hello;
                    common.set_deadline_at(ends_at.min(handshake_ends_at(common)));
                    bytes.to_vec()
                } else {
                    received
                };
                common.receive(Side::Client, cx);
                Stage::Accept(Self { received })
            }
            Verdict::Welcome(greeting) => {
                let hello = if is_first { bytes.to_vec() } else { received };
                welcome(greeting, hello, common, cx)
            }
            Verdict::Refuse(outcome, alert) => {
                let limit = match outcome {
                    HandshakeOutcome::ClientHelloTooLarge => Some(Limit::ClientHelloBytes),
                    HandshakeOutcome::ClientHelloTooManyRecords => Some(Limit::ClientHelloRecords),
                    _ => None,
                };
                if let Some(limit) = limit {
                    cx.counters.limits.of(limit).add(1);
                }
                fail(outcome, alert, common, cx)
            }
        }
    }
}

/// What the whole `ClientHello` says that is needed before and beside the session.
struct Greeting {
    server_name: Option<Box<str>>,
    client: ClientTraits,
}

/// What the bytes so far lead to.
enum Verdict {
    Wait,
    Welcome(Greeting),
    Refuse(HandshakeOutcome, Option<u8>),
}

fn judge(bytes: &[u8], bytes_max: usize) -> Verdict {
    let too_large =
        Verdict::Refuse(HandshakeOutcome::ClientHelloTooLarge, Some(ALERT_DECODE_ERROR));
    match hello::peek(bytes) {
        Peek::Incomplete if bytes.len() < bytes_max => Verdict::Wait,
        Peek::Incomplete => too_large,
        Peek::Complete(hello) if hello.record_bytes > bytes_max => too_large,
        // The session would look at the missing extensions of such a client first, and blame those.
        Peek::Complete(hello) if hello.client.newest_version < TLS12 => {
            Verdict::Refuse(HandshakeOutcome::NoSharedVersion, Some(ALERT_PROTOCOL_VERSION))
        }
        Peek::Complete(hello) => Verdict::Welcome(Greeting {
            server_name: hello.server_name.as_ref().map(|name| Box::from(name.as_str())),
            client: hello.client,
        }),
        // An alert would be noise to a client that does not speak TLS.
        Peek::PlainHttp => Verdict::Refuse(HandshakeOutcome::PlainHttp, None),
        Peek::NotTls => Verdict::Refuse(HandshakeOutcome::NotTls, None),
        Peek::Malformed(fault) => {
            let outcome = match fault {
                Fault::TooManyRecords => HandshakeOutcome::ClientHelloTooManyRecords,
                _ => HandshakeOutcome::BadRecord,
            };
            Verdict::Refuse(outcome, Some(fault.alert()))
        }
    }
}

/// When the client's Finished must be there.
fn handshake_ends_at(common: &Common) -> Time {
    common.story.accepted_at() + common.snapshot.timeouts.handshake
}

/// A whole `ClientHello`: look its name up and ask for the handshake's first step.
fn welcome(greeting: Greeting, hello: Vec<u8>, common: &mut Common, cx: &mut Context<'_>) -> Stage {
    common.set_deadline_at(handshake_ends_at(common));
    common.story.server_name = greeting.server_name;
    common.story.mark(Span::ClientHello, cx);
    let Some(terms) = common.terms() else {
        let alert = Some(ALERT_INTERNAL_ERROR);
        return fail(HandshakeOutcome::InternalError, alert, common, cx);
    };
    if !terms.recognizes(common.story.server_name.as_deref()) {
        let alert = Some(ALERT_UNRECOGNIZED_NAME);
        return fail(HandshakeOutcome::UnrecognizedName, alert, common, cx);
    }
    let name = resumption::name_fingerprint(common.story.server_name.as_deref());
    let attempt = Attempt::new(name, greeting.client, terms.offers_tls13());
    let queue =
        if greeting.client.offers_session { HandshakeQueue::Resuming } else { HandshakeQueue::New };
    Handshake::begin(attempt, queue, hello, common, cx)
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
