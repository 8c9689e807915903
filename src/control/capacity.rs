//! How many connections fit: what the kernel lets this process hold, and what bites first.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::{self, Config};
use crate::limits::{ACCEPTS_ARMED, CONNECTIONS_PER_WORKER_MAX};

/// Connections per worker with `"auto"`, at most: what a core can serve, and a table of moderate
/// size. Who wants to hold more says so.
pub const AUTO_CONNECTIONS_MAX: u32 = 65_536;

/// Descriptors of one connection: the client's socket and the server's.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 2;

/// Descriptors of a listening address: each accept armed on it has a connection's place ready.
pub const DESCRIPTORS_PER_ADDRESS: u64 = ACCEPTS_ARMED as u64 * DESCRIPTORS_PER_CONNECTION;

/// Descriptors of a worker besides those: ring, mailbox, listeners, logs.
pub const DESCRIPTORS_RESERVED: u64 = 64;

/// Direct descriptors of one ring, at most (`IORING_MAX_FIXED_FILES`).
pub const RING_DESCRIPTORS_MAX: u64 =
    CONNECTIONS_PER_WORKER_MAX as u64 * DESCRIPTORS_PER_CONNECTION;

/// What descriptors are needed for besides connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Workers.
    pub workers: usize,
    /// Addresses that each of them listens on.
    pub addresses: usize,
}

impl Shape {
    /// So many workers for this configuration.
    pub fn new(config: &Config, workers: usize) -> Self {
        let addresses = config.listeners.iter().map(|listener| listener.bind.len()).sum();
        Self { workers, addresses }
    }

    /// Descriptors of a worker without a connection.
    fn idle_descriptors(self) -> u64 {
        let addresses = u64::try_from(self.addresses).unwrap_or(u64::MAX);
        addresses.saturating_mul(DESCRIPTORS_PER_ADDRESS).saturating_add(DESCRIPTORS_RESERVED)
    }

    /// Descriptors that a worker with so many connections needs.
    pub fn descriptors(self, connections: u32) -> u64 {
        let connections = u64::from(connections) * DESCRIPTORS_PER_CONNECTION;
        self.idle_descriptors().saturating_add(connections)
    }

    /// Connections that a worker with so many descriptors can hold.
    pub fn connections(self, descriptors: u64) -> u64 {
        descriptors.saturating_sub(self.idle_descriptors()) / DESCRIPTORS_PER_CONNECTION
    }

    /// Workers, at least one.
    pub fn count(self) -> u64 {
        u64::try_from(self.workers.max(1)).unwrap_or(u64::MAX)
    }
}

/// What the kernel grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grants {
    /// `RLIMIT_NOFILE`, hard: descriptors of one worker. Its table of direct descriptors has the
    /// same bound (`io_uring_register(2)`, `IORING_REGISTER_FILES`).
    pub nofile: u64,
    /// `fs.nr_open`: what `RLIMIT_NOFILE` can be raised to.
    pub nr_open: u64,
    /// `fs.file-max`: open files of the whole machine.
    pub file_max: u64,
}

