//! Network interfaces: queues, and which CPU serves which.

use serde::Serialize;

use super::cpu;
use crate::sys::ethtool;
use crate::tune::root::Root;

const SYSFS: &str = "/sys/class/net";

/// An interface that is up, other than the loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Its driver; `None`: a virtual interface (veth, bridge, bond).
    pub driver: Option<String>,
    /// Link speed in Mbit/s; `None`: not known, as in most virtual machines.
    pub speed_mbit: Option<u64>,
    /// NUMA node of the device.
    pub node: Option<usize>,
    /// Receive queues.
    pub rx_queues: usize,
    /// Transmit queues.
    pub tx_queues: usize,
    /// Receive queues that the card could have; `None`: not known.
    pub queues_max: Option<usize>,
    /// Receive queues that the card spreads packets to (RSS); `None`: it has no such table, or it
    /// is not known.
    pub rss_queues: Option<usize>,
    /// Interrupts of its queues, in order.
    pub irqs: Vec<Irq>,
    /// Receive queues with RPS.
    pub rps_queues: usize,
    /// Transmit queues with XPS.
    pub xps_queues: usize,
}

/// An interrupt of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Irq {
    /// Its number.
    pub number: u64,
    /// What `/proc/interrupts` calls it.
    pub name: String,
    /// CPUs that it may be delivered to.
    pub cpus: Vec<usize>,
}

pub(super) fn read(root: &Root) -> Vec<Nic> {
    let interrupts = root.text("/proc/interrupts").unwrap_or_default();
    let up = |name: &String| {
        let state = root.text(&format!("{SYSFS}/{name}/operstate"));
        name != "lo" && state.is_some_and(|state| state == "up" || state == "unknown")
    };
    root.names(SYSFS)
        .iter()
        .filter(|name| up(name))
        .map(|name| nic(root, name, &interrupts))
        .collect()
}

fn nic(root: &Root, name: &str, interrupts: &str) -> Nic {
    let folder = format!("{SYSFS}/{name}");
    let queues = root.names(&format!("{folder}/queues"));
    let of = |kind: &str| queues.iter().filter(|queue| queue.starts_with(kind)).count();
    let masked = |kind: &str, file: &str| {
        let mask = |queue: &&String| root.text(&format!("{folder}/queues/{queue}/{file}"));
        let is_set = |text: String| text.chars().any(|c| c != '0' && c != ',');
        queues
            .iter()
            .filter(|queue| queue.starts_with(kind))
            .filter_map(|q| mask(&q))
            .filter(|text| is_set(text.clone()))
            .count()
    };
    Nic {
        name: name.to_owned(),
        driver: root.link_name(&format!("{folder}/device/driver")),
        // Drivers of virtual machines say -1.
        speed_mbit: root.number(&format!("{folder}/speed")).filter(|speed| *speed > 0),
        node: root.number(&format!("{folder}/device/numa_node")).and_then(|n| n.try_into().ok()),
        rx_queues: of("rx-"),
        tx_queues: of("tx-"),
        queues_max: queues_max(root, name),
        rss_queues: root.is_live().then(|| ethtool::rss_queues(name).ok()).flatten(),
        irqs: irqs(root, &folder, interrupts),
        rps_queues: masked("rx-", "rps_cpus"),
        xps_queues: masked("tx-", "xps_cpus"),
    }
}

/// Only the running machine can be asked.
fn queues_max(root: &Root, name: &str) -> Option<usize> {
    let most = root.is_live().then(|| ethtool::queues_max(name).ok())??;
    usize::try_from(most).ok()
}

/// The queues' interrupts of the device, or of the PCI device below it (virtio).
fn irqs(root: &Root, folder: &str, interrupts: &str) -> Vec<Irq> {
    let own = root.names(&format!("{folder}/device/msi_irqs"));
    let numbers =
        if own.is_empty() { root.names(&format!("{folder}/device/../msi_irqs")) } else { own };
    let irq = |number: &String| {
        let line = interrupts.lines().find(|line| {
            line.trim_start()
                .strip_prefix(number.as_str())
                .is_some_and(|rest| rest.starts_with(':'))
        })?;
        let name = line.split_whitespace().next_back()?;
        if !serves_a_queue(name) {
            return None;
        }
        let affinity = format!("/proc/irq/{number}/smp_affinity_list");
        let cpus = root.text(&affinity).map(|text| cpu::list(&text)).unwrap_or_default();
        Some(Irq { number: number.parse().ok()?, name: name.to_owned(), cpus })
    };
    numbers.iter().filter_map(irq).collect()
}

/// Receiving queues, as drivers name them: `eth0-TxRx-3`, `mlx5_comp3@pci:..`, `virtio0-input.3`,
/// `eth0-Tx-Rx-3`, `ens5-rx-3`, `gve-ntfy-block.3`. Not `config`, `async`, `mgmnt`, `output`.
fn serves_a_queue(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["rx", "comp", "input", "ntfy", "-q"].iter().any(|part| name.contains(part))
}
