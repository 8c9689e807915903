//! The same TLS echo server on tokio, on tokio-uring and on our own loop: server CPU time per
//! operation and memory per idle connection, in one interleaved run. See `bench/README.md`.
//!
//! Each server is this program, started again by itself as a process of its own.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the program's product")]

mod on_ring;
mod on_tokio;
mod on_tokio_rustls;
mod on_tokio_uring;
#[path = "../support/mod.rs"]
mod support;
mod tls;

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use portcullis::limits::RECEIVE_BUFFER_BYTES;
use portcullis::tls::session;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use support::Result;
use support::certificate::{Certificate, KeyKind};
use support::cpu::Placement;
use support::measure::{self, Conditions};
use support::program::Program;
use support::report::{self, Table};
use support::spread::{Spread, median_ratio};
use support::work::{FULL, REQUEST, REQUEST_16K, Work};

/// Bytes that one read takes at most: the same for all servers.
const RECEIVE_BYTES: usize = RECEIVE_BUFFER_BYTES;
/// Backlog of every server's listening socket.
const BACKLOG: u32 = 4096;

/// Measures a TLS echo server on several runtimes.
#[derive(Debug, Parser)]
struct Options {
    /// Times that every server is measured, interleaved.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Servers: `tokio`, `tokio_rustls`, `tokio_uring`, `ring`, `ring_lean`.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "tokio,tokio_rustls,tokio_uring,ring,ring_lean"
    )]
    servers: Vec<String>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds of load before each measurement.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Idle connections whose memory is measured.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Writes the table into the section `runtime` of this file, which is `bench/RESULTS.md`.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// One short round: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    serve: Option<Serve>,
}

/// What the program does when it has started itself.
#[derive(Debug, Subcommand)]
enum Serve {
    /// Serves until the process is ended.
    #[command(hide = true)]
    Serve { runtime: String, listen: SocketAddr, chain: PathBuf, key: PathBuf },
}

impl Options {
    /// Only whether everything works is asked.
    fn is_smoke_run(&self) -> bool {
        self.test || !self.bench
    }
}

/// With what the program starts itself.
const ARGUMENTS: [&str; 5] = ["serve", "@RUNTIME@", "@LISTEN@", "@CHAIN@", "@KEY@"];

/// The servers: name, and what it is.
const SERVERS: [(&str, &str); 5] = [
    ("tokio", "tokio 1 (epoll), current-thread; rustls's unbuffered API, a receive buffer for all"),
    ("tokio_rustls", "tokio 1 (epoll), current-thread; tokio-rustls, as most would write it"),
    (
        "tokio_uring",
        "tokio-uring 0.5; rustls's unbuffered API, a receive buffer for each connection",
    ),
    ("ring", "our own ring; rustls's unbuffered API (`record_layer = \"rustls\"`)"),
    (
        "ring_lean",
        "our own ring; rustls's handshake, our own record layer (`record_layer = \"lean\"`)",
    ),
];

/// What is measured: a row of the table.
#[derive(Debug, Clone, Copy)]
enum Row {
    /// CPU time per operation.
    Cost(Work),
    /// User memory per idle connection; if `asked`, behind one operation on each.
    Memory { work: Work, asked: bool },
}

/// The rows of the table, with their names.
const ROWS: [(&str, Row); 6] = [
    ("full handshake, 100 B echoed, close; us", Row::Cost(FULL)),
    (
        "echo of 100 B, 1000 connections; us",
        Row::Cost(Work { connections: 1000, request_bytes: 100, answer_bytes: 100, ..REQUEST }),
    ),
    ("echo of 16 KiB, 64 connections; us", Row::Cost(REQUEST_16K)),
    ("echo of 16 KiB, 1000 connections; us", Row::Cost(Work { connections: 1000, ..REQUEST_16K })),
    ("idle behind the handshake; bytes each", Row::Memory { work: REQUEST_16K, asked: false }),
    ("idle behind an echo of 16 KiB; bytes each", Row::Memory { work: REQUEST_16K, asked: true }),
];

fn main() -> ExitCode {
    let mut options = Options::parse();
    let done = match options.serve.take() {
        Some(Serve::Serve { runtime, listen, chain, key }) => serve(&runtime, listen, &chain, &key),
        None => run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The echo server on `runtime`.
fn serve(runtime: &str, listen: SocketAddr, chain: &Path, key: &Path) -> Result<()> {
    let certificates = vec![CertificateDer::from_pem_file(chain)?];
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, PrivateKeyDer::from_pem_file(key)?)?;
    // Full handshakes only: what a runtime does with tickets is not the question.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    if runtime == "ring_lean" {
        session::use_own_records(&mut config);
    }
    let config = Arc::new(config);
    // The same socket options for all of them.
    let listener = TcpListener::from(portcullis::sys::socket::listen(listen, BACKLOG)?);
    match runtime {
        "tokio" => on_tokio::serve(listener, &config),
        "tokio_rustls" => on_tokio_rustls::serve(listener, &config),
        "tokio_uring" => on_tokio_uring::serve(listener, &config),
        "ring" | "ring_lean" => on_ring::serve(listener, &config),
        _ => Err(format!("no such runtime: {runtime}").into()),
    }
}

