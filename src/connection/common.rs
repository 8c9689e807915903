//! What every stage needs: the two sockets' state, the two directions' queues, the TLS session,
//! the deadline, and the bookkeeping of operations in flight.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::io::{Errno, Kind, Operation, Side, Time};
use crate::limits::{
    PARTIAL_HANDSHAKE_BYTES_MAX, QUEUE_HIGH_WATER_BYTES, RECEIVE_BUFFER_BYTES,
    RECORD_OVERHEAD_BYTES_MAX, RECORD_PAYLOAD_BYTES_MAX, STREAM_RECEIVED_MIN,
};
use crate::telemetry::labels::Limit;
use crate::tls::failure::Failure;
use crate::tls::session::{Session, Sinks};
use crate::tls::terms::Terms;
use crate::worker::snapshot::Local;

use super::context::Context;
use super::in_flight::{self, InFlight};
use super::story::Story;
use super::{Delivery, Event};
use crate::io::queue::Queue;

/// One of a connection's two sockets, as far as the journey must know it.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what holds of it, independently")]
pub struct Socket {
    /// A descriptor is held (or may be, while it is being made).
    pub open: bool,
    /// The peer sends nothing more, or the socket failed.
    pub read_ended: bool,
    /// We have told the peer that we send nothing more.
    pub write_ended: bool,
    /// Its bytes are waited for with a poll, which costs the kernel less than a receive.
    rests: bool,
    /// A receive was filled since the last one began: there is probably more.
    streams: bool,
}

/// What outlives a change of stage.
#[derive(Debug)]
pub struct Common {
    /// The configuration this connection was accepted under.
    pub snapshot: Rc<Local>,
    /// The client's socket.
    pub client: Socket,
    /// The server's socket.
    pub server: Socket,
    /// Plaintext, client to server.
    pub inbound: Queue,
    /// TLS records, server to client.
    pub outbound: Queue,
    /// The TLS session, from the complete `ClientHello` on.
    pub session: Option<Session>,
    /// What will be told at the end.
    pub story: Story,
    in_flight: InFlight,
    /// What has been cancelled and not come back yet.
    cancelled: InFlight,
    resting: bool,
    /// When it is next looked at whether the peers take what waits for them (`pace.rs`).
    pub(super) judged_at: Time,
    /// A permit of the server in the story is ours.
    holds_permit: bool,
    deadline: Time,
    /// The earliest time at which the worker's wheel will call; never: it does not hold us.
    timer_at: Time,
    timer_wanted: bool,
}

impl Common {
    /// State of a client accepted just now. `local` is the address it reached, where the listener
    /// is bound to one address.
    pub fn new(
        snapshot: Rc<Local>,
        client: SocketAddr,
        local: Option<SocketAddr>,
        listener: u16,
        now: Time,
    ) -> Self {
        Self {
            snapshot,
            client: Socket { open: true, ..Socket::default() },
            server: Socket::default(),
            inbound: Queue::default(),
            outbound: Queue::default(),
            session: None,
            story: Story::new(client, local, listener, now),
            in_flight: InFlight::default(),
            cancelled: InFlight::default(),
            resting: false,
            judged_at: Time::NEVER,
            holds_permit: false,
            deadline: now,
            timer_at: Time::NEVER,
            timer_wanted: false,
        }
    }

    /// The listener's TLS terms.
    pub fn terms(&self) -> Option<&Terms> {
        self.snapshot.terms(self.story.listener)
    }

    /// Index of the backend that the listener leads to.
    pub fn backend(&self) -> Option<u16> {
        self.snapshot.listeners.get(usize::from(self.story.listener)).map(|to| to.backend)
    }

    /// One side's socket.
    pub fn socket(&mut self, side: Side) -> &mut Socket {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }

    /// The queue that leaves by one side's socket.
    pub fn queue_to(&mut self, side: Side) -> &mut Queue {
        match side {
            Side::Client => &mut self.outbound,
            Side::Server => &mut self.inbound,
        }
    }

    /// Hands an operation to the kernel.
    pub fn submit(&mut self, kind: Kind, operation: Operation, cx: &mut Context<'_>) {
        self.in_flight.start(kind);
        cx.operations.push((kind, operation));
    }

    /// Whether `kind` is in flight.
    pub fn has_in_flight(&self, kind: Kind) -> bool {
        self.in_flight.has(kind)
    }

    /// Whether anything is in flight on one side's socket.
    pub fn is_busy(&self, side: Side) -> bool {
        self.in_flight.any(InFlight::of(side))
    }

    /// Cancels `target` if it is in flight, once. It still completes, perhaps with success.
    pub fn cancel(&mut self, target: Kind, cancel: Kind, cx: &mut Context<'_>) {
        let due = self.in_flight.has(target) && !self.cancelled.has(target);
        if due && !self.in_flight.has(cancel) {
            self.cancelled.start(target);
            self.submit(cancel, Operation::Cancel { target }, cx);
        }
    }

