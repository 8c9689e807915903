//! How many connections this machine has room for, and which limit says so.

use std::fmt;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use portcullis::control::capacity;
use portcullis::limits::WORKERS_MAX;

use crate::support::Result;

/// Descriptors of a thread besides its connections.
const RESERVED: u64 = 128;
/// Descriptors of one connection in a worker's table, and in a client's: the ring keeps two places
/// for each slot.
const PER_SLOT: u64 = 2;
/// Accepts that a worker has ready, each with a place for a connection.
const ACCEPTS: u64 = 16;
/// Connections to one address of the origin: fewer than half of the kernel's default range of
/// local ports. connect(2) looks at every second port first, and once these are taken at all of
/// them, each time.
const PORTS: u64 = 12_000;
/// Memory of one connection with everything on this machine: kernel and user space, both ends of
/// the client's connection, and of the server's where there is one. Generous, so that nothing is
/// killed.
const BYTES_ON_FIRST_BYTE: u64 = 12 * 1024;
const BYTES_EAGER: u64 = 21 * 1024;

/// What fits.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) connections: u32,
    /// Workers of the server: each has its own table of descriptors.
    pub(crate) workers: u64,
    pub(crate) per_worker: u64,
    /// Threads of the origin, likewise.
    pub(crate) origin_threads: u64,
    /// Addresses of the origin: to each there are no more connections than local ports.
    pub(crate) origin_addresses: u64,
    /// Why it is not what was asked for.
    limit: Option<&'static str>,
}

impl Room {
    /// Room for `wanted` connections, or as many as there is.
    ///
    /// # Errors
    /// The limits cannot be read.
    pub(crate) fn find(wanted: u32, eager: bool) -> Result<Self> {
        let (_, nofile) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let per_worker = nofile.saturating_sub(RESERVED) / PER_SLOT - ACCEPTS;
        let files = capacity::sysctl("fs/file-max").unwrap_or(u64::MAX);
        let bytes = if eager { BYTES_EAGER } else { BYTES_ON_FIRST_BYTE };
        let sockets = if eager { 4 } else { 2 };
        let workers_max = u64::try_from(WORKERS_MAX)?;
        let mut connections = u64::from(wanted);
        let mut limit = None;
        for (most, name) in [
            (per_worker * workers_max, "RLIMIT_NOFILE, for each worker's table of descriptors"),
            (files / sockets, "fs.file-max"),
            (available_bytes()? / bytes, "memory (MemAvailable)"),
        ] {
            if most < connections {
                (connections, limit) = (most, Some(name));
            }
        }
        let backend = if eager { connections } else { connections / 5 + 1 };
        // A little room: the kernel spreads clients over listening sockets by a hash, not evenly.
        let workers = (connections + connections / 20).div_ceil(per_worker).clamp(1, workers_max);
        Ok(Self {
            connections: u32::try_from(connections)?,
            workers,
            per_worker,
            // By ports that were taken one behind the other it spreads them less evenly still.
            origin_threads: (backend + backend / 4)
                .div_ceil(nofile.saturating_sub(RESERVED))
                .max(2),
            origin_addresses: backend.div_ceil(PORTS),
            limit,
        })
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections on one process with {} workers, {} each at most",
            self.connections, self.workers, self.per_worker
        )?;
        match self.limit {
            Some(limit) => write!(f, "; FEWER than asked for, because of {limit}"),
            None => Ok(()),
        }
    }
}

fn available_bytes() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")).map(str::trim);
    Ok(kilobytes.ok_or("no MemAvailable in /proc/meminfo")?.parse::<u64>()? * 1024)
}
