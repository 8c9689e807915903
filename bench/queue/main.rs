//! Many clients in front of a server that gets slower with each request it has in hand: how long
//! they wait for an answer, by `max_connections`. See `bench/README.md`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the table is the program's product")]

mod chart;
mod origin;
#[path = "../support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use origin::{Model, Origin};
use support::certificate::{Certificate, KeyKind};
use support::client::{Clients, Done, Until};
use support::cpu::{self, Placement};
use support::program::Program;
use support::report::{self, Table};
use support::server::Server;
use support::work::{FULL, Work};
use support::{Error, Result};

const LIMITS: [u32; 10] = [10, 20, 30, 50, 75, 100, 150, 200, 250, 0];
const MODEL: Model = Model { base: Duration::from_millis(100), knee: 30 };
/// The chart's name, beside the file of the results.
const CHART: &str = "queue.svg";

/// Measures how long clients wait for an answer, by the limit of connections to their server.
#[derive(Debug, Parser)]
struct Options {
    /// Clients, each of which asks again as soon as it has its answer.
    #[arg(long, default_value_t = 250)]
    clients: usize,
    /// Limits, in this order; 0: none.
    #[arg(long, value_delimiter = ',', default_values_t = LIMITS)]
    limits: Vec<u32>,
    /// Workers, which share the limit.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Seconds of load before it.
    #[arg(long, default_value_t = 5.0)]
    warm_up: f64,
    /// Directory for the table and the chart.
    #[arg(long, default_value = "target/queue")]
    output: PathBuf,
    /// Markdown file whose section is replaced; the chart is put beside it.
    #[arg(long)]
    results: Option<PathBuf>,
    /// A few clients for a moment: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What was measured with one limit.
struct Row {
    /// `max_connections`; `None`: any number.
    limit: Option<u32>,
    /// `None`: it failed.
    times: Option<Times>,
    /// The most requests that the server had in hand.
    most: u32,
    error: Option<Error>,
}

/// From the beginning of a client's connect to the last byte of its answer, in milliseconds.
struct Times {
    longest: f64,
    average: f64,
    p99: f64,
    answers_per_second: f64,
}

impl Row {
    fn name(&self) -> String {
        self.limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string())
    }
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("queue: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints and writes everything. False: a client was not served.
fn run(mut options: Options) -> Result<bool> {
    let mut model = MODEL;
    if options.test || !options.bench {
        model.base = Duration::from_millis(5);
        let limits = vec![2, 0];
        options =
            Options { clients: 20, limits, seconds: 0.3, warm_up: 0.1, workers: 1, ..options };
    }
    support::raise_open_files()?;
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(KeyKind::Ecdsa, directory.path())?;
    let placement = Placement::choose(options.workers)?;
    let mut rows = Vec::new();
    for limit in &options.limits {
        let limit = Some(*limit).filter(|limit| *limit > 0);
        let row = measure(limit, model, &options, &certificate, &placement);
        println!("{}: {}", row.name(), cells(&row).join(", "));
        rows.push(row);
    }
    let command: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let command = format!("cargo bench --bench queue -- {}", command.join(" "));
    let text = text(&rows, model, &options, &placement, command.trim_end_matches(" -- "))?;
    println!("\n{text}");
    write(&rows, &text, &options)?;
    Ok(rows.iter().all(|row| row.error.is_none()))
}

fn measure(
    limit: Option<u32>,
    model: Model,
    options: &Options,
    certificate: &Certificate,
    placement: &Placement,
) -> Row {
    let mut row = Row { limit, times: None, most: 0, error: None };
    let work = Work { name: "queue", connections: options.clients, ..FULL };
    match serve(limit, work, model, options, certificate, placement) {
        Ok((done, most, elapsed)) => {
            row.most = most;
            row.times = Some(times(&done, elapsed));
        }
        Err(error) => row.error = Some(error),
    }
    row
}

/// One measurement, with a fresh process and origin: what the clients saw, and the most requests
/// that the origin had in hand.
fn serve(
    limit: Option<u32>,
    work: Work,
    model: Model,
    options: &Options,
    certificate: &Certificate,
    placement: &Placement,
) -> Result<(Done, u32, Duration)> {
    cpu::pin(&placement.clients)?;
    let origin = Origin::start(work, model)?;
    let mut program =
        Program::portcullis("portcullis", Path::new(env!("CARGO_BIN_EXE_portcullis")));
    let keys = limit.map_or_else(String::new, |limit| {
        format!("max_connections = {limit}\n[backend.queue]\ntimeout = \"5m\"")
    });
    program.values.push(("@SERVER_KEYS@", keys));
    let server = Server::start(&program, certificate, Some(origin.address), placement, work)?;
    let measured = || -> Result<_> {
        let mut clients = Clients::connect(server.address, work, certificate)?;
        let warm_up = Duration::from_secs_f64(options.warm_up);
        clients.run(Until::Time(Instant::now() + warm_up))?;
        origin.most();
        let began = Instant::now();
        let done = clients.run(Until::Time(began + Duration::from_secs_f64(options.seconds)))?;
        Ok((done, origin.most(), began.elapsed()))
    };
    measured().map_err(|error| server.explain("portcullis", &error))
}

#[expect(clippy::cast_precision_loss, reason = "microseconds and counts far below 2^52")]
fn times(done: &Done, elapsed: Duration) -> Times {
    let latency = &done.latency;
    Times {
        longest: latency.max() as f64 / 1000.0,
        average: latency.mean() / 1000.0,
        p99: latency.value_at_percentile(99.0) as f64 / 1000.0,
        answers_per_second: latency.len() as f64 / elapsed.as_secs_f64(),
    }
}

fn cells(row: &Row) -> Vec<String> {
    let Some(times) = &row.times else {
        let error = row.error.as_ref().map_or_else(String::new, ToString::to_string);
        return vec![format!("failed: {error}")];
    };
    let mut cells: Vec<String> =
        [times.longest, times.average, times.p99].map(|time| format!("{time:.0}")).into();
    cells.push(format!("{:.0}", times.answers_per_second));
    cells.push(row.most.to_string());
    cells.push("0".to_owned());
    cells
}

fn text(
    rows: &[Row],
    model: Model,
    options: &Options,
    placement: &Placement,
    command: &str,
) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "![Longest and average times by max_connections]({CHART})\n")?;
    writeln!(text, "{}\n", report::machine()?)?;
    writeln!(text, "- {}", placement.describe())?;
    writeln!(
        text,
        "- {} clients, closed loop: each connects, does a full handshake (TLS 1.3), asks, gets its \
         answer, closes, and comes again; {} s after {} s of warm-up",
        options.clients, options.seconds, options.warm_up
    )?;
    writeln!(
        text,
        "- the server takes {} ms with c requests in hand, where c is {} or less, and {} ms x (c / \
         {})^1.5 above; it sleeps",
        model.base.as_millis(),
        model.knee,
        model.base.as_millis(),
        model.knee
    )?;
    writeln!(text, "- `{command}`\n")?;
    let mut table = Table::new([
        "max_connections",
        "longest ms",
        "average ms",
        "p99 ms",
        "answers/s",
        "most at the server",
        "errors",
    ]);
    for row in rows.iter().filter(|row| row.times.is_some()) {
        table.row(std::iter::once(row.name()).chain(cells(row)));
    }
    write!(text, "{table}")?;
    for row in rows {
        if let Some(error) = &row.error {
            writeln!(text, "\n- {}: failed: {error}", row.name())?;
        }
    }
    Ok(text)
}

/// Writes the files, and the section of the results if wanted.
fn write(rows: &[Row], text: &str, options: &Options) -> Result<()> {
    fs::create_dir_all(&options.output)?;
    fs::write(options.output.join("results.md"), format!("# The queue\n\n{text}"))?;
    let title = format!("Waiting for an answer, {} clients: less is better", options.clients);
    chart::draw(rows, &title, &options.output.join(CHART))?;
    println!("written: results.md and {CHART} in {}", options.output.display());
    let Some(path) = &options.results else {
        return Ok(());
    };
    let directory = path.parent().unwrap_or(Path::new(""));
    chart::draw(rows, &title, &directory.join(CHART))?;
    report::replace_section(path, "queue", text)
}
