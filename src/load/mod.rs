//! `portcullis load`: TLS clients by the thousand or the million, and what they saw.
//!
//! Read [`exchange`] (what is asked), `client` (one client's journey), `engine` (one thread's
//! clients and their schedule), `crew` (all threads), then [`run`] below; [`summary`] is what comes
//! out of it. Clients use the same ring as the workers do, and the same record layer.

mod chart;
mod client;
mod crew;
mod engine;
pub mod exchange;
pub mod process;
pub mod source;
pub mod summary;
pub mod tally;

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crew::{Count, Crew, Placement};
use engine::{Pace, Stage, Task};
use exchange::Question;
use process::CpuTime;
use source::Sources;
use summary::{Measured, Memory, Summary};

use crate::control::failure::Failure;
use crate::control::{capacity, topology};
use crate::tls::client::Offer;

/// Between two looks at the threads' counts.
const TICK: Duration = Duration::from_millis(100);
/// At first looks come faster, for a few connections are open at once.
const SHORT_TICK: Duration = Duration::from_millis(1);
/// What threads have to close what is open at the end, and as much again for each 100,000
/// connections.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors of a thread besides its clients': ring, eventfd, standard streams.
const DESCRIPTORS_RESERVED: u64 = 64;
/// Direct descriptors of one client: the ring reserves a pair for each slot.
const DESCRIPTORS_PER_CLIENT: u64 = 2;
/// Threads, at most.
pub const THREADS_MAX: usize = 1024;
/// Connections that are in the making at a time, over all threads, where no rate is given.
const CONNECTING_MAX: usize = 256;

/// What a load does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A connection for each operation.
    Handshake,
    /// Questions on kept connections.
    Request,
    /// Bytes on kept connections.
    Bulk,
    /// Connections that are kept and asked now and then.
    Hold,
    /// Questions on kept connections, before and during a flood of handshakes.
    Flood,
}

impl Mode {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Request => "request",
            Self::Bulk => "bulk",
            Self::Hold => "hold",
            Self::Flood => "flood",
        }
    }
}

/// A load, checked.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What it does.
    pub mode: Mode,
    /// Whom it loads.
    pub target: SocketAddr,
    /// Where its connections come from; `None`: the kernel chooses.
    pub sources: Option<Sources>,
    /// What clients offer.
    pub offer: Offer,
    /// What is asked; `None`: nothing, a handshake is all.
    pub question: Option<Question>,
    /// Connections at a time.
    pub connections: u32,
    /// Threads; `None`: as many as CPUs that we may use, or as many as the connections need.
    pub threads: Option<usize>,
    /// Operations begun a second, whether or not those before have ended; `None`: each client
    /// begins the next when the last has ended.
    pub rate: Option<f64>,
    /// Kept connections opened a second; `None`: as fast as they come.
    pub connect_rate: Option<f64>,
    /// Work before the measurement.
    pub warm_up: Duration,
    /// Measurement; of a flood each of its two halves.
    pub duration: Duration,
    /// What one operation may take.
    pub timeout: Duration,
    /// The server, if it runs on this machine: its CPU time and memory are measured.
    pub server_pid: Option<u32>,
    /// The flood's clients, and its handshakes a second if they are not to come as fast as they
    /// can.
    pub flood: Option<(u32, Option<f64>)>,
}

/// What a load is doing, for whoever shows it.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// In one word.
    pub doing: &'static str,
    /// How much of that is done, from 0 to 1.
    pub share: f64,
    /// Connections that are established.
    pub open: u64,
    /// Operations since the last progress, per second.
    pub per_second: f64,
    /// Failures so far.
    pub failures: u64,
}

/// Who looks at a load while it runs, and may end it.
pub struct Watch<'a> {
    /// A message ends the measurement; what is open is then closed in order.
    pub interrupts: &'a Receiver<()>,
    /// Is told what goes on, ten times a second.
    pub show: &'a mut dyn FnMut(&Progress),
}

