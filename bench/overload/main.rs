//! Portcullis and its peers when more handshakes come than they can do: what that does to
//! established connections, and how many handshakes still come to their end. See
//! `bench/README.md`.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the tables are the program's product")]

mod measure;
#[path = "../support/mod.rs"]
mod support;
mod tables;

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use measure::Bed;
use support::Result;
use support::certificate::{Certificate, KeyKind};
use support::choice::Choice;
use support::cpu::Placement;
use support::measure::interleaved;
use support::program::Program;
use support::report;

/// Measures Portcullis and its peers under more handshakes than they can do.
#[derive(Debug, Parser)]
struct Options {
    #[command(flatten)]
    choice: Choice,
    /// Times that every server is measured, interleaved.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each half of a flood, and of the search for a server's peak.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds of overload: more than the client's patience, which is 5 s.
    #[arg(long, default_value_t = 12.0)]
    overloaded: f64,
    /// What is measured.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "flood,goodput")]
    only: Vec<Part>,
    /// Also writes the tables into their section of this file, which is `bench/RESULTS.md`.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// One short round: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Part {
    /// Established connections' latency while handshakes come as fast as the server does them.
    Flood,
    /// Handshakes that come to their end while four times as many are begun as it can do.
    Goodput,
}

impl Part {
    /// The keys with which it is measured: for an overload a dear one, or one CPU of clients cannot
    /// offer so much.
    fn certificates(self) -> &'static [KeyKind] {
        match self {
            Self::Flood => &[KeyKind::Ecdsa, KeyKind::Rsa],
            Self::Goodput => &[KeyKind::Rsa],
        }
    }
}

/// How long the parts of a measurement take.
#[derive(Debug, Clone, Copy)]
struct Times {
    warm_up: Duration,
    measured: Duration,
    overloaded: Duration,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut options: Options) -> Result<()> {
    let smoke = options.test || !options.bench;
    if smoke {
        options = Options { rounds: 1, seconds: 0.3, overloaded: 0.5, ..options };
    }
    let times = Times {
        warm_up: Duration::from_secs_f64(if smoke { 0.1 } else { 1.0 }),
        measured: Duration::from_secs_f64(options.seconds),
        overloaded: Duration::from_secs_f64(options.overloaded),
    };
    let (programs, versions): (Vec<_>, Vec<_>) = options.choice.programs()?.into_iter().unzip();
    support::raise_open_files()?;
    let placement = Placement::choose(1)?;
    let mut report = Report::default();
    report.add(&head(&options, &programs, &versions, &placement)?)?;
    for part in &options.only {
        for kind in part.certificates() {
            let directory = tempfile::tempdir()?;
            let certificate = Certificate::create(*kind, directory.path())?;
            let bed = |program: &Program| Bed::start(program, &certificate, &placement);
            let rounds = options.rounds;
            match part {
                Part::Flood => {
                    let floods = interleaved(&programs, rounds, |one| bed(one)?.flood(times));
                    report.add(&tables::flood(*kind, &programs, &floods))?;
                    report.note_failures(&programs, floods);
                }
                Part::Goodput => {
                    let goodputs = interleaved(&programs, rounds, |one| bed(one)?.goodput(times));
                    report.add(&tables::goodput(&programs, &goodputs))?;
                    report.note_failures(&programs, goodputs);
                }
            }
        }
    }
    if let Some(path) = &options.results {
        report::replace_section(path, "overload", &report.text)?;
    }
    if report.failed.is_empty() { Ok(()) } else { Err(report.failed.join("; ").into()) }
}

/// What was measured where.
fn head(
    options: &Options,
    programs: &[Program],
    versions: &[String],
    placement: &Placement,
) -> Result<String> {
    let mut text = format!("{}\n\n- {}\n", report::machine()?, placement.describe());
    for (program, version) in programs.iter().zip(versions) {
        writeln!(text, "- {}: {version}", program.name)?;
    }
    let command: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let command = format!("cargo bench --bench overload -- {}", command.join(" "));
    let rounds = options.rounds;
    writeln!(
        text,
        "- TLS 1.3, AES-128-GCM with SHA-256, X25519; {rounds} rounds, interleaved; figures are \
         the median (min-max)\n- `{}`",
        command.trim_end()
    )?;
    Ok(text)
}

/// What is printed and written, and what went wrong with builds of Portcullis.
#[derive(Debug, Default)]
struct Report {
    text: String,
    failed: Vec<String>,
}

impl Report {
    fn add(&mut self, part: &str) -> Result<()> {
        println!("{part}");
        Ok(writeln!(self.text, "{part}")?)
    }

    fn note_failures<T>(&mut self, programs: &[Program], rounds: Vec<(Vec<T>, Vec<String>)>) {
        let ours = rounds.into_iter().zip(programs).filter(|(_, program)| program.is_ours());
        self.failed.extend(ours.flat_map(|((_, errors), _)| errors));
    }
}
