//! What `verify` sees of a server that runs.

use std::process::Command;
use std::time::Duration;

use portcullis::tune::goal::USER_BYTES;
use serde_json::Value;

use super::{LIMIT, assert_fits, json};
use crate::support::backend::Backend;
use crate::support::client;
use crate::support::eventually;
use crate::support::process::{all, run, text};
use crate::support::server::{BINARY, Setup};

fn verify(pid: u32, more: &[&str]) -> std::process::Output {
    // A state file of nobody: what this machine's own says is not the test's.
    let args = ["tune", "verify", "--state", "/nonexistent/state.json", "--pid"];
    run(Command::new(BINARY).args(args).arg(pid.to_string()).args(more), b"", LIMIT)
}

#[test]
fn its_limits_queues_and_cores_are_shown() {
    let mut setup = Setup::new(Backend::echo()).workers(2).listener("backlog = 77");
    setup.descriptors = Some(4000);
    let server = setup.start();
    let pid = server.process.id();
    let report = json(&verify(pid, &["--format", "json", "--connections", "100000"]));
    let running = &report["running"][0];
    assert_eq!(running["pid"], pid);
    assert_eq!(running["limits"]["nofile"], 4000);
    assert!(running["problems"].to_string().contains("LimitNOFILE="), "{running:#}");
    assert_eq!(running["workers"].as_array().unwrap().len(), 2);
    if !nix::unistd::geteuid().is_root() {
        assert!(running["notes"].to_string().contains("by root only"), "{running:#}");
        return;
    }
    let front = running["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .find(|listener| listener["address"] == server.address.to_string());
    let front = front.unwrap_or_else(|| panic!("{running:#}"));
    assert_eq!((&front["backlog"], &front["sockets"]), (&Value::from(77), &Value::from(2)));
    assert!(running["notes"].to_string().contains("a queue of 77"), "{running:#}");
    let table = verify(pid, &[]);
    assert_fits(&table);
    assert!(text(&table.stdout).contains(&format!("process {pid}")), "{}", all(&table));
}

#[test]
fn a_process_that_is_not_there_is_a_mistake_of_the_caller() {
    let output = verify(4_000_000, &[]);
    assert_eq!(output.status.code(), Some(64), "{}", all(&output));
    assert!(text(&output.stderr).contains("no process 4000000"), "{}", all(&output));
}

/// The sizing's figure for our own memory of an idle connection, from 300 to 1,300 of them:
/// malloc's and the pools' first growth is behind the first ones.
#[test]
fn an_idle_connection_takes_what_the_sizing_counts_for_it() {
    let server = Setup::new(Backend::echo()).start();
    let mut open = Vec::new();
    let mut grow = |count: u32| {
        open.extend((0..count).map(|_| {
            let mut tls = client::connect(server.address);
            client::echo(&mut tls, b"awake once");
            tls
        }));
        let idle = f64::from(u32::try_from(open.len()).unwrap());
        server.wait_metric("portcullis_connections{state=\"idle\"}", idle);
    };
    grow(300);
    // What their handshakes needed besides goes back within half a minute; what had not gone yet
    // would be used again by those that follow, and missing from what they take.
    std::thread::sleep(Duration::from_secs(30));
    let before = server.process.resident_bytes();
    grow(1000);
    // What their handshakes needed besides goes back within seconds.
    let each = eventually("an idle connection's memory", || {
        let each = server.process.resident_bytes().saturating_sub(before) / 1000;
        (each <= USER_BYTES).then_some(each)
    });
    assert!(each >= USER_BYTES / 4, "{each} bytes: lower USER_BYTES in src/tune/goal.rs");
}
