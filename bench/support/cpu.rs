//! CPU time of a process tree, and which CPUs the two sides of a benchmark run on.

use std::fs;
use std::iter::Sum;
use std::ops::{Add, Sub};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::Result;

/// What the scheduler gave to a process, and what it made it wait.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CpuTime {
    /// Time on a CPU, user and system.
    pub(crate) used: Duration,
    /// Time runnable but waiting for the CPU, because others had it.
    pub(crate) queued: Duration,
}

impl Add for CpuTime {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { used: self.used + other.used, queued: self.queued + other.queued }
    }
}

impl Sub for CpuTime {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            used: self.used.saturating_sub(before.used),
            queued: self.queued.saturating_sub(before.queued),
        }
    }
}

impl Sum for CpuTime {
    fn sum<I: Iterator<Item = Self>>(times: I) -> Self {
        times.fold(Self::default(), Add::add)
    }
}

/// CPU time so far of process `pid`, of all its live threads, and of its live children.
///
/// # Source
/// `/proc/PID/task/TID/schedstat`, in nanoseconds (kernel documentation, sched-stats): finer than
/// the clock ticks of `proc_pid_stat(5)`. Children from `proc_tid_children(5)`.
pub(crate) fn of_process(pid: u32) -> Result<CpuTime> {
    let mut time = CpuTime::default();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // A thread that ended since the directory was read has nothing to say any more.
        let Ok(line) = fs::read_to_string(task.join("schedstat")) else {
            continue;
        };
        let mut fields =
            line.split_ascii_whitespace().map(str::parse).map_while(std::result::Result::ok);
        time.used += Duration::from_nanos(fields.next().unwrap_or(0));
        time.queued += Duration::from_nanos(fields.next().unwrap_or(0));
        let children = fs::read_to_string(task.join("children")).unwrap_or_default();
        for child in children.split_ascii_whitespace() {
            time = time + of_process(child.parse()?)?;
        }
    }
    Ok(time)
}

/// Which CPUs the process under test and everything else run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The CPU of the process under test.
    pub(crate) server: usize,
    /// The CPU of clients and origin.
    pub(crate) clients: usize,
}

impl Placement {
    /// The first CPU we may use, and the first other one that is not its hyperthread.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let cpus: Vec<usize> =
            (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true)).collect();
        let server = *cpus.first().ok_or("no CPU allowed")?;
        let siblings = siblings(server);
        let clients = cpus
            .iter()
            .find(|cpu| !siblings.contains(cpu))
            .or_else(|| cpus.get(1))
            .unwrap_or(&server);
        Ok(Self { server, clients: *clients })
    }

    /// One sentence for the head of a table.
    pub(crate) fn describe(self) -> String {
        let Self { server, clients } = self;
        if server == clients {
            return format!(
                "everything on CPU {server}: only one is allowed; expect noise from cache misses \
                 and no parallel work"
            );
        }
        let shared =
            if siblings(server).contains(&clients) { ", HYPERTHREADS of one core" } else { "" };
        format!("server on CPU {server}, clients and origin on CPU {clients}{shared}")
    }
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

/// Pins the calling thread, and what it starts from now on, to `cpu`.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
