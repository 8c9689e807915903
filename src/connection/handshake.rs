//! Stage 2 of 5: handshake. From the complete `ClientHello` to the client's Finished.

use crate::io::{Kind, Operation, Side};
use crate::telemetry::labels::{HandshakeOutcome, Span};

use super::close::Close;
use super::common::Common;
use super::context::Context;
use super::route::Route;
use super::{Event, Stage};

/// The TLS session exists and is not established.
#[derive(Debug, Default)]
pub struct Handshake {}

impl Handshake {
    pub(super) fn handle(
        self,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(_, bytes) => self.received(bytes, common, cx),
            Event::Ended(_) => Close::handshake_failed(HandshakeOutcome::ClientClosed, common, cx),
            Event::ReceiveFailed(_) | Event::SendFailed(_) => {
                Close::handshake_failed(HandshakeOutcome::ClientReset, common, cx)
            }
            Event::Deadline => Close::handshake_failed(HandshakeOutcome::Timeout, common, cx),
            Event::Sent(_) | Event::Connected(_) | Event::Closed(_) | Event::Settled => {
                self.wait(common, cx)
            }
        }
    }

    /// One step of the handshake: the only expensive thing that ever happens here.
    pub(super) fn received(
        self,
        bytes: &mut [u8],
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        if let Err(failure) = common.open(bytes, cx) {
            return Close::handshake_failed(failure.outcome(), common, cx);
        }
        let established = common.session.as_ref().is_some_and(|session| session.is_established());
        if established {
            return established_now(common, cx);
        }
        if common.inbound.ended() {
            return Close::handshake_failed(HandshakeOutcome::ClientClosed, common, cx);
        }
        self.wait(common, cx)
    }

    fn wait(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.flush(Side::Client, cx);
        common.receive(Side::Client, cx);
        Stage::Handshake(self)
    }
}

fn established_now(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    let story = &mut common.story;
    if let Some(session) = &common.session {
        story.version = session.version();
        story.suite = session.suite();
        story.group = session.group();
        story.client_certificate = session.client_certificate();
        story.alpn = session.alpn().map(|alpn| String::from_utf8_lossy(alpn).into());
    }
    cx.counters.versions.of(story.version).add(1);
    cx.counters.suites.of(story.suite).add(1);
    cx.counters.groups.of(story.group).add(1);
    story.handshake_ended(HandshakeOutcome::Ok, cx);
    story.mark(Span::Handshake, cx);
    if waits_for_us(common) {
        common.submit(Kind::AcknowledgeClient, Operation::Acknowledge, cx);
    }
    common.flush(Side::Client, cx);
    Route::begin(common, cx)
}

/// In TLS 1.3 the client speaks last, and nothing of ours may follow. A client that leaves Nagle's
/// algorithm on then holds its first request back until our kernel's delayed acknowledgement of its
/// Finished, 40 ms later (RFC 9293 section 3.7.4).
fn waits_for_us(common: &Common) -> bool {
    common.outbound.is_empty() && common.inbound.is_empty()
}
