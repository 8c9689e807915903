//! Portcullis against haproxy and nginx: server CPU time per operation, one worker each, on one
//! machine, in one interleaved run. See `bench/README.md`.
//!
//! A `[[bench]]` and not an example, because only then cargo builds the binary under test with it,
//! in the same profile, and tells where that is.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the program's product")]

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use support::Result;
use support::certificate::{Certificate, KeyKind};
use support::client::{Clients, Until};
use support::cpu::{self, Placement};
use support::origin::Origin;
use support::server::{Program, Server};
use support::work::Work;

/// Measures server CPU time per operation of Portcullis and its peers.
#[derive(Debug, Parser)]
struct Options {
    /// Times that every server is measured, interleaved.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Kinds of work: `full`, `full12`, `ticket13`, `ticket12`, `session_id12`, `request`,
    /// `request1000`, `request16k`, `bulk_down`, `bulk_up`.
    #[arg(long, value_delimiter = ',', default_value = "full,request")]
    only: Vec<Work>,
    /// Servers: portcullis, haproxy, nginx. Peers that are not installed are skipped.
    #[arg(long, value_delimiter = ',', default_value = "portcullis,haproxy,nginx")]
    servers: Vec<String>,
    /// Another build of Portcullis to measure in the same run, as NAME=PATH; may be repeated.
    #[arg(long, value_name = "NAME=PATH")]
    binary: Vec<String>,
    /// Connections at once, instead of each work's own number.
    #[arg(long)]
    connections: Option<usize>,
    /// Key of the certificate.
    #[arg(long, value_enum, default_value = "ecdsa")]
    certificate: KeyKind,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds of load before each measurement.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// One short round of everything asked for: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Server CPU time per operation in microseconds; for bulk work seconds per GiB.
    cost: f64,
    /// Operations per second; for bulk work GiB per second.
    rate: f64,
    /// Share of the time that the server was on its CPU.
    busy: f64,
    /// Share of the time that the server wanted its CPU and others had it.
    queued: f64,
    /// Share of the handshakes that resumed a session; none where connections are kept.
    resumed: Option<f64>,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints everything. False: a server failed at some work.
fn run(mut options: Options) -> Result<bool> {
    // As criterion does: without `--bench`, under `cargo test --all-targets`, only a smoke run.
    if options.test || !options.bench {
        options = Options { rounds: 1, seconds: 0.2, warm_up: 0.1, ..options };
    }
    let programs = programs(&options)?;
    support::raise_open_files()?;
    let placement = Placement::choose(1)?;
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(options.certificate, directory.path())?;
    println!(
        "{}; {:?} certificate, AES-128-GCM with SHA-256, X25519",
        placement.describe(),
        options.certificate
    );
    for program in &programs {
        println!("{}: {}", program.name, program.version()?);
    }
    let mut all_served = true;
    for &work in &options.only {
        let connections = options.connections.unwrap_or(work.connections);
        let work = Work { connections, ..work };
        let mut samples = vec![Vec::new(); programs.len()];
        for round in 0..options.rounds {
            for (program, samples) in programs.iter().zip(&mut samples) {
                match measure(program, work, &certificate, &placement, &options) {
                    Ok(sample) => samples.push(sample),
                    Err(error) => {
                        all_served = false;
                        println!("{} round {round}: {error}", work.name);
                    }
                }
            }
        }
        print_table(work, &programs, &samples);
    }
    Ok(all_served)
}

/// The programs to measure, in the order they are measured.
fn programs(options: &Options) -> Result<Vec<Program>> {
    let ours = Path::new(env!("CARGO_BIN_EXE_portcullis"));
    let mut programs = Vec::new();
    for name in &options.servers {
        let peer = match name.as_str() {
            "portcullis" => {
                programs.push(Program::portcullis("portcullis", ours));
                continue;
            }
            "haproxy" => Program::haproxy(),
            "nginx" => Program::nginx(),
            _ => return Err(format!("no such server: {name}").into()),
        };
        match peer.version() {
            Ok(_) => programs.push(peer),
            Err(error) => println!("{name}: skipped, cannot be run ({error})"),
        }
    }
    for pair in &options.binary {
        let (name, path) = pair.split_once('=').ok_or("--binary wants NAME=PATH")?;
        programs.push(Program::portcullis(name, &PathBuf::from(path)));
    }
    Ok(programs)
}

/// One measurement of `program` with a fresh process, origin and ports.
fn measure(
    program: &Program,
    work: Work,
    certificate: &Certificate,
    placement: &Placement,
    options: &Options,
) -> Result<Sample> {
    cpu::pin(&placement.clients)?;
    let origin = Origin::start(work, &placement.clients)?;
    let server = Server::start(program, certificate, origin.address, placement, work)?;
    load(&server, work, certificate, options).map_err(|error| server.explain(&program.name, &error))
}

fn load(
    server: &Server,
    work: Work,
    certificate: &Certificate,
    options: &Options,
) -> Result<Sample> {
    let mut clients = Clients::connect(server.address, work, certificate)?;
    clients.run(Until::Time(Instant::now() + Duration::from_secs_f64(options.warm_up)))?;
    let cpu_before = server.cpu_time()?;
    let started = Instant::now();
    let done = clients.run(Until::Time(started + Duration::from_secs_f64(options.seconds)))?;
    let elapsed = started.elapsed().as_secs_f64();
    let spent = server.cpu_time()? - cpu_before;
    if done.progress == 0 {
        return Err("nothing was completed in the measured time".into());
    }
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    let (units, scale) = if work.is_bulk() {
        (done.progress as f64 / f64::from(1 << 30), 1.0)
    } else {
        (done.progress as f64, 1e6)
    };
    Ok(Sample {
        cost: spent.used.as_secs_f64() * scale / units,
        rate: units / elapsed,
        busy: spent.used.as_secs_f64() / elapsed,
        queued: spent.queued.as_secs_f64() / elapsed,
        resumed: done.resumed_share(),
    })
}

/// Minimum, median and maximum; `None` without a value.
fn spread(values: impl Iterator<Item = f64>) -> Option<(f64, f64, f64)> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let median = *values.get(values.len() / 2)?;
    Some((*values.first()?, median, *values.last()?))
}

