//! What slow and garbage clients do to the traffic that was there before: its latency on one
//! worker, alone and while thousands of them are connected. See `bench/README.md`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the program's product")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod crowd;
mod server;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{Resource, getrlimit};
use serde_json::Value;

use crowd::{Counts, Crowd};
use server::Server;
use support::certificate::{Certificate, KeyKind};
use support::cpu::{self, Placement};
use support::origin::Origin;
use support::report::{self, Table};
use support::work::{REQUEST, Work};
use support::{Result, raise_open_files};

/// Descriptors of a worker besides those of clients: its own and its accepts'.
const RESERVED: u64 = 256;
/// Descriptors of one connection in a worker's table.
const PER_CONNECTION: u64 = 2;
/// Bytes of an answer that a slow reader does not read: more than all buffers on the way hold.
const LARGE: u64 = 384 * 1024;
/// How long the established traffic has been there when the crowd leaves, a second of warm-up too.
const LEAVES_AFTER: Duration = Duration::from_secs(2);
/// Below this the bar is kept: p99 with the crowd here by p99 without it.
const BAR: f64 = 1.2;

/// Measures established traffic alone and while slow and garbage clients are there.
#[derive(Debug, Parser)]
struct Options {
    /// Slow clients; fewer where one worker's descriptors do not allow so many.
    #[arg(long, default_value_t = 10_000)]
    slow: u64,
    /// Clients that send no TLS, and come again and again.
    #[arg(long, default_value_t = 2000)]
    garbage: u64,
    /// Rounds of all three.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each measurement, as `portcullis load` writes it.
    #[arg(long, default_value = "5s")]
    duration: String,
    /// Questions a second on the established connections.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Established connections.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Writes the table between the marks `slow` of this file.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// A few clients for a moment: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The established traffic alone, then with the crowd at another server that gives way to all, then
/// with the crowd at its own, and then while that crowd leaves it, all at once.
struct Round {
    measured: [Value; 4],
    crowd: Counts,
}

fn run(mut options: Options) -> Result<()> {
    if options.test || !options.bench {
        let duration = "1s".to_owned();
        options = Options { slow: 40, garbage: 10, rounds: 1, rate: 200, duration, ..options };
    }
    raise_open_files()?;
    let (_, descriptors) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let room = descriptors.saturating_sub(RESERVED) / PER_CONNECTION;
    // Of the garbage clients some are connected at any time.
    let others = u64::from(options.connections) + options.garbage / 2;
    let slow = options.slow.min(room.saturating_sub(others));
    let placement = Placement::choose(1)?;
    cpu::pin(&placement.clients)?;
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(KeyKind::Ecdsa, directory.path())?;
    let small = Work { request_bytes: 100, answer_bytes: 100, ..REQUEST };
    let large = Work { request_bytes: 1, answer_bytes: LARGE, ..REQUEST };
    let small = Origin::start(small, &placement.clients)?;
    let large = Origin::start(large, &placement.clients)?;
    let origins = [small.address, large.address];
    let server = Server::start(&certificate, origins, &placement, directory.path(), false)?;
    let other = Server::start(&certificate, origins, &placement, directory.path(), true)?;
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        let alone = load(&options, &server)?;
        let crowd_at = |at: &Server| -> Result<(Value, Value, Counts)> {
            let crowd = Crowd { addresses: at.addresses, slow, garbage: options.garbage };
            let here = crowd.gather(&certificate)?;
            let during = load(&options, &server)?;
            let open = at.connections()?;
            let (leaving, counts) = thread::scope(|scope| {
                let measured = scope.spawn(|| load(&options, &server).map_err(|e| e.to_string()));
                thread::sleep(LEAVES_AFTER);
                let counts = here.leave(open);
                (measured.join(), counts)
            });
            at.wait_idle()?;
            Ok((during, leaving.map_err(|_| "the load's thread panicked")??, counts?))
        };
        let (beside, ..) = crowd_at(&other)?;
        let (here, leaving, crowd) = crowd_at(&server)?;
        rounds.push(Round { measured: [alone, beside, here, leaving], crowd });
    }
    let text = text(&options, slow, &placement, &rounds, &server.reasons()?)?;
    println!("{text}");
    if let Some(path) = &options.results {
        report::replace_section(path, "slow", &text)?;
    }
    Ok(())
}

