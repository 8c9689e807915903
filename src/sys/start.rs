//! Starting a worker: its thread's core, descriptor table, listening sockets and ring.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::eventfd::EventFd;

use crate::config::Steering;
use crate::sys::allocator;
use crate::sys::mailbox::Receiver;
use crate::sys::probe::{is_no_memory, patiently};
use crate::sys::ring::Ring;
use crate::sys::socket;
use crate::telemetry::counters::Counters;
use crate::telemetry::record;
use crate::tls::resumption::bridge::Beginnings;
use crate::worker::snapshot::Snapshot;
use crate::worker::sources::Sources;
use crate::worker::{Bind, Progress, Setup, Worker, slots};

/// Everything a worker's thread starts with.
#[derive(Debug)]
pub struct Start {
    /// Worker's number, from 0.
    pub index: u16,
    /// CPU to be pinned to; `None`: not pinned.
    pub cpu: Option<usize>,
    /// Listening sockets to make.
    pub binds: Vec<Bind>,
    /// Which of the workers' listening sockets a new connection goes to.
    pub steering: Steering,
    /// Connections open at a time: two direct descriptors each.
    pub connections: u32,
    /// The configuration.
    pub snapshot: Arc<Snapshot>,
    /// The tickets and sessions that it begins with.
    pub resumption: Beginnings,
    /// What all workers count together of each source of clients.
    pub sources: Arc<Sources>,
    /// Where it counts.
    pub counters: Arc<Counters>,
    /// Where its access-log records go.
    pub records: Option<record::Sender>,
    /// Its mailbox.
    pub mailbox: Receiver,
    /// What wakes each worker, by its number.
    pub wakes: Arc<[Arc<EventFd>]>,
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
    /// The thread could not be pinned.
    #[error("cannot pin the worker to CPU {cpu}: is it online and in this process's CPU set?")]
    Pin {
        /// The CPU.
        cpu: usize,
    },
}

/// Runs a worker on the calling thread until it has ended. `ready` is called once, when it accepts
/// connections, with its listening sockets' inodes in the order of its binds, or when it has failed
/// to start.
pub fn run(start: Start, ready: impl FnOnce(Result<Vec<u32>, StartError>)) {
    match prepare(start) {
        Ok((mut worker, inodes)) => {
            ready(Ok(inodes));
            while worker.turn() == Progress::Running {}
        }
        Err(error) => ready(Err(error)),
    }
}

/// A ring for `slots` connections that the calling thread makes itself: pins the thread to `cpu`
/// if there is one, and gives it its own descriptor table, in which only the standard streams and
/// `wake` are left.
///
/// # Errors
/// The step that failed.
pub fn client_ring(
    slots: u32,
    cpu: Option<usize>,
    wake: &Arc<EventFd>,
) -> Result<Ring, StartError> {
    pin(cpu)?;
    allocator::use_own_arena(cpu);
    own_descriptor_table(std::slice::from_ref(wake))?;
    let ring = || {
        Ring::new(slots, Vec::new(), Arc::clone(wake))
            .map_err(|(step, source)| StartError::Ring { step, source })
    };
    patiently(ring, is_no_memory_for_a_ring)
}

/// Lets every other thread of this CPU go first, at once and always (`SCHED_IDLE`, sched(7)): one
/// that is only nice keeps the CPU for the rest of its slice, some milliseconds, when another wakes
/// up. Without effect where the kernel does not let us.
pub fn step_back() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: sched_setscheduler(2) only reads the structure; of 0 it means the calling thread.
    let _as_before =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
}

fn pin(cpu: Option<usize>) -> Result<(), StartError> {
    match cpu {
        Some(cpu) if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) => {
            Err(StartError::Pin { cpu })
        }
        _ => Ok(()),
    }
}

fn is_no_memory_for_a_ring(error: &StartError) -> bool {
    match error {
        StartError::Ring { source, .. } => is_no_memory(source),
        StartError::Listen { .. } | StartError::Files { .. } | StartError::Pin { .. } => false,
    }
}

fn prepare(start: Start) -> Result<(Worker<Ring>, Vec<u32>), StartError> {
    pin(start.cpu)?;
    allocator::use_own_arena(start.cpu);
    own_descriptor_table(&start.wakes)?;
    let (commands, wake) = start.mailbox.into_parts();
    let table = slots(start.connections, start.binds.len());
    let steered_to = start.cpu.filter(|_| start.steering == Steering::IncomingCpu);
    let ring = || {
        let (listeners, inodes) = listen(&start.binds, steered_to)?;
        Ring::new(table, listeners, Arc::clone(&wake))
            .map(|ring| (ring, inodes))
            .map_err(|(step, source)| StartError::Ring { step, source })
    };
    let (mut ring, inodes) = patiently(ring, is_no_memory_for_a_ring)?;
    ring.meet(start.wakes);
    if let Some(cpu) = start.cpu {
        ring.sample_cpus(cpu, Arc::clone(&start.counters));
    }
    let worker = Worker::new(
        ring,
        Setup {
            index: start.index,
            binds: start.binds,
            connections: start.connections,
            snapshot: start.snapshot,
            resumption: start.resumption,
            sources: start.sources,
            counters: start.counters,
            records: start.records,
            commands,
        },
    );
    Ok((worker, inodes))
}

/// The listening sockets with their inodes.
fn listen(
    binds: &[Bind],
    steered_to: Option<usize>,
) -> Result<(Vec<OwnedFd>, Vec<u32>), StartError> {
    let listen = |bind: &Bind| {
        socket::listen(bind.address, bind.backlog)
            .and_then(|listener| {
                steered_to.map_or(Ok(()), |cpu| socket::steer(&listener, cpu))?;
                bind.defer_accept.map_or(Ok(()), |time| socket::defer_accept(&listener, time))?;
                let inode = socket::inode(&listener)?;
                Ok((listener, inode))
            })
            .map_err(|source| StartError::Listen { address: bind.address, source })
    };
    binds.iter().map(listen).collect()
}

/// Leaves the process's descriptor table for one of the thread's own (unshare(2)) and closes all
/// that came along except the standard streams and `keep`: limits count per worker, look-ups share
/// no lock, and no copy of another thread's socket keeps it open.
fn own_descriptor_table(keep: &[Arc<EventFd>]) -> Result<(), StartError> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES)
        .map_err(|error| StartError::Files { source: error.into() })?;
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep {
        close_range(first, kept - 1)?;
        first = kept + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> Result<(), StartError> {
    if first > last {
        return Ok(());
    }
    // SAFETY: this thread's table is its own by now; nothing in it but the standard streams and
    // what wakes the workers belongs to an object that this thread uses.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 {
        return Ok(());
    }
    Err(StartError::Files { source: std::io::Error::last_os_error() })
}
