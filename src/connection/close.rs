//! Stage 5 of 5: close. Say what is left to say, cancel what is armed, wait for *its* last
//! completion, give the descriptors back, and only then free the slot.
//!
//! A client that was told something last (an alert, a `close_notify`) is not closed at once: bytes
//! of its own that arrive at a closed socket would be answered with a reset that can destroy what
//! it has not read yet. Its bytes are read and thrown away until it ends, for a short time.

use std::time::Duration;

use crate::config::Refuse;
use crate::io::{Operation, Side};
use crate::limits::LINGER_BYTES_MAX;
use crate::telemetry::labels::{CloseReason, HandshakeOutcome};

use super::common::Common;
use super::context::Context;
use super::in_flight;
use super::{Event, Stage};

/// How long a client may take to read our last words and to end.
pub const LINGER: Duration = Duration::from_secs(2);

/// How one side's socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Send what is queued, end our direction, wait for the peer's end, then close.
    Flush,
    /// Close; the kernel still delivers what it has taken.
    Close,
    /// Abort: the peer must not take what it has for the whole.
    Reset,
}

/// The journey is over; its traces are being removed.
#[derive(Debug)]
pub struct Close {
    reason: CloseReason,
    client: How,
    server: How,
    /// Bytes that the client may still send while we linger.
    linger_bytes: usize,
}

impl Close {
    /// Ends the connection for `reason`.
    pub(super) fn begin(
        reason: CloseReason,
        client: How,
        server: How,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        common.inbound.discard(cx.pool);
        // What is left to say has been sealed; others may go first, and thousands wait.
        common.session = None;
        if client != How::Flush {
            common.outbound.discard(cx.pool);
        }
        set_patience(common, cx);
        Self { reason, client, server, linger_bytes: LINGER_BYTES_MAX }.go_on(common, cx)
    }

    /// Ends the connection with resets: neither side may take what it has for the whole.
    pub(super) fn abort(common: &mut Common, reason: CloseReason, cx: &mut Context<'_>) -> Stage {
        Self::begin(reason, How::Reset, How::Reset, common, cx)
    }

    /// The handshake failed. Its alert, if there is one to send, is in the outbound queue.
    pub(super) fn handshake_failed(
        outcome: HandshakeOutcome,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        common.story.handshake_ended(outcome, cx);
        let client = if common.client.read_ended { How::Close } else { How::Flush };
        Self::begin(CloseReason::HandshakeFailed, client, How::Close, common, cx)
    }

    /// The client is not let in. It is told nothing, and has cost no cryptography.
    pub(super) fn refused(
        outcome: HandshakeOutcome,
        how: Refuse,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        common.story.handshake_ended(outcome, cx);
        let client = match how {
            Refuse::Reset => How::Reset,
            Refuse::Close => How::Close,
        };
        Self::begin(CloseReason::HandshakeFailed, client, How::Close, common, cx)
    }

    /// The client broke TLS after its handshake. The alert is in the outbound queue; the server
    /// must not take what it has for the whole.
    pub(super) fn client_violation(common: &mut Common, cx: &mut Context<'_>) -> Stage {
        Self::begin(CloseReason::ClientViolation, How::Flush, How::Reset, common, cx)
    }

    /// Stands for a stage that is handling an event; found again only if that stage panicked.
    pub(super) fn interrupted() -> Self {
        Self {
            reason: CloseReason::InternalError,
            client: How::Reset,
            server: How::Reset,
            linger_bytes: 0,
        }
    }

    /// No more patience: what was flushing or lingering is closed.
    pub(super) fn hurry(mut self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        if self.client == How::Flush {
            self.client = if common.outbound.is_empty() { How::Close } else { How::Reset };
        }
        common.outbound.discard(cx.pool);
        common.forget_cancels();
        common.set_deadline(LINGER, cx);
        self.go_on(common, cx)
    }

    pub(super) fn handle(
        mut self,
        event: &Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(Side::Client, bytes) => {
                self.linger_bytes = self.linger_bytes.saturating_sub(bytes.len());
                if self.linger_bytes == 0 {
                    return self.hurry(common, cx);
                }
            }
            Event::Ended(Side::Client) if self.client == How::Flush => {
                if common.outbound.is_empty() {
                    self.client = How::Close;
                }
            }
            Event::ReceiveFailed(Side::Client) | Event::SendFailed(Side::Client) => {
                self.client = How::Close;
            }
            Event::Sent(Side::Client) => set_patience(common, cx),
            Event::Deadline => return self.hurry(common, cx),
            Event::Connected(_)
            | Event::Sent(Side::Server)
            | Event::Closed(_)
            | Event::Readable(_)
            | Event::Settled
            | Event::Received(Side::Server, _)
            | Event::Ended(_)
            | Event::ReceiveFailed(Side::Server)
            | Event::SendFailed(Side::Server) => {}
        }
        self.go_on(common, cx)
    }

    fn go_on(mut self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        self.server = release(Side::Server, self.server, common, cx);
        self.client = if self.client == How::Flush {
            flush(common, cx)
        } else {
            release(Side::Client, self.client, common, cx)
        };
        if common.is_released() { Stage::Done(self.reason) } else { Stage::Close(self) }
    }
}

/// How long the client may take for the next bytes of an answer, or to end after the last.
fn set_patience(common: &mut Common, cx: &Context<'_>) {
    let answering = !common.outbound.is_empty();
    let patience = if answering { common.snapshot.timeouts.half_closed } else { LINGER };
    common.set_deadline(patience.max(LINGER), cx);
}

/// The client's last words, and its end.
fn flush(common: &mut Common, cx: &mut Context<'_>) -> How {
    common.flush(Side::Client, cx);
    if common.outbound.is_empty() {
        if common.client.read_ended {
            return release(Side::Client, How::Close, common, cx);
        }
        common.shutdown(Side::Client, cx);
    }
    common.receive(Side::Client, cx);
    How::Flush
}

/// Takes the next step towards giving a descriptor back, and returns what is left to do: cancel
/// what waits for the peer, then reset if that is due, then close.
fn release(side: Side, how: How, common: &mut Common, cx: &mut Context<'_>) -> How {
    if !common.socket(side).open {
        return How::Close;
    }
    if common.is_busy(side) {
        for (target, cancel) in in_flight::cancellable(side) {
            common.cancel(*target, *cancel, cx);
        }
        return how;
    }
    if how == How::Reset {
        common.submit(in_flight::reset(side), Operation::Reset { side }, cx);
    } else {
        common.submit(in_flight::close(side), Operation::Close { side }, cx);
    }
    How::Close
}
