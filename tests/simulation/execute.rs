//! What each operation does when the simulated kernel tries it, and what a worker must not ask for.

use std::time::Duration;

use portcullis::io::buffer::Pool;
use portcullis::io::{Address, Buffer, Errno, Kind, Operation, Payload, Side, Task, Token};
use portcullis::limits::{RECEIVE_BUFFER_BYTES, RECEIVE_PIECE_BYTES, RECEIVE_PIECES_BYTES};

use crate::faults::ConnectOutcome;
use crate::network::{End, Read};
use crate::sim_io::{InFlight, SimIo, Socket};
use crate::world::{Event, listener_address};

const BAD_DESCRIPTOR: Errno = Errno(9);
const TIMED_OUT: Errno = Errno(110);

/// The kinds that hold a side's socket in the kernel while they are in flight. A cancel does not:
/// it names its target by its user data.
pub(crate) fn kinds_on(side: Side) -> &'static [Kind] {
    match side {
        Side::Client => &[
            Kind::Accept,
            Kind::LocalAddress,
            Kind::AcknowledgeClient,
            Kind::RecvClient,
            Kind::PollClient,
            Kind::SendClient,
            Kind::ShutdownClient,
            Kind::ResetClient,
            Kind::CloseClient,
        ],
        Side::Server => &[
            Kind::Connect,
            Kind::RecvServer,
            Kind::PollServer,
            Kind::SendServer,
            Kind::ShutdownServer,
            Kind::ResetServer,
            Kind::CloseServer,
        ],
    }
}

/// How much one attempt of a receive may bring.
struct Limit {
    most: usize,
    /// Bytes until the receive has brought all it may.
    left: usize,
    goes_on: bool,
}

/// What one attempt of a receive that goes on has brought.
enum Delivered {
    Nothing,
    Some,
}

/// The kind that an operation has to be submitted with.
fn kind_of(operation: &Operation) -> Kind {
    use Side::{Client, Server};
    match operation {
        Operation::Accept { .. } => Kind::Accept,
        Operation::LocalAddress => Kind::LocalAddress,
        Operation::Acknowledge => Kind::AcknowledgeClient,
        Operation::Recv { side: Client, .. } => Kind::RecvClient,
        Operation::Recv { side: Server, .. } => Kind::RecvServer,
        Operation::Poll { side: Client } => Kind::PollClient,
        Operation::Poll { side: Server } => Kind::PollServer,
        Operation::Send { side: Client, .. } => Kind::SendClient,
        Operation::Send { side: Server, .. } => Kind::SendServer,
        Operation::Connect(_) => Kind::Connect,
        Operation::Shutdown { side: Client } => Kind::ShutdownClient,
        Operation::Shutdown { side: Server } => Kind::ShutdownServer,
        Operation::Reset { side: Client } => Kind::ResetClient,
        Operation::Reset { side: Server } => Kind::ResetServer,
        Operation::Close { side: Client } => Kind::CloseClient,
        Operation::Close { side: Server } => Kind::CloseServer,
        Operation::Wake { .. } => Kind::Wake,
        Operation::Compute(_) => Kind::Compute,
        Operation::Cancel { target } => match target {
            Kind::Accept => Kind::CancelAccept,
            Kind::RecvClient => Kind::CancelRecvClient,
            Kind::PollClient => Kind::CancelPollClient,
            Kind::PollServer => Kind::CancelPollServer,
            Kind::SendClient => Kind::CancelSendClient,
            Kind::Connect => Kind::CancelConnect,
            Kind::RecvServer => Kind::CancelRecvServer,
            Kind::SendServer => Kind::CancelSendServer,
            other => panic!("{other:?} cannot be cancelled"),
        },
    }
}

impl SimIo {
    /// # Panics
    /// When the worker asks for what the contract forbids.
    pub(crate) fn check_submission(&self, token: Token, operation: &Operation) {
        assert_eq!(token.kind, kind_of(operation), "{token:?} names another operation");
        match operation {
            Operation::Accept { .. } => {
                assert!(
                    !self.is_open(token.slot, Side::Client),
                    "{token:?}: the slot still has its client's socket"
                );
                assert!(
                    !self.is_open(token.slot, Side::Server),
                    "{token:?}: the slot still has its server's socket"
                );
                for side in [Side::Client, Side::Server] {
                    self.assert_idle(token, side);
                }
            }
            Operation::Connect(_) => assert!(
                !self.is_open(token.slot, Side::Server),
                "{token:?}: the former server socket was not closed"
            ),
            Operation::Close { side } => self.assert_idle(token, *side),
            Operation::Send { buffer, .. } => {
                assert!(!buffer.is_empty(), "{token:?}: a send of nothing");
            }
            Operation::LocalAddress
            | Operation::Acknowledge
            | Operation::Recv { .. }
            | Operation::Poll { .. }
            | Operation::Shutdown { .. }
            | Operation::Reset { .. }
            | Operation::Wake { .. }
            | Operation::Compute(_)
            | Operation::Cancel { .. } => {}
        }
    }