/// Runs a load.
///
/// # Errors
/// When threads cannot be had, or the server's process cannot be looked at.
pub fn run(plan: &Plan, watch: &mut Watch<'_>) -> Result<Summary, Failure> {
    let memory = Memory::begin(plan.server_pid).map_err(cannot_look)?;
    let threads = threads(plan, plan.connections)?;
    let crew = start(plan, threads)?;
    let mut course = Course { plan, crew, watch, interrupted: false, last: (Instant::now(), 0) };
    let connect_seconds = course.connect();
    course.warm_up();
    let mut measured = course.measure(Stage::Measure)?;
    let mut flood = None;
    if let Some(wishes) = plan.flood
        && !course.interrupted
    {
        flood = Some(course.flood(wishes)?);
    }
    let open = course.crew.count().open;
    let memory = memory.end(plan.server_pid, open).map_err(cannot_look)?;
    course.show("closing", 1.0);
    let interrupted = course.interrupted;
    let patience = END_PATIENCE + END_PATIENCE * (plan.connections / 100_000);
    let [before, first, second] = course.crew.end(patience)?;
    measured.tally = first;
    if let Some((during, _)) = &mut flood {
        during.tally = second;
    }
    Ok(Summary {
        mode: plan.mode,
        target: plan.target,
        threads,
        connections: plan.connections,
        before,
        connect_seconds,
        measured,
        flood,
        open,
        memory,
        interrupted,
    })
}

/// What the clients of a plan do, on so many threads.
fn task(plan: &Plan, threads: usize) -> Task {
    Task {
        target: plan.target,
        sources: plan.sources,
        offer: plan.offer.clone(),
        question: plan.question.clone(),
        reconnects: plan.mode == Mode::Handshake,
        holds: plan.mode == Mode::Hold,
        clients: plan.connections,
        clients_before: 0,
        pace: match (plan.mode, plan.rate) {
            (Mode::Hold, None) => Pace::Never,
            (_, rate) => pace(rate, threads),
        },
        connect_interval: plan.connect_rate.map_or(Duration::ZERO, |rate| interval(rate, threads)),
        connecting_max: (CONNECTING_MAX / threads).max(1),
        timeout: plan.timeout,
    }
}

/// Starts the threads with their shares of the clients.
fn start(plan: &Plan, threads: usize) -> Result<Crew, Failure> {
    Crew::start(task(plan, threads).share_out(threads), &placement(threads, false)?)
}

/// Starts the threads of a flood, which let those of the measured clients go first.
fn start_flood(plan: &Plan, clients: u32, rate: Option<f64>) -> Result<Crew, Failure> {
    let threads = threads(plan, clients)?;
    let task = Task {
        question: None,
        reconnects: true,
        clients,
        pace: pace(rate, threads),
        connect_interval: Duration::ZERO,
        connecting_max: usize::MAX,
        ..task(plan, threads)
    };
    Crew::start(task.share_out(threads), &placement(threads, true)?)
}

/// A load that is under way.
struct Course<'a, 'w> {
    plan: &'a Plan,
    crew: Crew,
    watch: &'a mut Watch<'w>,
    /// Somebody wants it to end.
    interrupted: bool,
    /// When progress was shown last, and how many operations (or handshakes) there were.
    last: (Instant, u64),
}

impl Course<'_, '_> {
    /// Waits until kept connections are open or given up; returns how many seconds that took.
    fn connect(&mut self) -> f64 {
        let begun = Instant::now();
        if self.plan.mode == Mode::Handshake {
            return 0.0;
        }
        let wanted = u64::from(self.plan.connections);
        while !self.interrupted {
            let Count { open, given_up, .. } = self.crew.count();
            if open + given_up >= wanted {
                break;
            }
            #[expect(clippy::cast_precision_loss, reason = "a share for a progress bar")]
            self.show("connecting", (open + given_up) as f64 / wanted as f64);
            self.sleep(TICK.min(begun.elapsed() / 8 + SHORT_TICK));
        }
        begun.elapsed().as_secs_f64()
    }

    fn warm_up(&mut self) {
        self.crew.enter(Stage::WarmUp);
        self.wait("warming up", self.plan.warm_up);
    }

    /// One window of measurement; what the threads saw in it comes when they end.
    fn measure(&mut self, stage: Stage) -> Result<Measured, Failure> {
        let before = self.cpu_time()?;
        let begun = Instant::now();
        self.crew.enter(stage);
        self.wait(if self.plan.mode == Mode::Hold { "holding" } else { "measuring" }, {
            self.plan.duration
        });
        let seconds = begun.elapsed().as_secs_f64();
        let after = self.cpu_time()?;
        self.crew.enter(Stage::WarmUp);
        let cpu = after.zip(before).map(|(after, before)| after - before);
        Ok(Measured { seconds, cpu, tally: tally::Tally::default() })
    }

