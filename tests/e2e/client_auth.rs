//! Client certificates: who is let in, what is said of the others, and what servers and the log
//! learn of those who are.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SerialNumber};

use crate::proxy_protocol::{Header, header_backend, type_length_values};
use crate::support::backend::Backend;
use crate::support::certificates::{Authority, Files, authority_file};
use crate::support::peers::{haproxy, peer};
use crate::support::process::{all, run};
use crate::support::server::{NAME, Server, Setup};

const LIMIT: Duration = Duration::from_secs(60);
const VERSIONS: [&str; 2] = ["1.3", "1.2"];
const REVOKED: u64 = 4711;

/// Authorities, and certificates that are good and bad each in its way.
struct People {
    good: Files,
    below: Files,
    expired: Files,
    not_yet: Files,
    revoked: Files,
    for_servers: Files,
    unlisted: Files,
    stranger: Files,
    long_chain: Files,
}

impl People {
    /// Writes everything into `dir`; the configuration of its policy.
    fn new(dir: &Path, mode: &str) -> (Self, String) {
        let root = Authority::new("Client root");
        let below = root.intermediate("Client intermediate");
        let unlisted = Authority::new("Client root without a list");
        let stranger = Authority::new("Another root");
        let issue = |authority: &Authority, name, change: fn(&mut CertificateParams)| {
            authority.client(dir, name, change)
        };
        let with_chain = |files: Files, chain: &str| {
            let own = std::fs::read_to_string(&files.chain).unwrap();
            std::fs::write(&files.chain, own + chain).unwrap();
            files
        };
        let people = Self {
            good: issue(&root, "good", |_| {}),
            below: with_chain(issue(&below, "below", |_| {}), below.pem()),
            expired: issue(&root, "expired", |params| {
                params.not_before = rcgen::date_time_ymd(2019, 1, 1);
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }),
            not_yet: issue(&root, "not_yet", |params| {
                params.not_before = rcgen::date_time_ymd(2098, 1, 1);
                params.not_after = rcgen::date_time_ymd(2099, 1, 1);
            }),
            revoked: issue(&root, "revoked", |params| {
                params.serial_number = Some(SerialNumber::from(REVOKED));
            }),
            for_servers: issue(&root, "for_servers", |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            unlisted: issue(&unlisted, "unlisted", |_| {}),
            stranger: issue(&stranger, "stranger", |_| {}),
            long_chain: with_chain(issue(&root, "long_chain", |_| {}), &below.pem().repeat(4)),
        };
        let (ca, crl) = (dir.join("clients-ca.pem"), dir.join("clients.crl.pem"));
        std::fs::write(&ca, format!("{}{}", root.pem(), unlisted.pem())).unwrap();
        let lists = root.revocation_list(&[REVOKED], 2090) + &below.revocation_list(&[], 2090);
        std::fs::write(&crl, lists).unwrap();
        let (ca, crl) = (ca.display(), crl.display());
        let policy = format!("mode = \"{mode}\"\nca = \"{ca}\"\ncrl = \"{crl}\"\n");
        (people, policy)
    }

    /// Everybody whose certificate is not good: handshake's outcome, and number of the alert.
    fn bad(&self) -> [(&Files, &'static str, u8); 7] {
        [
            (&self.expired, "client_certificate_expired", 45),
            (&self.not_yet, "client_certificate_expired", 45),
            (&self.revoked, "client_certificate_revoked", 44),
            (&self.for_servers, "client_certificate_refused", 43),
            (&self.unlisted, "client_certificate_status_unknown", 48),
            (&self.stranger, "client_certificate_unknown_issuer", 48),
            (&self.long_chain, "client_certificate_chain_too_long", 46),
        ]
    }
}

/// Answers every client that comes so far with one HTTP response, and ends.
fn origin() -> Backend {
    Backend::new(|mut stream| {
        use std::io::{Read, Write};
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\nConnection: close\r\n\r\nlet in\r\n";
        let mut buffer = [0; 4096];
        _ = stream.read(&mut buffer);
        _ = stream.write_all(answer);
    })
}

/// Runs `openssl s_client`, which sends a request, until the server ends; its whole output.
fn s_client(openssl: &Path, server: &Server, version: &str, files: Option<&Files>) -> String {
    let mut command = Command::new(openssl);
    command
        .args(["s_client", "-ign_eof", "-servername", NAME, "-verify_return_error"])
        .args(["-connect", &server.address.to_string(), "-CAfile"])
        .arg(authority_file(server.dir()))
        .arg(format!("-tls{}", version.replace('.', "_")));
    if let Some(files) = files {
        command.arg("-cert").arg(&files.chain).arg("-key").arg(&files.key);
        command.arg("-cert_chain").arg(&files.chain);
    }
    all(&run(&mut command, b"GET / HTTP/1.1\r\n\r\n", LIMIT))
}

/// Fetches with curl; its exit code and output.
fn curl(curl: &Path, server: &Server, version: &str, files: Option<&Files>) -> (i32, String) {
    let (ip, port) = (server.address.ip(), server.address.port());
    let mut command = Command::new(curl);
    command
        .args(["-sS", "--max-time", "30", "--tls-max", version])
        .arg(format!("--tlsv{version}"))
        .args(["--resolve", &format!("{NAME}:{port}:{ip}"), "--cacert"])
        .arg(authority_file(server.dir()))
        .arg(format!("https://{NAME}:{port}/"));
    if let Some(files) = files {
        command.arg("--cert").arg(&files.chain).arg("--key").arg(&files.key);
    }
    let output = run(&mut command, b"", LIMIT);
    (output.status.code().unwrap(), all(&output))
}

fn start(mode: &str) -> (Backend, Server, People) {
    let backend = origin();
    let mut setup = Setup::new(&backend);
    let (people, policy) = People::new(setup.dir.path(), mode);
    setup.client_auth = policy;
    (backend, setup.start(), people)
}

#[test]
fn openssl_is_let_in_with_a_good_certificate_and_told_what_is_wrong_with_another() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    for mode in ["required", "optional"] {
        let (backend, server, people) = start(mode);
        let mut expected: Vec<(&str, Option<&str>)> = Vec::new();
        for version in VERSIONS {
            for (files, name) in [(&people.good, "good"), (&people.below, "below")] {
                let output = s_client(&openssl, &server, version, Some(files));
                assert!(output.contains("let in"), "{mode} {version} {name}: {output}");
                expected.push(("ok", Some(name)));
            }
            let let_in = backend.accepted();
            for (files, outcome, alert) in people.bad() {
                let output = s_client(&openssl, &server, version, Some(files));
                let told = format!("SSL alert number {alert}\n");
                assert!(output.contains(&told), "{mode} {version} {outcome}: {output}");
                assert!(!output.contains("let in"), "{mode} {version} {outcome}: {output}");
                expected.push((outcome, None));
            }
            assert_eq!(backend.accepted(), let_in, "a server was bothered");
            let output = s_client(&openssl, &server, version, None);
            if mode == "required" {
                assert!(output.contains("SSL alert number 116\n"), "{version}: {output}");
                expected.push(("client_certificate_required", None));
            } else {
                assert!(output.contains("let in"), "{version}: {output}");
                expected.push(("ok", None));
            }
        }
        let records = server.wait_records(expected.len());
        for (record, (outcome, name)) in records.iter().zip(&expected) {
            assert_eq!(record["handshake"], *outcome, "{mode}: {record}");
            assert_eq!(record["client_name"].as_str(), *name, "{mode}: {record}");
            assert_eq!(record["client_verified"], name.is_some(), "{mode}: {record}");
        }
        for outcome in ["client_certificate_revoked", "client_certificate_status_unknown"] {
            server.wait_handshakes(outcome, 2);
        }
        server.wait_handshakes("client_certificate_expired", 4);
    }
}

#[test]
fn curl_is_let_in_with_a_good_certificate_only() {
    let Some(program) = peer("curl") else {
        return;
    };
    for mode in ["required", "optional"] {
        let (_backend, server, people) = start(mode);
        for version in VERSIONS {
            let (code, output) = curl(&program, &server, version, Some(&people.good));
            assert_eq!((code, output.trim()), (0, "let in"), "{mode} {version}");
            for (files, outcome, _) in people.bad() {
                let (code, output) = curl(&program, &server, version, Some(files));
                // curl has several codes for several alerts.
                assert_ne!(code, 0, "{mode} {version} {outcome}: {output}");
                assert!(!output.contains("let in"), "{mode} {version} {outcome}: {output}");
            }
            let (code, output) = curl(&program, &server, version, None);
            match mode {
                "required" => assert_ne!(code, 0, "{version}: {output}"),
                _ => assert_eq!((code, output.trim()), (0, "let in"), "{version}"),
            }
        }
        for outcome in ["client_certificate_revoked", "client_certificate_unknown_issuer"] {
            server.wait_handshakes(outcome, 2);
        }
    }
}

#[test]
fn without_revocation_lists_nothing_is_revoked() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let backend = origin();
    let mut setup = Setup::new(&backend);
    let (people, policy) = People::new(setup.dir.path(), "required");
    setup.client_auth = policy.lines().filter(|line| !line.starts_with("crl")).fold(
        String::new(),
        |mut lines, line| {
            writeln!(lines, "{line}").unwrap();
            lines
        },
    );
    let server = setup.start();
    for files in [&people.revoked, &people.unlisted] {
        let output = s_client(&openssl, &server, "1.3", Some(files));
        assert!(output.contains("let in"), "{output}");
    }
    let output = s_client(&openssl, &server, "1.3", Some(&people.stranger));
    assert!(!output.contains("let in"), "{output}");
    server.wait_handshakes("client_certificate_unknown_issuer", 1);
}

