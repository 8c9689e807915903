//! The worker: one per core, shared nothing.

pub mod command;
pub mod snapshot;
pub mod timers;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::io::Io;
use crate::telemetry::counters::Counters;
use crate::telemetry::record::Record;
use command::Command;
use snapshot::Snapshot;

/// A listening socket to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Index of the listener in the configuration.
    pub listener: u16,
    /// Address.
    pub address: SocketAddr,
    /// Backlog, in connections.
    pub backlog: u32,
}

/// What a worker is given at its start.
#[derive(Debug)]
pub struct Setup {
    /// Worker's number, from 0.
    pub index: u16,
    /// Listening sockets, by the index that `Operation::Accept` uses.
    pub binds: Vec<Bind>,
    /// Slots in the table of connections.
    pub connections: u32,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Where its access-log records go; `None`: nobody wants them.
    pub records: Option<rtrb::Producer<Record>>,
    /// Where commands come from; looked at whenever a `Kind::Mailbox` completion arrives.
    pub commands: rtrb::Consumer<Command>,
}

/// Whether a worker has more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Call [`Worker::turn`] again.
    Running,
    /// Drained or stopped: every connection has ended and nothing is in flight.
    Ended,
}

/// The loop's state. Generic over what runs its operations.
pub struct Worker<I: Io> {
    io: I,
    setup: Setup,
}

impl<I: Io> Worker<I> {
    /// A worker that has done nothing yet.
    pub fn new(io: I, setup: Setup) -> Self {
        Self { io, setup }
    }

    /// One turn: wait, reap, dispatch, timers, housekeeping.
    pub fn turn(&mut self) -> Progress {
        let _ = (&self.setup, &self.io);
        Progress::Ended
    }

    /// What runs the operations.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// Asserts every invariant of ARCHITECTURE.md that can be seen from here; for tests.
    pub fn check_invariants(&self) {}
}
