//! Raw to checked: every section, every key, every relation between keys; all problems at once.

mod backends;
mod limits;
mod listeners;
mod resumption;

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::raw::{Item, Problem, Reader, Table, quoted};
use super::{
    AccessLog, Admin, CIPHER_SUITES, Config, GROUPS, Handshake, Log, Position, RecordLayer,
    Steering, Timeouts, Tls, TlsVersion, Workers, defaults, quantity,
};
use crate::limits::WORKERS_MAX;

/// CPU numbers go up to here: the kernel's largest `NR_CPUS`.
const CPU_HIGHEST: usize = 8191;

pub use resumption::epoch;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SHORTEST: Duration = Duration::from_millis(10);

/// Text to configuration.
pub(super) fn config(text: &str, path: &Path) -> Result<Config, Vec<Problem>> {
    let mut reader = Reader::new(path, text);
    let (document, syntax) = toml::de::DeTable::parse_recoverable(text);
    for error in &syntax {
        let at = reader.position(error.span().map_or(0, |span| span.start), String::new());
        reader.problem(&at, format!("not TOML: {}", error.message()));
    }
    // A tree with holes would only give problems that are none.
    let config = if syntax.is_empty() { sections(&mut reader, document.get_ref()) } else { None };
    let mut problems = reader.problems;
    problems.sort_by_key(|problem| problem.at.line);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems),
    }
}

fn sections<'d>(reader: &mut Reader<'d>, document: &'d toml::de::DeTable<'d>) -> Option<Config> {
    let mut root = reader.root(document);
    let workers = workers(reader, &mut root);
    let listeners = root.tables(reader, "listener");
    let backends = backends::backends(reader, &mut root);
    let mut binds = HashMap::new();
    let listeners = listeners.map(|tables| {
        if tables.is_empty() {
            root.require(reader, "listener", "at least one [[listener]] with name, bind, backend");
        }
        listeners::listeners(reader, tables, backends.as_deref(), &mut binds)
    });
    let tls = tls(reader, &mut root);
    let resumption = resumption::resumption(reader, &mut root);
    let limits = limits::limits(reader, &mut root);
    let handshake = handshake(reader, &mut root);
    let timeouts = timeouts(reader, &mut root);
    let admin = admin(reader, &mut root, &mut binds);
    let access_log = access_log(reader, &mut root);
    let log = log(reader, &mut root);
    root.finish(reader);
    if !reader.problems.is_empty() {
        return None;
    }
    Some(Config {
        workers,
        listeners: listeners?,
        backends: backends?.into_iter().flatten().collect(),
        tls,
        resumption,
        limits,
        handshake,
        timeouts,
        admin,
        access_log,
        log,
    })
}

fn workers<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Workers {
    let mut table = root.table(reader, "workers");
    let range = 1..=WORKERS_MAX;
    let count = auto_or_integer(reader, &mut table, "count", &range);
    let mut cpus = None;
    let expected = "\"auto\" or a list such as \"2-7,10\", in quotes";
    if let Some(item) = table.string(reader, "cpus", expected)
        && item.value != "auto"
    {
        match quantity::cpu_list(&item.value, CPU_HIGHEST) {
            Ok(list) => {
                if let Some(count) = count
                    && count > list.len()
                {
                    let message = format!(
                        "names {} CPUs for workers.count = {count}; name as many, or lower count",
                        list.len(),
                    );
                    reader.refuse(&item.at, quoted(&item.value), message);
                }
                cpus = Some(list);
            }
            Err(message) => reader.refuse(&item.at, quoted(&item.value), message),
        }
    }
    let choices = [("hash", Steering::Hash), ("incoming_cpu", Steering::IncomingCpu)];
    let steering = choice(reader, &mut table, "steering", &choices).unwrap_or_default();
    table.finish(reader);
    Workers { count, cpus, steering }
}

fn auto_or_integer<'d, N>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    range: &RangeInclusive<N>,
) -> Option<N>
where
    N: std::str::FromStr + PartialOrd + Display,
{
    let expected = format!("\"auto\" or a number from {} to {}", range.start(), range.end());
    let (item, is_integer) = table.integer_or_string(reader, key, &expected)?;
    if !is_integer && item.value == "auto" {
        return None;
    }
    let number = item.value.parse().ok();
    let number = number.filter(|number| is_integer && range.contains(number));
    if number.is_none() {
        let value = if is_integer { item.value } else { quoted(&item.value) };
        reader.refuse(&item.at, value, format!("expected {expected}"));
    }
    number
}

