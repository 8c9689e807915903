//! The worker: one per core, shared nothing. Its loop submits, waits, reaps, dispatches, fires
//! timers and arms accepts; everything a connection decides is in [`crate::connection`].

pub mod accepting;
pub mod admission;
pub mod command;
pub mod dispatch;
mod handshakes;
pub mod outbox;
mod permits;
pub mod scheduler;
pub mod snapshot;
pub mod sources;
pub mod table;
pub mod timers;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::balance::RoundRobin;
use crate::backend::permits::Permits;
use crate::io::buffer::Pool;
use crate::io::{Completion, Io, Kind, Operation, Time, Token};
use crate::limits::{ACCEPTS_ARMED, ENDED_MIN, KEPT_BUSY, TRIM_INTERVAL, WAITING_KEPT};
use crate::telemetry::counters::Counters;
use crate::telemetry::labels::CloseReason;
use crate::telemetry::record;
use crate::tls::resumption::bridge::{Beginnings, Resumption};

use crate::config::Handshake;
use crate::telemetry::labels::HandshakeQueue;

use accepting::Accepting;
use command::Command;
use handshakes::Pace;
use outbox::{Outbox, Rank};
use scheduler::Scheduler;
use snapshot::{Local, Snapshot};
use sources::Sources;
use table::Table;
use timers::Timers;

/// A listening socket to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Index of the listener in the configuration.
    pub listener: u16,
    /// Address.
    pub address: SocketAddr,
    /// Backlog, in connections.
    pub backlog: u32,
    /// How long the kernel keeps a client that has said nothing to itself; `None`: not at all.
    pub defer_accept: Option<Duration>,
}

/// What a worker is given at its start.
#[derive(Debug)]
pub struct Setup {
    /// Worker's number, from 0.
    pub index: u16,
    /// Listening sockets, by the index that `Operation::Accept` uses.
    pub binds: Vec<Bind>,
    /// Connections open at a time, at most (see [`accepting`] for what a burst may add).
    pub connections: u32,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// The tickets and sessions that it begins with.
    pub resumption: Beginnings,
    /// What all workers count together of each source of clients.
    pub sources: Arc<Sources>,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Where its access-log records go; `None`: nobody wants them.
    pub records: Option<record::Sender>,
    /// Where commands come from; looked at whenever a `Kind::Mailbox` completion arrives.
    pub commands: rtrb::Consumer<Command>,
}

/// Slots that a worker's table has: one per connection, and one per accept that may be armed.
pub fn slots(connections: u32, binds: usize) -> u32 {
    let accepts = u32::try_from(binds).unwrap_or(u32::MAX).saturating_mul(ACCEPTS_ARMED);
    connections.saturating_add(accepts)
}

/// Whether a worker has more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Call [`Worker::turn`] again.
    Running,
    /// Drained or stopped: every connection has ended, and no accept is armed.
    Ended,
}

/// The loop's state. Generic over what runs its operations.
pub struct Worker<I: Io> {
    io: I,
    index: u16,
    binds: Vec<Bind>,
    snapshot: Rc<Local>,
    counters: Arc<Counters>,
    records: Option<record::Sender>,
    commands: rtrb::Consumer<Command>,
    table: Table,
    accepting: Accepting,
    timers: Timers,
    pool: Pool,
    cursors: Vec<RoundRobin>,
    /// Permits of the backends that have any.
    permits: Vec<Arc<Permits>>,
    /// Workers to be woken at the end of the turn.
    wakes: Vec<u16>,
    resumption: Rc<Resumption>,
    sources: Arc<Sources>,
    now: Time,
    unix: u32,
    /// When what has not drained is aborted; `None` while running normally.
    drain_until: Option<Time>,
    /// When memory that a burst has left is looked at; `None`: there is none.
    trims_at: Option<Time>,
    /// Connections that have ended since the last look.
    ended: u32,
    /// Connections had ended before the last look: who ends now may be the last of a storm.
    cleans_up: bool,
    // Kept between turns so that a turn allocates nothing.
    completions: Vec<Completion>,
    operations: Vec<(Kind, Operation)>,
    outbox: Outbox,
    expired: Vec<u32>,
    /// Handshakes that wait for a step.
    scheduler: Scheduler,
    /// Where the connection that is handling an event wants to wait for a step.
    step_wanted: Option<HandshakeQueue>,
    /// When bytes of a kept connection have moved last.
    kept_at: Option<Time>,
    /// An established connection had an event in this turn.
    served_established: bool,
    /// What steps of handshakes take and have coming.
    pace: Pace,
}

