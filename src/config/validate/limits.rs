//! `[limits]` and `[limits.per_source]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::network::Network;
use super::super::raw::{Reader, Table, quoted};
use super::super::{Limits, PerSource, Refuse};
use super::{MINUTE, auto_or_integer, choice, number, size, timeout};
use crate::limits::{
    CONNECTION_RATE_MAX, CONNECTIONS_PER_WORKER_MAX, NETWORKS_ALLOWED_MAX, SOURCE_CONNECTIONS_MAX,
    SOURCE_HANDSHAKES_MAX, SOURCES_MAX, SOURCES_MIN,
};

/// New connections in a second, of all listeners or of one.
pub(super) const CONNECTION_RATE: RangeInclusive<u32> = 1..=CONNECTION_RATE_MAX;

pub(super) fn limits<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Limits {
    const CLIENT_HELLO_BYTES: RangeInclusive<u64> = 2048..=65_536;
    let mut table = root.table(reader, "limits");
    let range = 1..=CONNECTIONS_PER_WORKER_MAX;
    let connections_per_worker =
        auto_or_integer(reader, &mut table, "connections_per_worker", &range);
    let accepted = "\"2KiB\" (a post-quantum hello fits) to \"64KiB\"";
    let client_hello_bytes =
        size(reader, &mut table, "client_hello_bytes", &CLIENT_HELLO_BYTES, accepted);
    let accepted = "\"0B\" (none) to \"1MiB\" a second";
    let min_rate = size(reader, &mut table, "min_rate", &(0..=1 << 20), accepted);
    let min_rate = min_rate.and_then(|rate| u32::try_from(rate).ok());
    let connection_rate = number(reader, &mut table, "connection_rate", &CONNECTION_RATE);
    let choices = [Refuse::Reset, Refuse::Close].map(|refuse| (refuse.name(), refuse));
    let refuse = choice(reader, &mut table, "refuse", &choices);
    let per_source = per_source(reader, &mut table);
    table.finish(reader);
    let default = Limits::default();
    Limits {
        connections_per_worker,
        client_hello_bytes: client_hello_bytes.unwrap_or(default.client_hello_bytes),
        min_rate: min_rate.unwrap_or(default.min_rate),
        connection_rate,
        refuse: refuse.unwrap_or(default.refuse),
        per_source,
    }
}

fn per_source<'d>(reader: &mut Reader<'d>, limits: &mut Table<'d>) -> PerSource {
    const SHORTEST: Duration = Duration::from_millis(1);
    let mut table = limits.table(reader, "per_source");
    let connections = number(reader, &mut table, "connections", &(1..=SOURCE_CONNECTIONS_MAX));
    let handshakes = number(reader, &mut table, "handshakes", &(1..=SOURCE_HANDSHAKES_MAX));
    let handshake_cpu = timeout(reader, &mut table, "handshake_cpu", &(SHORTEST..=MINUTE));
    let ipv4_prefix = prefix(reader, &mut table, "ipv4_prefix", 32);
    let ipv6_prefix = prefix(reader, &mut table, "ipv6_prefix", 128);
    let allow = allow(reader, &mut table);
    let sources = number(reader, &mut table, "sources", &(SOURCES_MIN..=SOURCES_MAX));
    table.finish(reader);
    let default = PerSource::default();
    PerSource {
        connections,
        handshakes,
        handshake_cpu,
        ipv4_prefix: ipv4_prefix.unwrap_or(default.ipv4_prefix),
        ipv6_prefix: ipv6_prefix.unwrap_or(default.ipv6_prefix),
        allow,
        sources: sources.unwrap_or(default.sources),
    }
}

fn prefix<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    bits: u32,
) -> Option<u8> {
    number(reader, table, key, &(1..=bits)).and_then(|prefix| prefix.try_into().ok())
}

fn allow<'d>(reader: &mut Reader<'d>, table: &mut Table<'d>) -> Vec<Network> {
    const EXPECTED: &str = "networks, such as [\"10.0.0.0/8\", \"2001:db8::/32\"]";
    let Some(items) = table.strings(reader, "allow", EXPECTED) else {
        return Vec::new();
    };
    if items.value.len() > NETWORKS_ALLOWED_MAX {
        let message = format!("expected at most {NETWORKS_ALLOWED_MAX} networks");
        reader.refuse(&items.at, "[…]", message);
    }
    let mut allowed: Vec<Network> = Vec::with_capacity(items.value.len());
    for item in items.value {
        match Network::parse(&item.value) {
            Err(why) => reader.refuse(&item.at, quoted(&item.value), why),
            Ok(network) if allowed.contains(&network) => {
                reader.refuse(&item.at, quoted(&item.value), "stands in the list twice");
            }
            Ok(network) => allowed.push(network),
        }
    }
    allowed
}
