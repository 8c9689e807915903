//! Stage 2 of 5: handshake. From the complete `ClientHello` to the client's Finished.

use crate::io::{Kind, Operation, Side};
use crate::telemetry::labels::{HandshakeOutcome, Limit, Span};
use crate::tls::resumption::bridge::{self, Attempt};

use super::close::Close;
use super::common::Common;
use super::context::Context;
use super::first_byte::FirstByte;
use super::{Event, Stage};

/// The TLS session exists and is not established.
#[derive(Debug)]
pub struct Handshake {
    /// What the client offers to resume.
    attempt: Attempt,
}

impl Handshake {
    pub(super) fn new(attempt: Attempt) -> Self {
        Self { attempt }
    }

    pub(super) fn handle(
        self,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(_, bytes) => self.received(bytes, common, cx),
            Event::Ended(_) => self.fail(HandshakeOutcome::ClientClosed, common, cx),
            Event::ReceiveFailed(_) | Event::SendFailed(_) => {
                self.fail(HandshakeOutcome::ClientReset, common, cx)
            }
            Event::Deadline => self.fail(HandshakeOutcome::Timeout, common, cx),
            Event::Sent(_)
            | Event::Connected(_)
            | Event::Closed(_)
            | Event::Readable(_)
            | Event::Settled => self.wait(common, cx),
        }
    }

    /// One step of the handshake: the only expensive thing that ever happens here.
    pub(super) fn received(
        mut self,
        bytes: &mut [u8],
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        if !is_resumed(common) {
            self.attempt.begins_anew();
        }
        let (resumption, unix) = (cx.resumption, cx.unix);
        let opened = bridge::during(resumption, &mut self.attempt, unix, || common.open(bytes, cx));
        if let Err(failure) = opened {
            return self.fail(failure.outcome(), common, cx);
        }
        let established = common.session.as_ref().is_some_and(|session| session.is_established());
        if established {
            self.tell(common, cx);
            return established_now(common, cx);
        }
        if common.inbound.ended() {
            return self.fail(HandshakeOutcome::ClientClosed, common, cx);
        }
        self.wait(common, cx)
    }

    fn fail(&self, outcome: HandshakeOutcome, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        self.tell(common, cx);
        Close::handshake_failed(outcome, common, cx)
    }

    /// Counts what the client offered to resume, what came of it, and what it got for next time.
    fn tell(&self, common: &mut Common, cx: &Context<'_>) {
        let result = self.attempt.result(is_resumed(common));
        common.story.resumption = result;
        if let Some((kind, result)) = result {
            cx.counters.resumptions(kind).of(result).add(1);
        }
        let made = self.attempt.made();
        cx.counters.tickets.add(u64::from(made.tickets));
        cx.counters.sessions.add(u64::from(made.sessions));
        // A look-up changes the worker's cache too.
        if made.sessions > 0 || result.is_some() {
            let (sessions, bytes) = cx.resumption.cached();
            cx.counters.cached_sessions.set(u64::from(sessions));
            cx.counters.cached_bytes.set(bytes as u64);
        }
        cx.counters.sessions_contended.add(u64::from(made.contended));
        cx.counters.limits.of(Limit::SessionBytes).add(u64::from(made.too_large));
        cx.counters.limits.of(Limit::SessionsPerWorker).add(made.left_worker);
        cx.counters.limits.of(Limit::Sessions).add(made.left_shared);
    }

    fn wait(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.flush(Side::Client, cx);
        common.receive(Side::Client, cx);
        Stage::Handshake(self)
    }
}

/// rustls has decided that the client's session goes on.
fn is_resumed(common: &Common) -> bool {
    common.session.as_ref().is_some_and(|session| session.is_resumed())
}

fn established_now(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    let story = &mut common.story;
    if let Some(agreed) = common.session.as_mut().and_then(|session| session.take_agreed()) {
        story.version = agreed.version;
        story.suite = agreed.suite;
        story.group = agreed.group;
        story.alpn = agreed.alpn.map(|alpn| String::from_utf8_lossy(&alpn).into());
        story.client_certificate = agreed.client_certificate;
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
    FirstByte::begin(common, cx)
}

/// In TLS 1.3 the client speaks last, and nothing of ours may follow. A client that leaves Nagle's
/// algorithm on then holds its first request back until our kernel's delayed acknowledgement of its
/// Finished, 40 ms later (RFC 9293 section 3.7.4).
fn waits_for_us(common: &Common) -> bool {
    common.outbound.is_empty() && common.inbound.is_empty()
}
