//! One client: connect, handshake, ask and be answered, close. Takes events and returns operations;
//! knows no system call and no clock.
//!
//! Its socket is the slot's server side, because it is the side that connects.

use super::exchange::{Answer, Question};
use super::tally::{Reason, Tally};
use crate::connection::in_flight::{InFlight, cancellable};
use crate::io::buffer::Pool;
use crate::io::queue::Queue;
use crate::io::{Address, Buffer, Connect, Errno, Kind, Operation, Side, Time, Token};
use crate::limits::RECORD_PAYLOAD_BYTES_MAX;
use crate::tls::client::{Agreed, Offer, Session, Sinks};

/// Bytes waiting to be sent above which no more of a question is sealed.
const HIGH_WATER_BYTES: usize = 4 * RECORD_PAYLOAD_BYTES_MAX;

/// What a question's body is made of.
static ZEROS: [u8; RECORD_PAYLOAD_BYTES_MAX] = [0; RECORD_PAYLOAD_BYTES_MAX];

/// What a client knows of its surroundings while it handles one event.
pub(super) struct Context<'a> {
    /// The clock, read once a turn.
    pub(super) now: Time,
    /// What is asked; `None`: nothing, a handshake is all.
    pub(super) question: Option<&'a Question>,
    /// Each connection serves for one operation.
    pub(super) reconnects: bool,
    /// What is to be submitted.
    pub(super) operations: &'a mut Vec<(Kind, Operation)>,
    pub(super) pool: &'a mut Pool,
    pub(super) scratch: &'a mut [u8],
    /// Where it is counted.
    pub(super) tally: &'a mut Tally,
}

/// Where a client is on its journey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No connection.
    Free,
    /// The kernel connects.
    Connecting,
    /// The handshake goes on.
    Handshaking,
    /// Established; nothing is asked.
    Idle,
    /// A question is being asked or answered.
    Asking,
    /// The client has ended its side and waits for the server's end.
    Closing,
    /// Given up or over; waits for its last operation.
    Ending,
}

/// What a completion brought.
pub(super) enum Delivery<'a> {
    None,
    Received(&'a [u8]),
    Sent(Buffer),
}

/// A slot of an engine, and the connection in it.
pub(super) struct Client {
    /// Counts the connections of this slot.
    pub(super) generation: u32,
    phase: Phase,
    in_flight: InFlight,
    /// The connection is made and our side of it has not ended: an abort resets it.
    open: bool,
    session: Option<Session>,
    outbound: Queue,
    /// Bytes of the question's body not sealed yet.
    unasked: u64,
    /// What is missing of the answer.
    answer: Answer,
    /// A ticket of TLS 1.3 is waited for, besides the answer: how many there were before.
    ticket_behind: Option<u64>,
    /// Waits with a poll, which costs the kernel less than a receive.
    resting: bool,
    /// The connection was lost, or never came to be.
    failed: bool,
    /// When the operation was due.
    due: Time,
    /// When the connection was begun.
    begun: Time,
}

