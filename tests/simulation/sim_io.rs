//! The kernel's part, simulated: operations as `io_uring` runs them, with direct descriptors and a
//! provided-buffer ring. Whatever breaks the contract of [`portcullis::io`] panics here.
//!
//! # What a real kernel can do, and so does this one
//! - An operation that can end at once ends in `wait`; its completion may be seen much later, and
//!   in another order than those of other sockets' operations. Those of one socket keep the order
//!   in which they ended: the ring posts them so, and a socket reports its error only once.
//! - A cancel finds its target waiting (the target ends with ECANCELED), or not (ENOENT): it has
//!   ended, and its own completion is on the way.
//! - A completion is posted once. The only stale completion is one that its worker did not wait
//!   for: a cancel's, after its target's was enough to free the slot.

use std::collections::BTreeMap;
use std::time::Duration;

use portcullis::io::{
    Address, Completion, Errno, Io, Kind, Operation, Payload, ReceivedAt, Side, Time, Token,
};
use portcullis::telemetry::labels::HandshakeStep;
use portcullis::worker::command::Command;

use crate::execute;
use crate::network::{End, Read};
use crate::random::mix;
use crate::receive_buffers::ReceiveBuffers;
use crate::world::{Event, World};

/// Virtual time after which a run has hung: every timeout of every test passes long before.
const HUNG_AFTER: Time = Time(6 * 3600 * 1_000_000_000);
const NEVER: Time = Time(u64::MAX);
/// Turns of one run, ten times what the busiest seed known needs.
const TURNS_MAX: u64 = 500_000;

/// An operation that the kernel holds.
pub(crate) struct InFlight {
    pub(crate) token: Token,
    /// `None`: it has ended; its completion is on the way.
    pub(crate) operation: Option<Operation>,
    /// A receive: bytes it has delivered so far.
    pub(crate) received: usize,
    /// The kernel has got to it: a cancel finds it from now on.
    pub(crate) tried: bool,
}

/// One of a slot's two sockets.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) generation: u32,
    /// `None`: not connected (yet).
    pub(crate) link: Option<usize>,
    /// `false`: no descriptor could be had for it.
    pub(crate) open: bool,
    /// A server's: where to.
    pub(crate) to: Option<Address>,
}

/// The simulated kernel and the world behind it.
pub(crate) struct SimIo {
    pub(crate) world: World,
    pub(crate) in_flight: BTreeMap<u64, InFlight>,
    /// By slot and whether it is the server's.
    pub(crate) sockets: BTreeMap<(u32, bool), Socket>,
    pub(crate) buffers: ReceiveBuffers,
    queued: Vec<u64>,
    /// When the thread beside the worker has done what it has to do, if it gets the core.
    pub(crate) beside_until: Time,
    /// What the worker's steps have taken.
    pub(crate) worked: Duration,
    /// The most operations that the worker has had started between two looks.
    pub(crate) most_started: usize,
    /// When a socket's latest completion is seen.
    last_seen: BTreeMap<(u32, bool), Time>,
    commands: rtrb::Producer<Command>,
    /// Left when every client has gone.
    at_the_end: Option<Command>,
    /// Workers that this one has woken.
    pub(crate) woken: Vec<u16>,
    /// The worker is not to see anything that happens later: others are behind.
    pub(crate) horizon: Option<Time>,
    /// The worker waits at the horizon, until then at most.
    waits_until: Option<Time>,
    /// Condenses everything the worker was told: equal runs have equal traces.
    trace: u64,
    turns: u64,
}

