//! `portcullis load`: its command line, its progress bar, and how Ctrl-C ends it.

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};

use crate::cli::tell;
use crate::config::{CIPHER_SUITES, GROUPS, RecordLayer, Tls, TlsVersion, duration, size};
use crate::control::certificates::authorities;
use crate::control::exit;
use crate::control::failure::Failure;
use crate::load::exchange::Question;
use crate::load::source::Sources;
use crate::load::{Mode, Plan, Progress, Watch};
use crate::tls::client::{Offer, Resume, Wishes};

/// Ticks of the progress bar for a whole step.
const BAR_STEPS: u64 = 1000;

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Connect, shake hands, close, over and over: full handshakes or resumed ones
    Handshake {
        #[command(flatten)]
        common: Common,
        /// Clients at a time
        #[arg(long, value_name = "N", default_value_t = 32)]
        connections: u32,
        /// Handshakes begun a second, whether or not those before are done [default: each client
        /// begins the next when the last is done]
        #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
        rate: Option<f64>,
        /// Come back with an earlier session
        #[arg(long, value_enum, default_value = "no")]
        resume: ResumeBy,
        /// Ask something on each connection, too [default: the handshake is all]
        #[arg(long, value_enum)]
        protocol: Option<Protocol>,
        #[command(flatten)]
        exchange: Exchange,
    },
    /// Ask and be answered on kept connections
    Request {
        #[command(flatten)]
        common: Common,
        /// Connections
        #[arg(long, value_name = "N", default_value_t = 64)]
        connections: u32,
        /// Questions begun a second, whether or not those before are answered; latency counts from
        /// when a question was due [default: each connection asks when the last answer has come]
        #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
        rate: Option<f64>,
        /// What is spoken
        #[arg(long, value_enum, default_value = "http")]
        protocol: Protocol,
        #[command(flatten)]
        exchange: Exchange,
    },
    /// Move bytes on kept connections: large answers, or large questions with --up
    Bulk {
        #[command(flatten)]
        common: Common,
        /// Connections
        #[arg(long, value_name = "N", default_value_t = 8)]
        connections: u32,
        /// What is spoken
        #[arg(long, value_enum, default_value = "http")]
        protocol: Protocol,
        #[command(flatten)]
        exchange: Exchange,
    },
    /// Open many connections and keep them; ask on some of them now and then
    Hold {
        #[command(flatten)]
        common: Common,
        /// Connections
        #[arg(long, value_name = "N")]
        connections: u32,
        /// Connections opened a second [default: as fast as they come]
        #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
        rate: Option<f64>,
        /// Share of the connections that is asked in each interval, in percent; 0: none
        #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = percent)]
        sample: f64,
        /// That interval
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
        every: Duration,
        /// What is spoken
        #[arg(long, value_enum, default_value = "http")]
        protocol: Protocol,
        #[command(flatten)]
        exchange: Exchange,
    },
    /// Ask on kept connections, first alone and then while a flood of handshakes comes
    Flood {
        #[command(flatten)]
        common: Common,
        /// Kept connections
        #[arg(long, value_name = "N", default_value_t = 64)]
        connections: u32,
        /// Questions begun a second on them
        #[arg(long, value_name = "PER_SECOND", default_value_t = 1000.0, value_parser = rate)]
        rate: f64,
        /// Clients of the flood at a time
        #[arg(long, value_name = "N", default_value_t = 128)]
        flood_connections: u32,
        /// Handshakes of the flood begun a second [default: as fast as the server does them]
        #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
        flood_rate: Option<f64>,
        /// What is spoken
        #[arg(long, value_enum, default_value = "http")]
        protocol: Protocol,
        #[command(flatten)]
        exchange: Exchange,
    },
}

/// What all modes have.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// The server
    #[arg(long, value_name = "HOST:PORT")]
    target: String,
    /// Load a server that is not on this machine. Do that to your own only
    #[arg(long)]
    i_own_this_target: bool,
    /// Name to ask for [default: the target's]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Verify the server's certificate against these authorities [default: take any]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Version of TLS [default: both]
    #[arg(long, value_enum, value_name = "VERSION")]
    tls: Option<Version>,
    /// Cipher suites by IANA name, in order [default: as is best on this CPU]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = CIPHER_SUITES)]
    cipher_suite: Vec<String>,
    /// Key exchange groups, in order
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = GROUPS,
        default_value = "X25519,P-256,P-384"
    )]
    group: Vec<String>,
    /// ALPN protocols, in order [default: none is offered]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    alpn: Vec<String>,
    /// Network whose addresses connections come from in turn, such as 127.0.0.0/24; one address has
    /// some 28,000 ports towards one server [default: the kernel chooses one]
    #[arg(long, value_name = "NETWORK")]
    source: Option<Sources>,
    /// Threads [default: one for each CPU, more if the connections need more descriptors]
    #[arg(long, value_name = "N", value_parser = threads)]
    threads: Option<usize>,
    /// Length of the measurement; of each half of a flood
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Work before the measurement
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    warm_up: Duration,
    /// What one operation may take, from connect to answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// Measure the CPU time and memory of this process and its children, too: the server's
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// What is asked, where something is.
#[derive(Debug, Args)]
pub(super) struct Exchange {
    /// Path of HTTP requests
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// Bytes of a question: an HTTP body (POST), or all of it with --protocol raw
    #[arg(long, value_name = "SIZE", default_value = "0B", value_parser = size)]
    up: u64,
    /// Bytes of an answer with --protocol raw [default: as many as the question has, an echo]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    down: Option<u64>,
}

