//! Stage 2 of 5: handshake. From the complete `ClientHello` to the client's Finished.

use std::mem::take;
use std::sync::Arc;

use crate::config::Refuse;
use crate::io::{Kind, Operation, Side, Task};
use crate::limits::PARTIAL_HANDSHAKE_BYTES_MAX;
use crate::telemetry::labels::{
    HandshakeOutcome, HandshakeQueue, HandshakeStep, KeyType, Limit, Span,
};
use crate::tls::failure::Failure;
use crate::tls::first_step::{FirstStep, Moment, Returned};
use crate::tls::hello;
use crate::tls::resolver;
use crate::tls::resumption::bridge::{self, Attempt};
use crate::tls::session::Session;

use super::accept::ALERT_INTERNAL_ERROR;
use super::close::Close;
use super::common::Common;
use super::context::Context;
use super::first_byte::FirstByte;
use super::{Event, Stage, Stepped};

/// The `ClientHello` is complete, and the handshake is not.
///
/// Whatever the client sends waits here until the worker has a step to give: cryptography is the
/// only slow thing that ever happens, so the worker decides when.
#[derive(Debug)]
pub struct Handshake {
    /// What the client offers to resume.
    attempt: Attempt,
    /// Where a step waits that may sign.
    queue: HandshakeQueue,
    /// The client's hello is answered for good: the dear part is over.
    is_under_way: bool,
    /// What has come and waits for a step.
    pending: Vec<u8>,
    step: Step,
    /// The client has ended its side behind what is pending.
    ended: bool,
}

/// What has become of the step that is due next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// None is due: bytes must come first.
    None,
    /// It is asked for.
    Wanted,
    /// It is done elsewhere, and the session is there.
    Away,
}

impl Handshake {
    /// A handshake whose first step, with the whole `ClientHello`, is asked for.
    pub(super) fn begin(
        attempt: Attempt,
        queue: HandshakeQueue,
        hello: Vec<u8>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        let this = Self {
            attempt,
            queue,
            is_under_way: false,
            pending: Vec::new(),
            step: Step::None,
            ended: false,
        };
        Box::new(this).received(hello, common, cx)
    }

