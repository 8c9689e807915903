//! The server under test, with one worker, and what its metrics say.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::LOOK;
use crate::support::certificate::Certificate;
use crate::support::cpu::{self, Placement};
use crate::support::{Result, free_address};

/// What the server may take to start, to end, and to be rid of all slow clients.
const LIMIT: Duration = Duration::from_secs(60);

/// A running `portcullis run`; it is ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    /// Where small answers are given, and where large ones.
    pub(crate) addresses: [SocketAddr; 2],
    admin: SocketAddr,
}

impl Server {
    /// Starts it on its CPU, with a listener for each origin. One that gives way (`SCHED_IDLE`,
    /// sched(7)) takes only the time that no other process wants.
    pub(crate) fn start(
        certificate: &Certificate,
        origins: [SocketAddr; 2],
        placement: &Placement,
        directory: &Path,
        gives_way: bool,
    ) -> Result<Self> {
        let (addresses, admin) = ([free_address()?, free_address()?], free_address()?);
        let mut text = format!(
            "[workers]\ncount = 1\ncpus = \"{}\"\n[admin]\nbind = \"{admin}\"\n\
             [log]\nlevel = \"warn\"\n",
            cpu::list(&placement.server)
        );
        for (name, (address, origin)) in
            ["small", "large"].iter().zip(addresses.iter().zip(origins))
        {
            write!(
                text,
                "[[listener]]\nname = \"{name}\"\nbind = [\"{address}\"]\nbackend = \"{name}\"\n\
                 [[listener.certificate]]\nchain = {:?}\nkey = {:?}\n\
                 [[backend]]\nname = \"{name}\"\n[[backend.server]]\naddress = \"{origin}\"\n",
                certificate.chain.to_string_lossy(),
                certificate.key.to_string_lossy(),
            )?;
        }
        let config = directory.join(format!("portcullis-{gives_way}.toml"));
        fs::write(&config, text)?;
        cpu::pin(&placement.server)?;
        let program = env!("CARGO_BIN_EXE_portcullis");
        let mut command = if gives_way {
            let mut chrt = Command::new("chrt");
            chrt.args(["-i", "0", program]);
            chrt
        } else {
            Command::new(program)
        };
        let child = command
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        cpu::pin(&placement.clients)?;
        let mut server = Self { child: child?, addresses, admin };
        let begun = Instant::now();
        while server.metrics().is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("portcullis run ended at once, {status}").into());
            }
            if begun.elapsed() > LIMIT {
                return Err("portcullis run does not start".into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(server)
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Every series of a metric: labels and value.
    fn series(&self, metric: &str) -> Result<Vec<(String, u64)>> {
        let text = self.metrics()?;
        let lines = text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
        let parsed = lines.filter_map(|line| {
            let (labels, value) = line.split_once("} ")?;
            Some((labels.to_owned(), value.parse().ok()?))
        });
        Ok(parsed.collect())
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> Result<u64> {
        let states = self.series("portcullis_connections")?;
        Ok(states.iter().map(|(_, count)| count).sum())
    }

    /// Waits until no connection is open.
    pub(crate) fn wait_idle(&self) -> Result<()> {
        let begun = Instant::now();
        while self.connections()? > 0 {
            if begun.elapsed() > LIMIT {
                return Err("connections are left that nobody holds any more".into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// How handshakes and connections ended, in one line.
    pub(crate) fn reasons(&self) -> Result<String> {
        let mut words = Vec::new();
        for (metric, key) in [
            ("portcullis_handshakes_total", "outcome=\""),
            ("portcullis_connections_closed_total", "reason=\""),
        ] {
            for (labels, count) in self.series(metric)? {
                if let Some((_, label)) = labels.split_once(key)
                    && count > 0
                {
                    words.push(format!("{} {count}", label.trim_end_matches('"')));
                }
            }
        }
        Ok(words.join(", "))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let begun = Instant::now();
        let asked = i32::try_from(self.child.id())
            .is_ok_and(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok());
        while asked && begun.elapsed() < LIMIT && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(LOOK);
        }
        // Nothing more can be done when this fails: the process is already gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
