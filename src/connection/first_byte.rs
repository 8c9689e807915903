//! Between the handshake and the route, where the backend says `connect = "on_first_byte"`: no
//! server is chosen before the client has said something.
//!
//! Until then the client costs no socket towards a server, and like any connection that waits it
//! rests. It has `timeouts.idle` to speak. One that ends with `close_notify` before is answered
//! with one, and no server ever hears of it.

use crate::io::{Side, Time};
use crate::telemetry::labels::CloseReason;

use super::close::{Close, How};
use super::common::Common;
use super::context::Context;
use super::route::Route;
use super::{Event, Stage};

/// The client has not said anything.
#[derive(Debug)]
pub struct FirstByte {
    /// When its time is over.
    ends_at: Time,
}

impl FirstByte {
    /// Waits for the first byte if the backend wants that and it is not there yet.
    pub(super) fn begin(common: &mut Common, cx: &mut Context<'_>) -> Stage {
        let backend = common.backend();
        let backend =
            backend.and_then(|backend| common.snapshot.backends.get(usize::from(backend)));
        if !backend.is_some_and(|backend| backend.on_first_byte) {
            return Route::begin(common, cx);
        }
        let this = Self { ends_at: cx.now + common.snapshot.timeouts.idle };
        common.set_deadline_to_rest(this.ends_at, cx);
        this.go_on(common, cx)
    }

    pub(super) fn handle(
        self,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(_, bytes) => {
                if common.open(bytes, cx).is_err() {
                    return Close::client_violation(common, cx);
                }
                common.set_deadline_to_rest(self.ends_at, cx);
            }
            Event::Ended(_) => {
                let reason = CloseReason::ClientTruncated;
                return Close::begin(reason, How::Close, How::Close, common, cx);
            }
            Event::ReceiveFailed(_) | Event::SendFailed(_) => {
                return Close::abort(common, CloseReason::ClientReset, cx);
            }
            Event::Deadline if cx.now >= self.ends_at => {
                return Close::abort(common, CloseReason::IdleTimeout, cx);
            }
            Event::Deadline => {
                if let Some(reason) = common.judge(cx) {
                    return Close::abort(common, reason, cx);
                }
                common.rest_until(self.ends_at, cx);
            }
            Event::Readable(_) => common.set_deadline_to_rest(self.ends_at, cx),
            Event::Sent(_) | Event::Connected(_) | Event::Closed(_) | Event::Settled => {}
        }
        self.go_on(common, cx)
    }

    fn go_on(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        if !common.inbound.is_empty() {
            common.story.begin_span(cx);
            return Route::begin(common, cx);
        }
        if common.inbound.ended() {
            common.end_outbound(cx);
            return Close::begin(CloseReason::Finished, How::Flush, How::Close, common, cx);
        }
        common.flush(Side::Client, cx);
        common.receive(Side::Client, cx);
        Stage::FirstByte(self)
    }
}
