//! The control plane: one thread that starts the workers, tells them what changed, shows what they
//! count, and ends them. It never sees a client's byte.
//!
//! # Start
//! configuration → certificates → descriptor limit → topology and capacity → runtime → signals →
//! addresses → names → access log → workers → admin. What can fail for a reason of the operator's
//! fails before the first worker starts.
//!
//! # End
//! SIGTERM or SIGINT → every worker drains → the access log's last lines → exit 0. A second one
//! cuts what is left and exits with 128 and the signal's number.

pub mod addresses;
pub mod admin;
pub mod backlog;
pub mod capacity;
pub mod certificates;
pub mod costs;
pub mod exit;
pub mod failure;
pub mod kernel;
pub mod permits;
pub mod resolve;
pub mod rotation;
pub mod secret;
pub mod signals;
pub mod snapshot;
pub mod supervisor;
pub mod topology;
pub mod watch;

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Config, ResumptionMode, ServerAddress};
use crate::limits::{
    ACCESS_LOG_END_TIMEOUT, ACCESS_LOG_INTERVAL, ACCESS_LOG_RECORDS_MAX, WATCH_INTERVAL,
};
use crate::sys::probe;
use crate::sys::start::Start;
use crate::telemetry::access_log::{AccessLog, BackendNames, Names};
use crate::telemetry::exposition::Process;
use crate::telemetry::record;
use crate::tls::resumption::bridge::Beginnings;
use crate::tls::resumption::shared::Shared;
use crate::tls::terms::Terms;
use crate::worker::admission::Costs;
use crate::worker::command::Command;
use crate::worker::sources::Sources;
use backlog::Backlog;
use failure::Failure;
use resolve::Resolver;
use rotation::Rotation;
use signals::{Signal, Signals};
use supervisor::{Crew, Ready, Supervisor};
use watch::{Values, Watch};

/// How a run ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Asked to end, and every worker did.
    Drained,
    /// Asked to end at once, by this signal.
    Signalled(i32),
}

/// When the observer of a run is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment<'a> {
    /// Every worker accepts connections on these addresses.
    Ready(&'a [SocketAddr]),
    /// Another second has passed.
    Second,
    /// Asked to end.
    Draining,
    /// Every worker has ended, or is given up.
    Ended,
}

