//! One thread of a load: its clients, the schedule by which they work, and the ring they work on.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::client::{Client, Context, Delivery, Phase};
use super::exchange::Question;
use super::source::Sources;
use super::tally::{Reason, Tally};
use crate::io::buffer::Pool;
use crate::io::{Address, Completion, Io, Kind, Operation, Payload, Time, Token};
use crate::telemetry::counters::Counter;
use crate::tls::client::{Offer, SCRATCH_BYTES};
use crate::worker::timers::Timers;

/// After a failure a client waits so long, so that a server that is down costs little.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// A held connection that has been idle for so long gives back what it can: its tickets have come.
const REST_AFTER: Duration = Duration::from_millis(500);
/// Operations that are due and find every client busy: more than these are counted, not kept.
const BACKLOG_MAX: usize = 1 << 20;
/// What is open at the end has so long to end in order.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections closed in one turn at the end, so that a million of them do not stall.
const CLOSES_PER_TURN: usize = 256;

/// What all threads of a load do at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// Kept connections are opened.
    Connect = 0,
    /// Work that is not counted.
    WarmUp = 1,
    /// Work that is counted.
    Measure = 2,
    /// Work that is counted apart from the former.
    MeasureAgain = 3,
    /// What is open is closed.
    End = 4,
}

/// Windows that are counted apart: what is not measured, and two that are.
pub(super) const WINDOWS: usize = 3;

impl Stage {
    fn window(self) -> usize {
        match self {
            Self::Connect | Self::WarmUp | Self::End => 0,
            Self::Measure => 1,
            Self::MeasureAgain => 2,
        }
    }

    fn works(self) -> bool {
        !matches!(self, Self::Connect | Self::End)
    }
}

/// The stage, set by one thread and seen by all.
#[derive(Debug, Default)]
pub(super) struct SharedStage(AtomicU8);

impl SharedStage {
    pub(super) fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Relaxed);
    }

    fn get(&self) -> Stage {
        match self.0.load(Relaxed) {
            0 => Stage::Connect,
            1 => Stage::WarmUp,
            2 => Stage::Measure,
            3 => Stage::MeasureAgain,
            _ => Stage::End,
        }
    }
}

/// What a thread has done so far, for whoever shows it.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Connections that are established.
    pub(super) open: Counter,
    /// Kept connections that will not be opened (any more).
    pub(super) given_up: Counter,
    pub(super) operations: Counter,
    pub(super) handshakes: Counter,
    pub(super) failures: Counter,
    /// Plaintext, both ways.
    pub(super) bytes: Counter,
}

/// When operations begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Each client begins the next as soon as the last has ended.
    Closed,
    /// One each so often, whether or not those before have ended.
    Every(Duration),
    /// Not at all: connections are only kept.
    Never,
}

/// What one thread is to do.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) target: SocketAddr,
    pub(super) sources: Option<Sources>,
    pub(super) offer: Offer,
    /// `None`: the handshake is all.
    pub(super) question: Option<Question>,
    /// Each connection serves for one operation; else they are opened before the work and kept.
    pub(super) reconnects: bool,
    /// Connections are kept and wait for long: what is lost stays lost, and what waits gives back
    /// what it can.
    pub(super) holds: bool,
    /// Clients of this thread.
    pub(super) clients: u32,
    /// How many clients all threads before this one have; sources are numbered through.
    pub(super) clients_before: u64,
    /// When operations begin.
    pub(super) pace: Pace,
    /// Between two connections while they are opened; zero: as fast as they come.
    pub(super) connect_interval: Duration,
    /// Connections that are in the making at a time, where no rate is given.
    pub(super) connecting_max: usize,
    /// What one operation may take: connect, handshake and answer together.
    pub(super) timeout: Duration,
}

impl Task {
    /// The same for each of so many threads, which share the clients.
    pub(super) fn share_out(self, threads: usize) -> Vec<Self> {
        let count = u32::try_from(threads).unwrap_or(u32::MAX).max(1);
        let mut before = 0;
        let share = |index: u32| {
            let clients = self.clients / count + u32::from(index < self.clients % count);
            let clients_before = before;
            before += u64::from(clients);
            Self { clients, clients_before, ..self.clone() }
        };
        (0..count).map(share).collect()
    }
}