impl<I: Io> Worker<I> {
    /// A worker that has done nothing yet.
    pub fn new(mut io: I, setup: Setup) -> Self {
        let (now, unix) = (io.now(), io.unix());
        let cursors = cursors(&setup.snapshot, setup.index);
        let permits = permits::of(&setup.snapshot);
        let Handshake { max_pending, queue_deadline, .. } = setup.snapshot.handshake;
        let scheduler = Scheduler::new(max_pending, queue_deadline);
        let slots = slots(setup.connections, setup.binds.len());
        Self {
            io,
            index: setup.index,
            table: Table::new(slots),
            accepting: Accepting::new(setup.connections, setup.binds.len()),
            binds: setup.binds,
            snapshot: Rc::new(Local::new(setup.snapshot)),
            counters: setup.counters,
            records: setup.records,
            commands: setup.commands,
            timers: Timers::with_capacity(slots),
            pool: Pool::default(),
            cursors,
            permits,
            wakes: Vec::new(),
            resumption: Rc::new(Resumption::new(setup.resumption)),
            sources: setup.sources,
            now,
            unix,
            drain_until: None,
            trims_at: None,
            ended: 0,
            cleans_up: false,
            completions: Vec::new(),
            operations: Vec::new(),
            outbox: Outbox::default(),
            expired: Vec::new(),
            scheduler,
            step_wanted: None,
            kept_at: None,
            served_established: false,
            pace: Pace::default(),
        }
    }

    /// One turn: arm accepts, submit and wait, reap and dispatch, fire timers.
    pub fn turn(&mut self) -> Progress {
        self.arm_accepts();
        // While anything waits for its turn the ring is only looked at.
        let waits = !self.has_steps_to_do() && self.outbox.is_empty();
        let deadline = if waits { self.wakes_at() } else { Some(self.now) };
        let mut completions = std::mem::take(&mut self.completions);
        self.io.wait(deadline, &mut completions);

        self.now = self.io.now();
        self.unix = self.io.unix();
        self.counters.turns.add(1);
        self.counters.completions.add(completions.len() as u64);
        self.served_established = false;
        for completion in completions.drain(..) {
            self.dispatch(completion);
        }
        self.completions = completions;
        self.fire_timers();
        let woken = self.now;
        self.shake_hands();
        self.finish_drain();
        self.trim();
        self.fetch_permits();
        let kept_busy = self.is_kept_busy();
        self.outbox.submit(&mut self.io, kept_busy);
        for (queue, waiting) in self.outbox.waiting() {
            self.counters.operations_waiting.of(queue).set(waiting as u64);
        }

        let busy = self.io.now().since(woken);
        let busy = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.counters.busy_nanos.add(busy);
        self.counters.longest_turn_nanos.raise_to(busy);

        let idle = self.table.open() == 0 && self.accepting.len() == 0 && !self.awaits_permits();
        if self.drain_until.is_some() && idle { Progress::Ended } else { Progress::Running }
    }

    /// What runs the operations.
    pub fn io(&self) -> &I {
        &self.io
    }

