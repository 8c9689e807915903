//! HTTP through the relay, from real clients to a real nginx.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::certificates::authority_file;
use crate::support::pattern;
use crate::support::peers::{Peer, nginx, peer};
use crate::support::process::{all, run};
use crate::support::server::{NAME, Server, Setup};

const LIMIT: Duration = Duration::from_secs(120);

/// Bytes of the file that clients fetch: many records, and no whole number of them.
const FILE_BYTES: u64 = 5_000_003;

/// An nginx with one small and one large file, and a place that takes uploads.
fn origin(program: &Path, listen: &str) -> Peer {
    let peer = nginx(
        program,
        listen,
        "client_max_body_size 64m;\n  location /upload/ { dav_methods PUT; \
         create_full_put_path on; }",
    );
    let files = peer.dir.path().join("files");
    std::fs::write(files.join("small.txt"), "a small file\n").unwrap();
    let mut large = Vec::new();
    pattern::write(&mut large, FILE_BYTES).unwrap();
    std::fs::write(files.join("large.bin"), large).unwrap();
    peer
}

/// A server before `origin` that speaks `alpn`.
fn before(origin: &Peer, alpn: &str) -> Setup {
    Setup::new(origin).listener(&format!("alpn = [{alpn:?}]"))
}

fn curl(program: &Path, server: &Server, version: &str, path: &str, out: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--silent", "--show-error", "--fail", version, "--cacert"])
        .arg(authority_file(server.dir()))
        .arg("--resolve")
        .arg(format!("{NAME}:{}:{}", server.address.port(), server.address.ip()))
        .args(["--write-out", "version %{http_version} status %{http_code}\n", "-o"])
        .arg(out)
        .arg(format!("https://{NAME}:{}{path}", server.address.port()));
    command
}

fn curl_compares_files(listen: &str, alpn: &str, option: &str, version: &str) {
    let (Some(curl_program), Some(nginx_program)) = (peer("curl"), peer("nginx")) else {
        return;
    };
    let origin = origin(&nginx_program, listen);
    let server = before(&origin, alpn).start();
    let out = server.dir().join("got");
    for file in ["small.txt", "large.bin"] {
        let mut command = curl(&curl_program, &server, option, &format!("/{file}"), &out);
        let output = all(&run(&mut command, b"", LIMIT));
        assert_eq!(output, format!("version {version} status 200\n"));
        let got = std::fs::read(&out).unwrap();
        let sent = std::fs::read(origin.dir.path().join("files").join(file)).unwrap();
        assert!(got == sent, "{file} arrived changed ({} bytes)", got.len());
    }
    let files = origin.dir.path().join("files");
    let mut upload = curl(&curl_program, &server, option, "/upload/large.bin", &out);
    upload.arg("--upload-file").arg(files.join("large.bin"));
    let output = all(&run(&mut upload, b"", LIMIT));
    assert_eq!(output, format!("version {version} status 201\n"));
    let got = std::fs::read(files.join("upload/large.bin")).unwrap();
    let sent = std::fs::read(files.join("large.bin")).unwrap();
    assert!(got == sent, "the upload arrived changed ({} bytes)", got.len());
    server.wait_handshakes("ok", 3);
}

#[test]
fn curl_reaches_nginx_over_http_2() {
    curl_compares_files("http2", "h2", "--http2", "2");
}

#[test]
fn curl_reaches_nginx_over_http_1_1() {
    curl_compares_files("", "http/1.1", "--http1.1", "1.1");
}

/// The number behind a label that ends with a colon, or before any other word of a report.
fn number(report: &str, label: &str) -> u64 {
    let (before, behind) = report
        .lines()
        .find_map(|line| line.split_once(label))
        .unwrap_or_else(|| panic!("no {label:?} in {report}"));
    let word = if label.ends_with(':') {
        behind.split_whitespace().next()
    } else {
        before.split_whitespace().last()
    };
    word.and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no number at {label:?} in {report}"))
}

