//! What a process costs: CPU time and memory, of itself and its children.

use std::fs;
use std::io;
use std::ops::{Add, Sub};
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// What the scheduler gave to processes, and what it made them wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTime {
    /// Time on a CPU, user and system.
    pub used: Duration,
    /// Time runnable but waiting for a CPU, because others had it; of threads that live.
    pub queued: Duration,
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

/// CPU time so far of process `pid`, its threads, and its live children.
///
/// # Errors
/// When there is no such process, or `/proc` does not show it to us.
///
/// # Source
/// `clock_getcpuclockid(3)`, in nanoseconds, which counts threads that have ended, too;
/// `/proc/PID/task/TID/schedstat` (kernel documentation, sched-stats) for the waiting.
pub fn cpu_time(pid: u32) -> io::Result<CpuTime> {
    let mut time = CpuTime::default();
    for pid in family(pid)? {
        let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))?;
        time.used += Duration::from(clock_gettime(clock)?);
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread that has ended since the directory was read waits no more.
            let line = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let queued = line.split_ascii_whitespace().nth(1).and_then(|text| text.parse().ok());
            time.queued += Duration::from_nanos(queued.unwrap_or(0));
        }
    }
    Ok(time)
}

/// Proportional set size of process `pid` and its live children, in bytes: what they share is
/// counted once.
///
/// # Errors
/// When there is no such process, or `/proc` does not show it to us.
///
/// # Source
/// `/proc/PID/smaps_rollup`, `proc_pid_smaps(5)`.
pub fn pss_bytes(pid: u32) -> io::Result<u64> {
    let mut bytes = 0;
    for pid in family(pid)? {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        bytes += kilobytes(&rollup, "Pss:").unwrap_or(0) * 1024;
    }
    Ok(bytes)
}

/// What the kernel's own objects take on this machine, in bytes: slabs (sockets are among them).
///
/// # Source
/// `Slab` of `/proc/meminfo`, `proc_meminfo(5)`.
pub fn kernel_bytes() -> io::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    Ok(kilobytes(&meminfo, "Slab:").unwrap_or(0) * 1024)
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// A process and its live children and theirs (`proc_tid_children(5)`).
///
/// # Errors
/// When there is no such process, or `/proc` does not show it to us.
pub fn family(pid: u32) -> io::Result<Vec<u32>> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
            Ok(tasks) => tasks,
            Err(error) if next == 1 => return Err(error),
            // A child that has ended meanwhile.
            Err(_) => continue,
        };
        for task in tasks {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            all.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn this_process_uses_time_and_memory() {
        let before = cpu_time(std::process::id()).expect("own time");
        let mut sum = 0_u64;
        for number in 0..20_000_000_u64 {
            sum = std::hint::black_box(sum ^ number);
        }
        let spent = cpu_time(std::process::id()).expect("own time") - before;
        assert!(spent.used > Duration::from_millis(1), "{spent:?}");
        assert!(pss_bytes(std::process::id()).expect("own memory") > 100_000);
        assert!(kernel_bytes().expect("slabs") > 100_000);
    }

    #[test]
    fn children_are_of_the_family_and_the_dead_are_not() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        let pid = child.id();
        assert!(family(std::process::id()).expect("family").contains(&pid));
        child.kill().expect("killed");
        child.wait().expect("waited");
        assert!(cpu_time(pid).is_err());
    }
}