    pub(super) fn handle(
        mut self: Box<Self>,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(_, bytes) => self.received(bytes.to_vec(), common, cx),
            // Its Finished may be among what waits, and all that it wanted to say behind that.
            Event::Ended(_) if self.is_waiting(common) => {
                self.ended = true;
                Stage::Handshake(self)
            }
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

    fn received(
        mut self: Box<Self>,
        bytes: Vec<u8>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        if self.pending.is_empty() {
            self.pending = bytes;
        } else {
            self.pending.extend_from_slice(&bytes);
        }
        if self.step == Step::None {
            self.ask(cx);
        }
        self.wait(common, cx)
    }

    /// A `ClientHello` that we had to ask for once more, for want of a group, is as good as a first
    /// one: little was done for it, and all that is dear is still to come.
    fn ask(&mut self, cx: &mut Context<'_>) {
        self.step = Step::Wanted;
        *cx.step_wanted =
            Some(if self.is_under_way { HandshakeQueue::UnderWay } else { self.queue });
    }

    /// Whether a step waits that is not the first.
    fn is_waiting(&self, common: &Common) -> bool {
        match self.step {
            Step::None => false,
            Step::Wanted => common.session.is_some(),
            Step::Away => true,
        }
    }

    /// Whether the client has ended its side behind what is pending.
    pub(super) fn client_has_ended(&self) -> bool {
        self.ended
    }

    /// The worker has more to do than it can, or the client's source has had its share: the client
    /// is refused before any cryptography. No alert, which would be more work still.
    pub(super) fn refuse(
        &self,
        outcome: HandshakeOutcome,
        how: Refuse,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        self.tell(common, cx);
        Close::refused(outcome, how, common, cx)
    }

    /// One step of the handshake: the only expensive thing that ever happens here.
    pub(super) fn step(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> (Stage, Stepped) {
        self.step = Step::None;
        let is_first = common.session.is_none();
        if is_first && let Err(failure) = begin_session(common) {
            return self.cannot_begin(failure, common, cx);
        }
        if !is_resumed(common) {
            self.attempt.begins_anew();
        }
        let asked_again = common.session.as_ref().is_some_and(Session::asks_again);
        let mut bytes = take(&mut self.pending);
        let (resumption, unix) = (cx.resumption, cx.unix);
        let opened =
            bridge::during(resumption, &mut self.attempt, unix, || common.open(&mut bytes, cx));
        let key = resolver::take_shown_key();
        if let Err(failure) = opened {
            let stage = self.fail(failure.outcome(), common, cx);
            return (stage, Stepped::Done(HandshakeStep::Failed, key));
        }
        let step = match &common.session {
            Some(session) if !self.is_under_way => session.answer(asked_again),
            _ => HandshakeStep::Later,
        };
        self.is_under_way |= step != HandshakeStep::Retry;
        (self.after_step(common, cx), Stepped::Done(step, key))
    }

    /// A step that may sign, to be done elsewhere: the session goes there, and comes back with
    /// [`Handshake::step_returns`].
    pub(super) fn step_apart(
        mut self: Box<Self>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> (Stage, Stepped) {
        if common.session.is_none()
            && let Err(failure) = begin_session(common)
        {
            return self.cannot_begin(failure, common, cx);
        }
        if let Some(session) = common.session.take() {
            self.step = Step::Away;
            self.attempt.begins_anew();
            let (attempt, bytes) = (take(&mut self.attempt), take(&mut self.pending));
            let resumption = cx.resumption.lend();
            let at = Moment { queue: self.queue, resumption, unix: cx.unix, now: cx.now };
            let step = Task::new(FirstStep::new(session, attempt, bytes, at));
            common.submit(Kind::Compute, Operation::Compute(Box::new(step)), cx);
        }
        (self.wait(common, cx), Stepped::Apart)
    }

    /// The session is back. What its client has said meanwhile waits for a step of its own.
    pub(super) fn step_returns(
        mut self: Box<Self>,
        step: FirstStep,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        let (what, _) = step.step();
        let Returned { session, attempt, records, result } = step.into_returned();
        (self.step, self.attempt) = (Step::None, attempt);
        if let Err(failure) = common.take_back(session, &records, result, cx) {
            return self.fail(failure.outcome(), common, cx);
        }
        self.is_under_way = what != HandshakeStep::Retry;
        if !self.pending.is_empty() {
            self.ask(cx);
            return self.wait(common, cx);
        }
        if self.ended {
            return self.fail(HandshakeOutcome::ClientClosed, common, cx);
        }
        self.after_step(common, cx)
    }

    fn cannot_begin(
        &self,
        failure: Failure,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> (Stage, Stepped) {
        common.outbound.append(&hello::alert_record(ALERT_INTERNAL_ERROR), cx.pool);
        let stage = self.fail(failure.outcome(), common, cx);
        (stage, Stepped::Done(HandshakeStep::Failed, KeyType::None))
    }

    fn after_step(self: Box<Self>, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        let established = common.session.as_ref().is_some_and(Session::is_established);
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

    fn wait(self: Box<Self>, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.flush(Side::Client, cx);
        // While a step is waited for, too: who goes away meanwhile shall not cost it.
        if self.pending.len() < PARTIAL_HANDSHAKE_BYTES_MAX {
            common.receive(Side::Client, cx);
        }
        Stage::Handshake(self)
    }
}

/// Makes the session for which the client's name, and its listener, have the terms.
fn begin_session(common: &mut Common) -> Result<(), Failure> {
    let internal = Failure::Handshake(HandshakeOutcome::InternalError);
    let terms = common.terms().ok_or(internal)?;
    let session = Session::new(Arc::clone(terms.config()))?;
    common.session = Some(session);
    Ok(())
}

/// rustls has decided that the client's session goes on.
fn is_resumed(common: &Common) -> bool {
    common.session.as_ref().is_some_and(Session::is_resumed)
}

fn established_now(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    let story = &mut common.story;
    if let Some(agreed) = common.session.as_mut().and_then(Session::take_agreed) {
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
