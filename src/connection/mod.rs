//! One connection's journey, without I/O: events come in, operations go out.
//!
//! ```text
//!   accept.rs          handshake.rs        route.rs           relay.rs          close.rs
//!   ClientHello  ───►  TLS handshake ───►  server chosen ───► bytes go    ───►  cancel, wait,
//!   complete           complete            and connected      both ways         close, free
//!        │                  │                   │                 │                ▲
//!        └──────────────────┴───────────────────┴─────────────────┴────────────────┘
//!                    any stage may end the journey, with a reason
//! ```
//!
//! Where the backend says so, `first_byte.rs` stands between handshake and route; where its servers
//! have as many connections as they may, `queue.rs` stands between route and the connect.
//!
//! A stage owns what only it needs, handles one event at a time, and returns the stage that
//! follows. What every stage needs is in [`common::Common`]. Nothing here knows a system call, a
//! descriptor or the clock; the same code runs on the kernel's ring and on the simulator.

// In the order of the journey.
pub mod accept;
pub mod handshake;

pub mod first_byte;

pub mod route;

pub mod queue;

pub mod relay;

pub mod close;

// What the stages share.
pub mod common;
pub mod context;
pub mod in_flight;
mod pace;
pub mod story;

use crate::config::Refuse;
use crate::io::{Buffer, Errno, Kind, Side, Time};
use crate::limits::KEPT_AFTER;
use crate::telemetry::labels::{CloseReason, HandshakeOutcome, HandshakeStep, KeyType, State};
use crate::telemetry::record::Record;
use crate::tls::first_step::FirstStep;
use crate::worker::outbox::Rank;
use crate::worker::sources::table::Handle;

use common::Common;
use context::Context;

/// What a stage is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// Bytes came from a side; never none.
    Received(Side, &'a mut [u8]),
    /// A side sends nothing more.
    Ended(Side),
    /// Nothing more can be received from a side: it has reset the connection, or is gone.
    ReceiveFailed(Side),
    /// Nothing more can be sent to a side.
    SendFailed(Side),
    /// A side's socket took bytes.
    Sent(Side),
    /// The connection attempt to a server ended.
    Connected(Result<(), Errno>),
    /// A side's descriptor was given back.
    Closed(Side),
    /// The deadline that the stage set has come.
    Deadline,
    /// There is something to receive from a side that rested, or seemed to be.
    Readable(Side),
    /// Something in flight came back that only bookkeeping cares about.
    Settled,
}

/// What a completion delivers to a connection.
#[derive(Debug)]
pub enum Delivery<'a> {
    /// Nothing but its result.
    None,
    /// Received bytes, where the kernel put them.
    Received(&'a mut [u8]),
    /// The buffer of a send.
    Sent(Buffer),
    /// An address.
    Address(std::net::SocketAddr),
}

/// What has become of a step that a handshake waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    /// The handshake has ended meanwhile.
    Gone,
    /// It is done: what it was, and which key signed.
    Done(HandshakeStep, KeyType),
    /// It is to be done elsewhere.
    Apart,
}

/// Where on its journey a connection is, with what only that part of the journey needs.
#[derive(Debug)]
enum Stage {
    Accept(accept::Accept),
    /// Apart, because it is larger than what an established connection needs.
    Handshake(Box<handshake::Handshake>),
    FirstByte(first_byte::FirstByte),
    Route(route::Route),
    /// Apart likewise.
    Queued(Box<queue::Queued>),
    Relay(relay::Relay),
    Close(close::Close),
    /// Both descriptors are given back and nothing is in flight: the slot may be freed.
    Done(CloseReason),
}

/// One client, its server, and the TLS between.
#[derive(Debug)]
pub struct Connection {
    stage: Stage,
    common: Common,
    /// The state that the gauges count it under.
    counted: Option<State>,
    /// The client's source, which counts this connection, and its handshake until that has ended.
    source: Option<Handle>,
}

impl Connection {
    /// Begins the journey of a client that was accepted just now; if `source` counts it, it gives
    /// back what is counted.
    pub fn begin(mut common: Common, source: Option<Handle>, cx: &mut Context<'_>) -> Self {
        let stage = Stage::Accept(accept::Accept::begin(&mut common, cx));
        Self::at(stage, common, source, cx)
    }

    /// The journey of a client that was accepted just now and is not let in.
    pub fn refused(
        mut common: Common,
        outcome: HandshakeOutcome,
        how: Refuse,
        cx: &mut Context<'_>,
    ) -> Self {
        let stage = close::Close::refused(outcome, how, &mut common, cx);
        Self::at(stage, common, None, cx)
    }

    fn at(stage: Stage, common: Common, source: Option<Handle>, cx: &Context<'_>) -> Self {
        let mut this = Self { stage, common, counted: None, source };
        this.count_state(cx);
        this
    }

    /// The client's source, if it counts this connection.
    pub fn source(&self) -> Option<Handle> {
        self.source
    }

