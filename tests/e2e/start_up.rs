//! What an operator is told before the first connection.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::backend::Backend;
use crate::support::certificates::{self, Kind};
use crate::support::peers::peer;
use crate::support::process::{Process, all, locks_memory_freely, run, text};
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

/// Lets every system call through but `io_uring_setup`, which gets the errno of the first argument
/// (seccomp(2), prctl(2)), and becomes the command of the others.
const FILTER: &str = r#"
import ctypes, os, struct, sys
IO_URING_SETUP, NO_NEW_PRIVS, SET_SECCOMP, FILTER = 425, 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN, ERRNO, ALLOW = 0x20, 0x15, 0x06, 0x00050000, 0x7fff0000
program = b"".join(struct.pack("HBBI", *step) for step in [
    (LOAD, 0, 0, 0),
    (JUMP_IF_EQUAL, 0, 1, IO_URING_SETUP),
    (RETURN, 0, 0, ERRNO | int(sys.argv[1])),
    (RETURN, 0, 0, ALLOW),
])
steps = ctypes.create_string_buffer(program, len(program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
wanted = Program(4, ctypes.addressof(steps))
assert libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(wanted), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn a_seccomp_filter_that_forbids_io_uring_is_named_with_its_cure() {
    let Some(python) = peer("python3") else {
        return;
    };
    let setup = Setup::new(Backend::echo());
    let config = setup.write();
    for errno in [libc::EPERM, libc::ENOSYS] {
        for command in ["check", "run"] {
            let output = run(
                Command::new(&python)
                    .args(["-c", FILTER, &errno.to_string(), BINARY, command, "--config"])
                    .arg(&config),
                b"",
                LIMIT,
            );
            let message = words(&output);
            assert_eq!(output.status.code(), Some(69), "{command}, {errno}: {message}");
            for mention in
                ["seccomp filter", "io_uring_setup", "--security-opt", "SystemCallFilter"]
            {
                assert!(message.contains(mention), "{command}, {errno}: no {mention}: {message}");
            }
        }
    }
}

/// Both outputs with the line breaks of `check` taken out.
fn words(output: &Output) -> String {
    all(output).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The binary without privileges, whoever runs the test, after `ulimit` with these arguments.
/// `None`: root, and no setpriv to become less.
fn unprivileged(ulimit: &str) -> Option<Command> {
    let drop = if nix::unistd::geteuid().is_root() {
        let setpriv = peer("setpriv")?;
        format!("{} --bounding-set=-all --inh-caps=-all ", setpriv.display())
    } else {
        String::new()
    };
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit {ulimit} && exec {drop}\"$0\" \"$@\""), BINARY]);
    Some(shell)
}

#[test]
fn a_port_that_needs_a_privilege_is_named_with_its_cure() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first.trim().parse::<u16>().unwrap() <= 443 {
        eprintln!("skipped: every user may use port 443 here");
        return;
    }
    let mut setup = Setup::new(Backend::echo());
    setup.bind.set_port(443);
    let Some(mut command) = unprivileged("-c 0") else {
        return;
    };
    let output = run(command.args(["run", "--config"]).arg(setup.write()), b"", LIMIT);
    let message = all(&output);
    assert_eq!(output.status.code(), Some(77), "{message}");
    for mention in [&setup.bind.to_string(), "CAP_NET_BIND_SERVICE", "setcap"] {
        assert!(message.contains(mention), "no {mention:?} in: {message}");
    }
}

#[test]
fn a_key_that_this_user_may_not_read_is_a_matter_of_permission() {
    use std::os::unix::fs::PermissionsExt;
    let setup = Setup::new(Backend::echo());
    let config = setup.write();
    let key = &setup.certificates[0].0.key;
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o000)).unwrap();
    for action in ["check", "run"] {
        let Some(mut command) = unprivileged("-c 0") else {
            return;
        };
        let output = run(command.args([action, "--config"]).arg(&config), b"", LIMIT);
        let message = words(&output);
        assert_eq!(output.status.code(), Some(77), "{action}: {message}");
        for mention in [&line_of(&setup, "key"), "may not read it"] {
            assert!(message.contains(mention), "{action}: no {mention:?} in: {message}");
        }
    }
}

#[test]
fn too_few_descriptors_for_the_connections_are_told_with_the_number_needed() {
    let setup = Setup::new(Backend::echo()).tables("[limits]\nconnections_per_worker = 60000");
    let config = setup.write();
    for action in ["check", "run"] {
        let Some(mut command) = unprivileged("-n 1000") else {
            return;
        };
        let output = run(command.args([action, "--config"]).arg(&config), b"", LIMIT);
        let message = words(&output);
        assert_eq!(output.status.code(), Some(78), "{action}: {message}");
        // Two for each connection, 32 for the address, 64 for the worker itself.
        for mention in ["60000", "LimitNOFILE=120096", "at most 452"] {
            assert!(message.contains(mention), "{action}: no {mention:?} in: {message}");
        }
    }
}

/// Some kernels count rings against the limit, others do not; `check` knows either way.
#[test]
fn too_little_locked_memory_is_told_by_check_as_by_run() {
    let setup = Setup::new(Backend::echo());
    let config = setup.write();
    let Some(mut check) = unprivileged("-l 512") else {
        return;
    };
    let report = run(check.args(["check", "--config"]).arg(&config), b"", LIMIT);
    let mut command = unprivileged("-l 512").unwrap();
    let mut server = Process::spawn(
        command.args(["run", "--config"]).arg(&config).stdout(Stdio::null()).stderr(Stdio::piped()),
    );
    if report.status.code() == Some(0) {
        assert!(words(&report).contains("does not bind this process"), "{}", all(&report));
        eventually("a server in spite of the limit", || {
            assert_eq!(server.ended(), None);
            crate::support::metrics::get(setup.admin, "/healthz").ok()
        });
        return;
    }
    let status = eventually("the end of run", || server.ended());
    assert_eq!((report.status.code(), status.code()), (Some(71), Some(71)));
    let message = words(&report);
    for mention in ["RLIMIT_MEMLOCK", "512 KiB", "792 KiB each", "LimitMEMLOCK=2M", "ulimit -l"] {
        assert!(message.contains(mention), "no {mention:?} in: {message}");
    }
}

/// The figure that `check` gives is enough. Only with `CAP_IPC_LOCK` can this test tell: other
/// processes are not counted then.
#[test]
fn the_locked_memory_that_check_asks_for_is_enough() {
    if !locks_memory_freely() {
        eprintln!("skipped: other processes of this user count against the same limit");
        return;
    }
    let setup = Setup::new(Backend::echo());
    let config = setup.write();
    // Twice, the second time right after the first was killed: the kernel still counts its rings
    // for a moment.
    for round in 0..2 {
        let Some(mut command) = unprivileged("-l 856") else {
            return;
        };
        let mut server = Process::spawn(
            command
                .args(["run", "--config"])
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        eventually("a server within the limit", || {
            assert_eq!(server.ended(), None, "round {round}");
            crate::support::metrics::get(setup.admin, "/healthz").ok()
        });
    }
}

#[test]
fn a_server_name_that_does_not_resolve_is_a_warning_with_its_line() {
    let setup = Setup::new("nowhere.invalid:80");
    let output = portcullis(&["check", "--config"], &setup.write());
    let report = words(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    for mention in ["warning", &line_of(&setup, "address"), "does not resolve"] {
        assert!(report.contains(mention), "no {mention:?} in: {report}");
    }
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
