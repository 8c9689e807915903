//! The server under test: its configuration, its process, its logs.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sys::signal::Signal;

use super::certificates::{self, Files, Kind};
use super::metrics::{self, Metrics};
use super::process::{Process, Room};
use super::{address, eventually};

/// The name that clients of the tests ask for unless they say otherwise.
pub(crate) const NAME: &str = "server.test";

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");

/// A configuration to be changed before the server starts.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Holds the configuration, the certificates and the logs.
    pub(crate) dir: tempfile::TempDir,
    /// `workers.count`.
    pub(crate) workers: usize,
    /// `workers.cpus`.
    pub(crate) cpus: Option<&'static str>,
    /// `workers.steering`.
    pub(crate) steering: Option<&'static str>,
    /// Limit of open descriptors that the server is started with.
    pub(crate) descriptors: Option<u32>,
    /// `listener.bind`.
    pub(crate) bind: SocketAddr,
    /// More lines of `[[listener]]`.
    pub(crate) listener: String,
    /// Certificates and their `names`.
    pub(crate) certificates: Vec<(Files, Vec<String>)>,
    /// Addresses of the backend's servers.
    pub(crate) servers: Vec<String>,
    /// `max_connections` of each server.
    pub(crate) max_connections: Option<u32>,
    /// `backend.connect`.
    pub(crate) connect: Option<&'static str>,
    /// `backend.send_proxy_protocol`.
    pub(crate) proxy_protocol: Option<&'static str>,
    /// Lines of `[listener.client_auth]`; empty: there is none.
    pub(crate) client_auth: String,
    /// Whole tables more, such as `[limits]`.
    pub(crate) tables: String,
    /// `admin.bind`.
    pub(crate) admin: SocketAddr,
}

impl Setup {
    /// One worker, one listener on an address of its own, one ECDSA certificate for [`NAME`], and
    /// a backend with one server.
    #[expect(clippy::needless_pass_by_value, reason = "a backend is made for its server")]
    pub(crate) fn new(server: impl ToString) -> Self {
        super::process::raise_descriptor_limit();
        let dir = tempfile::tempdir().unwrap();
        let leaf = certificates::leaf(dir.path(), Kind::Ecdsa, &[NAME]);
        Self {
            dir,
            workers: 1,
            cpus: None,
            steering: None,
            descriptors: None,
            bind: address::free(),
            listener: String::new(),
            certificates: vec![(leaf, Vec::new())],
            servers: vec![server.to_string()],
            max_connections: None,
            connect: None,
            proxy_protocol: None,
            client_auth: String::new(),
            tables: String::new(),
            admin: address::free(),
        }
    }

    /// Adds whole tables.
    pub(crate) fn tables(mut self, toml: &str) -> Self {
        self.tables.push_str(toml);
        self.tables.push('\n');
        self
    }

    /// Adds lines to `[[listener]]`.
    pub(crate) fn listener(mut self, toml: &str) -> Self {
        self.listener.push_str(toml);
        self.listener.push('\n');
        self
    }

    /// Adds a certificate.
    pub(crate) fn certificate(mut self, kind: Kind, names: &[&str]) -> Self {
        let leaf = certificates::leaf(self.dir.path(), kind, names);
        self.certificates.push((leaf, Vec::new()));
        self
    }

    /// Sets the number of workers.
    pub(crate) fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// Connects servers when a client has said something.
    pub(crate) fn on_first_byte(mut self) -> Self {
        self.connect = Some("on_first_byte");
        self
    }

    /// Sets `send_proxy_protocol`.
    pub(crate) fn proxy_protocol(mut self, version: &'static str) -> Self {
        self.proxy_protocol = Some(version);
        self
    }

    /// The configuration file's text.
    pub(crate) fn toml(&self) -> String {
        let mut toml = format!(
            "[workers]\ncount = {}\ncpus = \"{}\"\nsteering = \"{}\"\n\n[[listener]]\nname = \
             \"front\"\n\
             bind = [\"{}\"]\nbackend = \"app\"\n{}",
            self.workers,
            self.cpus.unwrap_or("auto"),
            self.steering.unwrap_or("hash"),
            self.bind,
            self.listener
        );
        for (files, names) in &self.certificates {
            write!(
                toml,
                "\n[[listener.certificate]]\nchain = \"{}\"\nkey = \"{}\"\n",
                files.chain.display(),
                files.key.display()
            )
            .unwrap();
            if !names.is_empty() {
                writeln!(toml, "names = {names:?}").unwrap();
            }
        }
        if !self.client_auth.is_empty() {
            write!(toml, "\n[listener.client_auth]\n{}", self.client_auth).unwrap();
        }
        toml.push_str("\n[[backend]]\nname = \"app\"\n");
        if let Some(when) = self.connect {
            writeln!(toml, "connect = {when:?}").unwrap();
        }
        if let Some(version) = self.proxy_protocol {
            writeln!(toml, "send_proxy_protocol = {version:?}").unwrap();
        }
        for server in &self.servers {
            write!(toml, "\n[[backend.server]]\naddress = {server:?}\n").unwrap();
            if let Some(max) = self.max_connections {
                writeln!(toml, "max_connections = {max}").unwrap();
            }
        }
        write!(
            toml,
            "\n[admin]\nbind = \"{}\"\n\n[access_log]\npath = \"{}\"\n\n{}",
            self.admin,
            self.dir.path().join("access.log").display(),
            self.tables
        )
        .unwrap();
        toml
    }

