//! What a plan is made for: how many connections, on what, and the formulas that follow from it.

use serde::{Deserialize, Serialize};

use super::detect::Facts;
use crate::control::capacity::Shape;
use crate::limits::{
    NOT_SENT_BYTES, RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS, RECEIVE_PIECE_BYTES, SEND_BUFFER_BYTES,
    WORKERS_MAX,
};

/// Kernel memory of an idle proxied connection, in bytes: two TCP sockets of 3,950 and two armed
/// polls of 256. Measured on Linux 6.18 (slab growth per connection).
pub const KERNEL_BYTES: u64 = 2 * (3_950 + 256);

/// Our own memory of an idle connection, in bytes: 737 to 776 measured as growth of the process's
/// memory (PSS) by 100,000 to 1,000,000 TLS 1.3 connections (`bench/RESULTS.md`).
pub const USER_BYTES: u64 = 900;

/// Connections that have data waiting at one moment, of hundred, unless told otherwise.
pub const BUSY_PERCENT: u64 = 5;

/// Bytes of a page, in which `tcp_mem` counts.
pub const PAGE_BYTES: u64 = 4096;

/// How many sends buffers of its pool a worker keeps, and so its share of memory besides
/// connections; see ARCHITECTURE.md, Memory.
const WORKER_BYTES: u64 =
    (RECEIVE_BUFFERS as u64) * (RECEIVE_BUFFER_BYTES as u64 + SEND_BUFFER_BYTES as u64);

/// A kind of machine, which decides what is worth the while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// A virtual machine with up to 8 cores or 16 GiB.
    SmallVm,
    /// A server with 10 or 25 Gbit/s.
    Edge,
    /// 48 cores and 128 GiB or more, 100 Gbit/s.
    BigEdge,
}

impl Profile {
    /// All, by size.
    pub const ALL: [Self; 3] = [Self::SmallVm, Self::Edge, Self::BigEdge];

    /// Its name on the command line and in `sysctl/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SmallVm => "small-vm",
            Self::Edge => "edge",
            Self::BigEdge => "big-edge",
        }
    }

    /// The one that fits a machine.
    pub fn of(facts: &Facts) -> Self {
        let (cores, gib) = (facts.cpu.cores.len(), facts.memory.usable_bytes() >> 30);
        if cores <= 8 || gib <= 16 {
            Self::SmallVm
        } else if cores >= 48 && gib >= 128 {
            Self::BigEdge
        } else {
            Self::Edge
        }
    }

    /// Connections of a worker that it aims at, where RAM holds them.
    fn connections_per_worker(self) -> u64 {
        match self {
            Self::SmallVm => 65_536,
            Self::Edge | Self::BigEdge => 196_608,
        }
    }
}

/// What the operator said; what they did not say follows from the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// Connections of the whole process.
    pub connections: Option<u64>,
    /// Kind of machine.
    pub profile: Option<Profile>,
    /// Our memory of a connection, in bytes.
    pub user_bytes: Option<u64>,
    /// Connections with data waiting at one moment, of hundred.
    pub busy_percent: Option<u64>,
    /// Workers.
    pub workers: Option<u64>,
    /// Addresses that each worker listens on.
    pub addresses: Option<u64>,
    /// Different TCP addresses of servers; 0: they are reached through Unix sockets.
    pub servers: Option<u64>,
}

/// A plan's aim, with everything filled in.
#[derive(Debug, Clone)]
pub struct Goal<'a> {
    /// The machine.
    pub facts: &'a Facts,
    /// Its kind.
    pub profile: Profile,
    /// Connections of the whole process.
    pub connections: u64,
    /// Whether somebody asked for that number.
    pub asked: bool,
    /// Our memory of a connection, in bytes.
    pub user_bytes: u64,
    /// Connections with data waiting at one moment, of hundred.
    pub busy_percent: u64,
    /// Workers and addresses.
    pub shape: Shape,
    /// Different TCP addresses of servers.
    pub servers: u64,
}

