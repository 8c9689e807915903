//! Cores, hardware threads, NUMA nodes, clock source and frequency governor.

use serde::Serialize;

use crate::config::cpu_list;
use crate::control::topology;
use crate::tune::root::Root;

const SYSFS: &str = "/sys/devices/system/cpu";

/// The highest CPU number that Linux knows (`NR_CPUS` is at most 8192).
const CPU_MAX: usize = 8191;

/// The processors that we may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Online CPUs.
    pub online: Vec<usize>,
    /// CPUs that this process may use (affinity, cpuset).
    pub allowed: Vec<usize>,
    /// The first hardware thread of each allowed core: one worker each by default.
    pub cores: Vec<usize>,
    /// NUMA nodes with their CPUs.
    pub nodes: Vec<Vec<usize>>,
    /// What the kernel reads the time from.
    pub clocksource: Option<String>,
    /// Frequency governor of the first CPU; `None`: the hypervisor or firmware decides.
    pub governor: Option<String>,
    /// CPU time that the control group grants, in hundredths of a CPU.
    pub quota_percent: Option<u64>,
}

impl Cpu {
    pub(super) fn read(root: &Root) -> Self {
        let online = root.text(&format!("{SYSFS}/online")).map_or(vec![0], |text| list(&text));
        let status = root.text("/proc/self/status").unwrap_or_default();
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .map_or_else(|| online.clone(), |text| list(text.trim()));
        // A copied status may name CPUs that are possible, not online.
        let allowed: Vec<usize> = allowed.into_iter().filter(|cpu| online.contains(cpu)).collect();
        let node = |name: &String| {
            let text = root.text(&format!("/sys/devices/system/node/{name}/cpulist"))?;
            name.strip_prefix("node")?.parse::<usize>().ok().map(|_| list(&text))
        };
        Self {
            cores: topology::cores(&allowed, &root.path(SYSFS)),
            nodes: root.names("/sys/devices/system/node").iter().filter_map(node).collect(),
            clocksource: root
                .text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            governor: root.text(&format!("{SYSFS}/cpu0/cpufreq/scaling_governor")),
            quota_percent: super::memory::cpu_quota_percent(root),
            online,
            allowed,
        }
    }

    /// Hardware threads of a core, rounded up.
    pub fn threads_per_core(&self) -> usize {
        self.allowed.len().div_ceil(self.cores.len().max(1))
    }
}

/// CPU numbers of a list such as `0-3,8`; none where it is malformed.
pub fn list(text: &str) -> Vec<usize> {
    cpu_list(text, CPU_MAX).unwrap_or_default()
}
