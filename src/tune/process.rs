//! A Portcullis that runs: its real limits, its listeners' queues, and where its workers are.

use std::fs;

use serde::Serialize;

use super::detect::Facts;
use super::detect::cpu;
use super::detect::kernel::Limits;
use super::goal::Goal;
use super::root::Root;
use crate::sys::probe::memory_needed;
use crate::sys::sock_diag;

/// What is to be said about one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    /// Its id.
    pub pid: u32,
    /// Its limits.
    pub limits: Limits,
    /// Its workers' CPUs, as taskset(1) writes them, in order.
    pub workers: Vec<String>,
    /// Its listening addresses: each with its number of sockets and the shortest queue among them.
    pub listeners: Vec<Listening>,
    /// What stops the plan, with its cure.
    pub problems: Vec<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// One address of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listening {
    /// Where.
    pub address: String,
    /// Sockets: one for each worker.
    pub sockets: usize,
    /// The shortest queue that one of them may have.
    pub backlog: u32,
    /// Connections that wait in all of them.
    pub waiting: u32,
}

/// Processes that serve: the one named, or all that look like it and have our network settings.
pub fn find(root: &Root, pid: Option<u32>) -> Vec<u32> {
    if let Some(pid) = pid {
        return vec![pid];
    }
    let serves = |pid: &u32| {
        let command = root.text(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split('\0');
        let program = words.next().unwrap_or_default();
        program.rsplit('/').next() == Some("portcullis")
            && words.next().is_some_and(|word| word == "run" || word == "demo")
            && !is_elsewhere(root, *pid)
    };
    root.names("/proc").iter().filter_map(|name| name.parse().ok()).filter(serves).collect()
}

/// Whether a process is in another network namespace. One that we may not ask counts as ours.
fn is_elsewhere(root: &Root, pid: u32) -> bool {
    let theirs = network_namespace(root, &pid.to_string());
    theirs.is_some() && theirs != network_namespace(root, "self")
}

fn network_namespace(root: &Root, who: &str) -> Option<std::path::PathBuf> {
    fs::read_link(root.path(&format!("/proc/{who}/ns/net"))).ok()
}

/// Looks at one process; `None`: there is none of this id.
pub fn look(root: &Root, pid: u32, goal: &Goal<'_>) -> Option<Running> {
    let limits = Limits::parse(&root.text(&format!("/proc/{pid}/limits"))?);
    let mut running = Running {
        pid,
        limits,
        workers: Vec::new(),
        listeners: Vec::new(),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    let cpus = workers(root, pid);
    judge_limits(&mut running, goal, cpus.len());
    running.workers = cpus.iter().map(|cpus| crate::control::topology::show_cpus(cpus)).collect();
    judge_affinity(&mut running, goal.facts, &cpus);
    if root.is_live() {
        judge_listeners(&mut running, root, goal.facts);
    }
    Some(running)
}

fn judge_limits(running: &mut Running, goal: &Goal<'_>, workers: usize) {
    let needed = goal.shape.descriptors(goal.connections_per_worker());
    if let Some(limit) = running.limits.nofile
        && limit < needed
    {
        let told = format!(
            "its limit of {limit} descriptors per worker is less than the {needed} that the plan \
             needs: LimitNOFILE={} in the unit, and restart it",
            goal.nofile()
        );
        // A number that nobody asked for is no measure of what runs.
        if goal.asked { &mut running.problems } else { &mut running.notes }.push(told);
    }
    let rings = memory_needed(workers.max(goal.shape.workers));
    if let Some(limit) = running.limits.memlock
        && limit < rings
    {
        running.notes.push(format!(
            "its rings take {} KiB where the kernel counts locked memory, and it may lock {} KiB: \
             LimitMEMLOCK=infinity in the unit",
            rings / 1024,
            limit / 1024
        ));
    }
}

/// CPUs that each worker's thread may use, by the thread's name.
fn workers(root: &Root, pid: u32) -> Vec<Vec<usize>> {
    let tasks = format!("/proc/{pid}/task");
    let worker = |task: &String| {
        let name = root.text(&format!("{tasks}/{task}/comm"))?;
        let number: u32 = name.strip_prefix("worker-")?.parse().ok()?;
        let status = root.text(&format!("{tasks}/{task}/status"))?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some((number, cpu::list(list.trim())))
    };
    let mut found: Vec<_> = root.names(&tasks).iter().filter_map(worker).collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, cpus)| cpus).collect()
}