    /// Whether its handshake has neither been completed nor failed.
    pub fn shakes_hands(&self) -> bool {
        self.counted.is_some_and(is_of_handshake)
    }

    /// Takes one completion: bookkeeping first, then the stage.
    pub fn complete(
        &mut self,
        kind: Kind,
        result: Result<u32, Errno>,
        more: bool,
        delivery: Delivery<'_>,
        cx: &mut Context<'_>,
    ) {
        if !more {
            self.common.ended(kind);
        }
        let event = self.common.settle(kind, result, delivery, cx);
        self.handle(event, cx);
    }

    /// Tells the connection that its timer has come; it may have a later deadline by now.
    pub fn timer(&mut self, cx: &mut Context<'_>) {
        self.common.timer_fired();
        if cx.now >= self.common.deadline() {
            self.handle(Event::Deadline, cx);
        }
        self.common.rearm_timer();
    }

    /// The step that its handshake has asked for, here and now, or `apart`, which is not for
    /// handshakes that are under way.
    pub fn step(&mut self, apart: bool, cx: &mut Context<'_>) -> Stepped {
        let Some(handshake) = self.take_handshake() else {
            return Stepped::Gone;
        };
        let client_has_ended = handshake.client_has_ended();
        let (stage, stepped) = if apart {
            handshake.step_apart(&mut self.common, cx)
        } else {
            handshake.step(&mut self.common, cx)
        };
        self.stage = stage;
        self.count_state(cx);
        if stepped == Stepped::Apart {
            return stepped;
        }
        // What was kept back until the bytes before it were seen.
        if client_has_ended && !matches!(self.stage, Stage::Close(_) | Stage::Done(_)) {
            self.handle(Event::Ended(Side::Client), cx);
        }
        stepped
    }

    /// The step that was done apart has come back.
    pub fn step_returns(&mut self, step: FirstStep, cx: &mut Context<'_>) {
        self.common.ended(Kind::Compute);
        let Some(handshake) = self.take_handshake() else {
            // The handshake has ended meanwhile, and its session with it.
            return self.handle(Event::Settled, cx);
        };
        self.stage = handshake.step_returns(step, &mut self.common, cx);
        self.count_state(cx);
    }

    /// Refuses the handshake its first step, before any cryptography; `false`: it has ended
    /// meanwhile.
    pub fn refuse(&mut self, outcome: HandshakeOutcome, how: Refuse, cx: &mut Context<'_>) -> bool {
        let Some(handshake) = self.take_handshake() else {
            return false;
        };
        self.stage = handshake.refuse(outcome, how, &mut self.common, cx);
        self.count_state(cx);
        true
    }

