//! RAM, and what the control group leaves of it.

use serde::Serialize;

use crate::tune::root::Root;

/// Version 1 writes a number near 2^63 where there is no limit.
const NO_LIMIT: u64 = 1 << 60;

/// Memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// RAM of the machine.
    pub total_bytes: u64,
    /// What the control groups above us allow, the least of them; `None`: no limit.
    pub cgroup_bytes: Option<u64>,
    /// Swap space.
    pub swap_bytes: u64,
}

impl Memory {
    pub(super) fn read(root: &Root) -> Self {
        let meminfo = root.text("/proc/meminfo").unwrap_or_default();
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
        };
        Self {
            total_bytes: bytes("MemTotal:").unwrap_or(0),
            cgroup_bytes: limits(root, "memory", "memory.max", "memory.limit_in_bytes")
                .into_iter()
                .filter_map(|text| text.parse::<u64>().ok())
                .filter(|bytes| *bytes < NO_LIMIT)
                .min(),
            swap_bytes: bytes("SwapTotal:").unwrap_or(0),
        }
    }

    /// What connections, buffers and everything else must fit into.
    pub fn usable_bytes(&self) -> u64 {
        self.cgroup_bytes.unwrap_or(u64::MAX).min(self.total_bytes)
    }
}

/// `cpu.max` of the control groups above us, the least of them.
pub(super) fn cpu_quota_percent(root: &Root) -> Option<u64> {
    let quota = |text: String| {
        let (quota, period) = text.split_once(' ')?;
        quota.parse::<u64>().ok()?.saturating_mul(100).checked_div(period.parse().ok()?)
    };
    limits(root, "cpu", "cpu.max", "").into_iter().filter_map(quota).min()
}

/// A limit's text in each control group from ours upwards, of version 2 or 1.
fn limits(root: &Root, controller: &str, v2: &str, v1: &str) -> Vec<String> {
    let groups = root.text("/proc/self/cgroup").unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next(), fields.next(), fields.next());
        let (Some(controllers), Some(path)) = (controllers, path) else { continue };
        let (mount, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup".to_owned(), v2)
        } else if controllers.split(',').any(|name| name == controller) {
            (format!("/sys/fs/cgroup/{controller}"), v1)
        } else {
            continue;
        };
        let mut group = Some(path);
        while let (Some(path), false) = (group, file.is_empty()) {
            found.extend(root.text(&format!("{mount}{path}/{file}")));
            group = path.rsplit_once('/').map(|(above, _)| above);
        }
        // In a cgroup namespace our own group is the root, whatever its path says.
        found.extend(root.text(&format!("{mount}/{file}")).filter(|_| !file.is_empty()));
    }
    found
}