    fn is_open(&self, slot: u32, side: Side) -> bool {
        let socket = self.sockets.get(&(slot, side == Side::Server));
        socket.is_some_and(|socket| socket.open)
    }

    fn assert_idle(&self, token: Token, side: Side) {
        for held in self.in_flight.values() {
            let same = held.token.slot == token.slot && kinds_on(side).contains(&held.token.kind);
            assert!(!same, "{token:?} while {:?} is in flight", held.token);
        }
    }

    /// Tries an operation that is queued or waiting; one that has ended or is unknown is left.
    pub(crate) fn attempt(&mut self, key: u64) {
        let Some(held) = self.in_flight.get_mut(&key) else {
            return;
        };
        let token = held.token;
        held.tried = true;
        let Some(operation) = held.operation.take() else {
            return;
        };
        let waits = match operation {
            Operation::Accept { listener } => self.accept(key, token, listener),
            Operation::LocalAddress => {
                let talk = self.world.talk(self.link_of(token, Side::Client));
                let local = listener_address(self.world.talks[talk].listener);
                self.complete(key, Ok(0), Payload::Peer(local));
                None
            }
            Operation::Acknowledge => {
                self.complete(key, Ok(0), Payload::None);
                None
            }
            Operation::Recv { side, streams } => self.recv(key, token, side, streams),
            Operation::Poll { side } => self.poll(key, token, side),
            Operation::Send { side, buffer, .. } => self.send(key, token, side, buffer),
            Operation::Connect(connect) => {
                self.connect(key, token, &connect.address);
                Some(Operation::Connect(connect))
            }
            Operation::Shutdown { side } => {
                let link = self.link_of(token, side);
                let dead = self.world.with_link(link, |link, _| {
                    link.shutdown(End::Ours);
                    link.is_dead(End::Ours)
                });
                let result = if dead { Err(Errno::NOT_CONNECTED) } else { Ok(0) };
                self.complete(key, result, Payload::None);
                None
            }
            Operation::Reset { side } => {
                self.reset(key, token, side);
                None
            }
            Operation::Close { side } => {
                self.close(key, token, side);
                None
            }
            Operation::Wake { .. } => unreachable!("it is done when it is submitted"),
            Operation::Compute(mut task) => {
                self.compute(key, &mut task);
                Some(Operation::Compute(task))
            }
            Operation::Cancel { target } => {
                let named = Token::new(token.slot, token.generation, target).pack();
                if self.in_flight.get(&named).is_some_and(|held| held.tried) {
                    self.schedule_cancel(key);
                    Some(Operation::Cancel { target })
                } else {
                    // It overtook its target, or came after its end.
                    self.complete(key, Err(Errno::NOT_FOUND), Payload::None);
                    None
                }
            }
        };
        // Still in flight and not ended: put it back.
        if let Some(operation) = waits
            && let Some(held) = self.in_flight.get_mut(&key)
        {
            held.operation = Some(operation);
        }
    }

    fn socket(&self, token: Token, side: Side) -> &Socket {
        let socket = self.sockets.get(&(token.slot, side == Side::Server));
        let socket = socket.unwrap_or_else(|| panic!("{token:?}: the slot has no such socket"));
        assert_eq!(
            socket.generation, token.generation,
            "{token:?} is of another connection than its socket"
        );
        socket
    }

    fn link_of(&self, token: Token, side: Side) -> usize {
        let link = self.socket(token, side).link;
        link.unwrap_or_else(|| panic!("{token:?}: the socket is not connected"))
    }

    fn accept(&mut self, key: u64, token: Token, listener: u32) -> Option<Operation> {
        let backlog = listener as usize;
        if self.world.backlogs[backlog].is_empty() {
            return Some(Operation::Accept { listener });
        }
        if self.world.random.chance(self.world.faults.accept_no_files) {
            let errors = [Errno::PROCESS_FILES, Errno::SYSTEM_FILES, Errno::NO_BUFFERS];
            let error = self.world.random.pick(&errors);
            self.complete(key, Err(error), Payload::None);
            return None;
        }
        let link = self.world.backlogs[backlog].pop_front()?;
        if self.world.random.chance(self.world.faults.accept_aborted) {
            self.world.give_up(link);
            self.complete(key, Err(Errno::CONNECTION_ABORTED), Payload::None);
            return None;
        }
        let talk = self.world.talk(link);
        self.world.talks[talk].accepted = true;
        self.world.own(link, token.slot, Side::Client);
        let generation = token.generation;
        let socket = Socket { generation, link: Some(link), open: true, to: None };
        self.sockets.insert((token.slot, false), socket);
        let address = self.world.talks[talk].address;
        self.complete(key, Ok(0), Payload::Peer(address));
        None
    }