/// Measures and prints everything.
fn run(mut options: Options) -> Result<()> {
    // As criterion does: without `--bench`, under `cargo test --all-targets`, only a smoke run.
    if options.is_smoke_run() {
        options = Options { rounds: 1, seconds: 0.1, warm_up: 0.05, idle: 100, ..options };
    }
    let programs = programs(&options.servers)?;
    support::raise_open_files()?;
    let placement = Placement::choose(1)?;
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(KeyKind::Ecdsa, directory.path())?;
    let conditions = Conditions {
        certificate: &certificate,
        placement: &placement,
        warm_up: Duration::from_secs_f64(options.warm_up),
        measured: Duration::from_secs_f64(options.seconds),
        idle: if options.is_smoke_run() { Duration::ZERO } else { measure::IDLE },
        with_origin: false,
        with_strace: false,
    };
    let mut all = Vec::new();
    for (name, row) in ROWS {
        eprintln!("{name} ...");
        all.push((name, rounds(row, &programs, &options, &conditions)?));
    }
    let report = report(&options, &programs, &placement, &all)?;
    println!("{report}");
    match &options.results {
        Some(path) => report::replace_section(path, "runtime", &report),
        None => Ok(()),
    }
}

/// The servers to measure, in the order they are measured.
fn programs(names: &[String]) -> Result<Vec<Program>> {
    let path = std::env::current_exe()?;
    let known = |name: &String| {
        if !SERVERS.iter().any(|(known, _)| known == name) {
            return Err(format!("no such server: {name}").into());
        }
        Ok(Program {
            name: name.clone(),
            path: path.clone(),
            arguments: &ARGUMENTS,
            version_arguments: &[],
            template: None,
            values: vec![("@RUNTIME@", name.clone())],
        })
    };
    names.iter().map(known).collect()
}

/// What every round measured, for each program.
fn rounds(
    row: Row,
    programs: &[Program],
    options: &Options,
    conditions: &Conditions<'_>,
) -> Result<Vec<Vec<f64>>> {
    let measured = measure::interleaved(programs, options.rounds, |program| match row {
        Row::Cost(work) => measure::sample(program, work, conditions).map(|sample| sample.cost),
        Row::Memory { work, asked } => {
            measure::memory_per_connection(program, work, options.idle, asked, conditions)
        }
    });
    let mut values = Vec::new();
    for (samples, errors) in measured {
        for error in errors {
            // In a smoke run there is no other round.
            if options.rounds == 1 {
                return Err(error.into());
            }
            eprintln!("{error}");
        }
        values.push(samples);
    }
    Ok(values)
}

/// Everything that is printed.
fn report(
    options: &Options,
    programs: &[Program],
    placement: &Placement,
    rows: &[(&str, Vec<Vec<f64>>)],
) -> Result<String> {
    let mut text = String::new();
    let losses = losses(programs, rows);
    if losses.is_empty() {
        writeln!(text, "`ring_lean` costs less than the other runtimes in every row.\n")?;
    }
    for loss in losses {
        writeln!(text, "- **Lost**: {loss}")?;
    }
    writeln!(text, "\n{}; {}.", report::machine()?, placement.describe())?;
    writeln!(
        text,
        "The same TLS echo server, one thread each; server CPU time per operation, user memory \
         (PSS) per connection. TLS 1.3, AES-128-GCM, X25519, ECDSA P-256, no resumption. {} rounds \
         of {} s, interleaved: median (min-max).\n",
        options.rounds, options.seconds,
    )?;
    let measured = |server: &&(&str, &str)| programs.iter().any(|one| one.name == server.0);
    for (name, what) in SERVERS.iter().filter(measured) {
        writeln!(text, "- `{name}`: {what}")?;
    }
    let names = programs.iter().map(|program| program.name.as_str());
    let mut table = Table::new(std::iter::once("").chain(names));
    for (name, values) in rows {
        let cells = values.iter().map(|values| {
            Spread::of(values.iter().copied())
                .map_or_else(|| "failed".into(), |all| all.show(usize::from(all.median < 1000.0)))
        });
        table.row(std::iter::once((*name).to_owned()).chain(cells));
    }
    writeln!(text, "\n{table}")?;
    Ok(text)
}

/// In which rows a runtime of others costs less than `ring_lean`.
fn losses(programs: &[Program], rows: &[(&str, Vec<Vec<f64>>)]) -> Vec<String> {
    let Some(ours) = programs.iter().position(|program| program.name == "ring_lean") else {
        return Vec::new();
    };
    let mut losses = Vec::new();
    for (row, values) in rows {
        if values.get(ours).is_none_or(Vec::is_empty) {
            losses.push(format!("{row}: `ring_lean` failed"));
        }
        for (program, theirs) in programs.iter().zip(values) {
            if program.name.starts_with("ring") {
                continue;
            }
            let ratio = values.get(ours).and_then(|ours| median_ratio(ours, theirs));
            if let Some(ratio) = ratio.filter(|ratio| *ratio > 1.0) {
                losses.push(format!("{row}: `ring_lean` takes {ratio:.2} x `{}`", program.name));
            }
        }
    }
    losses
}
