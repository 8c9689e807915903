//! The tables, as they are printed and as they stand in `bench/RESULTS.md`.

use crate::measure::{Flood, Goodput};
use crate::support::certificate::KeyKind;
use crate::support::program::Program;
use crate::support::report::Table;
use crate::support::spread::Spread;

/// What the rounds of one server gave, and why others gave nothing.
type Rounds<T> = (Vec<T>, Vec<String>);

/// Latency of established connections before and during a flood.
pub(crate) fn flood(kind: KeyKind, programs: &[Program], rounds: &[Rounds<Flood>]) -> String {
    let heads =
        ["server", "p99 before us", "p99 during us", "x before", "handshakes/s", "busy%", "failed"];
    let mut table = Table::new(heads);
    for (program, (samples, _)) in programs.iter().zip(rounds) {
        let show = |of: &dyn Fn(&Flood) -> f64, digits| show(samples, of, digits);
        table.row([
            program.name.clone(),
            show(&|flood| flood.before, 0),
            show(&|flood| flood.during, 0),
            show(&|flood| flood.during / flood.before, 2),
            show(&|flood| flood.handshakes, 0),
            show(&|flood| 100.0 * flood.busy, 0),
            show(&|flood| flood.failed, 0),
        ]);
    }
    let notes = notes(programs, rounds);
    let key = format!("{kind:?}").to_lowercase();
    format!(
        "### Flood: 16 connections ask 500 times a second, and 64 clients shake hands over and \
         over, {key}\n\n{table}{notes}"
    )
}

/// Handshakes done at the peak, and under four times as many.
pub(crate) fn goodput(programs: &[Program], rounds: &[Rounds<Goodput>]) -> String {
    let heads = ["server", "peak/s", "offered/s", "x peak", "done/s", "done, % of peak"];
    let mut table = Table::new(heads);
    for (program, (samples, _)) in programs.iter().zip(rounds) {
        let show = |of: &dyn Fn(&Goodput) -> f64, digits| show(samples, of, digits);
        table.row([
            program.name.clone(),
            show(&|goodput| goodput.peak, 0),
            show(&|goodput| goodput.offered, 0),
            show(&|goodput| goodput.offered / goodput.peak, 1),
            show(&|goodput| goodput.overloaded, 0),
            show(&|goodput| 100.0 * goodput.overloaded / goodput.peak, 0),
        ]);
    }
    let notes = notes(programs, rounds);
    format!(
        "### Goodput: handshakes finished within a client's 5 s, at the peak and with four times \
         as many, rsa\n\n{table}{notes}"
    )
}

fn show<T>(samples: &[T], of: &dyn Fn(&T) -> f64, digits: usize) -> String {
    let spread = Spread::of(samples.iter().map(of));
    spread.map_or_else(|| "failed".to_owned(), |spread| spread.show(digits))
}

/// Why rounds gave nothing.
fn notes<T>(programs: &[Program], rounds: &[Rounds<T>]) -> String {
    let errors = programs.iter().zip(rounds);
    let lines: Vec<_> = errors
        .flat_map(|(program, (_, errors))| errors.iter().map(|error| (&program.name, error)))
        .map(|(name, error)| format!("\n- {name}: {}\n", error.lines().next().unwrap_or(error)))
        .collect();
    lines.concat()
}
