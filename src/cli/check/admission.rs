//! The part of the report that says who is let in: rates, limits of sources, and what handshakes
//! cost here.

use std::time::Duration;

use super::Report;
use crate::config::{Config, PerSource, Refuse, show_duration};
use crate::control::certificates::Loaded;
use crate::control::costs;
use crate::worker::sources::table::Table;

pub(super) fn section(report: &mut Report, config: &Config, loaded: &Loaded) {
    report.heading("Admission");
    let limits = &config.limits;
    let rate = |rate: Option<u32>| match rate {
        Some(rate) => format!("{rate} a second"),
        None => "as many as come".to_owned(),
    };
    report.line(&format!("new connections: {}", rate(limits.connection_rate)));
    for listener in config.listeners.iter().filter(|one| one.connection_rate.is_some()) {
        let name = &listener.name;
        report.line(&format!("    listener {name}: {}", rate(listener.connection_rate)));
    }
    per_source(report, &limits.per_source);
    let seen = match limits.refuse {
        Refuse::Reset => "get a reset",
        Refuse::Close => "are closed",
    };
    report.line(&format!("those above a rate or a limit {seen}, before any cryptography"));
    handshakes(report, config, loaded);
}

fn per_source(report: &mut Report, limits: &PerSource) {
    if !limits.is_on() {
        return report.line("sources of clients are not limited (no limits.per_source)");
    }
    let PerSource { ipv4_prefix, ipv6_prefix, sources, .. } = limits;
    report.line(&format!(
        "each source (IPv4 /{ipv4_prefix}, IPv6 /{ipv6_prefix}), on all workers together:"
    ));
    if let Some(connections) = limits.connections {
        report.line(&format!("    {connections} connections"));
    }
    if let Some(handshakes) = limits.handshakes {
        report.line(&format!("    {handshakes} handshakes under way"));
    }
    if let Some(cpu) = limits.handshake_cpu {
        let cpu = show_duration(cpu);
        report.line(&format!("    {cpu} of processor time for handshakes a second"));
    }
    if !limits.allow.is_empty() {
        let allowed: Vec<String> = limits.allow.iter().map(ToString::to_string).collect();
        report.line(&format!("    not limited: {}", allowed.join(", ")));
    }
    report.line(&format!(
        "    {sources} sources are counted side by side, in {} KiB",
        Table::bytes(*sources) >> 10
    ));
}

/// The costs by which sources are charged, as `run` would measure them.
fn handshakes(report: &mut Report, config: &Config, loaded: &Loaded) {
    let budget = config.limits.per_source.handshake_cpu;
    report.line("what a handshake costs on this machine, measured just now:");
    let header = if budget.is_some() { "a source's budget buys" } else { "" };
    let row = |report: &mut Report, [key, full, resumed, bought]: [&str; 4]| {
        report.line(format!("    {key:<14} {full:>10} {resumed:>10}   {bought}").trim_end());
    };
    row(report, ["key", "full", "resumed", header]);
    for cost in costs::measure(config, loaded) {
        let (full, resumed) = (cost.full + cost.later, cost.resumed + cost.later);
        let bought = budget.map(|budget| {
            let bought = |one: Duration| show_rate(budget.as_secs_f64() / one.as_secs_f64());
            format!("{} full, {} resumed a second", bought(full), bought(resumed))
        });
        let (full, resumed) = (micros(full), micros(resumed));
        row(report, [&cost.key, &full, &resumed, &bought.unwrap_or_default()]);
    }
}

fn micros(time: Duration) -> String {
    format!("{} us", time.as_micros())
}

/// With a digit behind the point where that says something.
fn show_rate(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}