/// Runs Portcullis until it is told to end. `observe` is called on the control thread and must not
/// block.
pub fn run(config: Config, observe: impl FnMut(Moment<'_>, &Process)) -> Result<Ended, Failure> {
    run_with(config, observe, |start, ready| {
        crate::sys::start::run(start, ready);
    })
}

fn run_with(
    config: Config,
    observe: impl FnMut(Moment<'_>, &Process),
    body: impl Fn(Start, Ready) + Clone + Send + 'static,
) -> Result<Ended, Failure> {
    tracing::info!("portcullis {} starts", env!("CARGO_PKG_VERSION"));
    let plan = plan(config)?;
    runtime(plan.cpus.len())?.block_on(serve(plan, observe, body))
}

/// The control thread's runtime, and with it the proof that `io_uring` works here.
fn runtime(workers: usize) -> Result<tokio_uring::Runtime, Failure> {
    probe::memory(workers)?;
    probe::report()?;
    let make = || tokio_uring::Runtime::new(&tokio_uring::builder());
    probe::patiently(make, probe::is_no_memory).map_err(|source| Failure::ControlRing { source })
}

/// Checks that this kernel is new enough and lets us use `io_uring`.
pub fn check_machine() -> Result<(), Failure> {
    runtime(1).map(drop)
}

/// Everything that is decided before anything is started.
#[derive(Debug)]
pub struct Plan {
    /// The configuration.
    pub config: Config,
    /// TLS terms by listener.
    pub terms: Vec<Arc<Terms>>,
    /// Connections that wait in the kernel, by listener.
    pub backlogs: Vec<Backlog>,
    /// CPU of each worker; `None`: not pinned.
    pub cpus: Vec<Option<usize>>,
    /// Connections each worker holds.
    pub connections: u32,
    /// `RLIMIT_NOFILE`, as raised.
    pub open_files: u64,
    /// Ticket keys.
    pub rotation: Rotation,
    /// What handshakes cost; nothing where nobody asks.
    pub costs: Costs,
}

/// Loads certificates, raises the descriptor limit, and works out workers and capacity. Binds no
/// port and starts no thread: `check` ends here.
pub fn plan(config: Config) -> Result<Plan, Failure> {
    hide_memory();
    let loaded =
        certificates::load(&config).map_err(|problems| Failure::certificates(&problems))?;
    let rotation =
        Rotation::start(&config.resumption, unix_time(SystemTime::now()), Instant::now())
            .map_err(|error| Failure::rotation(&error))?;
    let open_files = capacity::raise_descriptor_limit().map_err(|errno| Failure::Os {
        what: "raise the limit of open files to its hard limit",
        source: errno.into(),
    })?;
    let cpus =
        topology::workers(&config.workers).map_err(|problem| Failure::configuration(&problem))?;
    let shape = capacity::Shape::new(&config, cpus.len());
    let connections = capacity::connections_per_worker(&config.limits, shape)
        .map_err(|problem| Failure::configuration(&problem))?;
    let costs = costs::for_workers(&config, &loaded);
    let terms = loaded.terms;
    let backlogs = backlog::of(&config, &terms);
    Ok(Plan { config, terms, backlogs, cpus, connections, open_files, rotation, costs })
}

async fn serve(
    plan: Plan,
    observe: impl FnMut(Moment<'_>, &Process),
    body: impl Fn(Start, Ready) + Clone + Send + 'static,
) -> Result<Ended, Failure> {
    let mut signals = Signals::install()?;
    let config = &plan.config;
    let binds = addresses::claim(&config.listeners, &plan.backlogs)?;
    let admin = match &config.admin {
        Some(admin) => Some(admin::bind(admin.bind).await?),
        None => None,
    };
    let mut resolver = Resolver::start(&config.backends)
        .map_err(|source| Failure::Os { what: "start the resolver's thread", source })?;
    let addresses = tokio::select! {
        addresses = resolver.first() => addresses,
        () = signals.end() => return Ok(Ended::Drained),
    };
    let permits = permits::make(config, plan.cpus.len());
    let process = Arc::new(process(config, plan.cpus.len(), &permits));
    let (records, access_log) = open_access_log(config, &process)?;
    let listening: Vec<SocketAddr> = binds.iter().map(|bind| bind.address).collect();
    let sessions =
        Arc::new(Shared::new(config.resumption.sessions, config.resumption.session_bytes));
    let crew = Crew {
        cpus: plan.cpus.clone(),
        binds: binds.clone(),
        steering: config.workers.steering,
        connections: plan.connections,
        snapshot: Arc::new(snapshot::build(config, &plan.terms, plan.costs, &addresses, &permits)),
        resumption: Beginnings {
            tickets: config.resumption.mode == ResumptionMode::Tickets,
            lifetime: u32::try_from(config.resumption.lifetime.as_secs()).unwrap_or(u32::MAX),
            cache_entries: config.resumption.sessions_per_worker,
            cache_bytes: config.resumption.session_bytes,
            keys: plan.rotation.keys(),
            shared: Arc::clone(&sessions),
        },
        sources: Arc::new(sources(config)),
        records,
    };
    let supervisor = Supervisor::start(crew, Arc::clone(&process), body).await?;
    announce(&plan, &listening, admin.as_ref());
    let status = Rc::new(admin::Status::new(Arc::clone(&process)));
    if let Some(listener) = admin {
        tokio::task::spawn_local(admin::serve(listener, Rc::clone(&status)));
    }
    let (written, stop_writing) = write_access_log(access_log);
    let mut control = Control {
        sessions,
        permits,
        watch: Watch::new(plan.cpus.len()),
        kernel: kernel::Watch::begin(&process, &plan.config.listeners, &binds, &supervisor),
        plan,
        process,
        supervisor,
        resolver,
        status,
        observe,
        asked: false,
        draining: None,
        lost: Vec::new(),
    };
    tracing::info!("ready");
    (control.observe)(Moment::Ready(&listening), &control.process);
    let ended = control.steer(&mut signals).await;
    (control.observe)(Moment::Ended, &control.process);
    drop(stop_writing);
    if tokio::time::timeout(ACCESS_LOG_END_TIMEOUT, written).await.is_err() {
        tracing::warn!("the access log's last records could not be written in time");
    }
    ended
}

/// The control thread, once everything runs.
struct Control<O> {
    plan: Plan,
    process: Arc<Process>,
    supervisor: Supervisor,
    resolver: Resolver,
    /// The session cache of all workers.
    sessions: Arc<Shared>,
    permits: permits::All,
    watch: Watch,
    /// What the kernel drops before a worker hears of it.
    kernel: kernel::Watch,
    status: Rc<admin::Status>,
    observe: O,
    /// Asked to end by a signal.
    asked: bool,
    /// When draining must be over; `None`: serving.
    draining: Option<Instant>,
    /// Workers that ended by a defect.
    lost: Vec<u16>,
}

impl<O: FnMut(Moment<'_>, &Process)> Control<O> {
    /// Reacts to what happens until all workers have ended.
    async fn steer(&mut self, signals: &mut Signals) -> Result<Ended, Failure> {
        let mut watch = interval(WATCH_INTERVAL);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.supervisor.running() > 0 {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::End(number) if self.asked => {
                        tracing::warn!("asked to end a second time: cutting what is left");
                        self.supervisor.stop().await;
                        return Ok(Ended::Signalled(number));
                    }
                    Signal::End(_) => {
                        self.asked = true;
                        self.drain("asked to end");
                    }
                    Signal::Reload => tracing::warn!(
                        "SIGHUP: this version cannot reload; restart it to use a new configuration"
                    ),
                },
                end = self.supervisor.ended() => self.worker_ended(end),
                addresses = self.resolver.changed() => self.publish(&addresses),
                _ = watch.tick() => if self.look() {
                    break;
                },
                _ = second.tick() => {
                    self.rotate();
                    self.kernel.look(Instant::now());
                    (self.observe)(Moment::Second, &self.process);
                }
            }
        }
        // What the workers counted last, such as what the drain cut off.
        self.tell(Instant::now());
        if !self.lost.is_empty() {
            return Err(Failure::Workers { workers: std::mem::take(&mut self.lost) });
        }
        tracing::info!("every worker has ended");
        Ok(Ended::Drained)
    }

    /// Looks at the counters. True: draining takes too long, and the workers were stopped.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        self.supervisor.send_unsent();
        self.process.shared_sessions.set(self.sessions.entries());
        self.process.shared_bytes.set(self.sessions.bytes() as u64);
        permits::show(&self.permits, &self.process.backends);
        self.tell(now);
        let late = self.draining.is_some_and(|deadline| now >= deadline);
        if late {
            tracing::warn!(
                workers = self.supervisor.running(),
                "workers did not end in time; ending without them"
            );
        }
        late
    }

    /// Logs what the counters say since the last look.
    fn tell(&mut self, now: Instant) {
        let values = Values {
            connections_per_worker: self.plan.connections,
            limits: self.plan.config.limits.clone(),
            open_files: self.plan.open_files,
            timeouts: self.plan.config.timeouts.clone(),
        };
        for notice in self.watch.look(&self.process, now) {
            notice.log(&values);
        }
    }

    fn drain(&mut self, why: &str) {
        if self.draining.is_some() {
            return;
        }
        let timeout = self.plan.config.timeouts.drain;
        tracing::info!("{why}: no new connections; open ones have {timeout:?} to end");
        self.draining = Some(Instant::now() + supervisor::drain_limit(timeout));
        self.status.set_draining();
        self.supervisor.send(&Command::Drain { timeout });
        (self.observe)(Moment::Draining, &self.process);
    }

    fn worker_ended(&mut self, end: supervisor::End) {
        if !end.panicked && self.draining.is_some() {
            return;
        }
        tracing::error!(
            "worker {} ended {}",
            end.worker,
            if end.panicked { "by a panic" } else { "unasked" }
        );
        self.lost.push(end.worker);
        self.drain("a worker was lost");
    }

    /// Gives the workers the keys of a new epoch when one has begun.
    fn rotate(&mut self) {
        let rotation = &mut self.plan.rotation;
        if let Some(keys) = rotation.look(unix_time(SystemTime::now()), Instant::now()) {
            tracing::info!("a new epoch of ticket keys: {}", rotation.describe());
            self.supervisor.send(&Command::TicketKeys(keys));
        }
        self.process.ticket_epoch.set(rotation.began());
    }

    fn publish(&mut self, addresses: &resolve::Addresses) {
        tracing::info!("the addresses of the servers changed; the workers are told");
        let Plan { config, terms, costs, .. } = &self.plan;
        let snapshot = snapshot::build(config, terms, *costs, addresses, &self.permits);
        self.supervisor.send(&Command::Snapshot(Arc::new(snapshot)));
    }
}