    /// Lets what is in flight be cancelled once more.
    pub fn forget_cancels(&mut self) {
        self.cancelled = InFlight::default();
    }

    /// Waits for a side's bytes unless that is arranged already or it has ended: with a receive,
    /// or, while it rests, with a poll.
    pub fn receive(&mut self, side: Side, cx: &mut Context<'_>) {
        let (recv, poll) = (in_flight::recv(side), in_flight::poll(side));
        let waits = self.in_flight.has(recv) || self.in_flight.has(poll);
        let socket = self.socket(side);
        if !socket.open || socket.read_ended || waits {
            return;
        }
        if socket.rests {
            self.submit(poll, Operation::Poll { side }, cx);
        } else {
            let streams = std::mem::take(&mut socket.streams);
            self.submit(recv, Operation::Recv { side, streams }, cx);
        }
    }

    /// Gives back what only moving bytes need, and exchanges receives for polls. The first byte,
    /// end or error of a side brings that side back.
    fn rest(&mut self, cx: &mut Context<'_>) {
        self.resting = true;
        if let Some(session) = &mut self.session {
            session.rest();
        }
        for side in [Side::Client, Side::Server] {
            let socket = self.socket(side);
            if socket.open && !socket.read_ended {
                socket.rests = true;
                self.cancel(in_flight::recv(side), in_flight::cancel_recv(side), cx);
            }
        }
    }

    /// Sets the deadline to when it is to rest, or to `ends_at` or `judge` if one of them
    /// comes earlier.
    pub fn set_deadline_to_rest(&mut self, ends_at: Time, cx: &Context<'_>) {
        self.watch(cx);
        let rests_at = cx.now + self.snapshot.timeouts.rest;
        self.set_deadline_at(rests_at.min(ends_at).min(self.judged_at));
    }

    /// Lets it rest, unless bytes wait that a peer does not take: when it takes one, this comes
    /// again. The deadline is `ends_at` from now on, or `judge`.
    pub fn rest_until(&mut self, ends_at: Time, cx: &mut Context<'_>) {
        if self.inbound.is_empty() && self.outbound.is_empty() {
            self.rest(cx);
            cx.counters.rests.add(1);
        }
        self.watch(cx);
        self.set_deadline_at(ends_at.min(self.judged_at));
    }

    /// Whether it has come to rest, and nothing has been heard of either side since.
    pub fn is_resting(&self) -> bool {
        self.resting
    }

    /// It goes on, without having heard of a side.
    pub fn stir(&mut self) {
        self.resting = false;
    }

    /// A permit of `server` is ours until the server's socket is closed.
    pub fn hold_permit(&mut self, server: u16) {
        self.story.server = Some(server);
        self.holds_permit = true;
    }

    /// Backend and server of the permit that is ours.
    pub fn permit(&self) -> Option<(u16, u16)> {
        self.story.backend.zip(self.story.server).filter(|_| self.holds_permit)
    }

    /// Gives the permit back, if there is one, to whoever is next in line.
    pub fn release_permit(&mut self, cx: &mut Context<'_>) {
        let Some((backend, server)) = self.permit() else {
            return;
        };
        self.holds_permit = false;
        let backend = self.snapshot.backends.get(usize::from(backend));
        if let Some(permits) = backend.and_then(|backend| backend.permits.as_ref()) {
            permits.release(server, cx.wakes);
        }
    }

    /// A side is heard of.
    fn wake(&mut self, side: Side) {
        self.resting = false;
        self.socket(side).rests = false;
    }

    /// Sends what waits for a side, unless a send is in flight.
    pub fn flush(&mut self, side: Side, cx: &mut Context<'_>) {
        let kind = in_flight::send(side);
        if self.in_flight.has(kind) || self.socket(side).write_ended {
            return;
        }
        if let Some(buffer) = self.queue_to(side).take() {
            // Whoever has drained a queue that has ended tells its side at once.
            let ends = self.queue_to(side).ended() && self.queue_to(side).is_last();
            self.submit(kind, Operation::Send { side, buffer, ends }, cx);
        }
    }

    /// Tells a side that we send nothing more, once.
    pub fn shutdown(&mut self, side: Side, cx: &mut Context<'_>) {
        let socket = self.socket(side);
        if socket.open && !socket.write_ended {
            socket.write_ended = true;
            self.submit(in_flight::shutdown(side), Operation::Shutdown { side }, cx);
        }
    }

    /// Whether more may be received for the queue that leaves by `side`.
    pub fn has_room(&mut self, side: Side) -> bool {
        let queue = self.queue_to(side);
        !queue.ended() && queue.pending() < QUEUE_HIGH_WATER_BYTES
    }

