//! What no sysctl can set, said as sentences: queues and interrupts of network cards, clock,
//! governor, `io_uring`, tracking, other programs that tune.

use super::detect::Facts;
use super::detect::kernel::IoUring;
use super::detect::nic::Nic;
use super::goal::{Goal, Profile};

/// Clock sources that are read without leaving the process.
const FAST_CLOCKS: [&str; 4] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

/// Counters of `/proc/net/netstat` that no healthy box moves, and what they say.
const COUNTERS: [(&str, &str); 6] = [
    (
        "ListenOverflows",
        "connections found a listener's queue full, of any program; a longer queue \
         (net.core.somaxconn, listener.backlog) helps against bursts only",
    ),
    (
        "TCPReqQFullDoCookies",
        "SYN cookies were sent as a queue was full: a flood, or a listener's queue that is too \
         short",
    ),
    (
        "TCPTimeWaitOverflow",
        "connections left TIME-WAIT early as there were more than tcp_max_tw_buckets",
    ),
    ("TCPMemoryPressures", "TCP came to the middle value of tcp_mem and held back"),
    (
        "TCPAbortOnMemory",
        "TCP killed connections at tcp_mem's last value, or beyond tcp_max_orphans",
    ),
    ("TCPMigrateReqFailure", "connections of a closed listener found no other one to go to"),
];

/// All that should be said about this machine.
pub fn notes(goal: &Goal<'_>) -> Vec<String> {
    let facts = goal.facts;
    let mut notes = Vec::new();
    for nic in facts.nics.iter().filter(|nic| nic.driver.is_some()) {
        queues(nic, goal, &mut notes);
        interrupts(nic, facts, &mut notes);
    }
    processor(goal, &mut notes);
    kernel(facts, &mut notes);
    others(facts, &mut notes);
    notes
}

fn queues(nic: &Nic, goal: &Goal<'_>, notes: &mut Vec<String>) {
    let (name, queues, workers) = (&nic.name, nic.rx_queues, goal.shape.workers);
    // What more the card offers is better than any way around it.
    if let Some(most) = nic.queues_max.filter(|most| queues < workers && *most > queues) {
        let more = most.min(workers);
        notes.push(format!(
            "{name} uses {queues} of {most} receive queues for {workers} workers: `ethtool -L \
             {name} combined {more}` gives it more (the link goes down for a moment)"
        ));
    } else if queues == 1 && workers > 1 {
        notes.push(format!(
            "{name} has one receive queue for {workers} workers: let RPS spread it \
             (portcullis-nic@.service), as it has no second queue to give an interrupt of its own"
        ));
    } else if queues < workers {
        notes.push(format!(
            "{name} has {queues} receive queues for {workers} workers: {} workers get no queue of \
             their own and take their packets from other cores. Run {queues} workers \
             (workers.count = {queues}) and leave the other cores to the kernel and the backend, \
             or see `ethtool -l {name}` for more queues",
            workers - queues
        ));
    } else if queues > workers {
        notes.push(format!(
            "{name} has {queues} receive queues for {workers} workers: `ethtool -L {name} combined \
             {workers}` gives each worker's core exactly one (the link goes down for a moment)"
        ));
    }
    if let Some(spread) = nic.rss_queues.filter(|spread| *spread < queues) {
        notes.push(format!(
            "{name} spreads packets (RSS) to {spread} of its {queues} receive queues: `ethtool -X \
             {name} equal {queues}` uses all of them"
        ));
    }
    if let Some(node) = nic.node
        && goal.facts.cpu.nodes.len() > 1
    {
        let cpus = goal.facts.cpu.nodes.get(node).map(|cpus| show(cpus)).unwrap_or_default();
        notes.push(format!(
            "{name} is attached to NUMA node {node} (CPU {cpus}): workers there reach it without \
             crossing to another socket, so pin to them first (workers.cpus)"
        ));
    }
}

fn interrupts(nic: &Nic, facts: &Facts, notes: &mut Vec<String>) {
    let name = &nic.name;
    let anywhere = nic.irqs.iter().filter(|irq| irq.cpus.len() > 1).count();
    if anywhere > 0 && nic.irqs.len() > 1 {
        notes.push(format!(
            "{anywhere} of {} interrupts of {name} may go to any of several CPUs: \
             portcullis-nic@.service gives queue i to the core of worker i",
            nic.irqs.len()
        ));
    }
    let cores = &facts.cpu.cores;
    let is_served = |cpu: &usize| nic.irqs.iter().any(|irq| irq.cpus.as_slice() == [*cpu]);
    if cores.len() > 1 && cores.iter().all(is_served) {
        notes.push(format!(
            "each core has a queue of {name} to itself: workers.steering = \"incoming_cpu\" lets \
             each worker serve the packets of its own"
        ));
    }
    if nic.tx_queues > 1 && nic.xps_queues == 0 && facts.cpu.cores.len() > 1 {
        notes.push(format!(
            "{name} has no XPS: each core may send on each of {} queues, and shares its lock",
            nic.tx_queues
        ));
    }
}

/// What is wrong with giving connections to the worker of their packets' CPU, where workers are on
/// these CPUs: a worker whose CPU no queue interrupts gets none, or those that find no better one.
pub fn unserved(facts: &Facts, workers: &[usize]) -> Option<String> {
    let cards: Vec<&Nic> = facts.nics.iter().filter(|nic| nic.driver.is_some()).collect();
    let interrupts = |cpu: &&usize| {
        cards.iter().flat_map(|nic| &nic.irqs).any(|irq| irq.cpus.as_slice() == [**cpu])
    };
    let without: Vec<usize> = workers.iter().filter(|cpu| !interrupts(cpu)).copied().collect();
    if cards.is_empty() || without.is_empty() {
        return None;
    }
    Some(format!(
        "workers.steering = \"incoming_cpu\", but no queue of a network card is fixed to CPU {}: \
         its worker gets few connections from outside, or none. Give each worker's CPU a queue \
         (portcullis-nic.sh in sysctl/), or write \"hash\"",
        show(&without)
    ))
}

