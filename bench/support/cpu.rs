//! Which CPUs the two sides of a benchmark run on.

use std::fs;
use std::thread;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portcullis::control::topology;

use super::Result;

/// Which CPUs the process under test and everything else run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The CPUs of the process under test, one for each worker.
    pub(crate) server: Vec<usize>,
    /// The CPUs of clients and origin: no more than the server's, none of them where there are
    /// enough, and all that we may use where there is no other left.
    pub(crate) clients: Vec<usize>,
}

impl Placement {
    /// For each of `workers` a core of its own, as long as there are cores; clients and origin on
    /// others, and only if there are none on the hyperthreads of the server's cores. To be called
    /// before [`pin`], which narrows what we may use.
    ///
    /// # Errors
    /// We may use fewer CPUs than there are workers.
    pub(crate) fn choose(workers: usize) -> Result<Self> {
        let allowed = topology::allowed()?;
        let mut cpus = allowed.clone();
        if workers == 0 || workers > cpus.len() {
            return Err(format!("{workers} workers on {} CPUs", cpus.len()).into());
        }
        // Of each core's hardware threads that we may use the first one first; the sort is stable.
        cpus.sort_by_key(|&cpu| {
            siblings(cpu).into_iter().any(|one| one < cpu && allowed.contains(&one))
        });
        let (server, others) = cpus.split_at(workers);
        let is_sibling = |cpu: &usize| siblings(*cpu).iter().any(|one| server.contains(one));
        let mut clients: Vec<usize> =
            others.iter().copied().filter(|cpu| !is_sibling(cpu)).take(workers).collect();
        if clients.is_empty() {
            clients = others.iter().copied().take(workers).collect();
        }
        if clients.is_empty() {
            clients = server.to_vec();
        }
        Ok(Self { server: server.to_vec(), clients })
    }

    /// One sentence for the head of a table.
    pub(crate) fn describe(&self) -> String {
        let (server, clients) = (list(&self.server), list(&self.clients));
        if self.server == self.clients {
            return format!(
                "{}everything on CPU {server}: no other is allowed, so server and clients are NOT \
                 on disjoint CPUs; expect noise from cache misses, and no more parallel work",
                self.workers(),
            );
        }
        let is_shared = |cpu: &usize| siblings(*cpu).iter().any(|one| self.server.contains(one));
        let shared =
            if self.clients.iter().any(is_shared) { ", HYPERTHREADS of its cores" } else { "" };
        let fewer = if self.clients.len() < self.server.len() {
            "; FEWER than the server's, which may be too few to keep it busy"
        } else {
            ""
        };
        format!(
            "{}server on CPU {server}, clients and origin on CPU {clients}{shared}{fewer}",
            self.workers(),
        )
    }

    /// How many workers, where it is not one.
    fn workers(&self) -> String {
        match self.server.len() {
            1 => String::new(),
            count => format!("{count} workers: "),
        }
    }
}

/// CPU numbers as taskset(1) writes them.
pub(crate) fn list(cpus: &[usize]) -> String {
    cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// CPU numbers as bits, the last digit for CPU 0.
pub(crate) fn mask(cpus: &[usize]) -> String {
    let last = cpus.iter().max().copied().unwrap_or(0);
    (0..=last).rev().map(|cpu| if cpus.contains(&cpu) { '1' } else { '0' }).collect()
}

/// CPUs of the same physical core, `cpu` included where the kernel says.
fn siblings(cpu: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    let mut cpus = vec![cpu];
    for range in fs::read_to_string(path).unwrap_or_default().trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

/// Pins the calling thread, and what it starts from now on, to `cpus`.
pub(crate) fn pin(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Has each of `crowds` act, in a thread of its own on its own CPU, and waits for all. They are
/// told which of them they are.
///
/// # Errors
/// The first that failed, in their order.
pub(crate) fn on_each<T: Send, R: Send>(
    crowds: &mut [(usize, T)],
    act: impl Fn(u64, &mut T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let act = &act;
    thread::scope(|scope| {
        let running: Vec<_> = (0..)
            .zip(crowds)
            .map(|(at, (cpu, crowd))| {
                scope.spawn(move || pin(&[*cpu]).and_then(|()| act(at, crowd)))
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| "a client's thread panicked")?)
            .collect()
    })
}