/// Why the connections asked for do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// `RLIMIT_NOFILE` is too low.
    #[error(
        "limits.connections_per_worker = {wanted} needs {needed} descriptors per worker, but the \
         limit is {granted}; raise it (LimitNOFILE={needed} in the systemd unit, or `ulimit -Hn \
         {needed}` as root){nr_open}, or write at most {fits}"
    )]
    Descriptors {
        /// Connections configured.
        wanted: u32,
        /// Descriptors they need.
        needed: u64,
        /// `RLIMIT_NOFILE`, hard.
        granted: u64,
        /// What to raise besides, if anything.
        nr_open: String,
        /// Connections that would fit.
        fits: u32,
    },
    /// `fs.file-max` is too low.
    #[error(
        "limits.connections_per_worker = {wanted} on {workers} workers needs {needed} open files, \
         but the machine's limit is {granted}; raise it (sysctl -w fs.file-max={needed}), or write \
         at most {fits}"
    )]
    Files {
        /// Connections configured.
        wanted: u32,
        /// Workers.
        workers: usize,
        /// Open files they need.
        needed: u64,
        /// `fs.file-max`.
        granted: u64,
        /// Connections that would fit.
        fits: u32,
    },
    /// A ring's table of descriptors is too small.
    #[error(
        "limits.connections_per_worker = {wanted} is more than one io_uring holds beside \
         {addresses} listening address(es): write at most {fits}"
    )]
    Ring {
        /// Connections configured.
        wanted: u32,
        /// Addresses that each worker listens on.
        addresses: usize,
        /// Connections that would fit.
        fits: u32,
    },
    /// Not even one connection fits.
    #[error(
        "the descriptor limit of {nofile} leaves no room for a connection: a worker with \
         {addresses} listening address(es) needs {needed} descriptors without one; raise it \
         (LimitNOFILE=65536 in the systemd unit, or `ulimit -Hn 65536` as root)"
    )]
    Nothing {
        /// `RLIMIT_NOFILE`, hard.
        nofile: u64,
        /// Addresses that each worker listens on.
        addresses: usize,
        /// Descriptors of a worker without a connection.
        needed: u64,
    },
    /// The limits cannot be read or raised.
    #[error("cannot read or raise the descriptor limit: {0}")]
    Limits(#[from] nix::Error),
}

/// Connections of each worker's table. Raises the soft `RLIMIT_NOFILE` to the hard one, which
/// needs no privilege (getrlimit(2)).
///
/// # Errors
/// A configured number does not fit; the error names the cure.
pub fn connections_per_worker(limits: &config::Limits, shape: Shape) -> Result<u32, CapacityError> {
    fit(limits, shape, grants()?)
}

/// What the kernel grants, after raising what we may raise.
///
/// # Errors
/// getrlimit(2)'s and setrlimit(2)'s.
pub fn grants() -> Result<Grants, CapacityError> {
    Ok(Grants {
        nofile: raise_descriptor_limit()?,
        nr_open: sysctl("fs/nr_open").unwrap_or(1_048_576),
        file_max: sysctl("fs/file-max").unwrap_or(u64::MAX),
    })
}

