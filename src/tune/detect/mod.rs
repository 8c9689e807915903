//! What is here: [`Facts`] about a machine, read from a [`Root`] and, on the running machine, by
//! asking the kernel for its `io_uring`. Planning uses nothing else.

pub mod cpu;
pub mod kernel;
pub mod memory;
pub mod nic;
pub mod settings;

use std::collections::BTreeMap;

use serde::Serialize;

use super::folklore;
use super::knobs::{self, Place};
use super::root::Root;
use super::value::Value;

/// Everything that a plan depends on.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Cores, hardware threads, nodes, clock.
    pub cpu: cpu::Cpu,
    /// RAM and what bounds it.
    pub memory: memory::Memory,
    /// Network interfaces that carry traffic.
    pub nics: Vec<nic::Nic>,
    /// Release, namespaces, container, `io_uring`.
    pub kernel: kernel::Kernel,
    /// Limits of this process, which a service does not share.
    pub limits: kernel::Limits,
    /// Connection tracking, where its module is loaded.
    pub conntrack: Option<kernel::Conntrack>,
    /// Counters that speak for or against a setting.
    pub evidence: BTreeMap<String, u64>,
    /// Who sets keys on this machine.
    pub settings: settings::Settings,
    /// Live values by knob; a knob that is not here is not in this map.
    pub live: BTreeMap<String, Value>,
}

impl Facts {
    /// Reads them.
    pub fn collect(root: &Root) -> Self {
        Self {
            cpu: cpu::Cpu::read(root),
            memory: memory::Memory::read(root),
            nics: nic::read(root),
            kernel: kernel::Kernel::read(root),
            limits: kernel::Limits::read(root),
            conntrack: kernel::Conntrack::read(root),
            evidence: kernel::evidence(root),
            settings: settings::Settings::read(root),
            live: live(root),
        }
    }

    /// A counter; 0 where this kernel has none.
    pub fn counter(&self, name: &str) -> u64 {
        self.evidence.get(name).copied().unwrap_or(0)
    }

    /// The last number of a knob's live value.
    pub fn number(&self, knob: &str) -> Option<u64> {
        self.live.get(knob)?.last()
    }
}

/// Live values of all knobs, and of what only the sizing and the search for folklore look at.
fn live(root: &Root) -> BTreeMap<String, Value> {
    let mut live = BTreeMap::new();
    for knob in knobs::all() {
        if let Some(value) = read(root, knob.place) {
            live.insert(knob.name.to_owned(), value);
        }
    }
    let sizing = ["net.ipv4.tcp_ehash_entries", "net.ipv4.ip_unprivileged_port_start"];
    for name in sizing.into_iter().chain(folklore::keys()) {
        if let Some(value) = root.sysctl(name) {
            live.insert(name.to_owned(), value);
        }
    }
    live
}

/// A setting's value now; `None` where there is none to read.
pub fn read(root: &Root, place: Place) -> Option<Value> {
    match place {
        Place::Sysctl(name) => root.sysctl(name),
        Place::Choice(path) => Value::chosen(&root.text(path)?),
        Place::Boot(_, shown_by) => root.sysctl(shown_by),
        Place::Limit(_) => None,
    }
}