    /// What runs the operations.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// Asserts every invariant of ARCHITECTURE.md that can be seen from here; for tests.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check_invariants(&self) {
        let mut open = 0;
        let (mut counted, mut handshakes) = (0, 0);
        for (_, _, connection) in self.table.iter() {
            connection.check_invariants();
            assert!(connection.done().is_none(), "a done connection keeps its slot");
            open += 1;
            let is_counted = connection.source().is_some();
            counted += u64::from(is_counted);
            handshakes += u64::from(is_counted && connection.shakes_hands());
        }
        let totals = self.sources.totals();
        assert!(totals.0 >= counted && totals.1 >= handshakes, "{totals:?} of all workers");
        assert_eq!(open, self.table.open(), "the table counts its connections");
        let gauges: u64 = <crate::telemetry::labels::State as crate::telemetry::labels::Label>::ALL
            .iter()
            .map(|state| self.counters.connections.of(*state).get())
            .sum();
        assert_eq!(gauges, u64::from(open), "the gauges count the connections");
        if open == 0 {
            assert_eq!(self.pool.lent(), 0, "send buffers leaked");
        }
    }

    fn wakes_at(&self) -> Option<Time> {
        let own = [self.accepting.resumes_at(), self.drain_until, self.trims_at];
        let of_handshakes = self.apart_until().filter(|_| !self.scheduler.is_empty());
        own.into_iter().flatten().chain(self.timers.next()).chain(of_handshakes).min()
    }

    /// After a burst gives back, bit by bit, what nobody has needed for [`TRIM_INTERVAL`].
    fn trim(&mut self) {
        if self.trims_at.is_some_and(|at| at <= self.now) {
            self.pool.trim();
            self.table.trim();
            self.accepting.trim();
            self.timers.trim();
            self.io.trim();
            self.outbox.trim();
            self.scheduler.trim();
            self.completions.shrink_to_fit();
            self.trims_at = None;
            self.cleans_up = self.ended > 0;
            self.ended = 0;
        }
        let is_large = self.ended >= ENDED_MIN
            || (self.cleans_up && self.ended > 0)
            || self.pool.is_large()
            || self.table.is_large()
            || self.accepting.is_large()
            || self.timers.is_large()
            || self.io.is_large()
            || self.outbox.is_large()
            || self.scheduler.is_large()
            || self.completions.capacity() > WAITING_KEPT;
        if self.trims_at.is_none() && is_large {
            self.trims_at = Some(self.now + TRIM_INTERVAL);
        }
    }

    fn fire_timers(&mut self) {
        let mut expired = std::mem::take(&mut self.expired);
        self.timers.expire(self.now, &mut expired);
        for slot in expired.drain(..) {
            self.on_timer(slot);
        }
        self.expired = expired;
    }

    fn obey_commands(&mut self) {
        while let Ok(command) = self.commands.pop() {
            match command {
                Command::Snapshot(snapshot) => {
                    self.cursors = cursors(&snapshot, self.index);
                    self.use_permits(permits::of(&snapshot));
                    let Handshake { max_pending, queue_deadline, .. } = snapshot.handshake;
                    self.scheduler.set_bounds(max_pending, queue_deadline);
                    self.snapshot = Rc::new(Local::new(snapshot));
                }
                Command::TicketKeys(keys) => self.resumption.set_keys(keys),
                Command::Drain { timeout } => self.drain(self.now + timeout),
                Command::Stop => self.drain(self.now),
            }
        }
    }

    /// Stops accepting; what has not ended at `until` is aborted.
    fn drain(&mut self, until: Time) {
        self.drain_until = Some(self.drain_until.map_or(until, |earlier| earlier.min(until)));
        self.accepting.end();
        self.cancel_accepts();
    }

    fn finish_drain(&mut self) {
        let Some(until) = self.drain_until else {
            return;
        };
        if self.accepting.len() == 0 {
            self.io.stop_listening();
        }
        if self.now < until {
            return;
        }
        let open: Vec<(u32, u32)> =
            self.table.iter().map(|(slot, generation, _)| (slot, generation)).collect();
        for (slot, generation) in open {
            self.with_connection(slot, generation, |connection, cx| {
                connection.abort(CloseReason::DrainTimeout, cx);
            });
        }
        // Whoever is left waits for its last completion; look again when one has come.
        self.drain_until = Some(self.now + crate::connection::close::LINGER);
    }

    /// Whether kept connections have been heard of a moment ago.
    fn is_kept_busy(&self) -> bool {
        self.have_kept_moved(KEPT_BUSY)
    }

    /// Whether bytes of a kept connection have moved within that time.
    fn have_kept_moved(&self, within: Duration) -> bool {
        self.kept_at.is_some_and(|at| self.now < at + within)
    }

    fn submit_operations(&mut self, slot: u32, generation: u32) {
        if self.operations.is_empty() {
            return;
        }
        let rank = self.table.connection(slot, generation).map(|connection| connection.rank());
        let mut operations = std::mem::take(&mut self.operations);
        for (kind, operation) in operations.drain(..) {
            let token = Token::new(slot, generation, kind);
            self.submit(token, operation, rank.unwrap_or(Rank::Ending));
        }
        self.operations = operations;
    }

    /// Submits an operation, now or when it is its turn.
    fn submit(&mut self, token: Token, operation: Operation, rank: Rank) {
        let operation = match operation {
            Operation::Send { side, buffer, ends }
                if rank == Rank::Ending && self.outbox.is_crowded() =>
            {
                Operation::Send { side, buffer: self.pool.shrink(buffer), ends }
            }
            other => other,
        };
        let kept_busy = self.is_kept_busy();
        if let Some(operation) = self.outbox.take_in(token, operation, rank, kept_busy) {
            self.io.submit(token, operation);
        }
    }
}

fn cursors(snapshot: &Snapshot, worker: u16) -> Vec<RoundRobin> {
    snapshot.backends.iter().map(|_| RoundRobin::starting_at(worker)).collect()
}