type Binds = HashMap<SocketAddr, Position>;

/// A `name`: unique among its kind, and fit to be a label of metrics and logs.
fn label<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    taken: &mut HashMap<String, Position>,
) -> Option<String> {
    const EXPECTED: &str = "1 to 64 letters, digits, '-', '_' or '.'";
    if !table.require(reader, "name", EXPECTED) {
        table.string(reader, "name", EXPECTED);
        return None;
    }
    let item = table.string(reader, "name", EXPECTED)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !(1..=64).contains(&item.value.len()) || !item.value.chars().all(legal) {
        reader.refuse(&item.at, quoted(&item.value), format!("expected {EXPECTED}"));
        return None;
    }
    if let Some(first) = taken.insert(item.value.clone(), item.at.clone()) {
        let message = format!("this name is taken by line {}; names are unique", first.line);
        reader.refuse(&item.at, quoted(&item.value), message);
    }
    Some(item.value)
}

/// An address to listen on, once in the whole file.
fn address(reader: &mut Reader<'_>, item: &Item<String>, binds: &mut Binds) -> Option<SocketAddr> {
    let refusal = match item.value.parse::<SocketAddr>() {
        Err(_) => "expected \"ip:port\", such as \"0.0.0.0:443\" or \"[::]:443\"".to_owned(),
        Ok(address) if address.port() == 0 => {
            "port 0 would be another port in each worker; expected 1 to 65535".to_owned()
        }
        Ok(SocketAddr::V6(v6)) if v6.ip().to_ipv4_mapped().is_some() => {
            "IPv6 sockets carry IPv6 only here; write the IPv4 address itself".to_owned()
        }
        Ok(address) => match binds.insert(address, item.at.clone()) {
            None => return Some(address),
            Some(first) => format!(
                "this address is taken by {} in line {}; every address is bound once",
                first.key, first.line
            ),
        },
    };
    reader.refuse(&item.at, quoted(&item.value), refusal);
    None
}

/// A list without repetition, each element turned by `accept`.
fn list<'d, T: PartialEq>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    expected: &str,
    accept: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let items = table.strings(reader, key, expected)?;
    let mut accepted = Vec::with_capacity(items.value.len());
    for item in items.value {
        match accept(&item.value) {
            None => reader.refuse(&item.at, quoted(&item.value), format!("expected {expected}")),
            Some(value) if accepted.contains(&value) => {
                reader.refuse(&item.at, quoted(&item.value), "stands in the list twice");
            }
            Some(value) => accepted.push(value),
        }
    }
    Some(accepted)
}

/// A [`list`] that, when written, must not be empty.
fn filled_list<'d, T: PartialEq>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    expected: &str,
    accept: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let before = reader.problems.len();
    let values = list(reader, table, key, expected, accept)?;
    if values.is_empty() && reader.problems.len() == before {
        let at = Position { key: format!("{}.{key}", table.at().key), ..table.at().clone() };
        reader.refuse(&at, "[]", format!("must not be empty; expected {expected}"));
    }
    Some(values)
}

fn number<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    range: &RangeInclusive<u32>,
) -> Option<u32> {
    let expected = format!("a number from {} to {}", range.start(), range.end());
    let (item, is_integer) = table.integer_or_string(reader, key, &expected)?;
    let number = item.value.parse().ok();
    let number = number.filter(|number| is_integer && range.contains(number));
    if number.is_none() {
        let value = if is_integer { item.value } else { quoted(&item.value) };
        reader.refuse(&item.at, value, format!("expected {expected}"));
    }
    number
}

fn choice<'d, T: Copy>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    choices: &[(&str, T)],
) -> Option<T> {
    let names: Vec<String> = choices.iter().map(|(name, _)| quoted(name)).collect();
    let expected = format!("one of {}", names.join(", "));
    let item = table.string(reader, key, &expected)?;
    let chosen = choices.iter().find(|(name, _)| *name == item.value);
    if chosen.is_none() {
        reader.refuse(&item.at, quoted(&item.value), format!("expected {expected}"));
    }
    chosen.map(|(_, value)| *value)
}