    /// Writes the configuration file.
    pub(crate) fn write(&self) -> PathBuf {
        let path = self.dir.path().join("portcullis.toml");
        std::fs::write(&path, self.toml()).unwrap();
        path
    }

    /// Starts the server without waiting for it.
    pub(crate) fn spawn(self) -> Server {
        let room = Room::wait(self.workers);
        let config = self.write();
        let log = self.dir.path().join("server.log");
        let out = std::fs::File::create(&log).unwrap();
        let mut command = match self.descriptors {
            None => Command::new(BINARY),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), BINARY]);
                shell
            }
        };
        let process = Process::spawn(
            command
                .args(["run", "--config"])
                .arg(&config)
                .stdout(out.try_clone().unwrap())
                .stderr(out),
        );
        Server { process, address: self.bind, admin: self.admin, log, dir: self.dir, _room: room }
    }

    /// Starts the server and waits until it is healthy.
    #[track_caller]
    pub(crate) fn start(self) -> Server {
        let mut server = self.spawn();
        eventually("healthy server", || {
            if let Some(status) = server.process.ended() {
                panic!("the server ended at its start: {status}");
            }
            matches!(metrics::get(server.admin, "/healthz"), Ok((200, _))).then_some(())
        });
        server
    }
}

/// A running server. Its log is shown when the test fails.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    /// Where its listener is.
    pub(crate) address: SocketAddr,
    /// Where its admin endpoint is.
    pub(crate) admin: SocketAddr,
    log: PathBuf,
    dir: tempfile::TempDir,
    /// Given back after the process has ended.
    _room: Room,
}

impl Server {
    /// A server with one worker in front of `backend`.
    #[track_caller]
    pub(crate) fn before(backend: impl ToString) -> Self {
        Setup::new(backend).start()
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        super::process::text(&std::fs::read(&self.log).unwrap())
    }

    /// Its metrics now.
    #[track_caller]
    pub(crate) fn metrics(&self) -> Metrics {
        metrics::scrape(self.admin)
    }

    /// Waits until the sum of the selected series is `value`.
    #[track_caller]
    pub(crate) fn wait_metric(&self, selector: &str, value: f64) {
        let deadline = std::time::Instant::now() + super::SOON;
        let mut metrics = self.metrics();
        while metrics.get(selector) < value && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(10));
            metrics = self.metrics();
        }
        let name = selector.split('{').next().unwrap();
        let others: Vec<_> = metrics
            .0
            .iter()
            .filter(|sample| sample.name == name && sample.value != 0.0)
            .map(|sample| format!("{:?} {}", sample.labels, sample.value))
            .collect();
        assert_eq!(metrics.get(selector), value, "{selector}; there is {others:#?}");
    }

    /// Waits for `count` handshakes that ended so.
    #[track_caller]
    pub(crate) fn wait_handshakes(&self, outcome: &str, count: u32) {
        self.wait_metric(
            &format!("portcullis_handshakes_total{{outcome=\"{outcome}\"}}"),
            f64::from(count),
        );
    }

    /// Waits for `count` connections that ended so.
    #[track_caller]
    pub(crate) fn wait_closed(&self, reason: &str, count: u32) {
        self.wait_metric(
            &format!("portcullis_connections_closed_total{{reason=\"{reason}\"}}"),
            f64::from(count),
        );
    }

    /// Waits until no connection is open.
    #[track_caller]
    pub(crate) fn wait_idle(&self) {
        eventually("no open connection", || {
            (self.metrics().find("portcullis_connections") == Some(0.0)).then_some(())
        });
    }

    /// Waits for `count` access-log records.
    #[track_caller]
    pub(crate) fn wait_records(&self, count: usize) -> Vec<serde_json::Value> {
        let path = self.dir().join("access.log");
        eventually(&format!("{count} access-log records"), || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            // A last line without its end is still being written.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let lines: Vec<&str> = whole.lines().collect();
            assert!(lines.len() <= count, "more records than connections: {whole}");
            (lines.len() == count).then(|| {
                lines
                    .iter()
                    .map(|line| {
                        serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))
                    })
                    .collect()
            })
        })
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        eventually("end of the server", || self.process.ended())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = self.process.ended();
            let log = self.log();
            let kept = log.lines().rev().take(40).collect::<Vec<_>>();
            eprintln!("--- server (ended: {state:?}), the end of its log:");
            for line in kept.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
