//! Tables in Markdown that are read on a terminal as well, and their places in `bench/RESULTS.md`.

use std::fmt;
use std::fs;
use std::path::Path;

use super::Result;

/// A table: the first column to the left, all others to the right.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub(crate) fn new<T: Into<String>>(heads: impl IntoIterator<Item = T>) -> Self {
        Self { rows: vec![heads.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row, which has as many cells as there are heads.
    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let length =
            |row: &Vec<String>, at: usize| row.get(at).map_or(0, |cell| cell.chars().count());
        let width = |at| self.rows.iter().map(|row| length(row, at)).max();
        let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0).max(3)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match at {
                    0 => write!(f, "| {cell:width$} ")?,
                    _ => write!(f, "| {cell:>width$} ")?,
                }
            }
            writeln!(f, "|")?;
            if number == 0 {
                for (at, width) in widths.iter().enumerate() {
                    let line = "-".repeat(width - 1);
                    write!(f, "| {} ", if at == 0 { format!("-{line}") } else { line + ":" })?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// The machine that the figures are of, in one line.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let value = |name: &str| {
        let line = cpus.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = value("model name").unwrap_or_else(|| "unknown CPU".to_owned());
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let guest = value("flags").is_some_and(|flags| flags.contains("hypervisor"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib = memory.split_ascii_whitespace().nth(1).unwrap_or("0").parse::<u64>()?;
    Ok(format!(
        "{model}, {count} CPUs{}, {} GiB, Linux {}",
        if guest { " of a virtual machine" } else { "" },
        (kib + (1 << 19)) >> 20,
        kernel.trim(),
    ))
}

/// Writes `text` between the two comments that mark the section `name` of the Markdown file at
/// `path`.
///
/// # Errors
/// The file cannot be read or written, or has no such section.
pub(crate) fn replace_section(path: &Path, name: &str, text: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let whole = fs::read_to_string(path)?;
    let missing = || format!("{} has no section {name}: {}", path.display(), begin.trim());
    let (before, rest) = whole.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    Ok(fs::write(path, format!("{before}{begin}\n{}\n\n{end}{after}", text.trim()))?)
}