/// One thread's clients and their ring.
pub(super) struct Engine<I: Io> {
    io: I,
    task: Task,
    stage: Arc<SharedStage>,
    live: Arc<Live>,
    seen: Stage,
    clients: Vec<Client>,
    /// Each client's offer; one for all where none of them comes back.
    offers: Vec<Offer>,
    /// Deadline of each client's operation.
    deadlines: Vec<Deadline>,
    timers: Timers,
    /// Clients that can begin an operation, who has waited longest in front.
    ready: VecDeque<u32>,
    /// Clients that wait before they try again.
    resting: VecDeque<(Time, u32)>,
    /// When those operations were due that found no client.
    backlog: VecDeque<Time>,
    /// When the next operation, or while connecting the next connection, is due.
    next_due: Time,
    connecting: usize,
    /// Clients not connected yet, while connecting: from this one on.
    unopened: u32,
    closed_up_to: usize,
    end_by: Option<Time>,
    connections_begun: u64,
    now: Time,
    pool: Pool,
    scratch: Box<[u8]>,
    tallies: [Tally; WINDOWS],
    completions: Vec<Completion>,
    operations: Vec<(Kind, Operation)>,
    expired: Vec<u32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Deadline {
    at: Option<Time>,
    /// When the timer comes that looks at it.
    timer: Option<Time>,
}

/// A client, its offer and its surroundings, made of the engine's disjoint parts.
macro_rules! parts {
    ($engine:expr, $slot:expr) => {{
        let slot = $slot as usize;
        let offer = $engine.offers.get(slot).or($engine.offers.first());
        let (Some(client), Some(offer)) = ($engine.clients.get_mut(slot), offer) else {
            return;
        };
        let [unmeasured, measured, again] = &mut $engine.tallies;
        let cx = Context {
            now: $engine.now,
            question: $engine.task.question.as_ref(),
            reconnects: $engine.task.reconnects,
            operations: &mut $engine.operations,
            pool: &mut $engine.pool,
            scratch: &mut $engine.scratch,
            tally: match $engine.seen.window() {
                1 => measured,
                2 => again,
                _ => unmeasured,
            },
        };
        (client, offer, cx)
    }};
}

impl<I: Io> Engine<I> {
    pub(super) fn new(mut io: I, task: Task, stage: Arc<SharedStage>, live: Arc<Live>) -> Self {
        let now = io.now();
        let count = task.clients as usize;
        let returns = task.reconnects;
        let offers =
            (0..if returns { count } else { 1 }).map(|_| task.offer.of_another_client()).collect();
        Self {
            io,
            stage,
            live,
            seen: Stage::Connect,
            clients: std::iter::repeat_with(Client::new).take(count).collect(),
            offers,
            deadlines: vec![Deadline::default(); count],
            timers: Timers::with_capacity(task.clients),
            ready: if returns { (0..task.clients).collect() } else { VecDeque::new() },
            resting: VecDeque::new(),
            backlog: VecDeque::new(),
            next_due: now,
            connecting: 0,
            unopened: if returns { task.clients } else { 0 },
            closed_up_to: 0,
            end_by: None,
            connections_begun: 0,
            now,
            pool: Pool::default(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            tallies: std::array::from_fn(|_| Tally::default()),
            completions: Vec::new(),
            operations: Vec::new(),
            expired: Vec::new(),
            task,
        }
    }

    /// Works until the stage says to end and everything is closed. `seen` gets what was measured
    /// when the end begins, as closing may take longer than anybody waits, and then the rest.
    pub(super) fn run(mut self, seen: &mpsc::Sender<[Tally; WINDOWS]>) {
        // Nobody may listen any more: the load is over without this thread.
        let tell = |tallies: &mut [Tally; WINDOWS]| drop(seen.send(std::mem::take(tallies)));
        let mut has_told = false;
        loop {
            self.look_at_stage();
            if self.seen == Stage::End && !std::mem::replace(&mut has_told, true) {
                tell(&mut self.tallies);
            }
            if !self.turn() {
                return tell(&mut self.tallies);
            }
        }
    }

    /// One turn; false: all is done.
    fn turn(&mut self) -> bool {
        match self.seen {
            Stage::Connect => self.open_more(),
            Stage::WarmUp | Stage::Measure | Stage::MeasureAgain => self.start_due(),
            Stage::End => {
                if self.close_more() {
                    return false;
                }
            }
        }
        let deadline = self.wakes_at();
        let mut completions = std::mem::take(&mut self.completions);
        self.io.wait(deadline, &mut completions);
        self.now = self.io.now();
        for completion in completions.drain(..) {
            self.dispatch(completion);
        }
        self.completions = completions;
        self.fire_timers();
        self.publish();
        true
    }

    fn look_at_stage(&mut self) {
        let stage = self.stage.get();
        if stage == self.seen {
            return;
        }
        if !self.seen.works() {
            self.next_due = self.now;
            if self.pool.lent() == 0 {
                // The handshakes' buffers; connections that wait need none.
                self.pool = Pool::default();
            }
        }
        if stage == Stage::End {
            self.end_by = Some(self.now + END_TIMEOUT);
        }
        // A window's own: the next one does not begin with what this one left undone.
        let late = self.backlog.len() as u64;
        self.tally().fail_often(Reason::NotStarted, late);
        self.backlog.clear();
        self.seen = stage;
    }

    fn tally(&mut self) -> &mut Tally {
        let [unmeasured, measured, again] = &mut self.tallies;
        match self.seen.window() {
            1 => measured,
            2 => again,
            _ => unmeasured,
        }
    }

    /// When this thread has to wake up without an event.
    fn wakes_at(&self) -> Option<Time> {
        // The stage is looked at that often; whoever sets it writes the ring's eventfd as well.
        let due = match (self.seen, self.task.pace) {
            (Stage::Connect, _) if self.unopened < self.task.clients => {
                let paced = !self.task.connect_interval.is_zero();
                (paced || self.connecting < self.task.connecting_max).then_some(self.next_due)
            }
            (stage, Pace::Every(_)) if stage.works() => Some(self.next_due),
            (Stage::End, _) if self.closed_up_to < self.clients.len() => Some(self.now),
            _ => None,
        };
        // They go on when there is work, not before: until then their time would be in the past.
        let resting = self.resting.front().map(|(at, _)| *at).filter(|_| self.seen.works());
        [due, resting, self.timers.next(), self.end_by].into_iter().flatten().min()
    }

    /// Opens kept connections: at their rate, or a few at a time.
    fn open_more(&mut self) {
        let interval = self.task.connect_interval;
        while self.unopened < self.task.clients {
            if interval.is_zero() {
                if self.connecting >= self.task.connecting_max {
                    return;
                }
            } else {
                if self.next_due > self.now {
                    return;
                }
                self.next_due = self.next_due + interval;
            }
            let slot = self.unopened;
            self.unopened += 1;
            self.connecting += 1;
            self.connect(slot, self.now);
        }
    }

    /// Begins the operations that are due.
    fn start_due(&mut self) {
        while let Some((at, slot)) = self.resting.front().copied()
            && at <= self.now
        {
            self.resting.pop_front();
            self.ready_again(slot);
        }
        match self.task.pace {
            Pace::Closed => {
                while let Some(slot) = self.ready.pop_front() {
                    self.begin(slot, self.now);
                }
            }
            Pace::Never => {}
            Pace::Every(interval) => {
                while self.next_due <= self.now {
                    self.backlog.push_back(self.next_due);
                    self.next_due = self.next_due + interval;
                    if self.backlog.len() > BACKLOG_MAX {
                        self.backlog.pop_front();
                        self.tally().fail(Reason::NotStarted);
                    }
                }
                while let Some(due) = self.backlog.front().copied()
                    && let Some(slot) = self.ready.pop_front()
                {
                    self.backlog.pop_front();
                    self.begin(slot, due);
                }
            }
        }
    }

    /// Begins an operation on a client that is ready.
    fn begin(&mut self, slot: u32, due: Time) {
        if self.task.reconnects {
            self.connect(slot, due);
        } else {
            self.with_client(slot, |client, cx| client.ask(due, cx));
        }
    }

    fn connect(&mut self, slot: u32, due: Time) {
        let number = self.connections_begun.wrapping_add(self.task.clients_before);
        self.connections_begun += 1;
        let source = self.task.sources.as_ref().map(|sources| sources.nth(number));
        let address = Address::Inet(self.task.target);
        self.with_client(slot, |client, cx| client.connect(address, source, due, cx));
    }

    /// A client that lost its connection, or failed, may go on.
    fn ready_again(&mut self, slot: u32) {
        if self.task.reconnects {
            self.ready.push_back(slot);
        } else {
            self.connect(slot, self.now);
        }
    }

    /// Closes what is left, a few each turn; true: all is closed.
    fn close_more(&mut self) -> bool {
        for _ in 0..CLOSES_PER_TURN {
            if self.closed_up_to >= self.clients.len() {
                break;
            }
            let slot = u32::try_from(self.closed_up_to).unwrap_or(u32::MAX);
            self.closed_up_to += 1;
            self.with_client(slot, Client::close);
            self.end_by = Some(self.now + END_TIMEOUT);
        }
        let overdue = self.end_by.is_some_and(|by| by <= self.now);
        if overdue {
            for slot in 0..self.task.clients {
                self.with_client(slot, Client::abort);
            }
            self.end_by = Some(self.now + END_TIMEOUT);
        }
        self.closed_up_to >= self.clients.len()
            && self.clients.iter().all(|client| client.phase() == Phase::Free)
    }

    fn dispatch(&mut self, completion: Completion) {
        let Completion { token, result, more, payload } = completion;
        if matches!(token.kind, Kind::Mailbox | Kind::Internal) {
            return;
        }
        let (client, offer, mut cx) = parts!(self, token.slot);
        debug_assert_eq!(client.generation, token.generation, "of a connection that is over");
        let before = client.phase();
        match payload {
            Payload::Received(at) => {
                let delivery = Delivery::Received(self.io.received(&at));
                client.complete(offer, token.kind, result, more, delivery, &mut cx);
                self.io.recycle(at);
            }
            Payload::Sent(buffer) => {
                let delivery = Delivery::Sent(buffer);
                client.complete(offer, token.kind, result, more, delivery, &mut cx);
            }
            Payload::None | Payload::Peer(_) | Payload::Computed(_) => {
                client.complete(offer, token.kind, result, more, Delivery::None, &mut cx);
            }
        }
        self.after_event(token.slot, before);
    }

    /// Lets `act` work on a client.
    fn with_client(&mut self, slot: u32, act: impl FnOnce(&mut Client, &mut Context<'_>)) {
        let (client, _, mut cx) = parts!(self, slot);
        let before = client.phase();
        act(client, &mut cx);
        self.after_event(slot, before);
    }

    /// Submits what an event has led to, and books the client where it now belongs.
    fn after_event(&mut self, slot: u32, before: Phase) {
        let Some(client) = self.clients.get(slot as usize) else {
            return;
        };
        let (now_in, generation, failed) = (client.phase(), client.generation, client.failed());
        for (kind, operation) in self.operations.drain(..) {
            self.io.submit(Token::new(slot, generation, kind), operation);
        }
        let rests_later = self.task.holds && now_in == Phase::Idle && !client.is_resting();
        if rests_later {
            self.set_deadline(slot, Some(self.now + REST_AFTER));
        }
        if now_in == before {
            return;
        }
        if is_in_the_making(before) && !is_in_the_making(now_in) {
            self.connecting = self.connecting.saturating_sub(1);
        }
        match (is_established(before), is_established(now_in)) {
            (false, true) => self.live.open.add(1),
            (true, false) => self.live.open.sub(1),
            (true, true) | (false, false) => {}
        }
        match now_in {
            Phase::Free => {
                self.set_deadline(slot, None);
                self.freed(slot, failed);
            }
            Phase::Idle => {
                if !rests_later {
                    self.set_deadline(slot, None);
                }
                if self.seen == Stage::End {
                    self.with_client(slot, Client::close);
                } else {
                    self.ready.push_back(slot);
                }
            }
            Phase::Connecting | Phase::Asking | Phase::Closing if now_in != before => {
                self.set_deadline(slot, Some(self.now + self.task.timeout));
            }
            Phase::Connecting
            | Phase::Handshaking
            | Phase::Asking
            | Phase::Closing
            | Phase::Ending => {}
        }
    }

    /// A client has no connection any more.
    fn freed(&mut self, slot: u32, failed: bool) {
        self.io.forget(slot);
        if self.seen == Stage::End {
            return;
        }
        if self.seen == Stage::Connect {
            self.live.given_up.add(1);
        }
        if self.task.holds {
            return;
        }
        let waits = (failed && self.task.pace == Pace::Closed) || !self.task.reconnects;
        if waits {
            self.resting.push_back((self.now + RETRY_INTERVAL, slot));
        } else {
            self.ready.push_back(slot);
        }
    }

    fn set_deadline(&mut self, slot: u32, at: Option<Time>) {
        let Some(deadline) = self.deadlines.get_mut(slot as usize) else {
            return;
        };
        deadline.at = at;
        // A timer that comes before looks at the deadline and goes on from there.
        if let Some(at) = at
            && deadline.timer.is_none_or(|timer| timer > at)
        {
            deadline.timer = Some(at);
            self.timers.set(slot, at);
        }
    }

    fn fire_timers(&mut self) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expire(self.now, &mut expired);
        for slot in expired.drain(..) {
            let Some(deadline) = self.deadlines.get_mut(slot as usize) else {
                continue;
            };
            deadline.timer = None;
            match deadline.at {
                Some(at) if at <= self.now => {
                    deadline.at = None;
                    self.with_client(slot, Client::time_out);
                }
                later => self.set_deadline(slot, later),
            }
        }
        self.expired = expired;
    }

    /// Tells what was done so far.
    fn publish(&self) {
        let sum = |of: fn(&Tally) -> u64| self.tallies.iter().map(of).sum();
        self.live.operations.set(sum(Tally::done));
        self.live.handshakes.set(sum(|tally| tally.handshakes.nanos().len()));
        self.live.failures.set(sum(Tally::failed));
        self.live.bytes.set(sum(|tally| tally.up_bytes + tally.down_bytes));
    }
}

fn is_in_the_making(phase: Phase) -> bool {
    matches!(phase, Phase::Connecting | Phase::Handshaking)
}

fn is_established(phase: Phase) -> bool {
    matches!(phase, Phase::Idle | Phase::Asking | Phase::Closing)
}