/// A common name is text of a client's authority: it must not forge a second record.
#[test]
fn a_name_cannot_break_a_record() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let root = Authority::new("Client root");
    let backend = origin();
    let mut setup = Setup::new(&backend);
    let ca = setup.dir.path().join("ca.pem");
    std::fs::write(&ca, root.pem()).unwrap();
    let name = "a\"}{\"reason\":\"forged\\";
    let files = root.client(setup.dir.path(), "forger", |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
    });
    let broken = root.client(setup.dir.path(), "breaker", |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "a\nb");
    });
    setup.client_auth = format!("mode = \"required\"\nca = \"{}\"\n", ca.display());
    let server = setup.start();
    for files in [&files, &broken] {
        assert!(s_client(&openssl, &server, "1.3", Some(files)).contains("let in"));
    }
    let records = server.wait_records(2);
    assert_eq!(records[0]["client_name"], name);
    assert_eq!(records[0]["reason"], "finished");
    assert_eq!(records[1]["client_name"], serde_json::Value::Null);
    assert_eq!(records[1]["client_verified"], true);
}

/// A header's SSL TLV, taken apart.
struct Ssl {
    client: u8,
    verify: [u8; 4],
    /// In the order of types.
    values: Vec<(u8, Vec<u8>)>,
}

impl Ssl {
    fn of(header: &Header) -> Self {
        let ssl = header.value(0x20).expect("PP2_TYPE_SSL");
        let mut values = type_length_values(&ssl[5..]);
        values.sort();
        Self { client: ssl[0], verify: ssl[1..5].try_into().unwrap(), values }
    }
}

