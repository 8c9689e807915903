//! Kernel release, `io_uring`, container, limits, connection tracking, and counters.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::sys::probe;
use crate::tune::root::Root;

/// What runs below us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// As uname(2) gives it.
    pub release: String,
    /// Whether this is the first network namespace: others lack what belongs to the host.
    pub first_network_namespace: bool,
    /// The container's manager, if this is one.
    pub container: Option<String>,
    /// The virtual machine's maker, if this is one.
    pub hypervisor: Option<String>,
    /// What `io_uring` offers here.
    pub io_uring: IoUring,
}

/// `io_uring` here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IoUring {
    /// It works, with these features and without those.
    Works {
        /// There.
        has: Vec<String>,
        /// Not there, and done in another way.
        lacks: Vec<String>,
    },
    /// It does not, for this reason.
    Refused(String),
    /// Another machine's tree cannot be asked.
    Unknown,
}

impl Kernel {
    pub(super) fn read(root: &Root) -> Self {
        let release = root.text("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            // `tcp_mem` is of the host and shown in the first namespace only.
            first_network_namespace: root.exists("/proc/sys/net/ipv4/tcp_mem"),
            container: container(root),
            hypervisor: hypervisor(root),
            io_uring: io_uring(root),
            release,
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> (u64, u64) {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
        (next(), next())
    }
}

fn container(root: &Root) -> Option<String> {
    let by_file = [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")];
    root.text("/run/systemd/container").or_else(|| {
        by_file.iter().find(|(path, _)| root.exists(path)).map(|(_, name)| (*name).to_owned())
    })
}

fn hypervisor(root: &Root) -> Option<String> {
    let cpuinfo = root.text("/proc/cpuinfo")?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    if !flags.split(' ').any(|flag| flag == "hypervisor") {
        return None;
    }
    Some(root.text("/sys/class/dmi/id/sys_vendor").unwrap_or_else(|| "unknown".to_owned()))
}

fn io_uring(root: &Root) -> IoUring {
    if !root.is_live() {
        return IoUring::Unknown;
    }
    match probe::report() {
        Ok(report) => {
            let named = |there| {
                let wanted = report.features.iter().filter(|feature| feature.available == there);
                wanted.map(|feature| feature.name.to_owned()).collect()
            };
            IoUring::Works { has: named(true), lacks: named(false) }
        }
        Err(error) => IoUring::Refused(error.to_string()),
    }
}

/// Limits of this process, hard ones, as `/proc/self/limits` shows them; `None`: unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// `RLIMIT_NOFILE`, in descriptors.
    pub nofile: Option<u64>,
    /// `RLIMIT_MEMLOCK`, in bytes.
    pub memlock: Option<u64>,
}

impl Limits {
    pub(super) fn read(root: &Root) -> Self {
        Self::parse(&root.text("/proc/self/limits").unwrap_or_default())
    }

    /// From the text of a process's `limits` file.
    pub fn parse(text: &str) -> Self {
        let hard = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Self { nofile: hard("Max open files"), memlock: hard("Max locked memory") }
    }
}

/// Connection tracking, in entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    /// Entries now.
    pub count: u64,
    /// Entries at most.
    pub max: u64,
    /// Hash buckets.
    pub buckets: u64,
}

impl Conntrack {
    pub(super) fn read(root: &Root) -> Option<Self> {
        let number = |name: &str| root.sysctl(&format!("net.netfilter.nf_conntrack_{name}"));
        Some(Self {
            max: number("max")?.last()?,
            count: number("count").and_then(|value| value.last()).unwrap_or(0),
            buckets: number("buckets").and_then(|value| value.last()).unwrap_or(0),
        })
    }
}

/// Counters of `/proc/net/netstat` that speak about a knob.
const COUNTERS: [&str; 8] = [
    "ListenOverflows",
    "ListenDrops",
    "TCPReqQFullDoCookies",
    "TCPTimeWaitOverflow",
    "TCPMemoryPressures",
    "TCPAbortOnMemory",
    "PruneCalled",
    "TCPMigrateReqFailure",
];

/// Counters since boot: those above, what `softnet_stat` and `sockstat` count, and open files.
pub(super) fn evidence(root: &Root) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let netstat = root.text("/proc/net/netstat").unwrap_or_default();
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    if let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let values = values.split(' ').map(|value| value.parse().unwrap_or(0));
        for (name, value) in names.split(' ').zip(values) {
            if COUNTERS.contains(&name) {
                found.insert(name.to_owned(), value);
            }
        }
    }
    let softnet = root.text("/proc/net/softnet_stat").unwrap_or_default();
    for (column, name) in [(0, "softnet_packets"), (1, "softnet_dropped"), (2, "softnet_squeezed")]
    {
        let of = |line: &str| u64::from_str_radix(line.split(' ').nth(column)?, 16).ok();
        found.insert(name.to_owned(), softnet.lines().filter_map(of).sum());
    }
    let sockstat = root.text("/proc/net/sockstat").unwrap_or_default();
    if let Some(line) = sockstat.lines().find(|line| line.starts_with("TCP:")) {
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        for pair in words.chunks_exact(2) {
            if let [name @ ("orphan" | "tw" | "mem"), value] = pair {
                found.insert(format!("tcp_{name}"), value.parse().unwrap_or(0));
            }
        }
    }
    if let Some(used) = root.sysctl("fs.file-nr").and_then(|value| value.numbers()) {
        found.insert("open_files".to_owned(), used.first().copied().unwrap_or(0));
    }
    found
}
