//! Tests of what the log is told, and when.

use std::time::{Duration, SystemTime};

use super::*;
use crate::config::{PerSource, Refuse};

const VALUES: Values = Values {
    connections_per_worker: 1234,
    limits: Limits {
        connections_per_worker: None,
        client_hello_bytes: 5678,
        min_rate: 4321,
        connection_rate: Some(8765),
        refuse: Refuse::Reset,
        per_source: PerSource {
            connections: Some(71),
            handshakes: Some(72),
            handshake_cpu: Some(Duration::from_millis(73)),
            ipv4_prefix: 32,
            ipv6_prefix: 64,
            allow: Vec::new(),
            sources: 7474,
        },
    },
    open_files: 9999,
    timeouts: Timeouts {
        handshake: Duration::from_secs(11),
        client_hello: Duration::from_secs(17),
        connect: Duration::from_secs(12),
        idle: Duration::from_secs(13),
        rest: Duration::from_secs(16),
        half_closed: Duration::from_secs(14),
        stalled: Duration::from_secs(18),
        drain: Duration::from_secs(15),
    },
};

#[test]
fn a_limit_is_told_when_it_starts_and_when_it_stops_however_long_accept_pauses() {
    let process = Process::new(2, SystemTime::now());
    let mut watch = Watch::new(2);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let limit = Limit::ConnectionsPerWorker;
    let counters = &process.workers[1].counters;
    assert_eq!(watch.look(&process, start), []);

    counters.limits.of(limit).add(1);
    counters.accept_paused.add(1);
    let reached = Notice::LimitReached { worker: 1, limit };
    assert_eq!(watch.look(&process, start), [reached]);
    assert_eq!(watch.look(&process, at(60)), []);

    counters.accept_paused.sub(1);
    assert_eq!(watch.look(&process, at(61)), []);
    let over = Notice::LimitOver { worker: 1, limit };
    assert_eq!(watch.look(&process, at(71)), [over]);
    assert_eq!(watch.look(&process, at(99)), []);
}

#[test]
fn a_limit_line_names_worker_value_and_key() {
    for (limit, value, key) in [
        (Limit::ConnectionsPerWorker, "1234", "limits.connections_per_worker"),
        (Limit::ClientHelloBytes, "5678", "limits.client_hello_bytes"),
        (Limit::ClientHelloRecords, "64", "ClientHello"),
        (Limit::KernelFiles, "9999", "LimitNOFILE"),
        (Limit::AccessLogRecords, "", "access_log.path"),
        (Limit::SessionsPerWorker, "", "resumption.sessions_per_worker"),
        (Limit::Sessions, "", "resumption.session_bytes"),
        (Limit::SessionBytes, "", "certificates"),
        (Limit::ReceiveBuffers, "256", "workers.count"),
        (Limit::ConnectionRate, "8765", "limits.connection_rate"),
        (Limit::ListenerConnectionRate, "", "connection_rate"),
        (Limit::SourceConnections, "71", "limits.per_source.connections"),
        (Limit::SourceHandshakes, "72", "limits.per_source.handshakes"),
        (Limit::SourceHandshakeCpu, "73ms", "limits.per_source.handshake_cpu"),
        (Limit::SourceTable, "7474", "limits.per_source.sources"),
        (Limit::ServerConnections, "", "max_connections"),
        (Limit::BackendQueue, "", "backend.queue.max"),
    ] {
        let text = Text(Notice::LimitReached { worker: 7, limit }, &VALUES).to_string();
        for part in ["worker 7", limit.label(), value, key] {
            assert!(text.contains(part), "{part} not in: {text}");
        }
    }
}

#[test]
fn failed_handshakes_are_summed_over_workers_and_sampled() {
    let process = Process::new(2, SystemTime::now());
    let mut watch = Watch::new(2);
    let start = Instant::now();
    let outcome = HandshakeOutcome::PlainHttp;
    let fail = |worker: usize, n| {
        process.workers[worker].counters.handshakes.of(outcome).add(n);
    };
    process.workers[0].counters.handshakes.of(HandshakeOutcome::Ok).add(9);
    fail(0, 2);
    fail(1, 3);
    let told = |count| [Notice::HandshakesFailed { outcome, count }];
    assert_eq!(watch.look(&process, start), told(5));
    fail(1, 1000);
    assert_eq!(watch.look(&process, start + Duration::from_secs(1)), []);
    assert_eq!(watch.look(&process, start + Duration::from_secs(11)), told(1000));
}

#[test]
fn a_timeout_that_bites_is_told_with_its_key_and_value_in_samples() {
    for (reason, parts) in [
        (CloseReason::ConnectTimeout, ["timeouts.connect", "12s"]),
        (CloseReason::IdleTimeout, ["timeouts.idle", "13s"]),
        (CloseReason::HalfClosedTimeout, ["timeouts.half_closed", "14s"]),
        (CloseReason::ClientTooSlow, ["limits.min_rate, 4321", "timeouts.stalled, 18s"]),
        (CloseReason::ServerTooSlow, ["limits.min_rate, 4321", "timeouts.stalled, 18s"]),
        (CloseReason::RecordTimeout, ["timeouts.stalled", "18s"]),
        (CloseReason::DrainTimeout, ["timeouts.drain", "15s"]),
        (CloseReason::QueueTimeout, ["backend.queue.timeout", "max_connections"]),
    ] {
        let process = Process::new(2, SystemTime::now());
        let mut watch = Watch::new(2);
        let start = Instant::now();
        process.workers[0].counters.closed.of(CloseReason::Finished).add(9);
        process.workers[1].counters.closed.of(reason).add(2);
        let told = Notice::Cut { reason, count: 2 };
        assert_eq!(watch.look(&process, start), [told]);
        process.workers[0].counters.closed.of(reason).add(1000);
        assert_eq!(watch.look(&process, start + Duration::from_secs(9)), []);
        let text = Text(told, &VALUES).to_string();
        for part in parts.into_iter().chain(["2 connection(s)", reason.label()]) {
            assert!(text.contains(part), "{part} not in: {text}");
        }
    }
    let outcome = HandshakeOutcome::Timeout;
    let text = Text(Notice::HandshakesFailed { outcome, count: 3 }, &VALUES).to_string();
    assert!(text.contains("timeouts.handshake is 11s"), "{text}");
    let outcome = HandshakeOutcome::ClientHelloTimeout;
    let text = Text(Notice::HandshakesFailed { outcome, count: 3 }, &VALUES).to_string();
    assert!(text.contains("timeouts.client_hello is 17s"), "{text}");
}

#[test]
fn panics_are_told() {
    let process = Process::new(1, SystemTime::now());
    let mut watch = Watch::new(1);
    process.workers[0].counters.panics.add(2);
    let now = Instant::now();
    let told = Notice::Panics { worker: 0, count: 2 };
    assert_eq!(watch.look(&process, now), [told]);
    assert_eq!(watch.look(&process, now), []);
}
