//! Asking the kernel what it has dropped before it came to us: once a second, and for each scrape.
//!
//! A client that finds a listening socket's queue full gets no answer at all, and no worker ever
//! hears of it. The kernel counts it, of each socket by itself (`sock_diag`) and in sum for the
//! network namespace (`/proc/net/netstat`).

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::config::Listener;
use crate::limits::FAILURE_SUMMARY_INTERVAL;
use crate::sys::sock_diag;
use crate::telemetry::exposition::Process;
use crate::telemetry::kernel::{Kernel, Socket};
use crate::telemetry::log::Sampled;
use crate::worker::Bind;

use super::supervisor::Supervisor;

const NETSTAT: &str = "/proc/net/netstat";

/// Reads what the kernel counts now into `kernel`.
///
/// # Errors
/// What could not be read keeps its value.
pub fn refresh(kernel: &Kernel) -> io::Result<()> {
    kernel.read_netstat(&std::fs::read_to_string(NETSTAT)?);
    if kernel.sockets().is_empty() {
        return Ok(());
    }
    let found = sock_diag::listeners()?;
    for socket in kernel.sockets() {
        let now = found.iter().find(|found| found.inode == socket.inode);
        // A socket that is closed takes its counter with it; ours goes on.
        socket.waiting.set(now.map_or(0, |now| u64::from(now.waiting)));
        socket.backlog.set(now.map_or(0, |now| u64::from(now.backlog)));
        if let Some(drops) = now.and_then(|now| now.drops) {
            socket.drops.set(u64::from(drops));
        }
    }
    Ok(())
}

/// What was seen before, and is told in the log.
#[derive(Debug)]
pub struct Watch {
    process: Arc<Process>,
    listeners: Vec<Seen>,
    /// That the kernel cannot be asked was told.
    failed: bool,
}

#[derive(Debug)]
struct Seen {
    listener: String,
    drops: u64,
    sampled: Sampled,
}

/// Connection attempts that the kernel has dropped at a listener since the last such line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dropped {
    listener: String,
    count: u64,
    /// Of one of its sockets, that with the longest queue.
    waiting: u64,
    backlog: u64,
}

impl Watch {
    /// Watches the listening sockets of `process`, whose workers have made them.
    pub fn begin(
        process: &Arc<Process>,
        listeners: &[Listener],
        binds: &[Bind],
        workers: &Supervisor,
    ) -> Self {
        Self::of(Arc::clone(process), listeners, binds, workers.sockets())
    }

    /// `inodes` are by worker, and in the order of `binds`.
    fn of<'a>(
        process: Arc<Process>,
        listeners: &[Listener],
        binds: &[Bind],
        inodes: impl Iterator<Item = &'a [u32]>,
    ) -> Self {
        let mut sockets = Vec::new();
        for (worker, inodes) in (0..).zip(inodes) {
            for (bind, inode) in binds.iter().zip(inodes) {
                let Some(listener) = listeners.get(usize::from(bind.listener)) else {
                    continue;
                };
                let name = listener.name.clone();
                sockets.push(Socket::new(name, worker, bind.address, *inode));
            }
        }
        process.kernel.set_sockets(sockets);
        let seen = |listener: &Listener| Seen {
            listener: listener.name.clone(),
            drops: 0,
            sampled: Sampled::new(FAILURE_SUMMARY_INTERVAL),
        };
        Self { process, listeners: listeners.iter().map(seen).collect(), failed: false }
    }

    /// Asks the kernel, and logs what it has dropped since.
    pub fn look(&mut self, now: Instant) {
        if let Err(error) = refresh(&self.process.kernel)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(
                "the kernel does not tell what it drops before accept ({error}): \
                 portcullis_listener_* and portcullis_kernel_* stand still"
            );
        }
        for dropped in self.dropped(now) {
            tracing::warn!("{dropped}");
        }
    }

    fn dropped(&mut self, now: Instant) -> Vec<Dropped> {
        let kernel = &self.process.kernel;
        let mut told = Vec::new();
        for seen in &mut self.listeners {
            let own = || kernel.sockets().iter().filter(|one| one.listener == seen.listener);
            let drops: u64 = own().map(|socket| socket.drops.get()).sum();
            let grown = drops - seen.drops.min(drops);
            seen.drops = drops;
            let Some(count) = seen.sampled.add(grown, now) else {
                continue;
            };
            let fullest = own().max_by_key(|socket| socket.waiting.get());
            told.push(Dropped {
                listener: seen.listener.clone(),
                count,
                waiting: fullest.map_or(0, |socket| socket.waiting.get()),
                backlog: fullest.map_or(0, |socket| socket.backlog.get()),
            });
        }
        told
    }
}

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { listener, count, waiting, backlog } = self;
        write!(
            f,
            "listener {listener}: the kernel has dropped {count} connection attempt(s) before we \
             could accept them; {waiting} wait now in its fullest queue, which holds {backlog}. \
             Clients try again after a second or more. Add workers or cores, or see who floods \
             you; for bursts raise listener.backlog and net.core.somaxconn (and, where \
             net.ipv4.tcp_syncookies is 0, net.ipv4.tcp_max_syn_backlog) (at most one line in \
             {FAILURE_SUMMARY_INTERVAL:?})"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn drops_are_told_by_listener_in_samples() {
        let directory = tempfile::tempdir().unwrap();
        let listeners = crate::control::tests::config(directory.path()).listeners;
        let bind = |port: u16| Bind {
            listener: 0,
            address: ([127, 0, 0, 1], port).into(),
            backlog: 5,
            defer_accept: None,
        };
        let process = Arc::new(Process::new(2, SystemTime::now()));
        let inodes: [&[u32]; 2] = [&[11, 12], &[21, 22]];
        let binds = [bind(443), bind(8443)];
        let mut watch = Watch::of(process, &listeners, &binds, inodes.into_iter());
        let kernel = |watch: &Watch, at: usize, drops| {
            let socket = &watch.process.kernel.sockets()[at];
            socket.drops.set(drops);
            socket.waiting.set(drops);
            socket.backlog.set(5);
            (socket.worker, socket.address.port(), socket.inode)
        };
        let start = Instant::now();
        assert_eq!(watch.dropped(start), []);
        assert_eq!(kernel(&watch, 1, 2), (0, 8443, 12));
        assert_eq!(kernel(&watch, 2, 3), (1, 443, 21));
        let dropped =
            |count, waiting| [Dropped { listener: "https".into(), count, waiting, backlog: 5 }];
        let told = watch.dropped(start);
        assert_eq!(told, dropped(5, 3));
        let text = told[0].to_string();
        for part in ["listener https", "5 connection attempt(s)", "3 wait", "holds 5", "somaxconn"]
        {
            assert!(text.contains(part), "{part} not in: {text}");
        }
        kernel(&watch, 1, 7);
        assert_eq!(watch.dropped(start + Duration::from_secs(9)), []);
        assert_eq!(watch.dropped(start + Duration::from_secs(10)), dropped(5, 7));
    }
}