fn processor(goal: &Goal<'_>, notes: &mut Vec<String>) {
    let cpu = &goal.facts.cpu;
    if let Some(clock) = &cpu.clocksource
        && !FAST_CLOCKS.contains(&clock.as_str())
    {
        notes.push(format!(
            "the clock source is {clock}, a system call and microseconds each time: boot with \
             tsc=reliable where the TSC is sound, or ask the hypervisor for its own clock"
        ));
    }
    match cpu.governor.as_deref() {
        Some(governor) if governor != "performance" && goal.profile != Profile::SmallVm => {
            notes.push(format!(
                "the frequency governor is {governor}: `cpupower frequency-set -g performance` \
                 spares each burst the slow start"
            ));
        }
        Some(_) | None => {}
    }
    if let Some(quota) = cpu.quota_percent
        && quota < goal.shape.count() * 100
    {
        notes.push(format!(
            "the control group grants {}.{:02} CPUs to {} workers: they are stopped for the rest \
             of each period. Raise the quota (cpu.max), or lower workers.count",
            quota / 100,
            quota % 100,
            goal.shape.workers
        ));
    }
}

fn kernel(facts: &Facts, notes: &mut Vec<String>) {
    if facts.kernel.version() < (6, 1) {
        notes.push(format!(
            "Linux {} is too old: Portcullis needs 6.1 or newer",
            facts.kernel.release
        ));
    }
    if let IoUring::Refused(why) = &facts.kernel.io_uring {
        notes.push(format!("io_uring cannot be used: {why}"));
    }
    if let Some(container) = &facts.kernel.container {
        notes.push(format!(
            "this is a {container} container: what belongs to the host is set on the host"
        ));
    }
    if let Some(conntrack) = &facts.conntrack
        && conntrack.count > 0
    {
        notes.push(format!(
            "connection tracking follows {} flows: each packet pays for it. Rules that spare \
             Portcullis's ports are in sysctl/ (portcullis-notrack.nft); not on a machine that \
             does NAT, or that publishes container ports or Kubernetes services",
            conntrack.count
        ));
    }
    for (counter, what) in COUNTERS {
        let count = facts.counter(counter);
        if count > 0 {
            notes.push(format!("{counter} is {count} since boot: {what}"));
        }
    }
}

fn others(facts: &Facts, notes: &mut Vec<String>) {
    for (program, says) in &facts.settings.programs {
        let what = match program.as_str() {
            "irqbalance" => "moves interrupts again; stop it, or ban the card's with --banirq",
            "tuned" => "sets sysctls and the governor by its own profile, after boot",
            _ => "may set sysctls by itself",
        };
        let says = if says.is_empty() { String::new() } else { format!(" ({says})") };
        notes.push(format!("{program}{says} {what}"));
    }
}

fn show(cpus: &[usize]) -> String {
    crate::control::topology::show_cpus(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::detect::nic::Irq;
    use crate::tune::profiles;

    #[test]
    fn queues_that_a_card_does_not_use_are_the_first_advice() {
        let mut facts = profiles::facts(Profile::Edge);
        let told = |facts: &Facts| {
            notes(&Goal::new(facts, &crate::tune::goal::Wishes::default())).join("\n")
        };
        (facts.nics[0].rx_queues, facts.nics[0].queues_max) = (1, Some(63));
        assert!(told(&facts).contains("ethtool -L eth0 combined 16"), "{}", told(&facts));
        facts.nics[0].queues_max = Some(8);
        assert!(told(&facts).contains("combined 8"), "{}", told(&facts));
        facts.nics[0].queues_max = Some(1);
        assert!(told(&facts).contains("let RPS spread it"), "{}", told(&facts));
    }

    #[test]
    fn queues_that_get_no_packets_are_named() {
        let mut facts = profiles::facts(Profile::Edge);
        let told = |facts: &Facts| {
            notes(&Goal::new(facts, &crate::tune::goal::Wishes::default())).join("\n")
        };
        let queues = facts.nics[0].rx_queues;
        facts.nics[0].rss_queues = Some(queues);
        assert!(!told(&facts).contains("RSS"), "{}", told(&facts));
        facts.nics[0].rss_queues = Some(queues - 1);
        let cure = format!("`ethtool -X eth0 equal {queues}`");
        assert!(told(&facts).contains(&cure), "{}", told(&facts));
    }

    #[test]
    fn a_worker_without_a_queue_of_its_own_is_told_when_steered() {
        let mut facts = profiles::facts(Profile::Edge);
        let irq = |cpus: &[usize]| Irq { number: 9, name: "x-rx-0".into(), cpus: cpus.to_vec() };
        facts.nics[0].irqs = vec![irq(&[0]), irq(&[1]), irq(&[2, 3])];
        assert_eq!(unserved(&facts, &[0, 1]), None);
        let told = unserved(&facts, &[0, 1, 2]).unwrap();
        assert!(told.contains("CPU 2:"), "{told}");
        // Behind a virtual interface nothing is known, and nothing is claimed.
        facts.nics[0].driver = None;
        assert_eq!(unserved(&facts, &[0, 1, 2]), None);
    }
}