/// Room to count sources, where anything of them is limited.
fn sources(config: &Config) -> Sources {
    let per_source = &config.limits.per_source;
    Sources::new(if per_source.is_on() { per_source.sources } else { 0 }, config.listeners.len())
}

/// Time since 1970, zero before.
pub fn unix_time(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Keeps private keys out of core dumps and away from other processes of the same user (prctl(2)).
fn hide_memory() {
    if let Err(errno) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!("core dumps cannot be forbidden and may hold private keys: {errno}");
    }
}

fn announce(plan: &Plan, listening: &[SocketAddr], admin: Option<&TcpListener>) {
    for address in listening {
        tracing::info!("listening on {address}");
    }
    for (listener, backlog) in plan.config.listeners.iter().zip(&plan.backlogs) {
        tracing::info!("listener {}: the kernel queues {backlog}", listener.name);
    }
    let cpus: Vec<String> = plan
        .cpus
        .iter()
        .map(|cpu| cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string()))
        .collect();
    if plan.config.resumption.mode == ResumptionMode::Tickets {
        tracing::info!("ticket keys: {}", plan.rotation.describe());
        if plan.rotation.is_early(unix_time(SystemTime::now())) {
            tracing::warn!(
                "the clock is before the first epoch of resumption.secret_file: it is wrong here, \
                 or was where the file was made; until then no machine whose clock is right \
                 accepts our tickets"
            );
        }
    }
    tracing::info!(
        "{} worker(s) on CPU {}, {} connections each",
        cpus.len(),
        cpus.join(","),
        plan.connections
    );
    if let Some(address) = admin.and_then(|listener| listener.local_addr().ok()) {
        tracing::info!("admin endpoint on http://{address}/");
    }
}

