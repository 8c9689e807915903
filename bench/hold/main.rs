//! As many TLS connections as this machine holds, up to a million: opened by `portcullis load`,
//! kept, sampled, closed; and what each of them took. See `bench/README.md`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the account is the program's product")]

#[path = "../support/mod.rs"]
mod support;

mod account;
mod room;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::load::process;
use serde_json::Value;

use support::certificate::{Certificate, KeyKind};
use support::origin::Origin;
use support::report;
use support::work::{REQUEST, Work};
use support::{Result, free_address};

/// What the kernel and the allocator have to give memory back when all connections have ended.
const SETTLE: Duration = Duration::from_secs(30);
/// Clients that come and go before those that are held.
const WARM_UP_PER_WORKER: u64 = 100;
/// What the server may take to start, and to end.
const SERVER_LIMIT: Duration = Duration::from_secs(60);

/// Holds many TLS connections on one process and says what each takes.
#[derive(Debug, Parser)]
struct Options {
    /// Connections; fewer where descriptors or memory do not allow so many.
    #[arg(long, default_value_t = 1_000_000)]
    connections: u32,
    /// When a client gets its connection to a server.
    #[arg(long, value_enum, default_value = "on-first-byte")]
    connect: Connect,
    /// Share of the connections that is asked in each interval, in percent.
    #[arg(long, default_value_t = 1.0)]
    sample: f64,
    /// That interval, as `portcullis load` writes it.
    #[arg(long, default_value = "60s")]
    every: String,
    /// How long the connections are held.
    #[arg(long, default_value = "5m")]
    duration: String,
    /// How often so many come and go, one wave behind the other; the account is the first one's.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    waves: u32,
    /// Also writes the account into its section of this file, which is `bench/RESULTS.md`.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// A few connections for two seconds: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
}

/// `connect` of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Connect {
    /// A silent client has none.
    OnFirstByte,
    /// Each client has one.
    Eager,
}

impl Connect {
    fn key(self) -> &'static str {
        match self {
            Self::OnFirstByte => "on_first_byte",
            Self::Eager => "eager",
        }
    }
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hold: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Holds, and prints the account. False: connections were lost.
fn run(mut options: Options) -> Result<bool> {
    if options.test || !options.bench {
        let (every, duration) = ("1s".to_owned(), "2s".to_owned());
        options = Options { connections: 200, sample: 10.0, every, duration, ..options };
    }
    support::raise_open_files()?;
    let room = room::Room::find(options.connections, options.connect == Connect::Eager)?;
    println!("{room}");
    let work = Work { request_bytes: 1, answer_bytes: 1, ..REQUEST };
    let origin = Origin::spread(work, room.origin_threads)?;
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(KeyKind::Ecdsa, directory.path())?;
    let address = free_address()?;
    let config = directory.path().join("portcullis.toml");
    let text = configuration(&certificate, address, origin.address, options.connect, &room);
    fs::write(&config, text)?;
    let mut server = start(&config, address)?;
    let settle = if options.connections > 1000 { SETTLE } else { Duration::from_secs(1) };
    let fresh = settled(server.id(), settle);
    // Not while the load generator runs: pages of the program that both share would count half.
    let held = warm_up(&room, address).and_then(|()| {
        let warm = settled(server.id(), settle)?;
        let (mut lost, mut held) = (0, Value::Null);
        for wave in 0..options.waves {
            let summary = hold(&options, &room, address, server.id())?;
            lost += account::lost(&summary);
            // Those to come find memory that the one before has not given back yet.
            if wave == 0 {
                held = summary;
            }
        }
        Ok((warm, lost, held))
    });
    let after = held.is_ok().then(|| settled(server.id(), settle)).transpose()?;
    stop(&mut server)?;
    let (warm, lost, held) = held?;
    let server = [fresh?, warm, after.unwrap_or(0)];
    let account = account::Account { waves: options.waves, lost, summary: &held, server };
    print!("{account}");
    if let Some(path) = &options.results {
        let text = format!("{}\n\n{room}\n\n```text\n{account}```", report::machine()?);
        report::replace_section(path, &format!("hold {}", options.connect.key()), &text)?;
    }
    Ok(lost == 0)
}

fn configuration(
    certificate: &Certificate,
    address: SocketAddr,
    origin: SocketAddr,
    connect: Connect,
    room: &room::Room,
) -> String {
    let port = origin.port();
    let servers: Vec<_> = (1..=room.origin_addresses)
        .map(|host| format!("[[backend.server]]\naddress = \"127.0.1.{host}:{port}\"\n"))
        .collect();
    format!(
        "[workers]\ncount = {}\n[limits]\nconnections_per_worker = {}\n\
         [timeouts]\nidle = \"7d\"\nhandshake = \"1m\"\n[handshake]\nqueue_deadline = \"1m\"\n\
         [[listener]]\nname = \"https\"\nbind = [\"{address}\"]\nbackend = \"app\"\n\
         [[listener.certificate]]\nchain = {:?}\nkey = {:?}\n\
         [[backend]]\nname = \"app\"\nconnect = \"{}\"\n{}",
        room.workers,
        room.per_worker,
        certificate.chain.to_string_lossy(),
        certificate.key.to_string_lossy(),
        connect.key(),
        servers.concat(),
    )
}

fn start(config: &Path, address: SocketAddr) -> Result<Child> {
    let mut server = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let begun = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        if let Some(status) = server.try_wait()? {
            return Err(format!("portcullis run ended at once, {status}").into());
        }
        if begun.elapsed() > SERVER_LIMIT {
            stop(&mut server)?;
            return Err(format!("portcullis run does not listen on {address}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}

/// Has each worker serve some clients that do what those to be held will do, so that what a process
/// takes once (pages of its code, its first buffers, the allocator's first slabs) is in no
/// connection's share.
fn warm_up(room: &room::Room, target: SocketAddr) -> Result<()> {
    let connections = u64::from(room.connections).min(room.workers * WARM_UP_PER_WORKER);
    let mut command = clients(target, connections);
    run_load(command.args(["--sample", "100", "--every", "1s", "--duration", "3s"]))?;
    Ok(())
}

/// `portcullis load hold`, without its times and what is asked.
fn clients(target: SocketAddr, connections: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(["load", "hold", "--json", "--protocol", "raw", "--up", "1B"])
        .args(["--source", "127.0.0.0/16", "--tls", "1.3", "--group", "X25519"])
        .args(["--timeout", "60s", &format!("--target={target}")])
        .arg(format!("--connections={connections}"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

/// Runs a load to its end; returns its summary.
fn run_load(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("portcullis load ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn stop(server: &mut Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(server.id())?), Signal::SIGTERM)?;
    let begun = Instant::now();
    while server.try_wait()?.is_none() {
        if begun.elapsed() > SERVER_LIMIT {
            server.kill()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Runs `portcullis load hold`, whose progress bar is ours, too; returns its summary.
fn hold(options: &Options, room: &room::Room, target: SocketAddr, server: u32) -> Result<Value> {
    let mut command = clients(target, room.connections.into());
    command
        .args(["--every", &options.every, "--duration", &options.duration])
        .arg(format!("--sample={}", options.sample))
        .arg(format!("--server-pid={server}"));
    run_load(&mut command)
}

/// The server's memory when everything that was held is gone and given back.
fn settled(server: u32, settle: Duration) -> Result<u64> {
    std::thread::sleep(settle);
    Ok(process::pss_bytes(server)?)
}