    fn take_handshake(&mut self) -> Option<Box<handshake::Handshake>> {
        // Should the step panic, the worker aborts the connection from this placeholder.
        let placeholder = Stage::Close(close::Close::interrupted());
        match std::mem::replace(&mut self.stage, placeholder) {
            Stage::Handshake(handshake) => Some(handshake),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Whether it stands in line for a permit.
    pub fn is_queued(&self) -> bool {
        matches!(self.stage, Stage::Queued(_))
    }

    /// It has got a permit of `server` in line.
    pub fn granted(&mut self, server: u16, cx: &mut Context<'_>) {
        // Whatever happens now, it is given back when the connection ends.
        self.common.hold_permit(server);
        // Should the stage panic, the worker aborts the connection from this placeholder.
        let placeholder = Stage::Close(close::Close::interrupted());
        self.stage = match std::mem::replace(&mut self.stage, placeholder) {
            Stage::Queued(queued) => queued.granted(server, &mut self.common, cx),
            other => other,
        };
        self.count_state(cx);
    }

    /// Backend and server of the permit that it holds, if any.
    pub fn permit(&self) -> Option<(u16, u16)> {
        self.common.permit()
    }

    /// Whether its handshake is done and it has not ended.
    pub fn is_established(&self) -> bool {
        self.rank() == Rank::Established
    }

    /// How far it has come, for who goes first.
    pub fn rank(&self) -> Rank {
        match self.stage {
            Stage::Accept(_) | Stage::Handshake(_) => Rank::Beginning,
            Stage::Close(_) | Stage::Done(_) => Rank::Ending,
            _ => Rank::Established,
        }
    }

    /// Whether it is more than one of those that come for a question: it has been relayed for
    /// [`KEPT_AFTER`].
    pub fn is_kept(&self, now: Time) -> bool {
        matches!(self.stage, Stage::Relay(_)) && self.common.story.relayed_for(now) >= KEPT_AFTER
    }

    /// Ends the connection now, with resets on both sides.
    pub fn abort(&mut self, reason: CloseReason, cx: &mut Context<'_>) {
        let stage = std::mem::replace(&mut self.stage, Stage::Done(reason));
        if self.common.story.handshake.is_none() {
            let defect = reason == CloseReason::InternalError;
            let outcome =
                if defect { HandshakeOutcome::InternalError } else { HandshakeOutcome::Draining };
            self.common.story.handshake_ended(outcome, cx);
        }
        self.stage = match stage {
            Stage::Done(reason) => Stage::Done(reason),
            Stage::Close(close) => close.hurry(&mut self.common, cx),
            Stage::Queued(queued) => {
                queued.leave(&mut self.common, cx);
                close::Close::abort(&mut self.common, reason, cx)
            }
            Stage::Accept(_)
            | Stage::Handshake(_)
            | Stage::FirstByte(_)
            | Stage::Route(_)
            | Stage::Relay(_) => close::Close::abort(&mut self.common, reason, cx),
        };
        self.count_state(cx);
    }

    /// When [`Connection::timer`] must be called next, if that is not arranged already.
    pub fn take_timer(&mut self) -> Option<Time> {
        if matches!(self.stage, Stage::Done(_)) { None } else { self.common.take_timer() }
    }

    /// Why the connection ended, once its slot may be freed.
    pub fn done(&self) -> Option<CloseReason> {
        match &self.stage {
            Stage::Done(reason) => Some(*reason),
            _ => None,
        }
    }

    /// Gives back what the connection still holds and tells its story.
    ///
    /// # Panics
    /// When the connection is not done: the kernel may hold something of it.
    pub fn end(&mut self, worker: u16, reason: CloseReason, cx: &mut Context<'_>) -> Record {
        assert!(self.done().is_some(), "a connection is freed when it is done");
        self.common.free(cx);
        if let Some(source) = self.source.take() {
            cx.sources.leave(source);
        }
        cx.counters.closed.of(reason).add(1);
        self.common.story.take_record(worker, reason)
    }

    /// Asserts what must hold between two events (invariants I1 to I4 and I8 of ARCHITECTURE.md).
    ///
    /// # Panics
    /// When it does not hold.
    pub fn check_invariants(&self) {
        self.common.check_invariants();
        let done = matches!(self.stage, Stage::Done(_));
        assert_eq!(done, self.common.is_released(), "done means: nothing open, nothing in flight");
        assert!(
            done || self.common.expects_something(),
            "a connection that waits for nothing will never end: {self:?}"
        );
        let ends = done || matches!(self.stage, Stage::Close(_));
        let rests = self.common.is_resting();
        assert!(ends || !rests || self.common.session.is_some(), "rests without a session");
    }

    fn handle(&mut self, event: Event<'_>, cx: &mut Context<'_>) {
        // Should the stage panic, the worker aborts the connection from this placeholder.
        let stage = std::mem::replace(&mut self.stage, Stage::Close(close::Close::interrupted()));
        let common = &mut self.common;
        self.stage = match stage {
            Stage::Accept(stage) => stage.handle(event, common, cx),
            Stage::Handshake(stage) => stage.handle(event, common, cx),
            Stage::FirstByte(stage) => stage.handle(event, common, cx),
            Stage::Route(stage) => stage.handle(event, common, cx),
            Stage::Queued(stage) => stage.handle(event, common, cx),
            Stage::Relay(stage) => stage.handle(event, common, cx),
            Stage::Close(stage) => stage.handle(&event, common, cx),
            Stage::Done(reason) => Stage::Done(reason),
        };
        self.count_state(cx);
    }

    fn state(&self) -> Option<State> {
        match self.stage {
            Stage::Accept(_) => Some(State::ClientHello),
            Stage::Handshake(_) => Some(State::Handshake),
            Stage::FirstByte(_) => Some(State::FirstByte),
            Stage::Route(_) => Some(State::Connect),
            Stage::Queued(_) => Some(State::Queued),
            Stage::Relay(_) if self.common.is_resting() => Some(State::Idle),
            Stage::Relay(_) => Some(State::Relay),
            Stage::Close(_) => Some(State::Close),
            Stage::Done(_) => None,
        }
    }

    fn count_state(&mut self, cx: &Context<'_>) {
        let is = self.state();
        let was = std::mem::replace(&mut self.counted, is);
        if was != is {
            if let Some(was) = was {
                cx.counters.connections.of(was).sub(1);
            }
            if let Some(is) = is {
                cx.counters.connections.of(is).add(1);
            }
            if let Some(source) = self.source
                && was.is_some_and(is_of_handshake)
                && !is.is_some_and(is_of_handshake)
            {
                cx.sources.handshake_ended(source);
            }
        }
    }
}

/// Whether a connection in this state is counted among its source's handshakes.
fn is_of_handshake(state: State) -> bool {
    matches!(state, State::ClientHello | State::Handshake)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::session::Session;

    /// What a million connections cost: a slot holds all of it. The bounds are today's sizes.
    #[test]
    fn a_connection_at_rest_is_small() {
        let sizes = [size_of::<Connection>(), size_of::<Session>()];
        println!("{sizes:?}, of which the stage {}", size_of::<Stage>());
        assert!(sizes[0] <= 616 && sizes[1] <= 312, "{sizes:?}");
    }
}
