//! `portcullis tune`, on trees that stand for other machines and in network namespaces of its own.
//!
//! No test changes a setting of the host: `/proc/sys/{fs,kernel,vm}` are read-only where one is
//! applied, and the network's settings are of a fresh namespace.

mod files;
mod namespace;
mod namespaced;
mod plans;
mod process;
mod trees;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{all, run, text};
use crate::support::server::BINARY;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `portcullis tune` on a tree.
fn tune(root: &Path, args: &[&str]) -> Output {
    run(Command::new(BINARY).args(["tune", "--root"]).arg(root).args(args), b"", LIMIT)
}

/// Its JSON, whatever the exit code.
#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", all(output)))
}

/// The entry of an array whose `name` is this.
#[track_caller]
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let entries = list.as_array().unwrap();
    entries
        .iter()
        .find(|entry| entry["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {list:#}"))
}

/// Whether no line is wider than a terminal of 100 columns.
#[track_caller]
fn assert_fits(output: &Output) {
    for line in text(&output.stdout).lines() {
        assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
    }
}