impl<'a> Goal<'a> {
    /// Fills in what was not said.
    pub fn new(facts: &'a Facts, wishes: &Wishes) -> Self {
        let profile = wishes.profile.unwrap_or_else(|| Profile::of(facts));
        let cores = u64::try_from(facts.cpu.cores.len()).unwrap_or(1);
        let workers = wishes.workers.unwrap_or(cores).clamp(1, WORKERS_MAX as u64);
        let count = |number: u64| usize::try_from(number).unwrap_or(WORKERS_MAX);
        let shape =
            Shape { workers: count(workers), addresses: count(wishes.addresses.unwrap_or(1)) };
        let mut goal = Self {
            facts,
            profile,
            connections: 0,
            asked: wishes.connections.is_some(),
            user_bytes: wishes.user_bytes.unwrap_or(USER_BYTES),
            busy_percent: wishes.busy_percent.unwrap_or(BUSY_PERCENT).clamp(1, 100),
            shape,
            servers: wishes.servers.unwrap_or(1),
        };
        goal.connections = wishes.connections.unwrap_or_else(|| {
            let aim = profile.connections_per_worker().saturating_mul(workers);
            // Room for later: a plan that fills the RAM to its last byte is not what was asked for.
            aim.min(goal.ram_connections() / 10 * 9)
        });
        goal
    }

    /// Memory of one connection, in bytes: kernel, ours, and its share of what waits for busy ones.
    /// (A stream whose reader is slow holds a whole send buffer, four times as much.)
    pub fn connection_bytes(&self) -> u64 {
        KERNEL_BYTES + self.user_bytes + RECEIVE_PIECE_BYTES as u64 * self.busy_percent / 100
    }

    /// What is kept for everything else, in bytes: 5 % of RAM and at least 256 MiB, and the
    /// workers' own buffers.
    pub fn reserve_bytes(&self) -> u64 {
        let ram = self.facts.memory.usable_bytes();
        (ram / 20).max(256 << 20) + self.shape.count() * WORKER_BYTES
    }

    /// The least that `tcp_mem` lets TCP queue, in bytes: what the kernel allows by itself.
    fn tcp_mem_least_bytes(&self) -> u64 {
        self.facts
            .number("net.ipv4.tcp_mem")
            .map_or(0, |pages| pages.saturating_mul(PAGE_BYTES))
            .min(self.facts.memory.usable_bytes() / 5)
    }

    /// Connections that RAM holds, beside the reserve and the queues that TCP may have.
    pub fn ram_connections(&self) -> u64 {
        let ram = self.facts.memory.usable_bytes();
        ram.saturating_sub(self.reserve_bytes()).saturating_sub(self.tcp_mem_least_bytes())
            / self.connection_bytes()
    }

    /// RAM that a number of connections needs, in bytes.
    pub fn ram_needed(&self, connections: u64) -> u64 {
        connections
            .saturating_mul(self.connection_bytes())
            .saturating_add(self.reserve_bytes())
            .saturating_add(self.tcp_mem_least_bytes())
    }

    /// Connections of each worker, rounded up.
    pub fn connections_per_worker(&self) -> u32 {
        self.connections.div_ceil(self.shape.count()).try_into().unwrap_or(u32::MAX)
    }

    /// `RLIMIT_NOFILE` of each worker: a tenth more than it needs, rounded up to a power of two.
    pub fn nofile(&self) -> u64 {
        let needed = self.shape.descriptors(self.connections_per_worker());
        needed.saturating_add(needed / 10).max(65_536).next_power_of_two()
    }

    /// `tcp_mem`, in pages: a fifth of RAM, or what connections leave of it.
    pub fn tcp_mem(&self) -> [u64; 3] {
        let ram = self.facts.memory.usable_bytes();
        let left = ram
            .saturating_sub(self.reserve_bytes())
            .saturating_sub(self.connections.saturating_mul(self.connection_bytes()));
        let max = (ram / 5).min(left) / PAGE_BYTES;
        [max / 2, max / 3 * 2, max]
    }

    /// Bytes that TCP holds for one busy connection: what may be unsent, and as much in flight.
    pub fn queued_bytes(&self) -> u64 {
        2 * u64::from(NOT_SENT_BYTES)
    }

    /// Sockets of all connections: the client's, and the server's where it is TCP.
    pub fn sockets(&self) -> u64 {
        self.connections.saturating_mul(if self.servers == 0 { 1 } else { 2 })
    }
}
