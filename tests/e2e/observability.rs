//! What an operator sees: metrics, access log, health.

use std::collections::HashSet;
use std::sync::Arc;

use crate::support::backend::Backend;
use crate::support::client;
use crate::support::metrics;
use crate::support::server::{NAME, Server, Setup};

#[test]
fn every_metric_has_help_and_type_and_a_name_of_ours() {
    let server = Server::before(Backend::echo());
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, b"something to count");
    client::finish(tls);
    server.wait_closed("finished", 1);
    let (status, body) = metrics::get(server.admin, "/metrics").unwrap();
    assert_eq!(status, 200);
    let mut described = HashSet::new();
    let mut typed = HashSet::new();
    let mut series = HashSet::new();
    for line in body.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.len() > 5, "{line}");
            assert!(described.insert(name), "described twice: {name}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram", "info"].contains(&kind), "{line}");
            assert!(typed.insert(name), "typed twice: {name}");
        } else if !line.starts_with('#') {
            let sample = metrics::sample(line).unwrap_or_else(|| panic!("{line:?}"));
            assert!(sample.name.starts_with("portcullis_"), "{line}");
            assert!(
                series.insert((sample.name.clone(), sample.labels.clone())),
                "series twice: {line}"
            );
            // Counters are described with or without `_total` (Prometheus text or OpenMetrics).
            let names = ["", "_total", "_bucket", "_sum", "_count", "_info"];
            let known = |set: &HashSet<&str>| {
                names.iter().any(|suffix| {
                    sample.name.strip_suffix(suffix).is_some_and(|name| set.contains(name))
                })
            };
            assert!(known(&typed), "no type: {line}");
            assert!(known(&described), "no help: {line}");
        }
    }
    assert!(series.len() > 20, "{body}");
}

#[test]
fn histograms_are_cumulative_and_count_each_connection() {
    let server = Server::before(Backend::echo());
    for _ in 0..5 {
        let mut tls = client::connect(server.address);
        client::echo(&mut tls, b"timed");
        client::finish(tls);
    }
    server.wait_closed("finished", 5);
    server.wait_idle();
    let metrics = server.metrics();
    let buckets: Vec<_> = metrics
        .0
        .iter()
        .filter(|sample| sample.name.ends_with("_bucket"))
        .filter(|sample| sample.labels.get("stage").map(String::as_str) == Some("total"))
        .collect();
    assert!(buckets.len() > 10, "{metrics:?}");
    let mut last = (0.0, 0.0);
    for bucket in &buckets {
        let bound = match bucket.labels["le"].as_str() {
            "+Inf" => f64::INFINITY,
            number => number.parse().unwrap(),
        };
        assert!(bound > last.0 && bucket.value >= last.1, "{bucket:?} after {last:?}");
        last = (bound, bucket.value);
    }
    assert_eq!(last, (f64::INFINITY, 5.0));
}

#[test]
fn bytes_states_and_loop_turns_are_counted() {
    let server = Server::before(Backend::echo());
    let mut tls = client::connect(server.address);
    client::echo(&mut tls, &[7; 12_345]);
    server.wait_metric("portcullis_inbound_bytes_total", 12_345.0);
    server.wait_metric("portcullis_outbound_bytes_total", 12_345.0);
    server.wait_metric("portcullis_connections{state=\"relay\"}", 1.0);
    let half = client::tcp(server.address).unwrap();
    server.wait_metric("portcullis_connections{state=\"client_hello\"}", 1.0);
    drop(half);
    client::finish(tls);
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!(metrics.get("portcullis_connections_accepted_total"), 2.0);
    assert_eq!(metrics.get("portcullis_connections_closed_total"), 2.0);
    assert!(metrics.get("portcullis_loop_turns_total") >= 1.0);
    assert!(metrics.get("portcullis_loop_completions_total") >= 4.0);
}

