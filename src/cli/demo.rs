//! `portcullis demo`: a certificate, an origin and a live count, with nothing but the binary.

mod origin;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::say;
use crate::config::{
    Backend, BackendQueue, CertificateFiles, Config, Handshake, Limits, Listener, Log, Position,
    ProxyVersion, RecordLayer, Resumption, Server, ServerAddress, Steering, Timeouts, Tls,
    TlsVersion, UnknownName, Workers, defaults,
};
use crate::control::failure::Failure;
use crate::control::{self, Ended, Moment};
use crate::telemetry::exposition::Process;
use crate::telemetry::labels::{HandshakeOutcome, Label, State};
use crate::telemetry::log;

/// What open connections have to end: whoever presses Ctrl-C wants it to end.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs the demo until Ctrl-C.
pub(super) fn demo(listen: SocketAddr) -> Result<Ended, Failure> {
    log::init(tracing::Level::WARN);
    let os = |what| move |source| Failure::Os { what, source };
    let files = Files::make(listen).map_err(os("write the demo's certificate"))?;
    let origin = origin::start().map_err(os("start the demo's origin"))?;
    let mut display = Display::new();
    let config = config(listen, origin, &files);
    let ended = control::run(config, |moment, process| match moment {
        Moment::Ready(listening) => {
            for address in listening {
                invite(*address, &files.chain);
            }
        }
        Moment::Second => display.show(&Count::of(process)),
        Moment::Draining => display.drain(&Count::of(process)),
        Moment::Ended => display.finish(&Count::of(process)),
    });
    if let Err(Failure::Address(_)) = &ended {
        say("`portcullis demo --listen 127.0.0.1:0` takes any port that is free.");
    }
    ended
}

fn invite(address: SocketAddr, chain: &Path) {
    let host = if address.ip() == Ipv4Addr::LOCALHOST {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    };
    say(&format!(
        "Portcullis {} listens on {address} with a self-signed certificate.\n\
         Try, in another terminal:\n\n    curl --cacert {} https://{host}/\n\n\
         Its connections so far (Ctrl-C ends it):",
        env!("CARGO_PKG_VERSION"),
        chain.display()
    ));
}

/// The certificate and key, in a directory that only this user can read, gone at the end.
struct Files {
    directory: PathBuf,
    chain: PathBuf,
    key: PathBuf,
}

impl Files {
    fn make(listen: SocketAddr) -> std::io::Result<Self> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let ip = listen.ip();
        if !ip.is_unspecified() && !names.contains(&ip.to_string()) {
            names.push(ip.to_string());
        }
        let made = rcgen::generate_simple_self_signed(names).map_err(std::io::Error::other)?;
        let template = std::env::temp_dir().join("portcullis-XXXXXX");
        let directory = nix::unistd::mkdtemp(&template)?;
        let files =
            Self { chain: directory.join("cert.pem"), key: directory.join("key.pem"), directory };
        write_private(&files.chain, &made.cert.pem())?;
        write_private(&files.key, &made.signing_key.serialize_pem())?;
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!("cannot remove {}: {error}", self.directory.display());
        }
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// What the counters say, summed over the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    open: u64,
    accepted: u64,
    handshakes: u64,
    failed: u64,
    inbound_bytes: u64,
    outbound_bytes: u64,
}

impl Count {
    fn of(process: &Process) -> Self {
        let outcomes = |ok: bool| {
            HandshakeOutcome::ALL
                .iter()
                .filter(|outcome| (**outcome == HandshakeOutcome::Ok) == ok)
                .map(|outcome| process.sum(|counters| counters.handshakes.of(*outcome).get()))
                .sum()
        };
        Self {
            open: State::ALL
                .iter()
                .map(|state| process.sum(|counters| counters.connections.of(*state).get()))
                .sum(),
            accepted: process.sum(|counters| counters.accepted.get()),
            handshakes: outcomes(true),
            failed: outcomes(false),
            inbound_bytes: process.sum(|counters| counters.inbound_bytes.get()),
            outbound_bytes: process.sum(|counters| counters.outbound_bytes.get()),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} open, {} in all | TLS {} ok, {} failed | {} in, {} out",
            Short(self.open),
            Short(self.accepted),
            Short(self.handshakes),
            Short(self.failed),
            Bytes(self.inbound_bytes),
            Bytes(self.outbound_bytes)
        )
    }
}

/// A number in five columns at most.
struct Short(u64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 100_000 {
            return write!(f, "{}", self.0);
        }
        scaled(f, self.0, 1000, &["k", "M", "G", "T", "P", "E"])
    }
}

/// Bytes for human eyes, in eight columns at most.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1000 {
            return write!(f, "{} B", self.0);
        }
        scaled(f, self.0, 1024, &[" KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
    }
}

/// Writes a number in the first unit in which it has three digits, with one decimal below 100.
fn scaled(f: &mut fmt::Formatter<'_>, number: u64, base: u128, units: &[&str]) -> fmt::Result {
    // Wide enough for ten times any number.
    let mut tenths = u128::from(number) * 10;
    let last = units.len().saturating_sub(1);
    for (index, unit) in units.iter().enumerate() {
        tenths /= base;
        if tenths < 1000 {
            return write!(f, "{}.{}{unit}", tenths / 10, tenths % 10);
        }
        if tenths < 10_000 || index == last {
            return write!(f, "{}{unit}", tenths / 10);
        }
    }
    Ok(())
}

/// The live line: rewritten in place on a terminal, a new line for each change elsewhere.
struct Display {
    terminal: bool,
    last: Option<Count>,
}

