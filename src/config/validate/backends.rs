//! `[[backend]]` and `[[backend.server]]`.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{MINUTE, SHORTEST, choice, label, number, timeout};
use crate::config::raw::{Reader, Table, quoted};
use crate::config::{
    Backend, BackendQueue, Connect, ProxyVersion, Server, ServerAddress, defaults, server_name,
};
use crate::limits::{QUEUE_CLIENTS_MAX, SERVER_CONNECTIONS_MAX};

/// Bytes of a path in a Unix socket's address, without its final NUL (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// `None` in the list: that backend has problems, which are noted.
pub(super) fn backends<'d>(
    reader: &mut Reader<'d>,
    root: &mut Table<'d>,
) -> Option<Vec<Option<Backend>>> {
    let tables = root.tables(reader, "backend")?;
    if tables.is_empty() {
        root.require(
            reader,
            "backend",
            "at least one [[backend]] with name and [[backend.server]]",
        );
        return None;
    }
    let mut names = HashMap::new();
    let mut backends = Vec::with_capacity(tables.len());
    for mut table in tables {
        let name = label(reader, &mut table, &mut names);
        let choices = [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];
        let send_proxy_protocol = choice(reader, &mut table, "send_proxy_protocol", &choices);
        let choices = [("eager", Connect::Eager), ("on_first_byte", Connect::OnFirstByte)];
        let connect = choice(reader, &mut table, "connect", &choices);
        let connect = connect.unwrap_or(defaults::CONNECT_WHEN);
        let queue = queue(reader, &mut table);
        let servers = servers(reader, &mut table);
        table.finish(reader);
        backends.push(name.map(|name| Backend {
            name,
            servers,
            connect,
            send_proxy_protocol,
            queue,
        }));
    }
    Some(backends)
}

fn queue<'d>(reader: &mut Reader<'d>, backend: &mut Table<'d>) -> BackendQueue {
    let mut table = backend.table(reader, "queue");
    let max = number(reader, &mut table, "max", &(0..=QUEUE_CLIENTS_MAX));
    let timeout = timeout(reader, &mut table, "timeout", &(SHORTEST..=5 * MINUTE));
    table.finish(reader);
    let default = BackendQueue::default();
    BackendQueue { max: max.unwrap_or(default.max), timeout: timeout.unwrap_or(default.timeout) }
}

fn servers<'d>(reader: &mut Reader<'d>, table: &mut Table<'d>) -> Vec<Server> {
    let Some(tables) = table.tables(reader, "server") else {
        return Vec::new();
    };
    if tables.is_empty() {
        table.require(reader, "server", "at least one [[backend.server]] with address");
    }
    let mut servers: Vec<Server> = Vec::with_capacity(tables.len());
    for mut table in tables {
        let expected = "\"host:port\" or \"unix:/path\"";
        table.require(reader, "address", expected);
        let range = 1..=SERVER_CONNECTIONS_MAX;
        let max_connections = number(reader, &mut table, "max_connections", &range);
        if let Some(item) = table.string(reader, "address", expected) {
            match server_address(&item.value) {
                Err(why) => reader.refuse(&item.at, quoted(&item.value), why),
                Ok(address) if servers.iter().any(|server| server.address == address) => {
                    let why = "stands in this backend twice; a server is named once";
                    reader.refuse(&item.at, quoted(&item.value), why);
                }
                Ok(address) => {
                    servers.push(Server { address, address_at: item.at, max_connections });
                }
            }
        }
        table.finish(reader);
    }
    servers
}

fn server_address(text: &str) -> Result<ServerAddress, &'static str> {
    const EXPECTED: &str = "expected \"host:port\" (\"[ip]:port\" for IPv6) or \"unix:/path\"";
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.contains('\0') {
            return Err("expected an absolute path after \"unix:\"");
        }
        if path.len() > UNIX_PATH_BYTES_MAX {
            return Err("a Unix socket's path has at most 107 bytes (unix(7)); use a shorter one");
        }
        return Ok(ServerAddress::Unix(PathBuf::from(path)));
    }
    let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or("expected a port, 1 to 65535")?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
        Some(_) => return Err("expected an IPv6 address between the brackets"),
        None if host.parse::<std::net::Ipv4Addr>().is_ok() => host,
        None if server_name::normalize(host).is_ok() && !host.contains('*') => host,
        None => return Err(EXPECTED),
    };
    Ok(ServerAddress::Host { host: host.to_owned(), port })
}