impl SimIo {
    /// A kernel with no operation. `at_the_end` is sent once all clients have come and gone.
    pub(crate) fn new(
        world: World,
        commands: rtrb::Producer<Command>,
        at_the_end: Option<Command>,
    ) -> Self {
        Self {
            buffers: ReceiveBuffers::new(world.faults.receive_buffers),
            world,
            in_flight: BTreeMap::new(),
            sockets: BTreeMap::new(),
            queued: Vec::new(),
            beside_until: Time(0),
            worked: Duration::ZERO,
            most_started: 0,
            last_seen: BTreeMap::new(),
            commands,
            at_the_end,
            woken: Vec::new(),
            horizon: None,
            waits_until: None,
            trace: 0,
            turns: 0,
        }
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    /// # Panics
    /// When the kernel still holds anything of a worker that has ended: a cancel holds nothing.
    pub(crate) fn check_nothing_leaked(&self) {
        let held = self.in_flight.values().map(|held| held.token);
        let held: Vec<Token> = held.filter(|token| token.kind != Kind::CancelAccept).collect();
        assert!(held.is_empty(), "still in flight: {held:?}");
        let sockets = self.sockets.iter();
        let open: Vec<_> = sockets.filter(|(_, socket)| socket.open).collect();
        assert!(open.is_empty(), "never closed (slot and whether it is the server's): {open:?}");
        self.buffers.check_all_returned();
    }

    /// The operation has ended.
    pub(crate) fn complete(&mut self, key: u64, result: Result<u32, Errno>, payload: Payload) {
        let held = self.in_flight.get_mut(&key).expect("completes while in flight");
        held.operation = None;
        self.post(key, result, false, payload);
    }

    /// One of an operation's completions: it is seen soon, or late.
    pub(crate) fn post(
        &mut self,
        key: u64,
        result: Result<u32, Errno>,
        more: bool,
        payload: Payload,
    ) {
        let token = self.in_flight.get(&key).expect("completes while in flight").token;
        let late = self.world.faults.late_completions;
        let delay = if self.world.random.chance(late) {
            self.world.random.micros(1, 50_000)
        } else {
            self.world.random.micros(0, 5)
        };
        let completion = Completion { token, result, more, payload };
        let server = execute::kinds_on(Side::Server).contains(&token.kind);
        let last = self.last_seen.entry((token.slot, server)).or_default();
        *last = (self.world.now + delay).max(*last);
        self.world.schedule(*last, Event::Complete(completion));
    }

    fn handle(&mut self, event: Event, completions: &mut Vec<Completion>) {
        match event {
            Event::ClientArrives { talk, listener } => {
                self.world.client_arrives(talk, listener);
                self.retry_accepts();
            }
            Event::Segment { link, end } => {
                if let Some(link) = self.world.segment(link, end) {
                    self.retry_link(link);
                }
            }
            Event::PeerTurn { link } => self.world.peer_turn(link),
            Event::Room { link } => self.retry_link(link),
            Event::Complete(completion) => self.deliver(completion, completions),
            Event::ConnectAnswered { key, talk, attempt, result } => {
                self.connect_answered(key, talk, attempt, result);
            }
            Event::Computed { key, worked } => self.computed(key, worked),
            Event::CancelRuns { key } => self.cancel(key),
            Event::Command(command) => {
                self.commands.push(command).expect("room in the mailbox");
                completions.push(mailbox());
            }
            Event::Wake => completions.push(mailbox()),
        }
    }

    /// When the worker has something to do unless somebody wakes it.
    pub(crate) fn next_at(&self) -> Time {
        let Some(deadline) = self.waits_until else {
            return self.world.now;
        };
        let next = self.world.next_at().unwrap_or(NEVER);
        next.min(deadline).max(self.world.now)
    }

    /// Where the sockets towards servers lead that the worker has.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Address> {
        self.sockets.values().filter_map(|socket| socket.to.as_ref())
    }

    fn deliver(&mut self, completion: Completion, completions: &mut Vec<Completion>) {
        let key = completion.token.pack();
        assert!(self.in_flight.contains_key(&key), "completed once");
        if !completion.more {
            self.in_flight.remove(&key);
        }
        let result = match completion.result {
            Ok(result) => u64::from(result),
            Err(Errno(number)) => u64::MAX - u64::from(number.unsigned_abs()),
        };
        self.trace = mix(self.trace ^ mix(key) ^ mix(result) ^ mix(self.world.now.0));
        completions.push(completion);
    }

    /// Every client has come, was served, and is gone.
    fn is_quiet(&self) -> bool {
        self.world.expected == 0
            && self.world.backlogs.iter().all(std::collections::VecDeque::is_empty)
            && !self.sockets.values().any(|socket| socket.open)
    }

    fn check_time(&mut self) {
        self.turns += 1;
        assert!(
            self.turns < TURNS_MAX,
            "{TURNS_MAX} turns: it turns in circles, at {:?}, with {:?}",
            self.world.now,
            self.in_flight.values().map(|held| held.token).collect::<Vec<_>>()
        );
        assert!(
            self.world.now < HUNG_AFTER,
            "hung: {:?} waiting, sockets {:?}",
            self.in_flight.values().map(|held| held.token).collect::<Vec<_>>(),
            self.sockets.keys().collect::<Vec<_>>()
        );
    }

