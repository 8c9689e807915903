//! The tables, as they are printed and as they stand in `results.md`.

use std::fmt::Write;

use super::results::{Comparison, Entry, Results};
use crate::support::Result;
use crate::support::report::Table;
use crate::support::spread::Spread;

/// What was measured where.
pub(crate) fn head(results: &Results) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "{}\n", results.machine)?;
    for placement in &results.placements {
        writeln!(text, "- {placement}")?;
    }
    for (name, version) in &results.versions {
        writeln!(text, "- {name}: {version}")?;
    }
    writeln!(
        text,
        "- {} certificate, AES-128-GCM with SHA-256, X25519, sessions on",
        results.certificate
    )?;
    writeln!(
        text,
        "- {} rounds of {} s, interleaved; figures are the median (min-max)",
        results.rounds, results.seconds
    )?;
    writeln!(text, "- `{}`", results.command.trim())?;
    Ok(text)
}

/// One kind of work.
pub(crate) fn comparison(comparison: &Comparison) -> Result<String> {
    let per = if comparison.is_bulk() { "GiB" } else { "op" };
    let mut table = Table::new([
        "server".to_owned(),
        "workers".to_owned(),
        format!("CPU {}", comparison.unit),
        "x best peer".to_owned(),
        "p50 us".to_owned(),
        "p99 us".to_owned(),
        format!("syscalls/{per}"),
        if per == "GiB" { "GiB/s" } else { "ops/s" }.to_owned(),
        "busy%".to_owned(),
        "queued%".to_owned(),
        "resumed%".to_owned(),
    ]);
    let mut notes = String::new();
    for entry in &comparison.entries {
        table.row(row(entry, comparison.is_bulk()));
        for error in &entry.errors {
            writeln!(notes, "- {} workers, {}", entry.workers, first_line(error))?;
        }
        if entry.cost.is_some() && !entry.was_saturated() {
            writeln!(
                notes,
                "- {}, {} workers: not saturated, the clients could not keep it busy",
                entry.server, entry.workers
            )?;
        }
    }
    let notes = if notes.is_empty() { notes } else { format!("\n{notes}") };
    Ok(format!("### {}: {}\n\n{table}{notes}", comparison.work, comparison.what))
}

/// Of an error; what the program has said is in `results.json`.
fn first_line(error: &str) -> &str {
    let line = error.lines().next().unwrap_or(error);
    line.strip_suffix("; it said:").unwrap_or(line)
}

fn row(entry: &Entry, is_bulk: bool) -> [String; 11] {
    let show = |spread: Option<Spread>, digits| {
        spread.map_or_else(|| "-".to_owned(), |spread| spread.show(digits))
    };
    let percent = |share: f64| format!("{:.0}", 100.0 * share);
    let has_failed = entry.cost.is_none();
    let resumed = entry.samples.iter().filter_map(|sample| sample.resumed).reduce(f64::min);
    let calls_digits = match entry.system_calls {
        Some(calls) if calls.median >= 100.0 => 0,
        Some(calls) if calls.median >= 1.0 => 1,
        _ => 2,
    };
    let middle = |field, show: &dyn Fn(f64) -> String| {
        if has_failed { "-".to_owned() } else { show(entry.median(field)) }
    };
    [
        entry.server.clone(),
        entry.workers.to_string(),
        if has_failed {
            "failed".to_owned()
        } else {
            show(entry.cost, if is_bulk { 2 } else { 1 })
        },
        entry.ratio_to_best_peer.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
        show(entry.p50, 0),
        show(entry.p99, 0),
        show(entry.system_calls, calls_digits),
        middle(|sample| sample.rate, &|rate| format!("{rate:.*}", if is_bulk { 2 } else { 0 })),
        middle(|sample| sample.busy, &percent),
        middle(|sample| sample.queued, &percent),
        resumed.map_or_else(|| "-".to_owned(), |share| format!("{:.2}", 100.0 * share)),
    ]
}

/// Memory per idle connection.
pub(crate) fn memory(results: &Results) -> Result<String> {
    let mut table = Table::new(["server", "workers", "bytes"]);
    let mut notes = String::new();
    for memory in &results.memory {
        table.row([
            memory.server.clone(),
            memory.workers.to_string(),
            memory.bytes.map_or_else(|| "failed".to_owned(), |bytes| bytes.show(0)),
        ]);
        for error in &memory.errors {
            writeln!(notes, "- {} workers, {}", memory.workers, first_line(error))?;
        }
    }
    let notes = if notes.is_empty() { notes } else { format!("\n{notes}") };
    Ok(format!(
        "### Memory: user memory (PSS) per idle proxied connection, of {}\n\n{table}{notes}",
        results.idle
    ))
}

/// Everything, what we lose first.
pub(crate) fn whole(results: &Results) -> Result<String> {
    let mut text = String::new();
    let losses = results.losses();
    if losses.is_empty() {
        writeln!(text, "Portcullis has lost no case of this run.\n")?;
    } else {
        writeln!(text, "What Portcullis loses in this run:\n")?;
    }
    for loss in &losses {
        writeln!(text, "- {loss}")?;
    }
    writeln!(text, "\n{}", head(results)?)?;
    for of in &results.comparisons {
        writeln!(text, "{}", comparison(of)?)?;
    }
    if !results.memory.is_empty() {
        writeln!(text, "{}", memory(results)?)?;
    }
    Ok(text)
}
