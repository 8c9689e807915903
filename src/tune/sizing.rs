//! How many connections this box holds, and what stops it first.

use serde::Serialize;

use super::goal::{Goal, PAGE_BYTES};
use super::plan::{Advice, Row};
use crate::control::capacity::{DESCRIPTORS_RESERVED, RING_DESCRIPTORS_MAX};
use crate::sys::probe::memory_needed;

/// Sockets of one hash bucket, on average, from which on looking one up costs noticeably more.
const CHAIN: u64 = 4;

/// One thing that ends growth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ceiling {
    /// What it is.
    pub name: &'static str,
    /// Its value now.
    pub live: String,
    /// Connections that it allows now.
    pub connections: u64,
    /// Connections that it allows once the plan is applied.
    pub planned: u64,
    /// Why it may not stop anything after all; `None`: it does.
    pub note: Option<&'static str>,
    /// What to do about it.
    pub cure: String,
}

/// All ceilings, in the order in which they stop the box as it is.
pub fn ceilings(goal: &Goal<'_>, rows: &[Row]) -> Vec<Ceiling> {
    let mut ceilings = vec![ram(goal), nofile(goal, rows), ring(goal)];
    ceilings.extend(numbers(goal, rows));
    ceilings
        .extend([memlock(goal), conntrack(goal, rows), ports(goal, rows)].into_iter().flatten());
    ceilings.extend([tcp_mem(goal, rows), buckets(goal)].into_iter().flatten());
    ceilings.sort_by_key(|ceiling| ceiling.connections);
    ceilings
}

/// Live and planned last number of a knob.
fn both(rows: &[Row], name: &str) -> Option<(u64, u64)> {
    let row = rows.iter().find(|row| row.knob.name == name)?;
    let live = row.live.as_ref()?.last()?;
    match &row.advice {
        Advice::Set(value) => Some((live, value.last()?)),
        Advice::Already | Advice::Keep(_) | Advice::Absent(_) => Some((live, live)),
    }
}