/// Raises the soft limit of open files to the hard one, which costs nothing; returns it.
///
/// # Errors
/// getrlimit(2)'s and setrlimit(2)'s.
pub fn raise_descriptor_limit() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// A sysctl's first number; `None` where /proc does not show it.
pub fn sysctl(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn fit(limits: &config::Limits, shape: Shape, grants: Grants) -> Result<u32, CapacityError> {
    let connections =
        |descriptors| u32::try_from(shape.connections(descriptors)).unwrap_or(u32::MAX);
    let by_nofile = connections(grants.nofile);
    let by_files = connections(grants.file_max / shape.count());
    let by_ring = connections(RING_DESCRIPTORS_MAX.saturating_add(DESCRIPTORS_RESERVED));
    let fits = by_nofile.min(by_files).min(by_ring);
    let addresses = shape.addresses;
    if fits == 0 {
        let needed = shape.idle_descriptors();
        return Err(CapacityError::Nothing { nofile: grants.nofile, addresses, needed });
    }
    let Some(wanted) = limits.connections_per_worker else {
        return Ok(fits.min(AUTO_CONNECTIONS_MAX));
    };
    if wanted <= fits {
        return Ok(wanted);
    }
    let needed = shape.descriptors(wanted);
    Err(if wanted > by_ring {
        CapacityError::Ring { wanted, addresses, fits }
    } else if wanted > by_nofile {
        let nr_open = if needed > grants.nr_open {
            format!(" after sysctl -w fs.nr_open={needed}")
        } else {
            String::new()
        };
        CapacityError::Descriptors { wanted, needed, granted: grants.nofile, nr_open, fits }
    } else {
        CapacityError::Files {
            wanted,
            workers: shape.workers,
            needed: needed.saturating_mul(shape.count()),
            granted: grants.file_max,
            fits,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANTS: Grants = Grants { nofile: 20_064, nr_open: 1_048_576, file_max: 1_000_000 };

    fn limits(connections_per_worker: Option<u32>) -> config::Limits {
        config::Limits { connections_per_worker, ..config::Limits::default() }
    }

    fn workers(workers: usize) -> Shape {
        Shape { workers, addresses: 0 }
    }

    #[test]
    fn auto_takes_what_the_descriptors_allow() {
        assert_eq!(fit(&limits(None), workers(2), GRANTS), Ok(10_000));
        let wide = Grants { nofile: 1 << 30, nr_open: 1 << 30, file_max: u64::MAX };
        assert_eq!(fit(&limits(None), workers(2), wide), Ok(AUTO_CONNECTIONS_MAX));
        let few_files = Grants { file_max: 2 * 264, ..GRANTS };
        assert_eq!(fit(&limits(None), workers(2), few_files), Ok(100));
    }

    /// The kernel refuses a table of direct descriptors above `RLIMIT_NOFILE`.
    #[test]
    fn a_workers_whole_table_fits_however_many_addresses_it_listens_on() {
        for addresses in [1, 2, 3, 10, 100] {
            let fits = fit(&limits(None), Shape { workers: 1, addresses }, GRANTS).expect("fits");
            let table = u64::from(crate::worker::slots(fits, addresses)) * 2;
            assert!(table <= GRANTS.nofile, "{addresses}: {table}");
            assert!(table + DESCRIPTORS_RESERVED + 2 > GRANTS.nofile, "{addresses}: wastes some");
        }
    }

    #[test]
    fn a_number_that_fits_is_taken_as_it_is() {
        assert_eq!(fit(&limits(Some(10_000)), workers(2), GRANTS), Ok(10_000));
        assert_eq!(fit(&limits(Some(1)), workers(1024), GRANTS), Ok(1));
    }

    #[test]
    fn a_number_that_does_not_fit_names_the_cure_and_what_would() {
        let error = fit(&limits(Some(10_001)), workers(2), GRANTS).expect_err("one too many");
        let shown = error.to_string();
        assert!(shown.contains("LimitNOFILE=20066"), "{shown}");
        assert!(shown.contains("at most 10000"), "{shown}");
        assert!(!shown.contains("nr_open"), "{shown}");
        let error = fit(&limits(Some(524_288)), workers(2), GRANTS).expect_err("beyond nr_open");
        assert!(error.to_string().contains("fs.nr_open=1048640"), "{error}");
        let error = fit(&limits(Some(10_000)), workers(100), GRANTS).expect_err("too many files");
        assert!(error.to_string().contains("fs.file-max=2006400"), "{error}");
    }

    #[test]
    fn a_ring_holds_accepts_besides_connections() {
        let wide = Grants { nofile: 1 << 30, nr_open: 1 << 30, file_max: u64::MAX };
        let shape = Shape { workers: 1, addresses: 2 };
        let most = CONNECTIONS_PER_WORKER_MAX - 2 * ACCEPTS_ARMED;
        assert_eq!(fit(&limits(Some(most)), shape, wide), Ok(most));
        let error = fit(&limits(Some(most + 1)), shape, wide).expect_err("one too many");
        assert!(error.to_string().contains(&format!("at most {most}")), "{error}");
    }

    #[test]
    fn no_room_at_all_is_an_error_even_for_auto() {
        let grants = Grants { nofile: 97, ..GRANTS };
        let shape = Shape { workers: 1, addresses: 1 };
        let error = fit(&limits(None), shape, grants).expect_err("nothing fits");
        assert!(error.to_string().contains("limit of 97"), "{error}");
        assert!(error.to_string().contains("needs 96"), "{error}");
    }

    #[test]
    fn soft_limit_is_raised_to_the_hard_one() {
        connections_per_worker(&limits(None), workers(1)).expect("fits");
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("readable");
        assert_eq!(soft, hard);
    }
}
