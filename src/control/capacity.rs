//! How many connections fit: what the kernel lets this process hold, and what bites first.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config;
use crate::limits::CONNECTIONS_PER_WORKER_MAX;

/// Connections per worker with `"auto"`, at most: what a core can serve, and a table of moderate
/// size. Who wants to hold more says so.
pub const AUTO_CONNECTIONS_MAX: u32 = 65_536;

/// Descriptors of one connection: the client's socket and the server's.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 2;

/// Descriptors of a worker besides its connections: ring, mailbox, listeners, logs.
pub const DESCRIPTORS_RESERVED: u64 = 64;

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
    /// Not even one connection fits.
    #[error(
        "the descriptor limit of {nofile} leaves no room for a connection; raise it \
         (LimitNOFILE=65536 in the systemd unit, or `ulimit -Hn 65536` as root)"
    )]
    Nothing {
        /// `RLIMIT_NOFILE`, hard.
        nofile: u64,
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
pub fn connections_per_worker(
    limits: &config::Limits,
    workers: usize,
) -> Result<u32, CapacityError> {
    fit(limits, workers, grants()?)
}

/// What the kernel grants, after raising what we may raise.
///
/// # Errors
/// getrlimit(2)'s and setrlimit(2)'s.
pub fn grants() -> Result<Grants, CapacityError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(Grants {
        nofile: hard,
        nr_open: sysctl("fs/nr_open").unwrap_or(1_048_576),
        file_max: sysctl("fs/file-max").unwrap_or(u64::MAX),
    })
}

/// A sysctl's first number; `None` where /proc does not show it.
pub fn sysctl(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// Connections of one worker for that many descriptors.
fn connections_for(descriptors: u64) -> u32 {
    let connections = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CONNECTION;
    u32::try_from(connections).unwrap_or(u32::MAX).min(CONNECTIONS_PER_WORKER_MAX)
}

fn fit(limits: &config::Limits, workers: usize, grants: Grants) -> Result<u32, CapacityError> {
    let workers_count = u64::try_from(workers.max(1)).unwrap_or(u64::MAX);
    let by_nofile = connections_for(grants.nofile);
    let by_files = connections_for(grants.file_max / workers_count);
    let fits = by_nofile.min(by_files);
    if fits == 0 {
        return Err(CapacityError::Nothing { nofile: grants.nofile });
    }
    let Some(wanted) = limits.connections_per_worker else {
        return Ok(fits.min(AUTO_CONNECTIONS_MAX));
    };
    let needed = u64::from(wanted) * DESCRIPTORS_PER_CONNECTION + DESCRIPTORS_RESERVED;
    if wanted > by_nofile {
        let nr_open = if needed > grants.nr_open {
            format!(" after sysctl -w fs.nr_open={needed}")
        } else {
            String::new()
        };
        return Err(CapacityError::Descriptors {
            wanted,
            needed,
            granted: grants.nofile,
            nr_open,
            fits,
        });
    }
    if wanted > by_files {
        return Err(CapacityError::Files {
            wanted,
            workers,
            needed: needed.saturating_mul(workers_count),
            granted: grants.file_max,
            fits,
        });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANTS: Grants = Grants { nofile: 20_064, nr_open: 1_048_576, file_max: 1_000_000 };

    fn limits(connections_per_worker: Option<u32>) -> config::Limits {
        config::Limits { connections_per_worker, client_hello_bytes: 16_384 }
    }

    #[test]
    fn auto_takes_what_the_descriptors_allow() {
        assert_eq!(fit(&limits(None), 2, GRANTS), Ok(10_000));
        let wide = Grants { nofile: 1 << 30, nr_open: 1 << 30, file_max: u64::MAX };
        assert_eq!(fit(&limits(None), 2, wide), Ok(AUTO_CONNECTIONS_MAX));
        let few_files = Grants { file_max: 2 * 264, ..GRANTS };
        assert_eq!(fit(&limits(None), 2, few_files), Ok(100));
    }

    #[test]
    fn a_number_that_fits_is_taken_as_it_is() {
        assert_eq!(fit(&limits(Some(10_000)), 2, GRANTS), Ok(10_000));
        assert_eq!(fit(&limits(Some(1)), 1024, GRANTS), Ok(1));
    }

    #[test]
    fn a_number_that_does_not_fit_names_the_cure_and_what_would() {
        let error = fit(&limits(Some(10_001)), 2, GRANTS).expect_err("one too many");
        let shown = error.to_string();
        assert!(shown.contains("LimitNOFILE=20066"), "{shown}");
        assert!(shown.contains("at most 10000"), "{shown}");
        assert!(!shown.contains("nr_open"), "{shown}");
        let error = fit(&limits(Some(524_288)), 2, GRANTS).expect_err("beyond nr_open");
        assert!(error.to_string().contains("fs.nr_open=1048640"), "{error}");
        let error = fit(&limits(Some(10_000)), 100, GRANTS).expect_err("too many files");
        assert!(error.to_string().contains("fs.file-max=2006400"), "{error}");
    }

    #[test]
    fn no_room_at_all_is_an_error_even_for_auto() {
        let grants = Grants { nofile: 65, ..GRANTS };
        let error = fit(&limits(None), 1, grants).expect_err("nothing fits");
        assert!(error.to_string().contains("65"), "{error}");
    }

    #[test]
    fn soft_limit_is_raised_to_the_hard_one() {
        connections_per_worker(&limits(None), 1).expect("fits");
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("readable");
        assert_eq!(soft, hard);
    }
}