fn tls<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Tls {
    let mut table = root.table(reader, "tls");
    let version = |name: &str| match name {
        "1.2" => Some(TlsVersion::Tls12),
        "1.3" => Some(TlsVersion::Tls13),
        _ => None,
    };
    let expected = "a list of \"1.2\" and \"1.3\"";
    let versions = filled_list(reader, &mut table, "versions", expected, version)
        .unwrap_or_else(|| vec![TlsVersion::Tls12, TlsVersion::Tls13]);
    let one_of = |names: &'static [&'static str]| {
        move |name: &str| names.contains(&name).then(|| name.to_owned())
    };
    let expected = format!("names of {}", CIPHER_SUITES.join(", "));
    let suites = one_of(&CIPHER_SUITES);
    let cipher_suites = filled_list(reader, &mut table, "cipher_suites", &expected, suites);
    let expected = format!("names of {}", GROUPS.join(", "));
    let groups = filled_list(reader, &mut table, "groups", &expected, one_of(&GROUPS))
        .unwrap_or_else(|| defaults::GROUPS.map(str::to_owned).to_vec());
    let layers = [("lean", RecordLayer::Lean), ("rustls", RecordLayer::Rustls)];
    let record_layer =
        choice(reader, &mut table, "record_layer", &layers).unwrap_or(defaults::RECORD_LAYER);
    let at = table.at().clone();
    table.finish(reader);
    let tls = Tls { versions, cipher_suites, groups, record_layer };
    if reader.problems.iter().all(|problem| !problem.at.key.starts_with("tls.")) {
        versions_are_served(reader, &at, &tls);
    }
    tls
}

/// A version without a suite or group of its own would be offered and then never negotiated.
fn versions_are_served(reader: &mut Reader<'_>, at: &Position, tls: &Tls) {
    let Some(suites) = tls.cipher_suites.as_deref() else {
        return groups_are_served(reader, at, tls);
    };
    for (version, name, is_12) in
        [(TlsVersion::Tls12, "1.2", true), (TlsVersion::Tls13, "1.3", false)]
    {
        let served = suites.iter().any(|suite| suite.starts_with("TLS_ECDHE_") == is_12);
        if tls.versions.contains(&version) && !served {
            let at = Position { key: "tls.cipher_suites".to_owned(), ..at.clone() };
            let kind = if is_12 { "TLS_ECDHE_…" } else { "TLS_AES_… or TLS_CHACHA20_…" };
            reader.problem(
                &at,
                format!(
                    "has no suite of TLS {name}, which tls.versions offers; add a {kind} suite, or \
                 take \"{name}\" out of tls.versions"
                ),
            );
        }
    }
    groups_are_served(reader, at, tls);
}

fn groups_are_served(reader: &mut Reader<'_>, at: &Position, tls: &Tls) {
    let hybrids_only = tls.groups.iter().all(|group| group == "X25519MLKEM768");
    if tls.versions.contains(&TlsVersion::Tls12) && hybrids_only {
        let at = Position { key: "tls.groups".to_owned(), ..at.clone() };
        reader.problem(
            &at,
            "has no group of TLS 1.2, which tls.versions offers; add \"X25519\" or \
                             \"P-256\", or take \"1.2\" out of tls.versions",
        );
    }
}

fn size<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    range: &RangeInclusive<u64>,
    accepted: &str,
) -> Option<usize> {
    let item = table.string(reader, key, &format!("a size from {accepted}"))?;
    let size = quantity::size(&item.value).map_err(str::to_owned).and_then(|size| {
        let size = Some(size).filter(|size| range.contains(size));
        size.and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| format!("expected {accepted}"))
    });
    size.map_err(|why| reader.refuse(&item.at, quoted(&item.value), why)).ok()
}

fn handshake<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Handshake {
    let mut table = root.table(reader, "handshake");
    let budget_us = number(reader, &mut table, "budget_us", &(0..=100_000_u32));
    let deadline = timeout(reader, &mut table, "queue_deadline", &(SHORTEST..=5 * MINUTE));
    let pending = number(reader, &mut table, "max_pending", &(16..=1_000_000_u32));
    table.finish(reader);
    let default = Handshake::default();
    Handshake {
        budget: budget_us.map_or(default.budget, |us| Duration::from_micros(u64::from(us))),
        queue_deadline: deadline.unwrap_or(default.queue_deadline),
        max_pending: pending.unwrap_or(default.max_pending),
    }
}

