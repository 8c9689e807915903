//! `portcullis load`: what it reports is what happened, against our server and against others'.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::address;
use crate::support::backend::Backend;
use crate::support::certificates::{self, Kind};
use crate::support::peers::{nginx, peer};
use crate::support::process::{Process, all, run, text};
use crate::support::server::Setup;

const LIMIT: Duration = Duration::from_secs(60);

fn load(mode: &str, target: SocketAddr, options: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["load", mode, "--target", &target.to_string()]);
    command.args(options.split_ascii_whitespace());
    command
}

fn outcome(mode: &str, target: SocketAddr, options: &str) -> Output {
    run(&mut load(mode, target, options), b"", LIMIT)
}

pub(crate) fn json(mode: &str, target: SocketAddr, options: &str) -> Value {
    let output = outcome(mode, target, &format!("{options} --json --warm-up 300ms"));
    assert!(output.status.success(), "{}", all(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(summary: &Value, path: &str) -> u64 {
    summary.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {summary:#}"))
}

#[test]
fn every_way_to_come_back_resumes() {
    let server = Setup::new(Backend::echo()).workers(2).start();
    for (options, version) in [
        ("--resume ticket --tls 1.3", "TLSv1_3"),
        ("--resume ticket --tls 1.3 --protocol raw --up 10B", "TLSv1_3"),
        ("--resume ticket --tls 1.2", "TLSv1_2"),
        ("--resume session-id", "TLSv1_2"),
    ] {
        let clients = "--connections 4 --duration 400ms";
        let found = json("handshake", server.address, &format!("{options} {clients}"));
        assert_eq!(found["tls"]["version"], version, "{options}");
        let handshakes = count(&found, "/measured/handshakes");
        assert!(handshakes > 4, "{options}: {found:#}");
        assert_eq!(count(&found, "/measured/handshakes_resumed"), handshakes, "{options}");
        assert_eq!(count(&found, "/measured/failed"), 0, "{options}: {found:#}");
    }
    // Nobody was cut: each client ended with close_notify, and so did the server.
    server.wait_idle();
    let metrics = server.metrics();
    let finished = metrics.get("portcullis_connections_closed_total{reason=\"finished\"}");
    assert_eq!(finished, metrics.get("portcullis_handshakes_total{outcome=\"ok\"}"));
}

#[test]
fn full_handshakes_have_the_suite_and_group_asked_for() {
    let server = Setup::new(Backend::echo()).certificate(Kind::Rsa, &["localhost"]).start();
    let options = "--server-name localhost --connections 4 --duration 300ms --tls 1.2 \
                   --group P-384,P-256 \
                   --cipher-suite TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    let found = json("handshake", server.address, options);
    assert_eq!(found["tls"]["suite"], "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384");
    assert_eq!(found["tls"]["group"], "secp384r1");
    assert_eq!(count(&found, "/measured/handshakes_resumed"), 0);
}

#[test]
fn questions_up_to_many_records_are_answered() {
    let server = Setup::new(Backend::echo()).start();
    for (size, bytes) in [("1B", 1), ("16KiB", 16 << 10), ("300KiB", 300 << 10)] {
        let options = format!("--protocol raw --up {size} --connections 8 --duration 300ms");
        let found = json("request", server.address, &options);
        let done = count(&found, "/measured/operations");
        assert!(done > 0, "{found:#}");
        assert_eq!(count(&found, "/measured/failed"), 0, "{found:#}");
        assert_eq!(count(&found, "/open"), 8);
        // What was begun before the window or ends behind it makes a small difference.
        let down = count(&found, "/measured/down_bytes");
        assert!(down.abs_diff(done * bytes) <= 2 * 8 * bytes, "{size}: {down} of {done}");
    }
}

#[test]
fn a_rate_is_kept_and_latency_counts_from_when_a_question_was_due() {
    // Answers take 50 ms and the one connection is asked 100 times a second: half of the questions
    // wait, longer and longer, and a closed loop would not see it.
    let slow = Backend::new(|mut stream| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
            if stream.write_all(&byte).is_err() {
                return;
            }
        }
    });
    let server = Setup::new(slow).start();
    let options = "--protocol raw --up 1B --connections 1 --threads 1 --duration 2s";
    let closed = json("request", server.address, options);
    let open = json("request", server.address, &format!("{options} --rate 100"));
    let median = |found: &Value| found["measured"]["latency_us"]["p50"].as_f64().unwrap();
    assert!(median(&closed) < 200_000.0, "{closed:#}");
    assert!(median(&open) > 300_000.0, "{open:#}");
    // Those that were due and could not begin are told.
    assert!(count(&open, "/measured/failures/not_started") > 0, "{open:#}");
    let easy = json("request", server.address, &options.replace("connections 1", "connections 9"));
    assert!(count(&easy, "/measured/operations") > 0);
}

#[test]
fn held_connections_are_sampled_and_the_lost_are_told() {
    let server = Setup::new(Backend::echo()).start();
    let options = "--connections 300 --protocol raw --up 1B --sample 100 --every 500ms \
                   --duration 1s --source 127.0.0.0/24";
    let options = format!("{options} --server-pid {}", server.process.id());
    let found = json("hold", server.address, &options);
    assert_eq!(count(&found, "/open"), 300);
    let sampled = count(&found, "/measured/operations");
    assert!((200..=700).contains(&sampled), "{found:#}");
    assert_eq!(count(&found, "/memory/connections"), 300);
    assert!(found["measured"]["server"]["cpu_seconds"].as_f64().unwrap() > 0.0);
    let memory = count(&found, "/memory/server_with");
    assert!(memory > 1 << 20, "a process has some memory: {memory}");
    let clients: std::collections::HashSet<String> =
        server.wait_records(300).iter().map(client_ip).collect();
    assert_eq!(clients.len(), 254, "hosts of the network, in turn");

    let server = Setup::new(Backend::echo()).start();
    let mut process = Process::spawn(
        load("hold", server.address, "--connections 20 --sample 0 --duration 2s --json")
            .stdout(std::process::Stdio::piped()),
    );
    server.wait_metric("portcullis_connections{state=\"relay\"}", 20.0);
    server.signal(Signal::SIGKILL);
    let output = process.output();
    let found: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(count(&found, "/open"), 0);
    let lost: u64 = ["idle_closed", "idle_reset"]
        .iter()
        .filter_map(|reason| found["measured"]["failures"][reason].as_u64())
        .sum();
    assert_eq!(lost, 20, "{found:#}");
}

fn client_ip(record: &Value) -> String {
    let client: SocketAddr = record["client"].as_str().unwrap().parse().unwrap();
    client.ip().to_string()
}

#[test]
fn a_flood_is_measured_beside_the_traffic_that_it_disturbs() {
    let server = Setup::new(Backend::echo()).start();
    let options = "--connections 8 --rate 200 --flood-connections 8 --duration 500ms \
                   --protocol raw --up 100B";
    let found = json("flood", server.address, options);
    assert!(count(&found, "/measured/operations") > 50, "{found:#}");
    assert_eq!(count(&found, "/measured/handshakes"), 0);
    assert!(count(&found, "/flood/during/operations") > 50, "{found:#}");
    assert!(count(&found, "/flood/handshakes/handshakes") > 10, "{found:#}");
    assert!(found["flood"]["p99_ratio"].as_f64().unwrap() > 0.0);
}

#[test]
fn http_servers_of_others_are_loaded_too() {
    let Some(program) = peer("nginx") else { return };
    let directory = tempfile::tempdir().unwrap();
    let files = certificates::leaf(directory.path(), Kind::Ecdsa, &["localhost"]);
    let body = format!(
        "ssl_certificate {}; ssl_certificate_key {}; location / {{ return 200 hello; }} \
         location /missing {{ return 404; }}",
        files.chain.display(),
        files.key.display()
    );
    let nginx = nginx(&program, "ssl", &body);
    let authority = certificates::authority_file(directory.path());
    let options = format!("--ca {} --connections 4 --duration 300ms", authority.display());
    for (mode, more) in
        [("handshake", ""), ("handshake", "--protocol http"), ("request", ""), ("bulk", "")]
    {
        let found = json(mode, nginx.address, &format!("{options} --server-name localhost {more}"));
        assert!(count(&found, "/measured/operations") > 0, "{found:#}");
        assert_eq!(count(&found, "/measured/failed"), 0, "{found:#}");
    }
    let found = outcome(
        "request",
        nginx.address,
        &format!("{options} --server-name localhost --path /missing --json"),
    );
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert!(count(&found, "/measured/failures/http_404") > 0, "{found:#}");

    let wrong =
        outcome("request", nginx.address, &format!("{options} --server-name other.example"));
    assert_eq!(wrong.status.code(), Some(69), "{}", all(&wrong));
    assert!(text(&wrong.stdout).contains("certificate_not_trusted"), "{}", all(&wrong));
}

#[test]
fn what_cannot_work_says_why() {
    let nobody = address::free();
    let refused = outcome("handshake", nobody, "--connections 2 --duration 200ms --warm-up 0s");
    assert_eq!(refused.status.code(), Some(69), "{}", all(&refused));
    assert!(text(&refused.stdout).contains("connect_refused"), "{}", all(&refused));

    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in plain.incoming() {
            let mut stream = stream.unwrap();
            // A client that has gone meanwhile is no matter.
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    let plain = outcome("handshake", address, "--connections 2 --duration 200ms --warm-up 0s");
    assert_eq!(plain.status.code(), Some(69), "{}", all(&plain));
    assert!(text(&plain.stdout).contains("bad_record"), "{}", all(&plain));

    let elsewhere = "192.0.2.1:443".parse().unwrap();
    for (target, options, word) in [
        (elsewhere, "", "--i-own-this-target"),
        (nobody, "--source ::1", "IPv6"),
        (nobody, "--resume session-id --tls 1.3", "--resume ticket"),
        (nobody, "--protocol raw", "--up"),
        (nobody, "--rate 0", "--rate"),
    ] {
        let refused = outcome("handshake", target, options);
        assert_eq!(refused.status.code(), Some(64), "{options}: {}", all(&refused));
        assert!(text(&refused.stderr).contains(word), "{options}: {}", all(&refused));
    }
}

#[test]
fn an_interrupt_ends_it_with_a_summary() {
    let server = Setup::new(Backend::echo()).start();
    let options = "--duration 60s --protocol raw --up 10B --connections 4";
    let mut process = Process::spawn(
        load("request", server.address, options).stdout(std::process::Stdio::piped()),
    );
    server.wait_metric("portcullis_connections{state=\"relay\"}", 4.0);
    process.signal(Signal::SIGINT);
    let summary = text(&process.output());
    assert!(summary.contains("ended early"), "{summary}");
    assert!(summary.contains("4 of 4 connections open"), "{summary}");
    server.wait_idle();
}