/// The established traffic, at a fixed rate: latency counts from when a question was due.
fn load(options: &Options, server: &Server) -> Result<Value> {
    let [target, _] = server.addresses;
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["load", "request", "--json", "--protocol", "raw", "--up", "100B"])
        .args(["--tls", "1.3", "--group", "X25519", "--threads", "1"])
        .args(["--warm-up", "1s", "--duration", &options.duration])
        .arg(format!("--target={target}"))
        .arg(format!("--connections={}", options.connections))
        .arg(format!("--rate={}", options.rate))
        .arg(format!("--server-pid={}", server.id()))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("portcullis load ended with {}", output.status).into());
    }
    let summary: Value = serde_json::from_slice(&output.stdout)?;
    match summary.pointer("/measured/failures") {
        Some(Value::Object(failures)) if failures.is_empty() => Ok(summary),
        failures => Err(format!("established clients failed: {failures:?}").into()),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn number(summary: &Value, path: &str) -> f64 {
    summary.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn text(
    options: &Options,
    slow: u64,
    placement: &Placement,
    rounds: &[Round],
    reasons: &str,
) -> Result<String> {
    let mut table = Table::new([
        "round",
        "p50 us: alone",
        "beside",
        "here",
        "leaving",
        "p99 us: alone",
        "beside",
        "here",
        "leaving",
        "here / alone",
        "here / beside",
        "CPU s: alone",
        "beside",
        "here",
        "leaving",
        "slow open",
        "garbage /s",
    ]);
    let (mut to_alone, mut to_beside) = (Vec::new(), Vec::new());
    for (index, Round { measured, crowd }) in rounds.iter().enumerate() {
        let all = |path: &str| measured.each_ref().map(|summary| number(summary, path));
        let p99 = all("/measured/latency_us/p99");
        let ratios = [p99[2] / p99[0], p99[2] / p99[1]];
        to_alone.push(ratios[0]);
        to_beside.push(ratios[1]);
        let mut row = vec![(index + 1).to_string()];
        row.extend(all("/measured/latency_us/p50").iter().chain(&p99).map(|us| format!("{us:.0}")));
        let cpu = all("/measured/server/cpu_seconds");
        row.extend(ratios.iter().chain(&cpu).map(|value| format!("{value:.2}")));
        row.push(crowd.open.to_string());
        row.push(format!("{:.0}", crowd.garbage_per_second));
        table.row(row);
    }
    let (to_alone, to_beside) = (median(to_alone), median(to_beside));
    let Options { garbage, connections, rate, duration, .. } = options;
    let fewer = if slow < options.slow {
        format!(" ({} asked for; RLIMIT_NOFILE of one worker allows no more)", options.slow)
    } else {
        String::new()
    };
    Ok(format!(
        "{}\n\n- one worker, {}\n- established: {connections} connections, {rate} questions a \
         second of 100 bytes, {duration} each time\n- {slow} slow clients{fewer}: of ten, four \
         with their ClientHello, three with their request (a byte in a record), two with a record \
         that does not end, one that does not read; a byte in 5 s each; who is closed comes \
         again\n- {garbage} garbage clients: noise, plain HTTP, broken records, half a hello; \
         closed, and again after a second\n- beside: all of them at a \
         second server on the same CPU that gives way to every other process, which is what they \
         do by the kernel and by their own CPU time alone; here: at the server that is \
         measured; leaving: a second into this measurement all of them close their \
         connections\n- `cargo bench --bench slow -- --slow {} --garbage \
         {garbage} --rounds {} --rate {rate} --duration {duration}`\n\n{table}\nMedian p99 \
         ratios: {to_alone:.2} to the traffic alone, {to_beside:.2} to the crowd beside; the bar \
         is {BAR}.\n\nWhat the server counted of all rounds: {reasons}\n",
        report::machine()?,
        placement.describe(),
        options.slow,
        options.rounds,
    ))
}

/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(100);