/// What a scrape of `workers` workers shows, before they are up.
fn process(config: &Config, workers: usize, permits: &permits::All) -> Process {
    let backends = permits::gauges(permits, &names(config).backends);
    Process::new(workers, SystemTime::now()).with_backends(backends)
}

/// The access log, if one is configured, with the workers' ends of its queues.
fn open_access_log(
    config: &Config,
    process: &Arc<Process>,
) -> Result<(Vec<record::Sender>, Option<AccessLog>), Failure> {
    let Some(wanted) = &config.access_log else {
        return Ok((Vec::new(), None));
    };
    let (producers, queues) =
        process.workers.iter().map(|_| rtrb::RingBuffer::new(ACCESS_LOG_RECORDS_MAX)).unzip();
    let log = AccessLog::open(&wanted.path, names(config), queues, Arc::clone(process)).map_err(
        |source| Failure::File {
            path: wanted.path.clone(),
            purpose: "the access log (access_log.path)",
            source,
        },
    )?;
    Ok((producers, Some(log)))
}

/// Starts to write; ends, after a last look at the queues, when the sender is dropped.
fn write_access_log(
    log: Option<AccessLog>,
) -> (tokio::task::JoinHandle<()>, tokio::sync::oneshot::Sender<()>) {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let writer = tokio::task::spawn_local(async move {
        let Some(mut log) = log else { return };
        let mut tick = interval(ACCESS_LOG_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = &mut stopped => true,
                _ = tick.tick() => false,
            };
            log.drain().await;
            if last {
                return;
            }
        }
    });
    (writer, stop)
}

fn names(config: &Config) -> Names {
    let address = |address: &ServerAddress| match address {
        ServerAddress::Host { host, port } if host.contains(':') => format!("[{host}]:{port}"),
        ServerAddress::Host { host, port } => format!("{host}:{port}"),
        ServerAddress::Unix(path) => unix(path),
    };
    Names {
        listeners: config.listeners.iter().map(|l| l.name.clone()).collect(),
        backends: config
            .backends
            .iter()
            .map(|backend| BackendNames {
                name: backend.name.clone(),
                servers: backend.servers.iter().map(|server| address(&server.address)).collect(),
            })
            .collect(),
    }
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[cfg(test)]
mod tests;
