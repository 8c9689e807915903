//! One source of clients at ten times its budget, and what another source notices of it. See
//! `bench/README.md`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the program's product")]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::certificate::{Certificate, KeyKind};
use support::cpu::{self, Placement};
use support::origin::Origin;
use support::report::{self, Table};
use support::spread::Spread;
use support::work::{REQUEST, Work};
use support::{Result, free_address};

/// What the server may take to start, and to end.
const SERVER_LIMIT: Duration = Duration::from_secs(20);
/// From the loud source's start until the quiet one is measured: its bucket, which holds a second's
/// worth, is empty by then.
const AHEAD: Duration = Duration::from_millis(1500);
/// How many times what its budget pays for the loud source asks, where it keeps to it and where it
/// does not.
const WITHIN: f64 = 0.9;
const ABOVE: f64 = 10.0;

/// Measures a quiet source beside a loud one.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds; each has all of the table's columns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// `limits.per_source.handshake_cpu`, in milliseconds.
    #[arg(long, default_value_t = 100)]
    budget: u32,
    /// The certificate's key; with RSA one CPU's clients can ask for more than one CPU does.
    #[arg(long, value_enum, default_value = "rsa")]
    certificate: KeyKind,
    /// Also writes the table into its section of this file, which is `bench/RESULTS.md`.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// One round of a second: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Handshakes a second of the quiet source, at most.
const QUIET_HANDSHAKES: f64 = 100.0;
/// The part of its budget that it keeps to, where that pays for fewer.
const QUIET_SHARE: f64 = 0.5;
const QUIET_REQUESTS: f64 = 500.0;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sources: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut options: Options) -> Result<()> {
    if options.test || !options.bench {
        options = Options { rounds: 1, seconds: 1, ..options };
    }
    let placement = Placement::choose(1)?;
    cpu::pin(&placement.clients)?;
    let work = Work { request_bytes: 1, answer_bytes: 1, ..REQUEST };
    let origin = Origin::start(work, &placement.clients)?;
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(options.certificate, directory.path())?;
    let budget = format!("[limits.per_source]\nhandshake_cpu = \"{}ms\"\n", options.budget);
    let serve = |limits: &str| Server::start(&placement, &certificate, origin.address, limits);
    let (limited, unlimited) = (serve(&budget)?, serve("")?);
    let cost = unlimited.cost_of_handshake()?;
    let rate = f64::from(options.budget) / 1e3 / cost;
    let head = format!(
        "{}\n\n- one worker, {}\n- a handshake costs {:.0} us, so {} ms a second pay for \
         {rate:.0}; p99 in us of {} rounds, median (min-max)",
        report::machine()?,
        placement.describe(),
        cost * 1e6,
        options.budget,
        options.rounds,
    );
    let mut table = Table::new([
        "quiet source",
        "alone",
        "loud one within its budget",
        "at ten times",
        "ratio of these two",
        "at ten times, no budget",
    ]);
    let handshakes = QUIET_HANDSHAKES.min(QUIET_SHARE * rate).floor().max(1.0);
    let quiet = [("handshake", handshakes, "64"), ("request", QUIET_REQUESTS, "16")];
    for (mode, a_second, connections) in quiet {
        let name = format!("{a_second} {mode}s a second");
        let a_second = a_second.to_string();
        let mode = &[mode, "--rate", &a_second, "--connections", connections];
        let mut columns = [const { Vec::new() }; 5];
        for _ in 0..options.rounds {
            let alone = p99(&unharmed(limited.load(QUIET_SOURCE, mode, options.seconds)?)?)?;
            let within = p99(&unharmed(beside(&limited, mode, WITHIN * rate, &options)?)?)?;
            let above = p99(&unharmed(beside(&limited, mode, ABOVE * rate, &options)?)?)?;
            let unlimited = p99(&beside(&unlimited, mode, ABOVE * rate, &options)?)?;
            let figures = [alone, within, above, above / within, unlimited];
            columns.iter_mut().zip(figures).for_each(|(column, figure)| column.push(figure));
        }
        let shown = columns.into_iter().zip([0, 0, 0, 2, 0]).map(|(column, digits)| {
            Spread::of(column).map_or_else(String::new, |spread| spread.show(digits))
        });
        table.row(std::iter::once(name).chain(shown));
    }
    let text = format!("{head}\n\n{table}");
    println!("{text}");
    match &options.results {
        Some(path) => report::replace_section(path, "sources", &text),
        None => Ok(()),
    }
}

