//! The command line, and the programs that it names.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::support::Result;
use crate::support::certificate::KeyKind;
use crate::support::program::{PEERS, Program};
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
    /// Servers, in the order in which they are measured. What is not installed is skipped.
    #[arg(long, value_delimiter = ',', default_value = "portcullis,haproxy,nginx,hitch,stunnel")]
    servers: Vec<String>,
    /// Numbers of workers, one CPU each: `1,2` measures everything with one worker and with two.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub(crate) workers: Vec<usize>,
    /// Another build of Portcullis to measure in the same run, as NAME=PATH; may be repeated.
    #[arg(long, value_name = "NAME=PATH", value_parser = pair)]
    binary: Vec<(String, PathBuf)>,
    /// Where a peer's program is, if not in the search path, as NAME=PATH; may be repeated.
    #[arg(long, value_name = "NAME=PATH", value_parser = pair)]
    path: Vec<(String, PathBuf)>,
    /// nginx's stream module; empty where it is built in.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/usr/lib/nginx/modules/ngx_stream_module.so"
    )]
    nginx_module: String,
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

fn pair(text: &str) -> std::result::Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("want NAME=PATH")?;
    Ok((name.to_owned(), path.into()))
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

    /// The programs to measure, in the order in which they are measured, with their versions.
    ///
    /// # Errors
    /// One that there is not; on a CI machine also one that is not installed.
    pub(crate) fn programs(&self) -> Result<Vec<(Program, String)>> {
        let mut programs = Vec::new();
        for name in &self.servers {
            if name == "portcullis" {
                let ours = Path::new(env!("CARGO_BIN_EXE_portcullis"));
                programs.push(with_version(Program::portcullis(name, ours))?);
                continue;
            }
            match with_version(self.peer(name)?) {
                Ok(peer) => programs.push(peer),
                Err(error) => missing(&error.to_string())?,
            }
        }
        for (name, path) in &self.binary {
            programs.push(with_version(Program::portcullis(name, path))?);
        }
        Ok(programs)
    }

    fn peer(&self, name: &str) -> Result<Program> {
        let path = self.path.iter().find(|(peer, _)| peer == name).map(|(_, path)| path.clone());
        let peer = Program::peer(name, path);
        let mut peer = peer.ok_or_else(|| {
            format!("no such server: {name}; there are portcullis, {}", PEERS.join(", "))
        })?;
        if name == "nginx" {
            let load = match self.nginx_module.as_str() {
                "" => String::new(),
                module => format!("load_module {module};"),
            };
            peer.values.push(("@LOAD_MODULE@", load));
        }
        Ok(peer)
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

fn with_version(program: Program) -> Result<(Program, String)> {
    match program.version() {
        Ok(version) => Ok((program, version)),
        Err(error) => {
            let path = program.path.display();
            Err(format!("{}: skipped, {path} cannot be run: {error}", program.name).into())
        }
    }
}

/// Says what is missing; where everything has to be there, as in CI, that is an error.
fn missing(what: &str) -> Result<()> {
    if std::env::var_os("CI").is_some() {
        return Err(what.into());
    }
    eprintln!("{what}");
    Ok(())
}
