//! Stage 4 of 5: relay. Two directions, each with its own queue, end and backpressure.
//!
//! Everything here is level-triggered: after each event `Relay::pump` looks at both directions
//! and submits what is possible and not in flight.
//!
//! A connection on which no byte has moved for `timeouts.rest` rests: it gives back what only
//! moving bytes need and waits with a poll on each side. Nothing else is different: whatever comes
//! is handled as ever, and each side that is heard of goes back to receiving.

use crate::io::{Side, Time};
use crate::limits::RECORD_OVERHEAD_BYTES_MAX;
use crate::telemetry::labels::{CloseReason, Span};

use super::close::{Close, How};
use super::common::Common;
use super::context::Context;
use super::{Event, Stage};

/// Bytes of a sealed `close_notify`, at most: when no more than this waits for a client, all of
/// the server's bytes have left.
const CLOSE_NOTIFY_BYTES_MAX: usize = RECORD_OVERHEAD_BYTES_MAX + 2;

/// Client and server are connected.
#[derive(Debug)]
pub struct Relay {
    /// The server takes nothing more, and had not been told all.
    refused: bool,
    /// When a byte moved last.
    moved_at: Time,
}

impl Relay {
    pub(super) fn begin(common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.watch_anew();
        Self { refused: false, moved_at: cx.now }.go_on(common, cx)
    }

    pub(super) fn handle(
        mut self,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(Side::Client, bytes) => {
                if common.open(bytes, cx).is_err() {
                    common.story.mark(Span::Relay, cx);
                    return Close::client_violation(common, cx);
                }
            }
            Event::Received(Side::Server, bytes) => {
                if common.seal(bytes, cx).is_err() {
                    common.story.mark(Span::Relay, cx);
                    return Close::abort(common, CloseReason::InternalError, cx);
                }
            }
            Event::Ended(Side::Client) => return self.client_ended(common, cx),
            // A socket tells of a reset once: after a failed send, a reset looks like an end. The
            // client gets what there is, without the `close_notify` that would call it whole.
            Event::Ended(Side::Server) if self.refused => common.outbound.end(),
            Event::Ended(Side::Server) => common.end_outbound(cx),
            Event::ReceiveFailed(Side::Client) | Event::SendFailed(Side::Client) => {
                return client_failed(common, cx);
            }
            Event::ReceiveFailed(Side::Server) => return server_failed(common, cx),
            Event::SendFailed(Side::Server) => {
                // What it has answered before it gave up may still be read.
                self.refused = true;
                common.inbound.discard(cx.pool);
                common.inbound.end();
            }
            Event::Deadline => return self.deadline(common, cx),
            Event::Sent(_) | Event::Connected(_) | Event::Closed(_) => {}
            // No byte has moved, and perhaps none will.
            Event::Readable(_) => {
                common.set_deadline_to_rest(self.ends_at(common), cx);
                return self.pump(common, cx);
            }
            Event::Settled => return self.pump(common, cx),
        }
        self.go_on(common, cx)
    }

    /// A byte has moved: the deadline begins anew.
    fn go_on(mut self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        self.moved_at = cx.now;
        common.set_deadline_to_rest(self.ends_at(common), cx);
        self.pump(common, cx)
    }

    /// When the connection is to end unless a byte moves.
    fn ends_at(&self, common: &Common) -> Time {
        let timeouts = &common.snapshot.timeouts;
        self.moved_at + if is_half_closed(common) { timeouts.half_closed } else { timeouts.idle }
    }

    fn deadline(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        let ends_at = self.ends_at(common);
        if cx.now >= ends_at {
            return timed_out(common, cx);
        }
        if let Some(reason) = common.judge(cx) {
            common.story.mark(Span::Relay, cx);
            return Close::abort(common, reason, cx);
        }
        if cx.now >= self.moved_at + common.snapshot.timeouts.rest {
            common.rest_until(ends_at, cx);
        } else {
            common.set_deadline_to_rest(ends_at, cx);
        }
        self.pump(common, cx)
    }

    /// Submits what is possible and not in flight.
    fn pump(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.flush(Side::Server, cx);
        common.flush(Side::Client, cx);
        if common.inbound.drained() && common.outbound.drained() {
            common.story.mark(Span::Relay, cx);
            if self.refused {
                // The client is still sending; its bytes must not turn our close into a reset.
                let reason = CloseReason::ServerReset;
                return Close::begin(reason, How::Flush, How::Close, common, cx);
            }
            return Close::begin(CloseReason::Finished, How::Close, How::Close, common, cx);
        }
        // A direction's end is passed on at once: its last bytes may wait in the kernel for it.
        // Where both have come to theirs, the close says it.
        if common.inbound.drained() {
            common.shutdown(Side::Server, cx);
        }
        if common.outbound.drained() {
            common.shutdown(Side::Client, cx);
        }
        if common.has_room(Side::Server) {
            common.receive(Side::Client, cx);
        }
        if common.has_room(Side::Client) {
            common.receive(Side::Server, cx);
        }
        Stage::Relay(self)
    }

    /// The client's socket has ended. With `close_notify` before it, that is news of nothing; else
    /// what the client sent may be cut short, and the server must not take it for a whole.
    fn client_ended(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        if common.inbound.ended() {
            return self.go_on(common, cx);
        }
        common.story.mark(Span::Relay, cx);
        // Once the server has ended too, nobody waits for the client's bytes any more; clients
        // that have their answer often close without ceremony.
        let reason = if common.outbound.drained() && common.inbound.is_empty() {
            CloseReason::Finished
        } else {
            CloseReason::ClientTruncated
        };
        Close::begin(reason, How::Close, How::Reset, common, cx)
    }
}

/// The client's socket has failed. Only when nothing but our `close_notify` was on its way had
/// both sides finished.
fn client_failed(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    common.story.mark(Span::Relay, cx);
    let finished = common.inbound.drained()
        && common.outbound.ended()
        && common.outbound.pending() <= CLOSE_NOTIFY_BYTES_MAX;
    if finished {
        return Close::begin(CloseReason::Finished, How::Close, How::Close, common, cx);
    }
    Close::abort(common, CloseReason::ClientReset, cx)
}

/// The server's socket has failed. If it had ended cleanly before, its answer is whole and still
/// goes to the client; else the client must not take it for one.
fn server_failed(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    common.story.mark(Span::Relay, cx);
    if common.outbound.ended() {
        return Close::begin(CloseReason::ServerReset, How::Flush, How::Close, common, cx);
    }
    Close::abort(common, CloseReason::ServerReset, cx)
}

fn is_half_closed(common: &Common) -> bool {
    common.inbound.ended() || common.outbound.ended()
}

fn timed_out(common: &mut Common, cx: &mut Context<'_>) -> Stage {
    common.story.mark(Span::Relay, cx);
    let half_closed = is_half_closed(common);
    let reason =
        if half_closed { CloseReason::HalfClosedTimeout } else { CloseReason::IdleTimeout };
    // With resets: it is we who end it, and neither side has said that it was done. A clean end
    // would let whoever withholds packets pass off a part of a message as the whole. Only a client
    // that has been sent all, its end included, may read on from what the kernel holds for it.
    let client = if common.outbound.drained() { How::Close } else { How::Reset };
    Close::begin(reason, client, How::Reset, common, cx)
}