fn gib(bytes: u64) -> String {
    let tenths = bytes / (1 << 30) * 10 + bytes % (1 << 30) * 10 / (1 << 30);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

fn ram(goal: &Goal<'_>) -> Ceiling {
    let memory = &goal.facts.memory;
    let name = if memory.cgroup_bytes.is_some() { "memory of the control group" } else { "RAM" };
    let connections = goal.ram_connections();
    Ceiling {
        name,
        live: gib(memory.usable_bytes()),
        connections,
        planned: connections,
        note: None,
        cure: format!("more RAM: {} bytes each", goal.connection_bytes()),
    }
}

fn nofile(goal: &Goal<'_>, rows: &[Row]) -> Ceiling {
    let allows = |limit: u64| goal.shape.connections(limit).saturating_mul(goal.shape.count());
    let live = goal.facts.limits.nofile.unwrap_or(u64::MAX);
    let wanted = rows
        .iter()
        .find(|row| row.knob.name == "LimitNOFILE")
        .and_then(|row| row.wanted()?.last())
        .unwrap_or(live);
    Ceiling {
        name: "RLIMIT_NOFILE of a worker",
        live: show(live),
        connections: allows(live),
        planned: allows(live.max(wanted)),
        note: None,
        cure: format!("LimitNOFILE={} in its unit (now: this shell's)", goal.nofile()),
    }
}

fn ring(goal: &Goal<'_>) -> Ceiling {
    let each = goal.shape.connections(RING_DESCRIPTORS_MAX + DESCRIPTORS_RESERVED);
    let connections = each.saturating_mul(goal.shape.count());
    Ceiling {
        name: "direct descriptors of a ring",
        live: RING_DESCRIPTORS_MAX.to_string(),
        connections,
        planned: connections,
        note: None,
        cure: "more workers".to_owned(),
    }
}

/// `fs.nr_open`, which bounds `RLIMIT_NOFILE`, and `fs.file-max`.
fn numbers(goal: &Goal<'_>, rows: &[Row]) -> Vec<Ceiling> {
    let per_worker = |limit: u64| goal.shape.connections(limit).saturating_mul(goal.shape.count());
    let whole = |limit: u64| per_worker(limit / goal.shape.count());
    let mut found = Vec::new();
    if let Some((live, planned)) = both(rows, "fs.nr_open") {
        found.push(Ceiling {
            name: "fs.nr_open",
            live: live.to_string(),
            connections: per_worker(live),
            planned: per_worker(planned),
            note: None,
            cure: "raise it; it bounds RLIMIT_NOFILE".to_owned(),
        });
    }
    if let Some((live, planned)) = both(rows, "fs.file-max") {
        let used = goal.facts.counter("open_files");
        found.push(Ceiling {
            name: "fs.file-max",
            live: show(live),
            connections: whole(live.saturating_sub(used)),
            planned: whole(planned.saturating_sub(used)),
            note: None,
            cure: "raise it; for all of the machine".to_owned(),
        });
    }
    found
}

/// Locked memory stops workers from starting, and with them all connections.
fn memlock(goal: &Goal<'_>) -> Option<Ceiling> {
    let limit = goal.facts.limits.memlock?;
    let needed = memory_needed(goal.shape.workers);
    // Kernels in between count rings to the control group.
    let counts = !((5, 12)..(6, 14)).contains(&goal.facts.kernel.version());
    if limit >= needed || !counts {
        return None;
    }
    Some(Ceiling {
        name: "RLIMIT_MEMLOCK",
        live: format!("{} KiB", limit / 1024),
        connections: 0,
        planned: goal.ram_connections(),
        note: Some("of a user without CAP_IPC_LOCK"),
        cure: format!(
            "LimitMEMLOCK=infinity: {} rings take {} KiB",
            goal.shape.workers,
            needed / 1024
        ),
    })
}

fn conntrack(goal: &Goal<'_>, rows: &[Row]) -> Option<Ceiling> {
    let conntrack = goal.facts.conntrack.as_ref()?;
    let flows = if goal.servers == 0 { 1 } else { 2 };
    let planned = both(rows, "net.netfilter.nf_conntrack_max").map_or(conntrack.max, |both| both.1);
    let others = conntrack.count.min(conntrack.max);
    Some(Ceiling {
        name: "nf_conntrack_max",
        live: format!("{}, {} used", conntrack.max, conntrack.count),
        connections: (conntrack.max - others) / flows,
        planned: planned.saturating_sub(others) / flows,
        // Loaded, but no rule of this network namespace wants it.
        note: (conntrack.count == 0).then_some("nothing is tracked now"),
        cure: "notrack rules (portcullis-notrack.nft in sysctl/), or raise it".to_owned(),
    })
}

/// Connections to one address of a server need a local port each.
fn ports(goal: &Goal<'_>, rows: &[Row]) -> Option<Ceiling> {
    let row = rows.iter().find(|row| row.knob.name == "net.ipv4.ip_local_port_range")?;
    let range = |value: Option<&super::value::Value>| match value?.numbers()?.as_slice() {
        [first, last] => Some((last + 1).saturating_sub(*first)),
        _ => None,
    };
    let live = range(row.live.as_ref())?;
    let planned = range(row.wanted()).unwrap_or(live);
    if goal.servers == 0 {
        return None;
    }
    Some(Ceiling {
        name: "local ports to servers",
        live: format!("{live} x {}", goal.servers),
        connections: live.saturating_mul(goal.servers),
        planned: planned.saturating_mul(goal.servers),
        note: None,
        cure: format!(
            "{} server addresses, or address = \"unix:/path\"",
            goal.connections.div_ceil(planned.max(1))
        ),
    })
}

fn tcp_mem(goal: &Goal<'_>, rows: &[Row]) -> Option<Ceiling> {
    let (live, planned) = both(rows, "net.ipv4.tcp_mem")?;
    let allows = |pages: u64| {
        let busy = pages.saturating_mul(PAGE_BYTES) / goal.queued_bytes();
        busy.saturating_mul(100) / goal.busy_percent
    };
    let cure = if allows(planned) < goal.connections { "more RAM" } else { "raise it, in pages" };
    Some(Ceiling {
        name: "net.ipv4.tcp_mem",
        live: format!("{live} pages"),
        connections: allows(live),
        planned: allows(planned),
        note: None,
        cure: format!(
            "{cure}; {} % are busy, with {} KiB in queues each",
            goal.busy_percent,
            goal.queued_bytes() >> 10
        ),
    })
}

fn buckets(goal: &Goal<'_>) -> Option<Ceiling> {
    // Negative in a network namespace that shares its parent's table.
    let buckets = goal.facts.number("net.ipv4.tcp_ehash_entries")?;
    let sockets = if goal.servers == 0 { 1 } else { 2 };
    let connections = buckets.saturating_mul(CHAIN) / sockets;
    let cure = if goal.connections <= connections {
        "enough for this plan".to_owned()
    } else {
        let wanted = (goal.sockets() / CHAIN).next_power_of_two();
        format!("boot with thash_entries={wanted}")
    };
    Some(Ceiling {
        name: "hash buckets for sockets",
        live: buckets.to_string(),
        connections,
        planned: connections,
        note: Some("slows down"),
        cure,
    })
}

fn show(number: u64) -> String {
    if number >= i64::MAX.unsigned_abs() { "no limit".to_owned() } else { number.to_string() }
}

/// What keeps so many connections from being held now, each as a sentence for a log.
pub fn warnings(goal: &Goal<'_>, rows: &[Row]) -> Vec<String> {
    let stops =
        |ceiling: &Ceiling| ceiling.note.is_none() && ceiling.connections < goal.connections;
    let sentence = |ceiling: Ceiling| {
        format!(
            "{} = {} allows {} connections and {} are configured: {} (see `portcullis tune plan \
             --connections {}`)",
            ceiling.name,
            ceiling.live,
            ceiling.connections,
            goal.connections,
            ceiling.cure,
            goal.connections
        )
    };
    ceilings(goal, rows).into_iter().filter(stops).map(sentence).collect()
}