    /// Delivers what there is; goes on, if this kernel's receives do, until its limit.
    fn recv(&mut self, key: u64, token: Token, side: Side, streams: bool) -> Option<Operation> {
        let (most, bound) = if streams {
            (RECEIVE_BUFFER_BYTES, RECEIVE_BUFFER_BYTES)
        } else {
            (RECEIVE_PIECE_BYTES, RECEIVE_PIECES_BYTES)
        };
        let goes_on = self.world.faults.receives_go_on && !streams;
        loop {
            let received = self.in_flight.get(&key).map_or(0, |held| held.received);
            let limit = Limit { most, left: bound - received, goes_on };
            match self.recv_once(key, token, side, &limit)? {
                Delivered::Nothing => return Some(Operation::Recv { side, streams }),
                Delivered::Some => {}
            }
        }
    }

    /// `None`: the receive has ended.
    fn recv_once(
        &mut self,
        key: u64,
        token: Token,
        side: Side,
        limit: &Limit,
    ) -> Option<Delivered> {
        let link = self.link_of(token, side);
        // The kernel picks the buffer first and gives it back when there is nothing to read.
        if self.buffers.exhausted() || self.world.random.chance(self.world.faults.no_buffers) {
            // The ring has more of them, or it has not.
            let some = !self.buffers.exhausted() && self.world.random.chance(500);
            let error = if some { Errno::TRY_AGAIN } else { Errno::NO_BUFFERS };
            self.complete(key, Err(error), Payload::None);
            return None;
        }
        let (short, random) = (self.world.faults.short_reads, &mut self.world.random);
        let most = if random.chance(short) { random.magnitude(1, limit.most) } else { limit.most };
        let most = most.min(limit.left);
        match self.read_link(link, most) {
            None => return Some(Delivered::Nothing),
            Some((Read::Bytes(len), bytes)) => {
                let start = self.world.random.size(0, RECEIVE_BUFFER_BYTES - len);
                let at = self.buffers.lend(start, &bytes[..len]);
                if limit.goes_on && len < limit.left {
                    let held = self.in_flight.get_mut(&key).expect("it is being attempted");
                    held.received += len;
                    self.post(key, Ok(at.len), true, Payload::Received(at));
                    return Some(Delivered::Some);
                }
                self.complete(key, Ok(at.len), Payload::Received(at));
            }
            Some((Read::Failed(error), _)) => self.complete(key, Err(error), Payload::None),
            Some((Read::EndOfStream | Read::Blocked, _)) => {
                self.complete(key, Ok(0), Payload::None);
            }
        }
        None
    }

    /// A poll takes nothing, not even a socket's error; it may be woken by what is gone by then.
    fn poll(&mut self, key: u64, token: Token, side: Side) -> Option<Operation> {
        const POLLIN: u32 = 1;
        let link = self.link_of(token, side);
        let readable = self.world.with_link(link, |link, _| link.is_readable(End::Ours));
        if readable || self.world.random.chance(self.world.faults.spurious_polls) {
            self.complete(key, Ok(POLLIN), Payload::None);
            return None;
        }
        Some(Operation::Poll { side })
    }

    fn send(&mut self, key: u64, token: Token, side: Side, buffer: Buffer) -> Option<Operation> {
        let link = self.link_of(token, side);
        let short = self.world.faults.short_writes;
        let mut most = buffer.unsent().len();
        if self.world.random.chance(short) {
            most = self.world.random.magnitude(1, most);
        }
        let bytes = &buffer.unsent()[..most];
        let written = self.world.with_link(link, |link, _| link.write(End::Ours, bytes));
        match written {
            Ok(0) => Some(Operation::Send { side, buffer, ends: false }),
            Ok(len) => {
                let len = u32::try_from(len).unwrap();
                self.complete(key, Ok(len), Payload::Sent(buffer));
                None
            }
            Err(error) => {
                self.complete(key, Err(error), Payload::Sent(buffer));
                None
            }
        }
    }

    fn connect(&mut self, key: u64, token: Token, address: &Address) {
        let client = self.link_of(token, Side::Client);
        let talk = self.world.talk(client);
        let outcome = self.world.talks[talk].connect(address);
        let attempt = self.world.talks[talk].tries;
        let delay = self.world.latency() + self.world.latency();
        let (delay, result) = match outcome {
            ConnectOutcome::Connected => (delay, Ok(())),
            ConnectOutcome::Refused => (delay, Err(Errno::CONNECTION_REFUSED)),
            ConnectOutcome::Hangs => (Duration::from_secs(127), Err(TIMED_OUT)),
            ConnectOutcome::NoFiles => (Duration::ZERO, Err(Errno::PROCESS_FILES)),
        };
        let socket = Socket {
            generation: token.generation,
            link: None,
            open: outcome != ConnectOutcome::NoFiles,
            to: Some(address.clone()),
        };
        self.sockets.insert((token.slot, true), socket);
        self.world.schedule_in(delay, Event::ConnectAnswered { key, talk, attempt, result });
    }

