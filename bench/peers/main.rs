//! Portcullis against haproxy, nginx, hitch and stunnel, on one machine, in one interleaved run:
//! server CPU time per operation, latency, system calls and memory. See `bench/README.md`.
//!
//! A `[[bench]]` and not an example, because only then cargo builds the binary under test with it,
//! in the same profile, and tells where that is.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the tables are the program's product")]

mod chart;
mod markdown;
mod options;
mod results;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use options::Options;
use results::{Comparison, Entry, Memory, Results};
use support::Result;
use support::certificate::Certificate;
use support::cpu::Placement;
use support::measure::{self, Conditions};
use support::program::Program;
use support::report;
use support::spread::Spread;
use support::work::{REQUEST, Work};

fn main() -> ExitCode {
    match run(&Options::from_command_line()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints and writes everything. False: a server failed that must not.
fn run(options: &Options) -> Result<bool> {
    let (programs, versions): (Vec<_>, Vec<_>) = options.choice.programs()?.into_iter().unzip();
    let works = options.works()?;
    support::raise_open_files()?;
    let directory = tempfile::tempdir()?;
    let certificate = Certificate::create(options.certificate, directory.path())?;
    let placements: Vec<_> =
        options.workers.iter().map(|workers| Placement::choose(*workers)).collect::<Result<_>>()?;
    let with_strace = options.with_strace()?;
    let conditions: Vec<_> = placements
        .iter()
        .map(|placement| Conditions {
            certificate: &certificate,
            placement,
            warm_up: Duration::from_secs_f64(options.warm_up),
            measured: Duration::from_secs_f64(options.seconds),
            idle: if options.is_smoke_run() { Duration::ZERO } else { measure::IDLE },
            with_origin: true,
            with_strace,
        })
        .collect();
    let command: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let mut results = Results {
        machine: report::machine()?,
        command: format!("cargo bench --bench peers -- {}", command.join(" ")),
        certificate: format!("{:?}", options.certificate).to_lowercase(),
        versions: programs.iter().map(|program| program.name.clone()).zip(versions).collect(),
        placements: placements.iter().map(Placement::describe).collect(),
        rounds: options.rounds,
        seconds: options.seconds,
        idle: options.idle,
        comparisons: Vec::new(),
        memory: Vec::new(),
    };
    println!("{}", markdown::head(&results)?);
    for work in works {
        let comparison = compare(work, &programs, &conditions, options.rounds);
        println!("{}", markdown::comparison(&comparison)?);
        results.comparisons.push(comparison);
    }
    if options.idle > 0 {
        for conditions in &conditions {
            results.memory.extend(memory(&programs, conditions, options));
        }
        println!("{}", markdown::memory(&results)?);
    }
    write(&results, options)?;
    Ok(has_worked(&results, options))
}

/// Whether Portcullis has always served. What a peer cannot do is in the tables; in a smoke run it
/// must have served, too.
fn has_worked(results: &Results, options: &Options) -> bool {
    let counts = |ours: bool| ours || options.is_smoke_run();
    let mut entries = results.comparisons.iter().flat_map(|comparison| &comparison.entries);
    let mut memory = results.memory.iter();
    entries.all(|entry| entry.errors.is_empty() || !counts(entry.ours))
        && memory.all(|memory| memory.errors.is_empty() || !counts(memory.ours))
}

/// All programs at one kind of work.
fn compare(
    work: Work,
    programs: &[Program],
    conditions: &[Conditions<'_>],
    rounds: usize,
) -> Comparison {
    let mut comparison = Comparison::new(work);
    for conditions in conditions {
        let workers = conditions.placement.server.len();
        let measured = measure::interleaved(programs, rounds, |program| {
            measure::sample(program, work, conditions)
        });
        let entries = programs
            .iter()
            .zip(measured)
            .map(|(program, (samples, errors))| Entry::new(program, workers, samples, errors));
        comparison.add(entries.collect());
    }
    comparison
}

/// Memory of all programs per idle connection.
fn memory(programs: &[Program], conditions: &Conditions<'_>, options: &Options) -> Vec<Memory> {
    let measured = measure::interleaved(programs, options.rounds, |program| {
        measure::memory_per_connection(program, REQUEST, options.idle, false, conditions)
    });
    programs
        .iter()
        .zip(measured)
        .map(|(program, (samples, errors))| Memory {
            server: program.name.clone(),
            ours: program.is_ours(),
            workers: conditions.placement.server.len(),
            bytes: Spread::of(samples.iter().copied()),
            samples,
            errors,
        })
        .collect()
}

/// Writes the files, and the section of the results if wanted.
fn write(results: &Results, options: &Options) -> Result<()> {
    let directory = &options.output;
    fs::create_dir_all(directory)?;
    let text = markdown::whole(results)?;
    fs::write(directory.join("results.json"), serde_json::to_string_pretty(results)?)?;
    fs::write(directory.join("results.md"), format!("# Portcullis and its peers\n\n{text}"))?;
    chart::draw(results, &directory.join("chart.svg"))?;
    println!("written: results.json, results.md and chart.svg in {}", directory.display());
    match &options.results {
        Some(path) => {
            report::replace_section(path, &format!("peers {}", results.certificate), &text)
        }
        None => Ok(()),
    }
}