#[test]
fn handshakes_are_counted_by_version_suite_group_and_outcome() {
    use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
    use rustls::version::{TLS12, TLS13};
    let server = Server::before(Backend::echo());
    let mut tls13 = client::provider();
    tls13.cipher_suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    tls13.kx_groups = vec![kx_group::SECP384R1];
    let mut tls12 = client::provider();
    tls12.cipher_suites = vec![cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256];
    tls12.kx_groups = vec![kx_group::X25519];
    for (provider, version) in [(tls13, &TLS13), (tls12, &TLS12)] {
        let config = Arc::new(client::config_with(provider, &[version]));
        let mut tls = client::try_connect(&config, server.address, NAME).unwrap();
        client::echo(&mut tls, b"counted");
        client::finish(tls);
    }
    std::io::Write::write_all(&mut client::tcp(server.address).unwrap(), b"GET / HTTP/1.1\r\n\r\n")
        .unwrap();
    server.wait_closed("handshake_failed", 1);
    let metrics = server.metrics();
    for (selector, count) in [
        ("handshakes_total{outcome=\"ok\"}", 2.0),
        ("handshakes_total{outcome=\"plain_http\"}", 1.0),
        ("handshakes_total", 3.0),
        ("handshakes_by_version_total{version=\"TLSv1.3\"}", 1.0),
        ("handshakes_by_version_total{version=\"TLSv1.2\"}", 1.0),
        ("handshakes_by_version_total", 2.0),
        ("handshakes_by_suite_total{suite=\"TLS_AES_256_GCM_SHA384\"}", 1.0),
        ("handshakes_by_suite_total{suite=\"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\"}", 1.0),
        ("handshakes_by_suite_total", 2.0),
        ("handshakes_by_group_total{group=\"P-384\"}", 1.0),
        ("handshakes_by_group_total{group=\"X25519\"}", 1.0),
        ("handshakes_by_group_total", 2.0),
        ("stage_duration_seconds_count{stage=\"client_hello\"}", 2.0),
        ("stage_duration_seconds_count{stage=\"handshake\"}", 2.0),
        ("stage_duration_seconds_count{stage=\"connect\"}", 2.0),
        ("stage_duration_seconds_count{stage=\"relay\"}", 2.0),
    ] {
        assert_eq!(metrics.get(&format!("portcullis_{selector}")), count, "{selector}");
    }
    for selector in ["loop_completions_per_turn", "loop_longest_turn_seconds"] {
        assert!(metrics.get(&format!("portcullis_{selector}")) > 0.0, "{selector}");
    }
}

#[test]
fn one_access_log_record_tells_a_connections_whole_story() {
    let backend = Backend::echo();
    let server = Setup::new(&backend).listener("alpn = [\"h2\", \"http/1.1\"]").start();
    let mut config = client::config();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mut tls = client::try_connect(&Arc::new(config), server.address, NAME).unwrap();
    let local = tls.sock.local_addr().unwrap();
    client::echo(&mut tls, &[1; 1000]);
    client::finish(tls);
    let record = &server.wait_records(1)[0];
    for (key, value) in [
        ("listener", "front"),
        ("client", &local.to_string()),
        ("server_name", NAME),
        ("alpn", "h2"),
        ("handshake", "ok"),
        ("version", "TLSv1.3"),
        ("backend", "app"),
        ("server", &backend.to_string()),
        ("reason", "finished"),
    ] {
        assert_eq!(record[key], value, "{key} in {record}");
    }
    assert_eq!(record["inbound_bytes"], 1000, "{record}");
    assert_eq!(record["outbound_bytes"], 1000, "{record}");
    assert!(record["suite"].as_str().unwrap().starts_with("TLS_"), "{record}");
    assert!(record["group"].is_string(), "{record}");
    let time = record["time"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{record}");
    let total = record["total_ms"].as_f64().unwrap();
    for part in ["client_hello_ms", "handshake_ms", "queue_ms", "connect_ms"] {
        let part = record[part].as_f64().unwrap();
        assert!(part >= 0.0 && part <= total, "{record}");
    }
    assert!(total > 0.0, "{record}");
}

#[test]
fn a_failed_handshake_has_its_record_too() {
    let server = Server::before(Backend::echo());
    let stream = client::tcp(server.address).unwrap();
    std::io::Write::write_all(&mut &stream, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let record = &server.wait_records(1)[0];
    assert_eq!(record["handshake"], "plain_http", "{record}");
    assert_eq!(record["reason"], "handshake_failed", "{record}");
}

/// A server name is the client's text: it must not forge a second record.
#[test]
fn names_from_clients_cannot_break_a_record() {
    let Some(openssl) = crate::support::peers::peer("openssl") else {
        return;
    };
    let server = Server::before(Backend::echo());
    let mut command = std::process::Command::new(openssl);
    command
        .args(["s_client", "-connect", &server.address.to_string()])
        .args(["-servername", "a\"}\n{\"reason\":\"forged"]);
    crate::support::process::run(&mut command, b"", crate::support::STUCK);
    let record = &server.wait_records(1)[0];
    assert_ne!(record["reason"], "forged", "{record}");
}

#[test]
fn unknown_paths_and_methods_are_refused() {
    let server = Server::before(Backend::echo());
    assert_eq!(metrics::get(server.admin, "/healthz").unwrap().0, 200);
    assert_eq!(metrics::get(server.admin, "/etc/passwd").unwrap().0, 404);
}