impl Client {
    pub(super) fn new() -> Self {
        Self {
            generation: 0,
            phase: Phase::Free,
            in_flight: InFlight::default(),
            open: false,
            session: None,
            outbound: Queue::default(),
            unasked: 0,
            answer: Answer::Complete,
            ticket_behind: None,
            resting: false,
            failed: false,
            due: Time::default(),
            begun: Time::default(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the last connection failed.
    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    /// Begins a connection, for an operation that is `due`.
    pub(super) fn connect(
        &mut self,
        address: Address,
        source: Option<std::net::SocketAddr>,
        due: Time,
        cx: &mut Context<'_>,
    ) {
        debug_assert_eq!(self.phase, Phase::Free, "a slot serves one connection");
        self.phase = Phase::Connecting;
        self.generation = (self.generation + 1) % Token::GENERATIONS;
        self.failed = false;
        (self.due, self.begun) = (due, cx.now);
        let connect = Connect { address, source, speaks: false };
        self.submit(Kind::Connect, Operation::Connect(Box::new(connect)), cx);
    }

    /// Asks on an idle connection, for an operation that is `due`.
    pub(super) fn ask(&mut self, due: Time, cx: &mut Context<'_>) {
        debug_assert_eq!(self.phase, Phase::Idle, "one question at a time");
        self.due = due;
        self.begin_question(cx);
        self.go_on(cx);
    }

    /// Gives back what an idle connection needs only while bytes flow, and exchanges its receive
    /// for a poll.
    fn rest(&mut self, cx: &mut Context<'_>) {
        self.resting = true;
        if let Some(session) = &mut self.session {
            session.rest();
        }
        self.cancel(Kind::RecvServer, Kind::CancelRecvServer, cx);
        self.go_on(cx);
    }

    /// Whether it has come to rest, and nothing has been heard since.
    pub(super) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Ends an idle connection in order.
    pub(super) fn close(&mut self, cx: &mut Context<'_>) {
        if self.phase == Phase::Idle {
            self.begin_close(cx);
            self.go_on(cx);
        }
    }

    /// Ends whatever goes on, at once.
    pub(super) fn abort(&mut self, cx: &mut Context<'_>) {
        if matches!(self.phase, Phase::Free | Phase::Ending) {
            return;
        }
        self.phase = Phase::Ending;
        if self.open {
            self.open = false;
            self.submit(Kind::ResetServer, Operation::Reset { side: Side::Server }, cx);
        }
        self.outbound.discard(cx.pool);
        self.session = None;
        self.go_on(cx);
    }

    /// The operation has taken too long; or an idle connection has waited long enough to rest.
    pub(super) fn time_out(&mut self, cx: &mut Context<'_>) {
        let reason = match self.phase {
            Phase::Free | Phase::Ending => return,
            Phase::Idle => return self.rest(cx),
            Phase::Connecting => Reason::ConnectTimeout,
            Phase::Handshaking => Reason::HandshakeTimeout,
            Phase::Asking if self.answer.is_complete() && self.unasked == 0 => Reason::NoTicket,
            Phase::Asking => Reason::AnswerTimeout,
            Phase::Closing => Reason::CloseTimeout,
        };
        self.fail(reason, cx);
    }

    fn fail(&mut self, reason: Reason, cx: &mut Context<'_>) {
        cx.tally.fail(reason);
        self.failed = true;
        self.abort(cx);
    }

    /// One of its operations has ended, or has brought something.
    pub(super) fn complete(
        &mut self,
        offer: &Offer,
        kind: Kind,
        result: Result<u32, Errno>,
        more: bool,
        delivery: Delivery<'_>,
        cx: &mut Context<'_>,
    ) {
        if !more {
            self.in_flight.end(kind);
        }
        match (kind, delivery) {
            (Kind::Connect, _) => self.connected(offer, result, cx),
            (Kind::RecvServer, Delivery::Received(bytes)) => self.received(offer, bytes, cx),
            // Whatever it has found, a receive tells what it is.
            (Kind::PollServer, _) => self.resting &= result == Err(Errno::CANCELED),
            (Kind::RecvServer, _) => self.receive_ended(result, cx),
            (Kind::SendServer, Delivery::Sent(buffer)) => self.sent(buffer, result, cx),
            (Kind::CloseServer, _) => {
                debug_assert!(self.in_flight.is_empty(), "closed with operations in flight");
                let (generation, failed) = (self.generation, self.failed);
                *self = Self { generation, failed, ..Self::new() };
                return;
            }
            _ => {}
        }
        self.go_on(cx);
    }

    fn connected(&mut self, offer: &Offer, result: Result<u32, Errno>, cx: &mut Context<'_>) {
        if self.phase != Phase::Connecting {
            return;
        }
        if let Err(error) = result {
            return self.fail(Reason::of_connect(error), cx);
        }
        self.open = true;
        self.phase = Phase::Handshaking;
        match Session::begin(offer, &mut self.outbound, cx.pool) {
            Ok(session) => self.session = Some(session),
            Err(fault) => self.fail(Reason::Tls(fault), cx),
        }
    }

    fn received(&mut self, offer: &Offer, bytes: &[u8], cx: &mut Context<'_>) {
        let Some(session) = &mut self.session else {
            return;
        };
        let answer = &mut self.answer;
        let (mut taken, mut down) = (Ok(()), 0);
        let closing = self.phase == Phase::Closing;
        let mut plaintext = |bytes: &[u8]| {
            down += bytes.len() as u64;
            // What comes behind our end is nobody's.
            if !closing {
                taken = taken.and_then(|()| answer.take(bytes));
            }
        };
        let mut sinks = Sinks {
            plaintext: &mut plaintext,
            records: &mut self.outbound,
            pool: cx.pool,
            scratch: cx.scratch,
        };
        let agreed = session.receive(bytes, &mut sinks);
        let server_closed = session.server_closed();
        cx.tally.down_bytes += down;
        match agreed {
            Ok(Some(agreed)) => self.established(offer, agreed, cx),
            Ok(None) => {}
            Err(_) if closing => return self.abort(cx),
            Err(fault) => return self.fail(Reason::Tls(fault), cx),
        }
        if let Err(bad) = taken {
            return self.fail(bad.into(), cx);
        }
        if let Some(before) = self.ticket_behind
            && offer.tickets() > before
        {
            self.ticket_behind = None;
        }
        // While closing the end of the stream follows, which ends the receive as well.
        if server_closed && self.phase != Phase::Closing {
            self.server_ended(cx);
        }
    }

    fn established(&mut self, offer: &Offer, agreed: Agreed, cx: &mut Context<'_>) {
        cx.tally.handshakes.record(cx.now.since(self.begun));
        cx.tally.resumed += u64::from(agreed.resumed);
        cx.tally.agreed = Some(agreed);
        self.phase = Phase::Idle;
        if cx.reconnects {
            let awaits = offer.wants_tickets() && agreed.version == "TLSv1_3";
            self.ticket_behind = awaits.then(|| offer.tickets());
            self.begin_question(cx);
        }
    }

    fn begin_question(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Asking;
        let (Some(question), Some(session)) = (cx.question, &mut self.session) else {
            return;
        };
        self.answer = question.answer();
        self.unasked = question.body_bytes;
        cx.tally.up_bytes += question.head.len() as u64;
        if let Err(fault) = session.send(&question.head, &mut self.outbound, cx.pool) {
            self.fail(Reason::Tls(fault), cx);
        }
    }

    /// A receive has ended without bytes: the stream's end, an error, or no buffer for it.
    fn receive_ended(&mut self, result: Result<u32, Errno>, cx: &mut Context<'_>) {
        match result {
            Ok(0) => self.server_ended(cx),
            // A multishot receive that has had its fill, or found no buffer: it is armed again.
            Ok(_) | Err(Errno::NO_BUFFERS | Errno::TRY_AGAIN | Errno::CANCELED) => {}
            Err(_) => self.broken(cx),
        }
    }

    /// The server has ended its side.
    fn server_ended(&mut self, cx: &mut Context<'_>) {
        match self.phase {
            Phase::Free | Phase::Connecting | Phase::Ending => {}
            Phase::Handshaking => self.fail(Reason::HandshakeClosed, cx),
            Phase::Asking if self.answer.ends() && self.unasked == 0 => {
                self.answered(cx);
                self.leave();
            }
            Phase::Asking => self.fail(Reason::AnswerClosed, cx),
            Phase::Idle => {
                cx.tally.fail(Reason::IdleClosed);
                self.failed = true;
                self.leave();
            }
            Phase::Closing => self.leave(),
        }
    }

    /// The connection is dead.
    fn broken(&mut self, cx: &mut Context<'_>) {
        match self.phase {
            Phase::Free | Phase::Connecting | Phase::Ending => {}
            Phase::Handshaking => self.fail(Reason::HandshakeReset, cx),
            Phase::Asking => self.fail(Reason::AnswerReset, cx),
            Phase::Idle => self.fail(Reason::IdleReset, cx),
            // All was received before: how a server closes after our close_notify is its affair.
            Phase::Closing => self.abort(cx),
        }
    }

    /// Both sides have ended: nothing is left but to close.
    fn leave(&mut self) {
        self.phase = Phase::Ending;
        self.session = None;
    }

    fn sent(&mut self, buffer: Buffer, result: Result<u32, Errno>, cx: &mut Context<'_>) {
        let sent = usize::try_from(*result.as_ref().unwrap_or(&0)).unwrap_or(usize::MAX);
        self.outbound.sent(buffer, sent, cx.pool);
        if self.phase == Phase::Ending {
            self.outbound.discard(cx.pool);
        } else if result.is_err() {
            self.outbound.discard(cx.pool);
            self.broken(cx);
        }
    }

    /// Looks what is to be done next, and does it.
    fn go_on(&mut self, cx: &mut Context<'_>) {
        if self.phase == Phase::Asking {
            self.seal_more(cx);
            let asked = self.unasked == 0 && self.outbound.is_empty();
            if asked && self.answer.is_complete() && self.ticket_behind.is_none() {
                self.answered(cx);
            }
        }
        if self.phase == Phase::Ending {
            // Also a receive that the server's end has not ended: `close_notify` came first.
            for (target, cancel) in cancellable(Side::Server) {
                self.cancel(*target, *cancel, cx);
            }
            if self.in_flight.is_empty() {
                self.outbound.discard(cx.pool);
                self.submit(Kind::CloseServer, Operation::Close { side: Side::Server }, cx);
            }
            return;
        }
        self.flush(cx);
        self.receive(cx);
    }

    /// Seals as much of the question as may wait.
    fn seal_more(&mut self, cx: &mut Context<'_>) {
        while self.unasked > 0 && self.outbound.pending() < HIGH_WATER_BYTES {
            let Some(session) = &mut self.session else {
                return;
            };
            let length = usize::try_from(self.unasked).unwrap_or(usize::MAX).min(ZEROS.len());
            let zeros = ZEROS.get(..length).unwrap_or_default();
            if let Err(fault) = session.send(zeros, &mut self.outbound, cx.pool) {
                return self.fail(Reason::Tls(fault), cx);
            }
            self.unasked -= length as u64;
            cx.tally.up_bytes += length as u64;
        }
    }

    fn answered(&mut self, cx: &mut Context<'_>) {
        cx.tally.operations.record(cx.now.since(self.due));
        self.answer = Answer::Complete;
        self.phase = Phase::Idle;
        if cx.reconnects {
            self.begin_close(cx);
        }
    }

    fn begin_close(&mut self, cx: &mut Context<'_>) {
        self.phase = Phase::Closing;
        if let Some(session) = &mut self.session {
            session.close(&mut self.outbound, cx.pool);
        }
        self.outbound.end();
    }

    fn flush(&mut self, cx: &mut Context<'_>) {
        if self.in_flight.has(Kind::SendServer) {
            return;
        }
        if let Some(buffer) = self.outbound.take() {
            let ends = self.outbound.ended() && self.outbound.is_last();
            let send = Operation::Send { side: Side::Server, buffer, ends };
            self.submit(Kind::SendServer, send, cx);
        } else if self.outbound.drained() && self.open {
            // Once: the end of the stream is behind everything.
            self.open = false;
            self.submit(Kind::ShutdownServer, Operation::Shutdown { side: Side::Server }, cx);
        }
    }

    fn receive(&mut self, cx: &mut Context<'_>) {
        let wanted =
            matches!(self.phase, Phase::Handshaking | Phase::Idle | Phase::Asking | Phase::Closing);
        let waits = self.in_flight.has(Kind::RecvServer) || self.in_flight.has(Kind::PollServer);
        if !wanted || waits {
            return;
        }
        let side = Side::Server;
        if self.resting {
            self.submit(Kind::PollServer, Operation::Poll { side }, cx);
        } else {
            self.submit(Kind::RecvServer, Operation::Recv { side, streams: false }, cx);
        }
    }

    /// Cancels `target` if it is in flight.
    fn cancel(&mut self, target: Kind, cancel: Kind, cx: &mut Context<'_>) {
        if self.in_flight.has(target) && !self.in_flight.has(cancel) {
            self.submit(cancel, Operation::Cancel { target }, cx);
        }
    }

    fn submit(&mut self, kind: Kind, operation: Operation, cx: &mut Context<'_>) {
        self.in_flight.start(kind);
        cx.operations.push((kind, operation));
    }
}