    /// Opens ciphertext from the client: plaintext joins `inbound`, TLS's own answers `outbound`.
    ///
    /// # Errors
    /// What broke the session; its alert is in `outbound`.
    pub fn open(&mut self, bytes: &mut [u8], cx: &mut Context<'_>) -> Result<(), Failure> {
        let Some(session) = &mut self.session else {
            return Err(Failure::CannotSend);
        };
        if self.inbound.ended() {
            return Ok(());
        }
        let before = self.inbound.pending();
        let result = session.receive(
            bytes,
            &mut Sinks {
                plaintext: &mut self.inbound,
                records: &mut self.outbound,
                pool: cx.pool,
                now: cx.now,
            },
        );
        let opened = (self.inbound.pending() - before) as u64;
        self.story.inbound_bytes += opened;
        cx.counters.inbound_bytes.add(opened);
        if result.is_ok() && session.client_closed() {
            self.inbound.end();
        }
        result
    }

    /// The session comes back from where a step of the handshake was done.
    ///
    /// # Errors
    /// What broke the session; its alert is in `outbound`.
    pub fn take_back(
        &mut self,
        session: Session,
        records: &[u8],
        result: Result<(), Failure>,
        cx: &mut Context<'_>,
    ) -> Result<(), Failure> {
        self.outbound.append(records, cx.pool);
        if result.is_ok() && session.client_closed() {
            self.inbound.end();
        }
        self.session = Some(session);
        result
    }

