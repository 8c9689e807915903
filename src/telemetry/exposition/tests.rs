//! Tests of the exposition: it parses, it is complete, its labels are closed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::*;

/// One sample: name, labels, value.
type Sample = (String, Vec<(String, String)>, f64);

fn parse(text: &str) -> Vec<Sample> {
    assert!(text.ends_with("# EOF\n"));
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = series
                .split_once('{')
                .map_or((series, ""), |(name, rest)| (name, rest.strip_suffix('}').expect(line)));
            let labels = labels
                .split(',')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').expect(line);
                    (key.to_owned(), value.trim_matches('"').to_owned())
                })
                .collect();
            (name.to_owned(), labels, value.parse().expect(line))
        })
        .collect()
}

fn metric_of(series: &str) -> &'static Metric {
    names::ALL
        .iter()
        .find(|metric| match metric.kind {
            Kind::Histogram => series
                .strip_prefix(metric.name)
                .is_some_and(|rest| ["_bucket", "_sum", "_count"].contains(&rest)),
            Kind::Counter | Kind::Gauge | Kind::Info => metric.name == series,
        })
        .unwrap_or_else(|| panic!("{series} is not in names.rs"))
}

fn labels_of<L: Label>() -> HashSet<String> {
    L::ALL.iter().map(|label| label.label().to_owned()).collect()
}

fn process() -> Arc<Process> {
    let process = Process::new(2, UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    let address = ([192, 0, 2, 1], 443).into();
    process.kernel.set_sockets(vec![Socket::new("https".to_owned(), 1, address, 7)]);
    let servers = vec![Server::new("app:80".to_owned(), Some(3))];
    let backends = vec![Backend::new("app".to_owned(), servers)];
    Arc::new(process.with_backends(backends))
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: Vec<_> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    samples
        .iter()
        .find(|sample| {
            // A histogram's `le` comes before the other labels.
            let same = |label| sample.1.contains(label);
            sample.0 == name && sample.1.len() == labels.len() && labels.iter().all(same)
        })
        .unwrap_or_else(|| panic!("no {name} {labels:?}"))
        .2
}

#[test]
fn every_metric_is_exposed_and_every_series_documented() {
    let samples = parse(&process().render());
    let mut exposed = HashSet::new();
    for (name, labels, _) in &samples {
        let metric = metric_of(name);
        exposed.insert(metric.name);
        let keys: Vec<&str> =
            labels.iter().map(|(key, _)| key.as_str()).filter(|key| *key != "le").collect();
        assert_eq!(keys, metric.labels, "{name}");
    }
    for metric in names::ALL {
        assert!(exposed.contains(metric.name), "{} is not exposed", metric.name);
    }
}

#[test]
fn label_values_come_from_the_closed_sets_and_all_of_them_are_there() {
    let sets = HashMap::from([
        ("state", labels_of::<State>()),
        ("reason", labels_of::<CloseReason>()),
        ("outcome", labels_of::<HandshakeOutcome>()),
        ("version", labels_of::<Version>()),
        ("suite", labels_of::<Suite>()),
        ("group", labels_of::<Group>()),
        ("limit", labels_of::<Limit>()),
        ("stage", labels_of::<Span>()),
        ("queue", labels_of::<HandshakeQueue>()),
        ("rank", labels_of::<GivingWay>()),
        ("step", labels_of::<HandshakeStep>()),
        ("key", labels_of::<KeyType>()),
        ("kind", labels_of::<ResumptionKind>()),
        ("result", labels_of::<ResumptionResult>()),
        ("backend", HashSet::from(["app".to_owned()])),
        ("server", HashSet::from(["app:80".to_owned()])),
        ("worker", HashSet::from(["0".to_owned(), "1".to_owned()])),
        ("listener", HashSet::from(["https".to_owned()])),
        ("address", HashSet::from(["192.0.2.1:443".to_owned()])),
    ]);
    let mut seen: HashMap<String, HashSet<String>> = HashMap::new();
    for (name, labels, _) in parse(&process().render()) {
        if name == names::BUILD.name {
            continue;
        }
        for (key, value) in labels.into_iter().filter(|(key, _)| key != "le") {
            seen.entry(key).or_default().insert(value);
        }
    }
    for (key, values) in &sets {
        assert_eq!(seen.get(*key), Some(values), "{key}");
    }
    assert_eq!(seen.len(), sets.len());
}

#[test]
fn a_scrape_shows_what_the_worker_counted() {
    let process = process();
    let counters = &process.workers[1].counters;
    counters.accepted.add(7);
    counters.handshakes.of(HandshakeOutcome::PlainHttp).add(3);
    counters.inbound_bytes.add(1 << 40);
    counters.turns.add(4);
    counters.completions.add(10);
    counters.busy_nanos.add(1_500_000_000);
    counters.span(Span::Handshake).observe(Duration::from_millis(1));
    counters.span(Span::Handshake).observe(Duration::from_secs(1000));
    process.workers[1].set_up(true);
    process.records_written.add(5);
    let socket = &process.kernel.sockets()[0];
    socket.waiting.set(3);
    socket.backlog.set(4096);
    socket.drops.set(12);
    process.kernel.read_netstat("TcpExt: ListenDrops\nTcpExt: 34\n");
    process.backends[0].waiting.set(4);
    process.backends[0].servers[0].connections.set(3);

    let samples = parse(&process.render());
    let worker = ("worker", "1");
    let shows = |name: &str, labels: &[(&str, &str)], wanted: f64| {
        let got = value(&samples, name, labels);
        assert!((got - wanted).abs() < 1e-9, "{name}: {got}, not {wanted}");
    };
    shows("portcullis_connections_accepted_total", &[worker], 7.0);
    shows("portcullis_connections_accepted_total", &[("worker", "0")], 0.0);
    shows("portcullis_handshakes_total", &[worker, ("outcome", "plain_http")], 3.0);
    shows("portcullis_inbound_bytes_total", &[worker], 1_099_511_627_776.0);
    shows("portcullis_loop_completions_per_turn", &[worker], 2.5);
    shows("portcullis_loop_busy_seconds_total", &[worker], 1.5);
    shows("portcullis_worker_up", &[worker], 1.0);
    let socket = [worker, ("listener", "https"), ("address", "192.0.2.1:443")];
    shows("portcullis_listener_accept_queue", &socket, 3.0);
    shows("portcullis_listener_backlog", &socket, 4096.0);
    shows("portcullis_listener_drops_total", &socket, 12.0);
    shows("portcullis_kernel_listen_drops_total", &[], 34.0);
    shows("portcullis_access_log_records_written_total", &[], 5.0);
    shows("portcullis_process_start_time_seconds", &[], 1_700_000_000.0);
    let (backend, server) = (("backend", "app"), ("server", "app:80"));
    shows("portcullis_backend_waiting", &[backend], 4.0);
    shows("portcullis_server_connections", &[backend, server], 3.0);
    shows("portcullis_server_connections_max", &[backend, server], 3.0);
    let stage = ("stage", "handshake");
    let bucket = "portcullis_stage_duration_seconds_bucket";
    shows(bucket, &[worker, stage, ("le", "0.0005")], 0.0);
    shows(bucket, &[worker, stage, ("le", "0.001")], 1.0);
    shows(bucket, &[worker, stage, ("le", "100.0")], 1.0);
    shows(bucket, &[worker, stage, ("le", "+Inf")], 2.0);
    shows("portcullis_stage_duration_seconds_count", &[worker, stage], 2.0);
    shows("portcullis_stage_duration_seconds_sum", &[worker, stage], 1000.001);
}