/// One client comes to us and to `HAProxy`, which made the protocol: both tell the server the same.
#[test]
fn servers_learn_from_us_of_a_client_certificate_what_haproxy_tells_them() {
    let (Some(openssl), Some(program)) = (peer("openssl"), peer("haproxy")) else {
        return;
    };
    let (ours, our_headers) = header_backend();
    let (theirs, their_headers) = header_backend();
    let mut setup = Setup::new(&ours).proxy_protocol("v2");
    let (people, policy) = People::new(setup.dir.path(), "optional");
    setup.client_auth = policy;
    let (leaf, _) = &setup.certificates[0];
    let both = setup.dir.path().join("both.pem");
    let pem = [&leaf.chain, &leaf.key].map(|file| std::fs::read_to_string(file).unwrap()).concat();
    std::fs::write(&both, pem).unwrap();
    let ca = setup.dir.path().join("clients-ca.pem");
    let reference = haproxy(
        &program,
        &format!("ssl crt {} ca-file {} verify optional", both.display(), ca.display()),
        &format!(
            " mode tcp\n default_backend behind\nbackend behind\n mode tcp\n \
             server one {theirs} send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher"
        ),
    );
    let server = setup.start();
    for version in VERSIONS {
        for (files, name) in [(Some(&people.good), Some("good")), (None, None)] {
            let seen = [(server.address, &our_headers), (reference.address, &their_headers)].map(
                |(address, headers)| {
                    let mut command = Command::new(&openssl);
                    command
                        .args(["s_client", "-connect", &address.to_string()])
                        .args(["-servername", NAME, "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"])
                        .args(["-ciphersuites", "TLS_AES_128_GCM_SHA256"])
                        .arg(format!("-tls{}", version.replace('.', "_")));
                    if let Some(files) = files {
                        command.arg("-cert").arg(&files.chain).arg("-key").arg(&files.key);
                    }
                    run(&mut command, b"", LIMIT);
                    Ssl::of(&headers.recv_timeout(crate::support::SOON).unwrap())
                },
            );
            let [ours, theirs] = seen;
            assert_eq!(ours.client, theirs.client, "{version} {name:?}");
            assert_eq!(ours.values, theirs.values, "{version} {name:?}");
            let told = ours.values.iter().find(|(kind, _)| *kind == 0x22);
            assert_eq!(told.map(|(_, name)| name.as_slice()), name.map(str::as_bytes));
            if name.is_some() {
                assert_eq!(ours.client, 0x07, "{version}");
                assert_eq!((ours.verify, theirs.verify), ([0; 4], [0; 4]), "{version}");
            } else {
                // HAProxy says zero here too; the text reserves it for a verified certificate.
                assert_eq!((ours.client, ours.verify), (0x01, [0, 0, 0, 1]), "{version}");
            }
        }
    }
}