    /// Something happened to a link: what waits for it tries again.
    pub(crate) fn retry_link(&mut self, link: usize) {
        let Some((slot, side)) = self.world.owner(link) else {
            return;
        };
        let Some(socket) = self.sockets.get(&(slot, side == Side::Server)) else {
            return;
        };
        if socket.link != Some(link) {
            return;
        }
        let generation = socket.generation;
        let kinds = match side {
            Side::Client => [Kind::RecvClient, Kind::PollClient, Kind::SendClient],
            Side::Server => [Kind::RecvServer, Kind::PollServer, Kind::SendServer],
        };
        for kind in kinds {
            self.attempt(Token::new(slot, generation, kind).pack());
        }
    }

    fn retry_accepts(&mut self) {
        let accepts: Vec<u64> = self
            .in_flight
            .iter()
            .filter(|(_, held)| matches!(held.operation, Some(Operation::Accept { .. })))
            .map(|(key, _)| *key)
            .collect();
        for key in accepts {
            self.attempt(key);
        }
    }

    /// Lets the outside come to rest, without a worker: what was on the way arrives.
    pub(crate) fn come_to_rest(&mut self) {
        let mut nobody = Vec::new();
        self.at_the_end = None;
        while let Some(at) = self.world.next_at() {
            self.world.now = at.max(self.world.now);
            self.check_time();
            while let Some(event) = self.world.due() {
                if !matches!(event, Event::Command(_) | Event::Wake) {
                    self.handle(event, &mut nobody);
                }
            }
        }
    }

    /// Whether a receive on the link finds a byte, the end or an error.
    pub(crate) fn read_link(&mut self, link: usize, most: usize) -> Option<(Read, Vec<u8>)> {
        let mut bytes = vec![0; most];
        let read = self.world.with_link(link, |link, _| link.read(End::Ours, &mut bytes));
        (read != Read::Blocked).then_some((read, bytes))
    }
}

fn mailbox() -> Completion {
    let token = Token::new(0, 0, Kind::Mailbox);
    Completion { token, result: Ok(1), more: true, payload: Payload::None }
}

impl Io for SimIo {
    fn submit(&mut self, token: Token, operation: Operation) {
        self.check_submission(token, &operation);
        if let Operation::Wake { worker } = operation {
            self.woken.push(worker);
            return;
        }
        let key = token.pack();
        assert_eq!(Token::unpack(key), Some(token), "packs both ways");
        let operation = Some(operation);
        let former =
            self.in_flight.insert(key, InFlight { token, operation, received: 0, tried: false });
        assert!(former.is_none(), "{token:?} is in flight already");
        self.queued.push(key);
    }

    fn wait(&mut self, deadline: Option<Time>, completions: &mut Vec<Completion>) {
        self.check_time();
        self.waits_until = None;
        self.most_started = self.most_started.max(self.queued.len());
        for key in std::mem::take(&mut self.queued) {
            self.attempt(key);
        }
        // What the worker did since the last wait took its time, too.
        self.world.now = self.world.now + self.world.random.micros(1, 10);
        loop {
            while let Some(event) = self.world.due() {
                self.handle(event, completions);
            }
            let expired = deadline.is_some_and(|deadline| deadline <= self.world.now);
            if expired || !completions.is_empty() {
                return;
            }
            if self.is_quiet()
                && let Some(command) = self.at_the_end.take()
            {
                self.world.schedule(self.world.now, Event::Command(command));
            }
            let next = self.world.next_at();
            let until = next.into_iter().chain(deadline).min();
            if let Some(horizon) = self.horizon.filter(|end| until.is_none_or(|until| until > *end))
            {
                self.world.now = horizon.max(self.world.now);
                self.waits_until = Some(deadline.unwrap_or(NEVER));
                return;
            }
            self.world.now = until.unwrap_or_else(|| {
                panic!(
                    "the worker waits without a deadline, and nothing will ever happen: {:?}",
                    self.in_flight.values().map(|held| held.token).collect::<Vec<_>>()
                )
            });
        }
    }

    fn received(&mut self, at: &ReceivedAt) -> &mut [u8] {
        self.buffers.bytes(at)
    }

    fn recycle(&mut self, at: ReceivedAt) {
        self.buffers.recycle(&at);
    }

    fn now(&mut self) -> Time {
        self.world.now
    }

    fn after_step(&mut self, step: HandshakeStep) -> Time {
        let full = self.world.faults.full_step_micros;
        let micros = match step {
            HandshakeStep::Full | HandshakeStep::Failed => full,
            HandshakeStep::Resumed => full / 2,
            HandshakeStep::Later | HandshakeStep::Retry => full / 10,
        };
        let took = Duration::from_micros(micros);
        self.worked += took;
        self.world.now = self.world.now + took;
        self.world.now
    }

    fn unix(&mut self) -> u32 {
        u32::try_from(self.world.now.since(Time(0)).as_secs()).unwrap()
    }
}
