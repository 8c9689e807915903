//! What an operator is told before the first connection.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::certificates::{self, Kind};
use crate::support::peers::peer;
use crate::support::process::{Process, all, run, text};
use crate::support::server::{BINARY, NAME, Setup};
use crate::support::{address, eventually};

const LIMIT: Duration = Duration::from_secs(30);

fn portcullis(args: &[&str], config: &Path) -> Output {
    run(Command::new(BINARY).args(args).arg(config), b"", LIMIT)
}

/// Starts with a configuration that must be refused; the message.
#[track_caller]
fn refused(setup: &Setup, code: i32, mentions: &[&str]) -> String {
    let config = setup.write();
    let mut message = String::new();
    for command in ["check", "run"] {
        let output = portcullis(&[command, "--config"], &config);
        message = all(&output);
        assert_eq!(output.status.code(), Some(code), "{command}: {message}");
        for mention in mentions {
            assert!(message.contains(mention), "{command}: no {mention:?} in: {message}");
        }
        assert!(!message.contains("panicked"), "{command}: {message}");
    }
    message
}

/// The line of the configuration that starts with `start`, counted from 1.
fn line_of(setup: &Setup, start: &str) -> String {
    let toml = setup.toml();
    let index = toml.lines().position(|line| line.starts_with(start));
    format!("portcullis.toml:{}", index.unwrap() + 1)
}

#[test]
fn a_port_in_use_is_named() {
    let setup = Setup::new(Backend::echo());
    let _taken = TcpListener::bind(setup.bind).unwrap();
    let output = portcullis(&["run", "--config"], &setup.write());
    let message = all(&output);
    assert_eq!(output.status.code(), Some(71), "{message}");
    assert!(message.contains(&setup.bind.to_string()), "{message}");
    assert!(message.to_lowercase().contains("in use"), "{message}");
}

#[test]
fn an_admin_port_in_use_is_named() {
    let setup = Setup::new(Backend::echo());
    let _taken = TcpListener::bind(setup.admin).unwrap();
    let output = portcullis(&["run", "--config"], &setup.write());
    let message = all(&output);
    assert_eq!(output.status.code(), Some(71), "{message}");
    assert!(message.contains(&setup.admin.to_string()), "{message}");
}

#[test]
fn a_missing_configuration_is_named() {
    for command in ["run", "check"] {
        let output = portcullis(&[command, "--config"], Path::new("/nonexistent/portcullis.toml"));
        let message = all(&output);
        assert_eq!(output.status.code(), Some(78), "{message}");
        assert!(message.contains("/nonexistent/portcullis.toml"), "{message}");
    }
}

#[test]
fn wrong_usage_exits_64() {
    for args in [&["walk"][..], &["run"], &["run", "--confg", "x"], &[]] {
        let output = run(Command::new(BINARY).args(args), b"", LIMIT);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {}", all(&output));
    }
}

#[test]
fn an_unknown_key_is_an_error_with_file_and_line() {
    let setup = Setup::new(Backend::echo()).tables("[timeouts]\nhandshke = \"5s\"");
    let line = line_of(&setup, "handshke");
    refused(&setup, 78, &[&line, "handshke", "handshake"]);
}

#[test]
fn an_unknown_backend_is_an_error() {
    let setup = Setup::new(Backend::echo());
    let line = line_of(&setup, "backend =");
    let config = setup.write();
    let toml = setup.toml().replace("backend = \"app\"", "backend = \"ap\"");
    std::fs::write(&config, &toml).unwrap();
    let output = portcullis(&["check", "--config"], &config);
    let message = all(&output);
    assert_eq!(output.status.code(), Some(78), "{message}");
    assert!(message.contains(&line), "{message}");
    assert!(message.contains("\"app\""), "does not say which there are: {message}");
}

#[test]
fn a_key_of_another_certificate_is_an_error() {
    let mut setup = Setup::new(Backend::echo());
    let other = certificates::leaf(setup.dir.path(), Kind::Ecdsa, &["other.test"]);
    setup.certificates[0].0.key.clone_from(&other.key);
    let line = line_of(&setup, "key");
    let message = refused(&setup, 78, &[&line, &other.key.display().to_string()]);
    let key = std::fs::read_to_string(&other.key).unwrap();
    assert!(!message.contains(key.lines().nth(1).unwrap()), "a key in a message");
}