    /// The thread beside the worker takes what the step costs, and longer while others have the
    /// core.
    fn compute(&mut self, key: u64, task: &mut Task) {
        let took = Duration::from_micros(self.world.faults.full_step_micros);
        task.run(&mut Pool::default());
        task.took = took;
        let starves = self.world.random.chance(self.world.faults.late_completions);
        let waits = if starves { self.world.random.micros(1, 500_000) } else { Duration::ZERO };
        // One after another.
        self.beside_until = self.beside_until.max(self.world.now) + waits + took;
        self.world.schedule(self.beside_until, Event::Computed { key, worked: self.worked });
    }

    pub(crate) fn computed(&mut self, key: u64, worked: Duration) {
        let lost = self.worked.saturating_sub(worked);
        if !lost.is_zero() {
            self.beside_until = self.beside_until.max(self.world.now + lost);
            self.world.schedule_in(lost, Event::Computed { key, worked: self.worked });
            return;
        }
        let held = self.in_flight.get_mut(&key).expect("it is not given up");
        let Some(Operation::Compute(task)) = held.operation.take() else {
            panic!("{:?} is no task", held.token);
        };
        self.complete(key, Ok(0), Payload::Computed(task));
    }

    /// The network's answer; nobody waits for it when the connect was cancelled.
    pub(crate) fn connect_answered(
        &mut self,
        key: u64,
        talk: usize,
        attempt: usize,
        result: Result<(), Errno>,
    ) {
        let Some(held) = self.in_flight.get(&key) else {
            return;
        };
        let slot = held.token.slot;
        if held.operation.is_none() {
            return;
        }
        if self.world.talks[talk].tries != attempt {
            return;
        }
        if result.is_ok() {
            let link = self.world.server_connects(talk, slot);
            let socket = self.sockets.get_mut(&(slot, true));
            socket.expect("made at the connect").link = Some(link);
        }
        self.complete(key, result.map(|()| 0), Payload::None);
    }

    fn reset(&mut self, key: u64, token: Token, side: Side) {
        if let Some(link) = self.socket(token, side).link {
            self.world.with_link(link, |link, random| link.abort(End::Ours, random));
            self.retry_link(link);
        }
        self.complete(key, Ok(0), Payload::None);
    }

    fn close(&mut self, key: u64, token: Token, side: Side) {
        let Socket { link, open, .. } = *self.socket(token, side);
        self.sockets.remove(&(token.slot, side == Side::Server));
        if let Some(link) = link {
            self.world.with_link(link, |link, random| link.close(End::Ours, random));
        }
        let result = if open { Ok(0) } else { Err(BAD_DESCRIPTOR) };
        self.complete(key, result, Payload::None);
    }

    fn schedule_cancel(&mut self, key: u64) {
        let late = self.world.faults.late_cancels;
        let delay = if self.world.random.chance(late) {
            self.world.random.micros(0, 20_000)
        } else {
            Duration::ZERO
        };
        self.world.schedule_in(delay, Event::CancelRuns { key });
    }

    /// Ends the target if it still waits.
    pub(crate) fn cancel(&mut self, key: u64) {
        let Some(held) = self.in_flight.get(&key) else {
            return;
        };
        let Some(Operation::Cancel { target }) = held.operation else {
            return;
        };
        let target = Token::new(held.token.slot, held.token.generation, target).pack();
        if self.world.random.chance(self.world.faults.cancel_races) {
            self.rush(target);
        }
        let waiting = self.in_flight.get_mut(&target);
        let result = match waiting.and_then(|held| held.operation.take()) {
            None => Err(Errno::NOT_FOUND),
            Some(operation) => {
                let payload = match operation {
                    Operation::Send { buffer, .. } => Payload::Sent(buffer),
                    _ => Payload::None,
                };
                self.complete(target, Err(Errno::CANCELED), payload);
                Ok(0)
            }
        };
        self.complete(key, result, Payload::None);
    }

    /// What is under way to the socket of a receive or poll arrives just before its cancel.
    fn rush(&mut self, target: u64) {
        let Some(InFlight { token, operation: Some(operation), .. }) = self.in_flight.get(&target)
        else {
            return;
        };
        let (Operation::Recv { side, .. } | Operation::Poll { side }) = *operation else {
            return;
        };
        let link = self.link_of(*token, side);
        self.world.rush(link);
        self.retry_link(link);
    }
}