/// Compares workers' CPUs with those that queues interrupt.
fn judge_affinity(running: &mut Running, facts: &Facts, workers: &[Vec<usize>]) {
    if workers.is_empty() {
        running.notes.push("it has no worker thread: is it Portcullis, and ready?".to_owned());
        return;
    }
    let pinned: Vec<usize> = workers
        .iter()
        .filter_map(|cpus| match cpus.as_slice() {
            [cpu] => Some(*cpu),
            _ => None,
        })
        .collect();
    if pinned.len() < workers.len() {
        running.notes.push(format!(
            "{} of {} workers are not pinned to one CPU",
            workers.len() - pinned.len(),
            workers.len()
        ));
    }
    for nic in facts.nics.iter().filter(|nic| !nic.irqs.is_empty()) {
        let fixed: Vec<usize> = nic
            .irqs
            .iter()
            .filter_map(|irq| match irq.cpus.as_slice() {
                [cpu] => Some(*cpu),
                _ => None,
            })
            .collect();
        let served = pinned.iter().filter(|cpu| fixed.contains(cpu)).count();
        running.notes.push(format!(
            "{served} of {} workers are on a CPU that a queue of {} interrupts; {} of {} \
             interrupts are fixed to one CPU{}",
            workers.len(),
            nic.name,
            fixed.len(),
            nic.irqs.len(),
            if served < workers.len().min(nic.irqs.len()) {
                ": see portcullis-nic@.service"
            } else {
                ""
            }
        ));
    }
}

fn judge_listeners(running: &mut Running, root: &Root, facts: &Facts) {
    let pid = running.pid;
    if network_namespace(root, &pid.to_string()).is_none() {
        running
            .notes
            .push("its listeners can be seen by root only, as it hides its memory".to_owned());
        return;
    }
    if is_elsewhere(root, pid) {
        running.problems.push(format!(
            "it is in another network namespace, whose settings are its own: nsenter -t {pid} -n \
             portcullis tune verify"
        ));
        return;
    }
    let all = match sock_diag::listeners() {
        Ok(all) => all,
        Err(error) => {
            running.notes.push(format!("listeners cannot be asked for: {error}"));
            return;
        }
    };
    let inodes = inodes(root, pid);
    for listener in all.iter().filter(|listener| inodes.contains(&listener.inode)) {
        let address = listener.address.to_string();
        match running.listeners.iter_mut().find(|known| known.address == address) {
            Some(known) => {
                known.sockets += 1;
                known.backlog = known.backlog.min(listener.backlog);
                known.waiting += listener.waiting;
            }
            None => running.listeners.push(Listening {
                address,
                sockets: 1,
                backlog: listener.backlog,
                waiting: listener.waiting,
            }),
        }
    }
    let somaxconn = facts.number("net.core.somaxconn").unwrap_or(0);
    for listening in &running.listeners {
        if u64::from(listening.backlog) < somaxconn {
            running.notes.push(format!(
                "{}: a queue of {} for each worker, and net.core.somaxconn would allow \
                 {somaxconn}: it was lower when this process began, or listener.backlog is",
                listening.address, listening.backlog
            ));
        }
    }
}

/// Inodes of all sockets in the descriptor tables of a process's threads: each worker has its own.
fn inodes(root: &Root, pid: u32) -> Vec<u32> {
    let tasks = format!("/proc/{pid}/task");
    let mut found = Vec::new();
    for task in root.names(&tasks) {
        let folder = format!("{tasks}/{task}/fd");
        for descriptor in root.names(&folder) {
            let link = root.link_name(&format!("{folder}/{descriptor}")).unwrap_or_default();
            let inode = link.strip_prefix("socket:[").and_then(|link| link.strip_suffix(']'));
            found.extend(inode.and_then(|inode| inode.parse::<u32>().ok()));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}
