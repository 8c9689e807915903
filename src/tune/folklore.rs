//! Settings that guides have handed on for twenty years: found on this machine, called by name,
//! with the reason to drop them.

use serde::Serialize;

use super::detect::Facts;
use super::value::Value;

/// One such setting on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The key.
    pub key: String,
    /// What it is set to.
    pub value: Value,
    /// The file that says so; `None`: it is only live.
    pub file: Option<String>,
    /// Why to drop it.
    pub why: &'static str,
}

/// A key, and when its value is folklore.
struct Rule {
    key: &'static str,
    is_folklore: fn(&Value, &Facts) -> bool,
    /// Only a file that sets it is a finding: the kernel has a sound value of its own.
    only_in_files: bool,
    why: &'static str,
}

const fn live(
    key: &'static str,
    is_folklore: fn(&Value, &Facts) -> bool,
    why: &'static str,
) -> Rule {
    Rule { key, is_folklore, only_in_files: false, why }
}

const fn filed(key: &'static str, why: &'static str) -> Rule {
    Rule { key, is_folklore: any, only_in_files: true, why }
}

const RULES: [Rule; 20] = [
    live("net.ipv4.tcp_tw_recycle", any, "dropped clients behind NAT; removed in Linux 4.12"),
    live("net.ipv4.tcp_mem", beyond_ram, "it counts pages of 4 KiB, not bytes: more than all RAM"),
    live("net.ipv4.tcp_mem", flat, "min, pressure and max are one number: TCP gets no warning"),
    live("net.ipv4.tcp_timestamps", zero, "PAWS, tcp_tw_reuse and round-trip times need them"),
    live("net.ipv4.tcp_sack", zero, "a stopgap of 2019 (CVE-2019-11477); each loss costs a window"),
    live("net.ipv4.tcp_window_scaling", zero, "64 KiB a round trip at most"),
    live("net.ipv4.tcp_moderate_rcvbuf", zero, "receive buffers no longer grow"),
    live("net.ipv4.tcp_syncookies", zero, "a SYN flood locks everybody out"),
    live("net.ipv4.tcp_rmem", low_first, "a first value below 131072 slows each first round trip"),
    live("net.core.netdev_max_backlog", huge, "seconds of queue, and for RPS and loopback only"),
    live("net.core.busy_poll", positive, "burns a core in poll(2) and select(2); not for io_uring"),
    live("net.core.busy_read", positive, "burns a core in read(2) on sockets; not for io_uring"),
    live("vm.overcommit_memory", two, "forbids memory that nobody will touch"),
    filed("net.ipv4.tcp_max_syn_backlog", "read only when tcp_syncookies is 0"),
    filed("net.ipv4.tcp_low_latency", "no effect since Linux 4.14"),
    filed("net.ipv4.tcp_fack", "no effect since Linux 4.15"),
    filed("net.ipv4.tcp_adv_win_scale", "no effect since Linux 6.6"),
    filed("net.ipv4.route.max_size", "no effect for IPv4 since Linux 3.6"),
    filed("net.core.rmem_max", "bounds SO_RCVBUF only; buffers grow by tcp_rmem"),
    filed("net.core.wmem_max", "bounds SO_SNDBUF only; buffers grow by tcp_wmem"),
];

/// Keys whose live value is looked at.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    RULES.iter().filter(|rule| !rule.only_in_files).map(|rule| rule.key)
}

fn any(_: &Value, _: &Facts) -> bool {
    true
}

fn zero(value: &Value, _: &Facts) -> bool {
    value.last() == Some(0)
}

fn positive(value: &Value, _: &Facts) -> bool {
    value.last().is_some_and(|number| number > 0)
}

fn two(value: &Value, _: &Facts) -> bool {
    value.last() == Some(2)
}

fn huge(value: &Value, _: &Facts) -> bool {
    value.last().is_some_and(|number| number >= 100_000)
}

fn beyond_ram(value: &Value, facts: &Facts) -> bool {
    value.last().is_some_and(|pages| pages.saturating_mul(4096) > facts.memory.total_bytes)
}

fn flat(value: &Value, _: &Facts) -> bool {
    matches!(value.numbers().as_deref(), Some([min, _, max]) if min == max)
}

fn low_first(value: &Value, _: &Facts) -> bool {
    matches!(value.numbers().as_deref(), Some([_, first, _]) if *first < 87_381)
}

/// What is on this machine, in files and live.
pub fn find(facts: &Facts) -> Vec<Finding> {
    let finding = |rule: &Rule| {
        let is_folklore = |value: &&Value| (rule.is_folklore)(value, facts);
        let line = facts.settings.decides(rule.key).filter(|line| is_folklore(&&line.value));
        let now = facts.live.get(rule.key).filter(is_folklore);
        let value = match line {
            Some(line) => &line.value,
            None if rule.only_in_files => return None,
            None => now?,
        };
        let file = line.map(|line| line.file.clone());
        Some(Finding { key: rule.key.to_owned(), value: value.clone(), file, why: rule.why })
    };
    RULES.iter().filter_map(finding).collect()
}
