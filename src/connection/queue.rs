//! Between route and connect, where every server of the backend has as many connections as it may
//! (`max_connections`): the client stands in line with those of all workers.
//!
//! Meanwhile it may send, up to the high-water mark, and if it says nothing it rests. It gets the
//! first permit that comes back when everybody before it has got one, on whichever worker that
//! happens; it has `queue.timeout` for that.

use std::rc::Rc;

use crate::backend::permits::Place;
use crate::io::{Side, Time};
use crate::telemetry::labels::{CloseReason, Limit, Span};

use super::close::{Close, How};
use super::common::Common;
use super::context::Context;
use super::route::Route;
use super::{Event, Stage};

/// In line.
#[derive(Debug)]
pub struct Queued {
    route: Route,
    place: Place,
    /// When its time is over.
    ends_at: Time,
}

impl Queued {
    /// Stands in line for a permit of any server of the backend but `except`.
    pub(super) fn begin(
        route: Route,
        except: Option<u16>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        let snapshot = Rc::clone(&common.snapshot);
        let Some(permits) = route.permits(&snapshot) else {
            return Close::abort(common, CloseReason::InternalError, cx);
        };
        common.story.begin_span(cx);
        let Some(place) = permits.wait(cx.waiter, except) else {
            cx.counters.limits.of(Limit::BackendQueue).add(1);
            return Close::abort(common, CloseReason::QueueFull, cx);
        };
        cx.counters.limits.of(Limit::ServerConnections).add(1);
        let this = Box::new(Self { route, place, ends_at: cx.now + permits.timeout() });
        permits.settle(cx.wakes);
        common.set_deadline_to_rest(this.ends_at, cx);
        this.go_on(common, cx)
    }

    pub(super) fn handle(
        self: Box<Self>,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Received(_, bytes) => {
                if common.open(bytes, cx).is_err() {
                    self.leave(common, cx);
                    return Close::client_violation(common, cx);
                }
                common.set_deadline_to_rest(self.ends_at, cx);
            }
            // A client that ended cleanly may still wait for the answer to what it has sent.
            Event::Ended(_) if common.inbound.ended() => {}
            Event::Ended(_) => {
                self.leave(common, cx);
                let reason = CloseReason::ClientTruncated;
                return Close::begin(reason, How::Close, How::Reset, common, cx);
            }
            Event::ReceiveFailed(_) | Event::SendFailed(_) => {
                self.leave(common, cx);
                return Close::abort(common, CloseReason::ClientReset, cx);
            }
            Event::Deadline if cx.now >= self.ends_at => {
                self.leave(common, cx);
                return Close::abort(common, CloseReason::QueueTimeout, cx);
            }
            Event::Deadline => {
                // What it has sent waits for us, not for a server.
                common.watch_anew();
                common.rest_until(self.ends_at, cx);
            }
            Event::Readable(_) => common.set_deadline_to_rest(self.ends_at, cx),
            Event::Sent(_) | Event::Connected(_) | Event::Closed(_) | Event::Settled => {}
        }
        self.go_on(common, cx)
    }

    fn go_on(self: Box<Self>, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.flush(Side::Client, cx);
        if common.has_room(Side::Server) {
            common.receive(Side::Client, cx);
        }
        Stage::Queued(self)
    }

    /// It holds a permit of `server`.
    pub(super) fn granted(self, server: u16, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.story.mark(Span::Queue, cx);
        common.stir();
        self.route.granted(server, common, cx)
    }

    /// Leaves the line. A permit that is on its way finds nobody and goes to the next.
    pub(super) fn leave(&self, common: &mut Common, cx: &mut Context<'_>) {
        common.story.mark(Span::Queue, cx);
        if let Some(permits) = self.route.permits(&common.snapshot) {
            permits.leave(cx.waiter, &self.place);
            permits.settle(cx.wakes);
        }
    }
}