fn h2load(listen: &str, alpn: &str, clients: u32) {
    let (Some(h2load), Some(nginx_program)) = (peer("h2load"), peer("nginx")) else {
        return;
    };
    let origin = origin(&nginx_program, listen);
    let server = before(&origin, alpn).start();
    let requests = 5_000;
    let mut command = Command::new(&h2load);
    command.args([
        format!("--requests={requests}"),
        format!("--clients={clients}"),
        format!("--npn-list={alpn}"),
        format!("https://{}/small.txt", server.address),
    ]);
    let report = all(&run(&mut command, b"", LIMIT));
    assert_eq!(number(&report, " succeeded,"), requests, "{report}");
    for kind in [" failed,", " errored,", " timeout"] {
        assert_eq!(number(&report, kind), 0, "{kind}: {report}");
    }
    server.wait_handshakes("ok", clients);
    server.wait_idle();
    let metrics = server.metrics();
    assert_eq!(
        metrics.get("portcullis_handshakes_total"),
        f64::from(clients),
        "a handshake failed"
    );
}

#[test]
fn h2load_200_clients_over_http_2() {
    h2load("http2", "h2", 200);
}

#[test]
fn h2load_1000_clients_over_http_2() {
    h2load("http2", "h2", 1000);
}

#[test]
fn h2load_200_clients_over_http_1_1() {
    h2load("", "http/1.1", 200);
}

#[test]
fn h2load_1000_clients_over_http_1_1() {
    h2load("", "http/1.1", 1000);
}

/// Users of terminators report handshakes that fail under `ab` beyond 155 connections.
fn ab(clients: u32, keep: bool) {
    let (Some(ab), Some(nginx_program)) = (peer("ab"), peer("nginx")) else {
        return;
    };
    let origin = origin(&nginx_program, "");
    // A debug build that does 450 handshakes a second lets 1,000 clients who come back at once wait
    // for 2 s. That is more than half of the default deadline, behind which the newest go first
    // and the oldest are dropped.
    let server = Setup::new(&origin).tables("[handshake]\nqueue_deadline = \"30s\"\n").start();
    // Who is connected goes before who is not: with a fifth of the time for themselves, all
    // handshakes are done long before so many requests.
    let requests = if keep { 50_000 } else { 5_000 };
    let mut command = Command::new(&ab);
    if keep {
        command.arg("-k");
    }
    command.args([
        "-q".to_owned(),
        "-n".to_owned(),
        requests.to_string(),
        "-c".to_owned(),
        clients.to_string(),
        "-s".to_owned(),
        "60".to_owned(),
        format!("https://{}/small.txt", server.address),
    ]);
    let output = run(&mut command, b"", LIMIT);
    let report = all(&output);
    assert!(output.status.success(), "{report}");
    assert_eq!(number(&report, "Complete requests:"), requests, "{report}");
    assert_eq!(number(&report, "Failed requests:"), 0, "{report}");
    assert!(!report.contains("Non-2xx"), "{report}");
    assert!(!report.contains("SSL handshake failed"), "{report}");
    server.wait_idle();
    let metrics = server.metrics();
    let good = metrics.get("portcullis_handshakes_total{outcome=\"ok\"}");
    assert!(good >= f64::from(clients), "{good} handshakes");
    // ab starts connections it does not need and drops them before or within the handshake.
    let dropped = metrics.get("portcullis_handshakes_total{outcome=\"client_closed\"}")
        + metrics.get("portcullis_handshakes_total{outcome=\"client_reset\"}");
    assert_eq!(metrics.get("portcullis_handshakes_total"), good + dropped);
}

#[test]
fn ab_200_connections_no_handshake_fails() {
    ab(200, false);
}

#[test]
fn ab_1000_connections_no_handshake_fails() {
    ab(1000, false);
}

#[test]
fn ab_1000_kept_connections_no_handshake_fails() {
    ab(1000, true);
}