impl Display {
    fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), last: None }
    }

    fn show(&mut self, count: &Count) {
        let mut stdout = std::io::stdout().lock();
        if let Some(text) = self.line(count) {
            // A closed standard output does not end the demo.
            let _unseen = write!(stdout, "{text}").and_then(|()| stdout.flush());
        }
    }

    /// What to print now; `None`: nothing has changed.
    fn line(&mut self, count: &Count) -> Option<String> {
        if self.last.replace(*count).as_ref() == Some(count) {
            return None;
        }
        Some(if self.terminal { in_place(&count.to_string()) } else { format!("{count}\n") })
    }

    /// Says what the wait is for, if there is one.
    fn drain(&mut self, count: &Count) {
        if count.open > 0 {
            let ending =
                format!("Ending: what is open has {DRAIN:?}; Ctrl-C again cuts it at once.");
            say(&if self.terminal { in_place(&ending) } else { ending });
            self.last = None;
        }
    }

    fn finish(&mut self, count: &Count) {
        let ended = format!("Ended: {count}");
        say(&if self.terminal { in_place(&ended) } else { ended });
    }
}

/// Text over what the terminal's last line shows. What does not fit is cut off instead of wrapped:
/// a wrapped line could not be gone back to.
fn in_place(text: &str) -> String {
    const NO_WRAP: &str = "\x1b[?7l";
    const WRAP: &str = "\x1b[?7h";
    const ERASE_TO_END: &str = "\x1b[K";
    // The cursor waits at the line's start, so that a log line or an echoed ^C writes over it.
    format!("\r{NO_WRAP}{text}{ERASE_TO_END}{WRAP}\r")
}

fn config(listen: SocketAddr, origin: SocketAddr, files: &Files) -> Config {
    // Nobody wrote a file that an error could point into.
    let at = |key: &str| Position { file: "(demo)".into(), line: 0, key: key.into() };
    Config {
        workers: Workers { count: None, cpus: None, steering: Steering::Hash },
        listeners: vec![Listener {
            name: "demo".into(),
            bind: vec![listen],
            backend: 0,
            alpn: vec!["http/1.1".into()],
            backlog: None,
            defer_accept: None,
            connection_rate: None,
            unknown_name: UnknownName::Default,
            certificates: vec![CertificateFiles {
                chain: files.chain.clone(),
                key: files.key.clone(),
                names: Vec::new(),
                chain_at: at("chain"),
                key_at: at("key"),
            }],
            client_auth: None,
        }],
        backends: vec![Backend {
            name: "origin".into(),
            servers: vec![Server {
                address: ServerAddress::Host { host: origin.ip().to_string(), port: origin.port() },
                address_at: at("address"),
                max_connections: None,
            }],
            // So that the origin can tell who really asks.
            connect: defaults::CONNECT_WHEN,
            send_proxy_protocol: Some(ProxyVersion::V1),
            queue: BackendQueue::default(),
        }],
        tls: Tls {
            versions: vec![TlsVersion::Tls12, TlsVersion::Tls13],
            cipher_suites: None,
            groups: ["X25519MLKEM768", "X25519", "P-256", "P-384"].map(str::to_owned).to_vec(),
            record_layer: RecordLayer::Lean,
        },
        resumption: Resumption::default(),
        limits: Limits::default(),
        handshake: Handshake::default(),
        timeouts: Timeouts { drain: DRAIN, ..Timeouts::default() },
        admin: None,
        access_log: None,
        log: Log { level: tracing::Level::WARN },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_private_and_gone_at_the_end() {
        let files = Files::make("127.0.0.1:0".parse().unwrap()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&files.key), 0o600);
        assert_eq!(mode(&files.directory), 0o700);
        let directory = files.directory.clone();
        drop(files);
        assert!(!directory.exists());
    }

    #[test]
    fn the_line_tells_changes_only() {
        let process = Process::new(1, std::time::SystemTime::now());
        let counters = &process.workers[0].counters;
        let mut display = Display { terminal: false, last: None };
        assert!(display.line(&Count::of(&process)).is_some());
        assert_eq!(display.line(&Count::of(&process)), None);
        counters.connections.of(State::Relay).add(1);
        counters.accepted.add(3);
        counters.handshakes.of(HandshakeOutcome::Ok).add(2);
        counters.handshakes.of(HandshakeOutcome::PlainHttp).add(1);
        counters.inbound_bytes.add(1536);
        assert_eq!(
            display.line(&Count::of(&process)).unwrap(),
            "1 open, 3 in all | TLS 2 ok, 1 failed | 1.5 KiB in, 0 B out\n"
        );
    }

    #[test]
    fn numbers_stay_short() {
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(1000).to_string(), "0.9 KiB");
        assert_eq!(Bytes(1024).to_string(), "1.0 KiB");
        assert_eq!(Bytes(1024 * 1024 * 5 / 2).to_string(), "2.5 MiB");
        assert_eq!(Bytes(1023 << 20).to_string(), "0.9 GiB");
        assert_eq!(Bytes(1 << 50).to_string(), "1.0 PiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "15.9 EiB");
        assert_eq!(Short(99_999).to_string(), "99999");
        assert_eq!(Short(100_000).to_string(), "100k");
        assert_eq!(Short(1_234_567).to_string(), "1.2M");
        assert_eq!(Short(12_345_678).to_string(), "12.3M");
        assert_eq!(Short(999_999_999).to_string(), "999M");
    }

    #[test]
    fn the_longest_line_fits_a_terminal_of_80_columns() {
        let count = Count {
            open: 9999,
            accepted: 99_999,
            handshakes: 99_999,
            failed: 99_999,
            inbound_bytes: 999 << 20,
            outbound_bytes: 999 << 20,
        };
        let line = count.to_string();
        assert!(line.len() < 80, "{}: {line}", line.len());
    }
}
