//! `[[listener]]`, `[[listener.certificate]]` and `[listener.client_auth]`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::limits::CONNECTION_RATE;
use super::{Binds, address, auto_or_integer, choice, label, list, number, off_or_timeout};
use crate::config::raw::{Reader, Table, quoted};
use crate::config::{
    Backend, CertificateFiles, ClientAuth, ClientAuthMode, Listener, NamedFile, Position,
    UnknownName, server_name,
};

/// `defer_accept`: the kernel counts it in repetitions of its SYN-ACK, the first after a second.
const DEFER_ACCEPT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

pub(super) fn listeners<'d>(
    reader: &mut Reader<'d>,
    tables: Vec<Table<'d>>,
    backends: Option<&[Option<Backend>]>,
    binds: &mut Binds,
) -> Vec<Listener> {
    let mut names = HashMap::new();
    let mut listeners = Vec::with_capacity(tables.len());
    for mut table in tables {
        let name = label(reader, &mut table, &mut names);
        let bind = addresses(reader, &mut table, binds);
        let backend = backend_of(reader, &mut table, backends);
        let alpn = alpn(reader, &mut table);
        let backlog = auto_or_integer(reader, &mut table, "backlog", &(1..=65_535));
        let defer_accept = off_or_timeout(reader, &mut table, "defer_accept", &DEFER_ACCEPT);
        let connection_rate = number(reader, &mut table, "connection_rate", &CONNECTION_RATE);
        let choices = [("default", UnknownName::Default), ("refuse", UnknownName::Refuse)];
        let unknown_name = choice(reader, &mut table, "unknown_name", &choices);
        let certificates = certificates(reader, &mut table);
        let client_auth = client_auth(reader, &mut table);
        table.finish(reader);
        if let (Some(name), Some(backend)) = (name, backend) {
            listeners.push(Listener {
                name,
                bind,
                backend,
                alpn,
                backlog,
                defer_accept,
                connection_rate,
                unknown_name: unknown_name.unwrap_or(UnknownName::Default),
                certificates,
                client_auth,
            });
        }
    }
    listeners
}

fn addresses<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    binds: &mut Binds,
) -> Vec<SocketAddr> {
    const EXPECTED: &str = "addresses \"ip:port\", such as [\"0.0.0.0:443\", \"[::]:443\"]";
    table.require(reader, "bind", EXPECTED);
    let Some(items) = table.strings(reader, "bind", EXPECTED) else {
        return Vec::new();
    };
    if items.value.is_empty() {
        reader.refuse(&items.at, "[]", format!("expected at least one of {EXPECTED}"));
    }
    let mut addresses = Vec::with_capacity(items.value.len());
    for item in items.value {
        addresses.extend(address(reader, &item, binds));
    }
    addresses
}

fn backend_of<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    backends: Option<&[Option<Backend>]>,
) -> Option<usize> {
    table.require(reader, "backend", "the name of a [[backend]]");
    let item = table.string(reader, "backend", "the name of a [[backend]]")?;
    // With a broken backend, a name that is not found may be the broken one's.
    let known: Vec<&Backend> = backends?.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let found = known.iter().position(|backend| backend.name == item.value);
    if found.is_none() {
        let names: Vec<String> = known.iter().map(|backend| quoted(&backend.name)).collect();
        let message = format!("no backend has this name; backends are: {}", names.join(", "));
        reader.refuse(&item.at, quoted(&item.value), message);
    }
    found
}

fn alpn<'d>(reader: &mut Reader<'d>, table: &mut Table<'d>) -> Vec<String> {
    let expected = "protocol names, such as [\"h2\", \"http/1.1\"]";
    let legal = |name: &str| (1..=255).contains(&name.len()).then(|| name.to_owned());
    list(reader, table, "alpn", expected, legal).unwrap_or_default()
}

fn certificates<'d>(reader: &mut Reader<'d>, table: &mut Table<'d>) -> Vec<CertificateFiles> {
    let Some(tables) = table.tables(reader, "certificate") else {
        return Vec::new();
    };
    if tables.is_empty() {
        let expected = "at least one [[listener.certificate]] with chain and key";
        table.require(reader, "certificate", expected);
    }
    let mut certificates = Vec::with_capacity(tables.len());
    for mut table in tables {
        let chain = file(reader, &mut table, "chain");
        let key = file(reader, &mut table, "key");
        let mut names: Vec<String> = Vec::new();
        let expected = "server names, such as [\"example.com\", \"*.example.com\"]";
        for item in table.strings(reader, "names", expected).into_iter().flat_map(|i| i.value) {
            match server_name::normalize(&item.value) {
                Err(why) => reader.refuse(&item.at, quoted(&item.value), why),
                Ok(name) if names.contains(&name) => {
                    reader.refuse(&item.at, quoted(&item.value), "stands in the list twice");
                }
                Ok(name) => names.push(name),
            }
        }
        table.finish(reader);
        if let (Some((chain, chain_at)), Some((key, key_at))) = (chain, key) {
            certificates.push(CertificateFiles { chain, key, names, chain_at, key_at });
        }
    }
    certificates
}

fn client_auth<'d>(reader: &mut Reader<'d>, table: &mut Table<'d>) -> Option<ClientAuth> {
    let mut table = table.table(reader, "client_auth");
    if !table.is_present() {
        return None;
    }
    let choices = [ClientAuthMode::Required, ClientAuthMode::Optional].map(|m| (m.name(), m));
    table.require(reader, "mode", "one of \"required\", \"optional\"");
    let mode = choice(reader, &mut table, "mode", &choices);
    let ca = file(reader, &mut table, "ca");
    let crl = path(reader, &mut table, "crl");
    table.finish(reader);
    let named = |(path, at)| NamedFile { path, at };
    Some(ClientAuth { mode: mode?, ca: ca.map(named)?, crl: crl.map(named) })
}

/// A [`path`] that must be there.
fn file<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
) -> Option<(PathBuf, Position)> {
    table.require(reader, key, "the path of a PEM file");
    path(reader, table, key)
}

/// A path; a relative one starts at the configuration file's directory, wherever we are started.
fn path<'d>(
    reader: &mut Reader<'d>,
    table: &mut Table<'d>,
    key: &'static str,
) -> Option<(PathBuf, Position)> {
    let item = table.string(reader, key, "the path of a PEM file")?;
    if item.value.is_empty() {
        reader.refuse(&item.at, "\"\"", "expected the path of a PEM file");
        return None;
    }
    let directory = item.at.file.parent().unwrap_or(Path::new(""));
    Some((directory.join(&item.value), item.at))
}
