//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::support::Result;
use crate::support::certificate::KeyKind;
use crate::support::choice::{Choice, missing};
use crate::support::strace;
use crate::support::work::Work;

/// Measures what one operation costs Portcullis and its peers.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Times that every server is measured, interleaved.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Kinds of work: `full`, `full12`, `ticket13`, `ticket12`, `session_id12`, `request`,
    /// `request1000`, `request16k`, `bulk_down`, `bulk_up`; or `all`.
    #[arg(long, value_delimiter = ',', default_value = "full,request")]
    only: Vec<String>,
    #[command(flatten)]
    pub(crate) choice: Choice,
    /// Numbers of workers, one CPU each: `1,2` measures everything with one worker and with two.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) workers: Vec<usize>,
    /// Connections at once, instead of each work's own number.
    #[arg(long)]
    connections: Option<usize>,
    /// Key of the certificate.
    #[arg(long, value_enum, default_value = "ecdsa")]
    pub(crate) certificate: KeyKind,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Seconds of load before each measurement.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warm_up: f64,
    /// Idle connections whose memory is measured; 0: it is not.
    #[arg(long, default_value_t = 1000)]
    pub(crate) idle: usize,
    /// Does not count system calls, which needs strace and the right to trace.
    #[arg(long)]
    pub(crate) no_strace: bool,
    /// Directory of `results.json`, `results.md` and `chart.svg`.
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    pub(crate) output: PathBuf,
    /// Also writes the tables into their section of this file, which is `bench/RESULTS.md`.
    #[arg(long, value_name = "FILE")]
    pub(crate) results: Option<PathBuf>,
    /// One short round of everything asked for: does it work at all? Figures mean nothing.
    #[arg(long)]
    test: bool,
    /// Passed by `cargo bench`; without it `--test` is in force.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// What was asked for; little of it in a smoke run.
    pub(crate) fn from_command_line() -> Self {
        let options = Self::parse();
        // As criterion does: without `--bench`, under `cargo test --all-targets`, only a smoke run.
        if options.is_smoke_run() {
            return Self { rounds: 1, seconds: 0.2, warm_up: 0.1, idle: 50, ..options };
        }
        options
    }

    /// Only whether everything works is asked.
    pub(crate) fn is_smoke_run(&self) -> bool {
        self.test || !self.bench
    }

    /// The kinds of work to measure.
    ///
    /// # Errors
    /// One that there is not.
    pub(crate) fn works(&self) -> Result<Vec<Work>> {
        let only = match self.only.as_slice() {
            [all] if all == "all" => crate::support::work::ALL.to_vec(),
            only => only.iter().map(|name| name.parse()).collect::<std::result::Result<_, _>>()?,
        };
        let connections = |work: Work| self.connections.unwrap_or(work.connections);
        Ok(only.into_iter().map(|work| Work { connections: connections(work), ..work }).collect())
    }

    /// Whether system calls are counted.
    ///
    /// # Errors
    /// On a CI machine: strace is not installed.
    pub(crate) fn with_strace(&self) -> Result<bool> {
        if !self.no_strace && !strace::is_installed() {
            missing("strace: cannot be run; system calls are not counted")?;
            return Ok(false);
        }
        Ok(!self.no_strace)
    }
}