/// What is spoken over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    /// HTTP/1.1
    Http,
    /// So many bytes up, so many down
    Raw,
}

/// How clients come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ResumeBy {
    /// Not at all: every handshake is a full one
    No,
    /// By session ticket (TLS 1.2) or PSK (TLS 1.3)
    Ticket,
    /// By session ID (TLS 1.2 only)
    SessionId,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Version {
    /// TLS 1.2
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3
    #[value(name = "1.3")]
    Tls13,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.001..=1e9).contains(&rate) { Ok(rate) } else { Err("from 0.001 to 1e9 a second".into()) }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("from 0 to 100".into()) }
}

fn threads(text: &str) -> Result<usize, String> {
    let most = crate::load::THREADS_MAX;
    let threads = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (1..=most).contains(&threads) { Ok(threads) } else { Err(format!("from 1 to {most}")) }
}

/// Runs a load and prints what it found. 0 when something worked, 69 when nothing did.
pub(super) fn run(command: &Command) -> ExitCode {
    let json = command.common().json;
    let outcome = plan(command).and_then(|plan| {
        let interrupts = interrupts()?;
        let bar = bar();
        let mut show = |progress: &Progress| show(&bar, progress);
        let watch = &mut Watch { interrupts: &interrupts, show: &mut show };
        let summary = crate::load::run(&plan, watch);
        bar.finish_and_clear();
        summary
    });
    let summary = match outcome {
        Ok(summary) => summary,
        Err(failure) => {
            tell(&failure);
            return ExitCode::from(failure.exit_code());
        }
    };
    let text = if json { format!("{}\n", summary.to_json()) } else { summary.to_string() };
    let mut stdout = std::io::stdout().lock();
    // A closed standard output stops nothing; the exit code still tells.
    let _unseen = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    ExitCode::from(if summary.has_worked() { exit::OK } else { exit::UNAVAILABLE })
}

/// A receiver of Ctrl-C's and SIGTERMs. Threads started from now on are not interrupted by them.
fn interrupts() -> Result<Receiver<()>, Failure> {
    let os = |what| move |source| Failure::Os { what, source };
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().map_err(|error| os("block signals")(error.into()))?;
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || while signals.wait().is_ok() && sender.send(()).is_ok() {})
        .map_err(os("start a thread"))?;
    Ok(receiver)
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{prefix:>10} [{bar:30}] {elapsed:>4}  {wide_msg}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn show(bar: &ProgressBar, progress: &Progress) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
    #[expect(clippy::cast_precision_loss, reason = "1000")]
    let position = (progress.share.clamp(0.0, 1.0) * BAR_STEPS as f64) as u64;
    bar.set_prefix(progress.doing);
    bar.set_position(position);
    bar.set_message(format!(
        "{} open, {:.0} a second, {} failed",
        progress.open, progress.per_second, progress.failures
    ));
}

impl Command {
    fn common(&self) -> &Common {
        match self {
            Self::Handshake { common, .. }
            | Self::Request { common, .. }
            | Self::Bulk { common, .. }
            | Self::Hold { common, .. }
            | Self::Flood { common, .. } => common,
        }
    }

    fn resume(&self) -> ResumeBy {
        match self {
            Self::Handshake { resume, .. } => *resume,
            _ => ResumeBy::No,
        }
    }
}

impl Common {
    /// The name that clients ask for.
    fn name(&self) -> String {
        let (host, _port) = self.target.rsplit_once(':').unwrap_or((&self.target, ""));
        let host = host.trim_matches(['[', ']']);
        self.server_name.clone().unwrap_or_else(|| host.to_owned())
    }

    /// What all modes have; the rest is the mode's.
    fn plan(&self, resume: ResumeBy) -> Result<Plan, Failure> {
        Ok(Plan {
            mode: Mode::Handshake,
            target: resolve(self)?,
            sources: self.source,
            offer: offer(self, &self.name(), resume)?,
            question: None,
            connections: 0,
            threads: self.threads,
            rate: None,
            connect_rate: None,
            warm_up: self.warm_up,
            duration: self.duration,
            timeout: self.timeout,
            server_pid: self.server_pid,
            flood: None,
        })
    }
}