fn timeouts<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Timeouts {
    let mut table = root.table(reader, "timeouts");
    let mut get = |key, default, range| timeout(reader, &mut table, key, &range).unwrap_or(default);
    let timeouts = Timeouts {
        handshake: get("handshake", defaults::HANDSHAKE, SHORTEST..=5 * MINUTE),
        client_hello: get("client_hello", defaults::CLIENT_HELLO, SHORTEST..=5 * MINUTE),
        connect: get("connect", defaults::CONNECT, SHORTEST..=5 * MINUTE),
        idle: get("idle", defaults::IDLE, SHORTEST..=7 * DAY),
        rest: get("rest", defaults::REST, SHORTEST..=7 * DAY),
        half_closed: get("half_closed", defaults::HALF_CLOSED, SHORTEST..=7 * DAY),
        stalled: get("stalled", defaults::STALLED, SHORTEST..=7 * DAY),
        drain: get("drain", defaults::DRAIN, Duration::ZERO..=7 * DAY),
    };
    table.finish(reader);
    timeouts
}

fn timeout<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    range: &RangeInclusive<Duration>,
) -> Option<Duration> {
    let show = quantity::show_duration;
    let expected = format!("\"{}\" to \"{}\"", show(*range.start()), show(*range.end()));
    let item = table.string(reader, key, &format!("a duration from {expected}, in quotes"))?;
    match quantity::duration(&item.value) {
        Ok(duration) if range.contains(&duration) => return Some(duration),
        Ok(_) => reader.refuse(&item.at, quoted(&item.value), format!("expected {expected}")),
        Err(why) => {
            let message = format!("{why}, from {expected}");
            reader.refuse(&item.at, quoted(&item.value), message);
        }
    }
    None
}

/// A [`timeout`] that may be `"off"`, which is what it is by default.
fn off_or_timeout<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
    range: &RangeInclusive<Duration>,
) -> Option<Duration> {
    let [from, to] = [range.start(), range.end()].map(|end| quantity::show_duration(*end));
    let expected = format!("\"off\", or \"{from}\" to \"{to}\"");
    let item = table.string(reader, key, &expected)?;
    if item.value == "off" {
        return None;
    }
    let duration = quantity::duration(&item.value).ok().filter(|value| range.contains(value));
    if duration.is_none() {
        reader.refuse(&item.at, quoted(&item.value), format!("expected {expected}"));
    }
    duration
}

fn admin<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>, binds: &mut Binds) -> Option<Admin> {
    let mut table = root.table(reader, "admin");
    if !table.is_present() {
        return None;
    }
    table.require(reader, "bind", "an address \"ip:port\", such as \"127.0.0.1:9443\"");
    let item = table.string(reader, "bind", "an address \"ip:port\"");
    let bind = item.and_then(|item| address(reader, &item, binds));
    table.finish(reader);
    bind.map(|bind| Admin { bind })
}

fn access_log<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Option<AccessLog> {
    let mut table = root.table(reader, "access_log");
    if !table.is_present() {
        return None;
    }
    let expected = "the path of a file, or \"-\" for standard output";
    table.require(reader, "path", expected);
    let item = table.string(reader, "path", expected);
    table.finish(reader);
    let item = item?;
    if item.value.is_empty() {
        reader.refuse(&item.at, "\"\"", format!("expected {expected}"));
    }
    let directory = item.at.file.parent().unwrap_or(Path::new(""));
    let path = match item.value.as_str() {
        "-" => PathBuf::from("-"),
        path => directory.join(path),
    };
    Some(AccessLog { path })
}

fn log<'d>(reader: &mut Reader<'d>, root: &mut Table<'d>) -> Log {
    let mut table = root.table(reader, "log");
    let choices = [
        ("error", tracing::Level::ERROR),
        ("warn", tracing::Level::WARN),
        ("info", tracing::Level::INFO),
        ("debug", tracing::Level::DEBUG),
    ];
    let level = choice(reader, &mut table, "level", &choices).unwrap_or(defaults::LOG_LEVEL);
    table.finish(reader);
    Log { level }
}

#[cfg(test)]
mod tests;
