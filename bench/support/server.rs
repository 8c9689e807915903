//! A process under test: started on its CPUs with a configuration made from a template.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use portcullis::load::process::{self, CpuTime};
use rustls::{ClientConnection, NamedGroup};
use rustls_pki_types::ServerName;
use tempfile::TempDir;

use super::certificate::{Certificate, NAME};
use super::cpu::{self, Placement};
use super::program::Program;
use super::work::Work;
use super::{Error, Result, free_address, payload};

/// How long a server may take to answer its first client.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to end after SIGTERM before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A running server; it is stopped when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where it takes TLS connections.
    pub(crate) address: SocketAddr,
    child: Child,
    directory: TempDir,
}

impl Server {
    /// Starts `program` on its CPUs in front of `origin` and waits until one client, which checks
    /// everything a client can check, was served as `work` says.
    pub(crate) fn start(
        program: &Program,
        certificate: &Certificate,
        origin: Option<SocketAddr>,
        placement: &Placement,
        work: Work,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = free_address()?;
        // The first that fits counts.
        let mut values: Vec<_> = program.values.clone();
        values.extend(self::values(certificate, address, origin, placement, directory.path()));
        if let Some(template) = program.template {
            let config = directory.path().join(template);
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers").join(template);
            fs::write(&config, fill(&fs::read_to_string(path)?, &values))?;
            values.push(("@CONFIG@", config.to_string_lossy().into_owned()));
        }
        let arguments = program.arguments.iter().map(|text| fill(text, &values));
        let output = File::create(directory.path().join("output"))?;
        let mut command = Command::new(&program.path);
        command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A child inherits the affinity of the thread that starts it.
        cpu::pin(&placement.server)?;
        let child = command.spawn();
        cpu::pin(&placement.clients)?;
        let mut server = Self { address, child: child?, directory };
        match server.wait_until_it_serves(certificate, work) {
            Ok(()) => Ok(server),
            Err(error) => Err(server.explain(&program.name, &error)),
        }
    }

    /// CPU time of the server and its children so far.
    pub(crate) fn cpu_time(&self) -> Result<CpuTime> {
        Ok(process::cpu_time(self.child.id())?)
    }

    /// Memory of the server and its children in bytes, shared pages in proportion.
    pub(crate) fn memory(&self) -> Result<u64> {
        Ok(process::pss_bytes(self.child.id())?)
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// `error` with the last of what the server said.
    pub(crate) fn explain(&self, name: &str, error: &Error) -> Error {
        let said = fs::read_to_string(self.directory.path().join("output")).unwrap_or_default();
        let mut last: Vec<_> = said.lines().rev().take(10).collect();
        last.reverse();
        let said = last.join(
            "
    ",
        );
        format!("{name}: {error}; it said:\n    {said}").into()
    }

    fn wait_until_it_serves(&mut self, certificate: &Certificate, work: Work) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("ended at once, {status}").into());
            }
            match TcpStream::connect(self.address) {
                Ok(stream) => return probe(stream, certificate, work),
                Err(error) if started.elapsed() > START_LIMIT => {
                    return Err(format!("does not listen on {}: {error}", self.address).into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return;
        };
        let asked = Instant::now();
        if kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok() {
            while asked.elapsed() < STOP_LIMIT {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // Nothing more can be done when this fails: the process is already gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What stands for `@…@` in a configuration or an argument.
fn values(
    certificate: &Certificate,
    address: SocketAddr,
    origin: Option<SocketAddr>,
    placement: &Placement,
    directory: &Path,
) -> Vec<(&'static str, String)> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let cpus = &placement.server;
    let mut values = vec![
        ("@LISTEN@", address.to_string()),
        ("@LISTEN_PORT@", address.port().to_string()),
        ("@CHAIN@", path(&certificate.chain)),
        ("@KEY@", path(&certificate.key)),
        ("@PEM@", path(&certificate.both)),
        ("@COUNT@", cpus.len().to_string()),
        ("@CPUS@", cpu::list(cpus)),
        ("@CPU_MASK@", cpu::mask(cpus)),
        // Some refuse to work as root.
        ("@USER@", if Uid::effective().is_root() { "nobody" } else { "" }.to_owned()),
        ("@DIRECTORY@", path(directory)),
        ("@SERVER_KEYS@", String::new()),
    ];
    if let Some(origin) = origin {
        values.push(("@ORIGIN@", origin.to_string()));
        values.push(("@ORIGIN_PORT@", origin.port().to_string()));
    }
    values
}

fn fill(text: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// One blocking exchange after a full handshake: version, suite, group, certificate, signature and
/// answer must be right.
fn probe(mut stream: TcpStream, certificate: &Certificate, work: Work) -> Result<()> {
    stream.set_read_timeout(Some(START_LIMIT))?;
    let config = certificate.client_config(work, true)?;
    let mut tls = ClientConnection::new(Arc::clone(&config), ServerName::try_from(NAME)?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let group = tls.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
    if group != Some(NamedGroup::X25519) {
        return Err(format!("negotiated group {group:?}, not X25519").into());
    }
    if work.is_bulk() {
        return Ok(());
    }
    let mut session = rustls::Stream::new(&mut tls, &mut stream);
    session.write_all(payload(work.request_bytes))?;
    let expected = payload(work.answer_bytes);
    let mut answer = vec![0; expected.len()];
    session.read_exact(&mut answer)?;
    if answer != expected {
        return Err("the answer is not what the origin sent".into());
    }
    Ok(())
}