/// What the quiet source sees while the loud one is at it.
fn beside(server: &Server, mode: &[&str], rate: f64, options: &Options) -> Result<Value> {
    let mut loud = server.flood(rate, options.seconds)?;
    std::thread::sleep(AHEAD);
    let quiet = server.load(QUIET_SOURCE, mode, options.seconds);
    stop(&mut loud)?;
    quiet
}

/// The summary of a load of which nothing failed.
fn unharmed(summary: Value) -> Result<Value> {
    match summary.pointer("/measured/failed").and_then(Value::as_u64) {
        Some(0) => Ok(summary),
        _ => Err(format!("the quiet source was refused or cut: {summary:#}").into()),
    }
}

/// Addresses of the two.
const QUIET_SOURCE: &str = "127.0.0.2";
const LOUD_SOURCE: &str = "127.0.0.3";

/// A process of ours that serves.
struct Server {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(
        placement: &Placement,
        certificate: &Certificate,
        origin: SocketAddr,
        limits: &str,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (address, admin) = (free_address()?, free_address()?);
        let config = directory.path().join("portcullis.toml");
        let text = format!(
            "[workers]\ncount = 1\ncpus = \"{}\"\n{limits}[admin]\nbind = \"{admin}\"\n\
             [[listener]]\nname = \"https\"\nbind = [\"{address}\"]\nbackend = \"app\"\n\
             [[listener.certificate]]\nchain = {:?}\nkey = {:?}\n\
             [[backend]]\nname = \"app\"\n[[backend.server]]\naddress = \"{origin}\"\n",
            cpu::list(&placement.server),
            certificate.chain.to_string_lossy(),
            certificate.key.to_string_lossy(),
        );
        fs::write(&config, text)?;
        // A child inherits the affinity of the thread that starts it.
        cpu::pin(&placement.server)?;
        let child = spawn(&config);
        cpu::pin(&placement.clients)?;
        let child = child?;
        let mut server = Self { child, address, admin, _directory: directory };
        server.wait_until_it_listens()?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let begun = Instant::now();
        while std::net::TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("portcullis run ended at once, {status}").into());
            }
            if begun.elapsed() > SERVER_LIMIT {
                return Err(format!("portcullis run does not listen on {}", self.address).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn command(&self, source: &str, mode: &[&str], seconds: u64) -> Command {
        // The loud clients' own cost must not be what the quiet ones notice: they share a CPU.
        let policy = if source == LOUD_SOURCE { "--idle" } else { "--other" };
        let mut command = Command::new("chrt");
        command.args([policy, "0", env!("CARGO_BIN_EXE_portcullis"), "load"]);
        command.args(mode).args(["--json", "--source", source, "--threads", "1"]);
        command.args(["--tls", "1.3", "--group", "X25519", "--protocol", "raw", "--up", "1B"]);
        command.args([format!("--target={}", self.address), format!("--duration={seconds}s")]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs a load to its end; returns its summary.
    fn load(&self, source: &str, mode: &[&str], seconds: u64) -> Result<Value> {
        let output = self.command(source, mode, seconds).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Starts the loud source; it goes on for longer than anything else does.
    fn flood(&self, rate: f64, seconds: u64) -> Result<Child> {
        let rate = rate.to_string();
        let mode = ["handshake", "--rate", &rate, "--connections", "1000"];
        let mut command = self.command(LOUD_SOURCE, &mode, seconds + 60);
        Ok(command.stdout(Stdio::null()).spawn()?)
    }

    /// Seconds of the worker's time that a full handshake takes, all its steps.
    fn cost_of_handshake(&self) -> Result<f64> {
        self.load("127.0.0.4", &["handshake", "--connections", "1"], 1)?;
        let text = get(self.admin, "/metrics")?;
        let sum = |name: &str, label: &str| -> f64 {
            let series = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
            series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let steps = sum("portcullis_handshake_steps_total", "step=\"full\"");
        let cost = sum("portcullis_handshake_cpu_seconds_total", "") / steps;
        if cost.is_finite() { Ok(cost) } else { Err("no handshake was counted".into()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = stop(&mut self.child) {
            eprintln!("sources: {error}");
        }
    }
}

fn spawn(config: &Path) -> Result<Child> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["run", "--config"]).arg(config);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

fn stop(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > SERVER_LIMIT {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The body of `GET path`.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    use std::io::{Read, Write};

    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn p99(summary: &Value) -> Result<f64> {
    let p99 = summary.pointer("/measured/latency_us/p99").and_then(Value::as_f64);
    p99.ok_or_else(|| "a summary without latencies".into())
}
