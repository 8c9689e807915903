//! Whether peers take what waits for them, and complete what they have begun: whoever makes us
//! keep bytes must go on, or the connection ends.
//!
//! While bytes are kept, what happens in each span of `timeouts.stalled` is judged at its end. A
//! queue in which something waited all the time, and of which fewer bytes were taken than
//! `limits.min_rate` asks for, ends the connection, and so does a record of the client's that was
//! incomplete all the time. A span begins when something comes to be kept and is over when nothing
//! is. Who stalls in the midst of one, or has taken much before, is told at the end of the next.
//!
//! There is no timer for it, and no work per byte: the deadline that a connection has anyway comes
//! no later than the end of the span.

use crate::io::Time;
use crate::telemetry::labels::CloseReason;
use crate::tls::session::Session;

use super::common::Common;
use super::context::Context;

impl Common {
    /// Whether bytes are kept that a peer has to take, or to complete.
    fn keeps_bytes(&self) -> bool {
        let partial = self.session.as_ref().map_or(0, Session::partial_bytes);
        partial > 0 || !self.inbound.is_empty() || !self.outbound.is_empty()
    }

    /// Begins a span if something is kept and none has begun; ends it if nothing is.
    pub(super) fn watch(&mut self, cx: &Context<'_>) {
        if !self.keeps_bytes() {
            self.judged_at = Time::NEVER;
        } else if self.judged_at == Time::NEVER {
            self.inbound.mark();
            self.outbound.mark();
            if let Some(session) = &mut self.session {
                session.mark();
            }
            self.judged_at = cx.now + self.snapshot.timeouts.stalled;
        }
    }

    /// Forgets the span: what waited until now had to wait for us.
    pub(super) fn watch_anew(&mut self) {
        self.judged_at = Time::NEVER;
    }

    /// At the end of a span: why the connection has to end, if it has to. Else the next one begins.
    pub(super) fn judge(&mut self, cx: &Context<'_>) -> Option<CloseReason> {
        if cx.now < self.judged_at {
            return None;
        }
        let least = self.least_bytes();
        // A server that waits for its client to read takes nothing either: the client comes first.
        let reason = if self.outbound.is_slower_than(least) {
            Some(CloseReason::ClientTooSlow)
        } else if self.inbound.is_slower_than(least) {
            Some(CloseReason::ServerTooSlow)
        } else if self.is_record_overdue() {
            Some(CloseReason::RecordTimeout)
        } else {
            None
        };
        self.watch_anew();
        if reason.is_none() {
            self.watch(cx);
        }
        reason
    }

    /// Whether the client has not completed a record, and had the time. While something waits for
    /// the server we may not have read what the client has sent.
    fn is_record_overdue(&self) -> bool {
        let overdue = self.session.as_ref().is_some_and(Session::is_record_overdue);
        overdue && !self.inbound.has_waited()
    }

    /// What a peer must take of its queue in a span, in bytes.
    fn least_bytes(&self) -> u64 {
        let millis = u64::try_from(self.snapshot.timeouts.stalled.as_millis()).unwrap_or(u64::MAX);
        u64::from(self.snapshot.min_rate).saturating_mul(millis) / 1000
    }
}