    /// Measures once more while a flood of handshakes comes. Returns what the flood's clients saw,
    /// too.
    fn flood(
        &mut self,
        (clients, rate): (u32, Option<f64>),
    ) -> Result<(Measured, Measured), Failure> {
        let flood = start_flood(self.plan, clients, rate)?;
        flood.enter(Stage::WarmUp);
        self.wait("flooding", self.plan.warm_up);
        flood.enter(Stage::Measure);
        let during = self.measure(Stage::MeasureAgain)?;
        let (seconds, cpu) = (during.seconds, during.cpu);
        let [_, tally, _] = flood.end(END_PATIENCE)?;
        Ok((during, Measured { seconds, cpu, tally }))
    }

    fn cpu_time(&self) -> Result<Option<CpuTime>, Failure> {
        self.plan.server_pid.map(process::cpu_time).transpose().map_err(cannot_look)
    }

    /// Lets the threads work for so long, or until somebody wants it to end.
    fn wait(&mut self, doing: &'static str, how_long: Duration) {
        let begun = Instant::now();
        while !self.interrupted {
            let gone = begun.elapsed();
            let Some(left) = how_long.checked_sub(gone).filter(|left| !left.is_zero()) else {
                return;
            };
            self.show(doing, gone.as_secs_f64() / how_long.as_secs_f64());
            self.sleep(left.min(TICK));
        }
    }

    fn sleep(&mut self, how_long: Duration) {
        match self.watch.interrupts.recv_timeout(how_long) {
            Ok(()) => self.interrupted = true,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(how_long),
        }
    }

    fn show(&mut self, doing: &'static str, share: f64) {
        let count = self.crew.count();
        let (then, before) = self.last;
        let done = if count.operations > 0 { count.operations } else { count.handshakes };
        let seconds = then.elapsed().as_secs_f64();
        self.last = (Instant::now(), done);
        #[expect(clippy::cast_precision_loss, reason = "a rate for human eyes")]
        let per_second = done.saturating_sub(before) as f64 / seconds.max(1e-3);
        let Count { open, failures, .. } = count;
        (self.watch.show)(&Progress { doing, share, open, per_second, failures });
    }
}

fn cannot_look(source: std::io::Error) -> Failure {
    Failure::Os { what: "look at the server's process (--server-pid)", source }
}

/// How many threads so many clients get.
fn threads(plan: &Plan, clients: u32) -> Result<usize, Failure> {
    let os = |source: nix::Error| Failure::Os {
        what: "raise the limit of open files",
        source: source.into(),
    };
    let nofile = capacity::raise_descriptor_limit().map_err(os)?;
    let fit = nofile.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CLIENT;
    let needed = u64::from(clients).div_ceil(fit.max(1));
    let needed = usize::try_from(needed).unwrap_or(usize::MAX);
    let wanted = match plan.threads {
        Some(threads) => threads,
        None => cpus()?.len().min(clients as usize).max(needed),
    };
    if wanted < needed || wanted > THREADS_MAX {
        return Err(Failure::configuration(&format!(
            "{clients} connections on {wanted} threads: each thread has its own table of {nofile} \
             descriptors, of which a connection takes {DESCRIPTORS_PER_CLIENT}; write --threads \
             {needed} (at most {THREADS_MAX}), or raise the limit of open files (ulimit -Hn)"
        )));
    }
    Ok(wanted.max(1))
}

fn cpus() -> Result<Vec<usize>, Failure> {
    topology::allowed().map_err(|error| Failure::configuration(&error))
}

/// A CPU for each thread, as long as there are enough.
fn placement(threads: usize, last: bool) -> Result<Placement, Failure> {
    let allowed = cpus()?;
    let enough = threads <= allowed.len();
    let cpus = allowed.into_iter().map(Some).take(threads).collect();
    Ok(Placement { cpus: if enough { cpus } else { Vec::new() }, last })
}

fn pace(rate: Option<f64>, threads: usize) -> Pace {
    rate.map_or(Pace::Closed, |rate| Pace::Every(interval(rate, threads)))
}

/// Between two of so many a second, on one of so many threads.
#[expect(clippy::cast_precision_loss, reason = "threads are few")]
fn interval(rate: f64, threads: usize) -> Duration {
    Duration::try_from_secs_f64(threads as f64 / rate).unwrap_or(Duration::MAX)
}