#[test]
fn an_encrypted_key_is_named_as_such() {
    let Some(openssl) = peer("openssl") else {
        return;
    };
    let setup = Setup::new(Backend::echo());
    let key = &setup.certificates[0].0.key;
    let locked = setup.dir.path().join("locked.key");
    let output = run(
        Command::new(openssl)
            .args(["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", "pass:secret"])
            .arg("-in")
            .arg(key)
            .arg("-out")
            .arg(&locked),
        b"",
        LIMIT,
    );
    assert!(output.status.success(), "{}", all(&output));
    std::fs::rename(&locked, key).unwrap();
    let line = line_of(&setup, "key");
    // What to do about it, too.
    refused(&setup, 78, &[&line, "passphrase", "openssl pkey"]);
}

#[test]
fn malformed_and_missing_files_are_named() {
    for (start, content) in [
        ("key", Some("no key at all\n")),
        ("chain", Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
        ("key", None),
        ("chain", None),
    ] {
        let setup = Setup::new(Backend::echo());
        let files = &setup.certificates[0].0;
        let file = if start == "key" { &files.key } else { &files.chain };
        match content {
            Some(content) => std::fs::write(file, content).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
        let line = line_of(&setup, start);
        refused(&setup, 78, &[&line, &file.display().to_string()]);
    }
}

#[test]
fn an_expired_certificate_is_an_error() {
    let mut setup = Setup::new(Backend::echo());
    setup.certificates[0].0 = certificates::expired(setup.dir.path(), &[NAME]);
    let line = line_of(&setup, "chain");
    refused(&setup, 78, &[&line, "expired", "2020"]);
}

#[test]
fn a_name_served_twice_by_the_same_kind_of_key_is_an_error() {
    let mut setup = Setup::new(Backend::echo());
    let dir = tempfile::tempdir().unwrap();
    let again = certificates::leaf(dir.path(), Kind::Ecdsa, &[NAME]);
    setup.certificates.push((again, Vec::new()));
    refused(&setup, 78, &[NAME, "portcullis.toml:"]);
}

#[test]
fn check_tells_names_expiry_and_the_order_of_suites() {
    let setup = Setup::new(Backend::echo())
        .certificate(Kind::Rsa, &[NAME, "second.test"])
        .certificate(Kind::Ecdsa, &["*.wild.test"]);
    let output = portcullis(&["check", "--config"], &setup.write());
    let report = all(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    for mention in [
        NAME,
        "second.test",
        "*.wild.test",
        "2099-12-31",
        "TLS_AES_128_GCM_SHA256",
        "io_uring",
        "descriptors",
    ] {
        assert!(report.contains(mention), "no {mention:?} in: {report}");
    }
    // A check does not serve.
    TcpListener::bind(setup.bind).unwrap();
}

#[test]
fn the_curl_line_that_demo_prints_works() {
    let Some(_) = peer("curl") else {
        return;
    };
    let listen = address::free();
    let mut child = Command::new(BINARY)
        .args(["demo", "--listen", &listen.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    let outputs: [Box<dyn std::io::Read + Send>; 2] =
        [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    for output in outputs {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                _ = sender.send(line.unwrap());
            }
        });
    }
    let mut demo = Process::from(child);
    let curl = loop {
        let line = lines.recv_timeout(crate::support::SOON).expect("a curl line");
        if let Some(at) = line.find("curl ") {
            break line[at..].to_owned();
        }
    };
    assert!(curl.contains(&listen.port().to_string()), "{curl}");
    eventually("an answer to the printed command", || {
        let output = run(
            Command::new("sh").args(["-c", &format!("{curl} --silent --show-error --fail")]),
            b"",
            LIMIT,
        );
        (output.status.success() && !text(&output.stdout).trim().is_empty()).then_some(())
    });
    demo.signal(nix::sys::signal::Signal::SIGINT);
    let status = eventually("end of the demo", || demo.ended());
    assert_eq!(status.code(), Some(0), "{status}");
}