    /// Seals plaintext from the server into `outbound`.
    ///
    /// # Errors
    /// When the session can send no more.
    pub fn seal(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Failure> {
        let Some(session) = &mut self.session else {
            return Err(Failure::CannotSend);
        };
        session.seal(bytes, &mut self.outbound, cx.pool)?;
        self.story.outbound_bytes += bytes.len() as u64;
        cx.counters.outbound_bytes.add(bytes.len() as u64);
        Ok(())
    }

    /// Ends the outbound direction with a `close_notify`, once.
    pub fn end_outbound(&mut self, cx: &mut Context<'_>) {
        if self.outbound.ended() {
            return;
        }
        if let Some(session) = &mut self.session {
            session.close(&mut self.outbound, cx.pool);
        }
        self.outbound.end();
    }

    /// The deadline of what the stage waits for.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// Sets the deadline to `after` from now.
    pub fn set_deadline(&mut self, after: Duration, cx: &Context<'_>) {
        self.set_deadline_at(cx.now + after);
    }

    /// Sets the deadline.
    pub fn set_deadline_at(&mut self, deadline: Time) {
        self.deadline = deadline;
        if self.deadline < self.timer_at {
            self.timer_at = self.deadline;
            self.timer_wanted = true;
        }
    }

    /// The wheel has called: it no longer holds us.
    pub(super) fn timer_fired(&mut self) {
        self.timer_at = Time::NEVER;
    }

    /// Makes sure that the wheel calls at the deadline at the latest.
    pub(super) fn rearm_timer(&mut self) {
        if self.timer_at == Time::NEVER {
            self.timer_at = self.deadline;
            self.timer_wanted = true;
        }
    }

    /// When the wheel must call, if that is not arranged.
    pub(super) fn take_timer(&mut self) -> Option<Time> {
        let wanted = std::mem::take(&mut self.timer_wanted);
        (wanted && self.timer_at != Time::NEVER).then_some(self.timer_at)
    }

    /// The last completion of an operation has come.
    pub(super) fn ended(&mut self, kind: Kind) {
        self.in_flight.end(kind);
        if self.cancelled.has(kind) {
            self.cancelled.end(kind);
        }
    }

    /// Books a completion and says what it means to the stage.
    pub(super) fn settle<'a>(
        &mut self,
        kind: Kind,
        result: Result<u32, Errno>,
        delivery: Delivery<'a>,
        cx: &mut Context<'_>,
    ) -> Event<'a> {
        match kind {
            Kind::RecvClient => self.settle_receive(Side::Client, result, delivery, cx),
            Kind::RecvServer => self.settle_receive(Side::Server, result, delivery, cx),
            Kind::SendClient => self.settle_send(Side::Client, result, delivery, cx),
            Kind::SendServer => self.settle_send(Side::Server, result, delivery, cx),
            Kind::PollClient => self.settle_poll(Side::Client, result),
            Kind::PollServer => self.settle_poll(Side::Server, result),
            Kind::Connect => Event::Connected(result.map(|_| ())),
            Kind::CloseClient => {
                self.client.open = false;
                Event::Closed(Side::Client)
            }
            Kind::CloseServer => {
                self.server = Socket::default();
                self.release_permit(cx);
                Event::Closed(Side::Server)
            }
            Kind::LocalAddress => {
                if let Delivery::Address(address) = delivery {
                    self.story.local = Some(address);
                }
                Event::Settled
            }
            _ => Event::Settled,
        }
    }

    fn settle_receive<'a>(
        &mut self,
        side: Side,
        result: Result<u32, Errno>,
        delivery: Delivery<'a>,
        cx: &Context<'_>,
    ) -> Event<'a> {
        match (result, delivery) {
            (Ok(_), Delivery::Received(bytes)) if !bytes.is_empty() => {
                // It may have come in spite of being cancelled.
                self.wake(side);
                self.socket(side).streams |= bytes.len() >= STREAM_RECEIVED_MIN;
                Event::Received(side, bytes)
            }
            (Ok(_), _) => {
                self.wake(side);
                self.socket(side).read_ended = true;
                Event::Ended(side)
            }
            (Err(Errno::CANCELED | Errno::TRY_AGAIN), _) => Event::Settled,
            (Err(Errno::NO_BUFFERS), _) => {
                cx.counters.limits.of(Limit::ReceiveBuffers).add(1);
                Event::Settled
            }
            (Err(_), _) => {
                self.wake(side);
                self.socket(side).read_ended = true;
                Event::ReceiveFailed(side)
            }
        }
    }

    /// Whatever a poll has found, a receive tells what it is.
    fn settle_poll<'a>(&mut self, side: Side, result: Result<u32, Errno>) -> Event<'a> {
        if result == Err(Errno::CANCELED) {
            return Event::Settled;
        }
        self.wake(side);
        Event::Readable(side)
    }

    fn settle_send<'a>(
        &mut self,
        side: Side,
        result: Result<u32, Errno>,
        delivery: Delivery<'a>,
        cx: &mut Context<'_>,
    ) -> Event<'a> {
        let sent = result.unwrap_or(0) as usize;
        if let Delivery::Sent(buffer) = delivery {
            self.queue_to(side).sent(buffer, sent, cx.pool);
        }
        match result {
            Ok(_) => Event::Sent(side),
            Err(Errno::CANCELED) => Event::Settled,
            Err(_) => {
                self.socket(side).write_ended = true;
                Event::SendFailed(side)
            }
        }
    }

    /// Nothing is open and nothing is in flight.
    pub fn is_released(&self) -> bool {
        !self.client.open && !self.server.open && self.in_flight.is_empty()
    }

    /// Something will happen: an operation completes or the timer calls.
    pub(super) fn expects_something(&self) -> bool {
        !self.in_flight.is_empty() || self.timer_at != Time::NEVER
    }

    /// Gives the buffers back.
    pub(super) fn free(&mut self, cx: &mut Context<'_>) {
        // Only a stage that panicked between taking it and connecting has left one.
        self.release_permit(cx);
        self.inbound.discard(cx.pool);
        self.outbound.discard(cx.pool);
        self.story.end(cx);
    }

    pub(super) fn check_invariants(&self) {
        let client_busy = self.in_flight.any(InFlight::CLIENT);
        // A cancel names its target, not the socket, which may be closed before it is answered.
        let on_sockets = self.in_flight.without(Kind::CancelConnect);
        let server_busy = on_sockets.any(InFlight::SERVER);
        assert!(self.client.open || !client_busy, "an operation on a closed client socket");
        assert!(self.server.open || !server_busy, "an operation on a closed server socket");
        for side in [Side::Client, Side::Server] {
            let armed = [in_flight::recv(side), in_flight::poll(side)];
            assert!(!armed.iter().all(|kind| self.in_flight.has(*kind)), "{side:?} waits twice");
        }
        if self.is_resting() {
            assert!(self.inbound.is_resting() && self.outbound.is_resting(), "a buffer at rest");
            // One that ends has no session any more.
            let session = self.session.as_ref();
            assert!(session.is_none_or(Session::is_resting), "a cipher at rest");
        }
        // The high-water mark, what one receive can add to it, and TLS's own records.
        let bound = QUEUE_HIGH_WATER_BYTES
            + RECEIVE_BUFFER_BYTES
            + 2 * (RECORD_PAYLOAD_BYTES_MAX + RECORD_OVERHEAD_BYTES_MAX);
        assert!(self.inbound.pending() <= bound, "inbound grows without bound");
        // A server whose bytes come one by one gets a record for each.
        let overhead = RECEIVE_BUFFER_BYTES * RECORD_OVERHEAD_BYTES_MAX;
        assert!(self.outbound.pending() <= bound + overhead, "outbound grows without bound");
        let partial = self.session.as_ref().map_or(0, Session::partial_bytes);
        assert!(
            partial <= PARTIAL_HANDSHAKE_BYTES_MAX,
            "an incomplete message grows without bound"
        );
    }
}