/// The median of what one server costs against another in the same round, which the clock speed of
/// a shared host hardly touches; `None` where a round failed.
fn median_ratio(samples: &[Sample], best: &[Sample]) -> Option<f64> {
    let ratios = samples.iter().zip(best).map(|(this, best)| this.cost / best.cost);
    let median = spread(ratios)?.1;
    (samples.len() == best.len()).then_some(median)
}

fn print_table(work: Work, programs: &[Program], samples: &[Vec<Sample>]) {
    let cost = |samples: &[Sample]| spread(samples.iter().map(|sample| sample.cost));
    let best_peer = programs
        .iter()
        .zip(samples)
        .filter(|(program, _)| program.template != "portcullis.toml")
        .filter_map(|(_, samples)| Some((cost(samples)?.1, samples)))
        .min_by(|(one, _), (other, _)| one.total_cmp(other));
    println!(
        "\n{}: {}, {} connections, server CPU {}\n\
         {:14} {:>9} {:>9} {:>9} {:>11} {:>10} {:>6} {:>7} {:>8}",
        work.name,
        work.handshake_words(),
        work.connections,
        work.unit(),
        "server",
        "min",
        "median",
        "max",
        "x best peer",
        if work.is_bulk() { "GiB/s" } else { "ops/s" },
        "busy%",
        "queued%",
        "resumed%",
    );
    for (program, samples) in programs.iter().zip(samples) {
        let Some((min, median, max)) = cost(samples) else {
            println!("{:14} failed", program.name);
            continue;
        };
        let middle =
            |field: fn(&Sample) -> f64| spread(samples.iter().map(field)).map_or(0.0, |s| s.1);
        let ratio = best_peer.and_then(|(_, best)| median_ratio(samples, best));
        let ratio = ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        let resumed = spread(samples.iter().filter_map(|sample| sample.resumed))
            .map_or_else(|| "-".into(), |(least, _, _)| format!("{:.2}", 100.0 * least));
        let digits = if work.is_bulk() { 2 } else { 0 };
        println!(
            "{:14} {min:9.2} {median:9.2} {max:9.2} {ratio:>11} {:10.digits$} {:6.0} {:7.0} \
             {resumed:>8}",
            program.name,
            middle(|sample| sample.rate),
            100.0 * middle(|sample| sample.busy),
            100.0 * middle(|sample| sample.queued),
        );
        let saturated = middle(|sample| sample.busy + sample.queued) > 0.9;
        if !saturated {
            println!("{:14} not saturated: the clients could not keep it busy", "");
        }
    }
}