/// The load that a command line asks for.
fn plan(command: &Command) -> Result<Plan, Failure> {
    let common = command.common();
    let name = common.name();
    let plan = common.plan(command.resume())?;
    let asks = |protocol, exchange: &Exchange| exchange.question(protocol, &name).map(Some);
    let plan = match command {
        Command::Handshake { connections, rate, protocol, exchange, .. } => {
            let question = match protocol {
                Some(protocol) => asks(*protocol, exchange)?,
                None => None,
            };
            Plan { connections: *connections, rate: *rate, question, ..plan }
        }
        Command::Request { connections, rate, protocol, exchange, .. } => {
            let question = asks(*protocol, exchange)?;
            Plan { mode: Mode::Request, connections: *connections, rate: *rate, question, ..plan }
        }
        Command::Bulk { connections, protocol, exchange, .. } => {
            let question = asks(*protocol, exchange)?;
            Plan { mode: Mode::Bulk, connections: *connections, question, ..plan }
        }
        Command::Hold { connections, rate, sample, every, protocol, exchange, .. } => Plan {
            mode: Mode::Hold,
            connections: *connections,
            connect_rate: *rate,
            rate: Some(samples_per_second(*connections, *sample, *every))
                .filter(|rate| *rate > 0.0),
            question: asks(*protocol, exchange)?.filter(|_| *sample > 0.0),
            warm_up: Duration::ZERO,
            ..plan
        },
        Command::Flood {
            connections,
            rate,
            flood_connections,
            flood_rate,
            protocol,
            exchange,
            ..
        } => Plan {
            mode: Mode::Flood,
            connections: *connections,
            rate: Some(*rate),
            question: asks(*protocol, exchange)?,
            flood: Some((*flood_connections, *flood_rate)),
            ..plan
        },
    };
    if plan.connections == 0 {
        return Err(Failure::usage("--connections 0: nothing to do; give at least 1"));
    }
    Ok(plan)
}

/// How many connections are asked a second.
fn samples_per_second(connections: u32, percent: f64, every: Duration) -> f64 {
    f64::from(connections) * percent / 100.0 / every.as_secs_f64().max(1e-3)
}

impl Exchange {
    fn question(&self, protocol: Protocol, host: &str) -> Result<Question, Failure> {
        match (protocol, self.down) {
            (Protocol::Http, None) => {
                let fine = |c: char| c.is_ascii_graphic();
                if !self.path.starts_with('/') || !self.path.chars().all(fine) {
                    return Err(Failure::usage("--path is a path such as /index.html"));
                }
                Ok(Question::http(host, &self.path, self.up))
            }
            (Protocol::Http, Some(_)) => Err(Failure::usage(
                "--down is for --protocol raw: with HTTP the server decides what it answers",
            )),
            (Protocol::Raw, _) if self.up == 0 => {
                Err(Failure::usage("--protocol raw needs --up, such as --up 1KiB"))
            }
            (Protocol::Raw, down) => Ok(Question::raw(self.up, down.unwrap_or(self.up))),
        }
    }
}

/// The target's address: on this machine, unless told that it may be elsewhere.
fn resolve(common: &Common) -> Result<SocketAddr, Failure> {
    let target = &common.target;
    let addresses = target.to_socket_addrs().map_err(|error| {
        Failure::usage(&format!("--target {target}: {error}; expected HOST:PORT"))
    })?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    let reachable = |address: &&SocketAddr| {
        common.source.as_ref().is_none_or(|source| source.can_reach(**address))
    };
    let Some(address) = addresses.iter().find(reachable) else {
        return Err(Failure::usage(&format!(
            "--target {target} has no address that --source can reach: one is IPv4, the other IPv6"
        )));
    };
    if !address.ip().is_loopback() && !common.i_own_this_target {
        return Err(Failure::usage(&format!(
            "{address} is not on this machine: a load takes a server down that is not made for \
             it; if it is yours, say --i-own-this-target"
        )));
    }
    Ok(*address)
}

fn offer(common: &Common, name: &str, resume: ResumeBy) -> Result<Offer, Failure> {
    let versions = match common.tls {
        Some(Version::Tls12) => vec![TlsVersion::Tls12],
        Some(Version::Tls13) => vec![TlsVersion::Tls13],
        None if resume == ResumeBy::SessionId => vec![TlsVersion::Tls12],
        None => vec![TlsVersion::Tls12, TlsVersion::Tls13],
    };
    if resume == ResumeBy::SessionId && common.tls == Some(Version::Tls13) {
        return Err(Failure::usage(
            "TLS 1.3 has no session IDs to come back with: --resume ticket",
        ));
    }
    let authorities = match &common.ca {
        Some(path) => Some(authorities(path).map_err(|error| {
            Failure::configuration(&format!("--ca {}: {error}", path.display()))
        })?),
        None => None,
    };
    let cipher_suites = Some(common.cipher_suite.clone()).filter(|suites| !suites.is_empty());
    let record_layer = RecordLayer::Lean;
    let wishes = Wishes {
        tls: Tls { versions, cipher_suites, groups: common.group.clone(), record_layer },
        alpn: common.alpn.clone(),
        server_name: name.to_owned(),
        authorities,
        resume: match resume {
            ResumeBy::No => Resume::No,
            ResumeBy::Ticket => Resume::Ticket,
            ResumeBy::SessionId => Resume::SessionId,
        },
    };
    Offer::new(&wishes).map_err(|error| Failure::usage(&error.to_string()))
}
