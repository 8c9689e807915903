//! One measurement: a fresh server under one kind of work.
//!
//! All that a table is made of comes from [`sample`] and [`memory_per_connection`]; who the
//! clients are is known here only.

use std::thread;
use std::time::{Duration, Instant};

use portcullis::load::exchange::Question;
use portcullis::load::summary::Measured;
use portcullis::load::{Mode, Plan};
use serde::Serialize;

use super::certificate::Certificate;
use super::client::{Clients, Done, Until};
use super::cpu::{self, Placement};
use super::origin::Origin;
use super::program::Program;
use super::server::Server;
use super::work::Work;
use super::{Result, loading, strace};

/// Operations of each connection while strace counts: it makes every system call many times as
/// long, so they are few.
const TRACED_OPERATIONS: u64 = 8;
/// Connections opened at once for idle memory: a thousand at once would leave behind what their
/// handshakes took together at the peak. As many are there before the first reading, so that what
/// a process takes once (its allocator's first pages, its session cache's) is in nobody's share.
const AT_ONCE: usize = 64;
/// How long strace counts in bulk work.
const TRACED: Duration = Duration::from_millis(500);
/// How long connections are left alone before memory is read: servers give back what a connection
/// needs only while bytes flow, but not at once (Portcullis after `timeouts.rest`, its allocator
/// what is free within ten seconds).
pub(crate) const IDLE: Duration = Duration::from_secs(12);

/// What all measurements of a run have in common.
#[derive(Debug)]
pub(crate) struct Conditions<'a> {
    /// What servers present.
    pub(crate) certificate: &'a Certificate,
    /// Where server and clients run.
    pub(crate) placement: &'a Placement,
    /// Load before the measurement.
    pub(crate) warm_up: Duration,
    /// The measurement.
    pub(crate) measured: Duration,
    /// How long connections are left alone before memory is read.
    pub(crate) idle: Duration,
    /// Whether a plaintext origin stands behind the server, or it answers itself.
    pub(crate) with_origin: bool,
    /// Whether strace counts system calls afterwards.
    pub(crate) with_strace: bool,
}

/// One measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sample {
    /// Server CPU time per operation in microseconds; for bulk work seconds per GiB.
    pub(crate) cost: f64,
    /// Operations per second; for bulk work GiB per second.
    pub(crate) rate: f64,
    /// Share of the time that the server was on its CPUs, of one CPU.
    pub(crate) busy: f64,
    /// Share of the time that the server wanted its CPUs and others had them.
    pub(crate) queued: f64,
    /// Share of the handshakes that resumed a session; none where connections are kept.
    pub(crate) resumed: Option<f64>,
    /// Half of the operations took no longer, in microseconds; none for bulk work.
    pub(crate) p50: Option<f64>,
    /// 99 of 100 operations took no longer, in microseconds; none for bulk work.
    pub(crate) p99: Option<f64>,
    /// System calls per operation, for bulk work per GiB; none where they were not counted.
    pub(crate) system_calls: Option<f64>,
}

/// Runs every program `rounds` times, one after the other in each round. What each round gave
/// stands with its program, and so does why it gave nothing.
pub(crate) fn interleaved<T>(
    programs: &[Program],
    rounds: usize,
    measure: impl Fn(&Program) -> Result<T>,
) -> Vec<(Vec<T>, Vec<String>)> {
    let mut all: Vec<_> = programs.iter().map(|_| (Vec::new(), Vec::new())).collect();
    for round in 0..rounds {
        for (program, (samples, errors)) in programs.iter().zip(&mut all) {
            match measure(program) {
                Ok(sample) => samples.push(sample),
                Err(error) => errors.push(format!("round {round}: {error}")),
            }
        }
    }
    all
}

/// Measures `program` at `work`, with a fresh process, origin and ports.
///
/// # Errors
/// Any connection that fails, and handshakes that were not as `work` says; with what the program
/// has said.
pub(crate) fn sample(program: &Program, work: Work, conditions: &Conditions) -> Result<Sample> {
    let mut bed = Bed::start(program, work, conditions)?;
    let measured =
        if work.is_kept() { bed.measure_kept(conditions) } else { bed.measure(conditions) };
    measured.map_err(|error| bed.server.explain(&program.name, &error))
}

/// Bytes of user memory (PSS) that `program` takes for each of `connections` that are kept and do
/// nothing: behind their handshakes, and if `asked`, one operation of `work` each.
///
/// # Errors
/// As [`sample`]'s.
pub(crate) fn memory_per_connection(
    program: &Program,
    work: Work,
    connections: usize,
    asked: bool,
    conditions: &Conditions,
) -> Result<f64> {
    let settled = Work { connections: AT_ONCE, closes: false, ..work };
    let mut bed = Bed::start(program, settled, conditions)?;
    let mut measure = || -> Result<f64> {
        bed.gather(conditions)?;
        if asked {
            bed.run(Until::Operations(AT_ONCE as u64))?;
        }
        thread::sleep(conditions.idle);
        let before = bed.server.memory()?;
        let mut kept = Vec::new();
        for opened in (0..connections).step_by(AT_ONCE) {
            let work = Work { connections: AT_ONCE.min(connections - opened), ..settled };
            let mut clients = Clients::connect(bed.server.address, work, conditions.certificate)?;
            if asked {
                clients.run(Until::Operations(work.connections as u64))?;
            }
            kept.push(clients);
        }
        thread::sleep(conditions.idle);
        #[expect(clippy::cast_precision_loss, reason = "bytes and counts far below 2^52")]
        let each = bed.server.memory()?.saturating_sub(before) as f64 / connections as f64;
        Ok(each)
    };
    measure().map_err(|error| bed.server.explain(&program.name, &error))
}

/// A server with its clients in front and its origin behind. Fields are dropped in this order.
struct Bed {
    work: Work,
    /// As many as the server has CPUs, so that the load of one worker is always the same; each
    /// with the CPU that its thread runs on. None until [`Bed::gather`].
    crowds: Vec<(usize, Clients)>,
    server: Server,
    _origin: Option<Origin>,
}

impl Bed {
    fn start(program: &Program, work: Work, conditions: &Conditions) -> Result<Self> {
        let Conditions { certificate, placement, .. } = conditions;
        cpu::pin(&placement.clients)?;
        let origin =
            conditions.with_origin.then(|| Origin::start(work, &placement.clients)).transpose()?;
        let address = origin.as_ref().map(|origin| origin.address);
        let server = Server::start(program, certificate, address, placement, work)?;
        Ok(Self { work, crowds: Vec::new(), server, _origin: origin })
    }

    /// Connects the clients of [`Bed::run`].
    fn gather(&mut self, conditions: &Conditions) -> Result<()> {
        let Conditions { certificate, placement, .. } = conditions;
        let cpus = placement.clients.iter().copied().cycle();
        for cpu in cpus.take(placement.server.len()) {
            let clients = Clients::connect(self.server.address, self.work, certificate)?;
            self.crowds.push((cpu, clients));
        }
        Ok(())
    }

    /// Does the work `until` the end; `Operations` are those of each crowd.
    fn run(&mut self, until: Until) -> Result<Done> {
        let mut all = Done::nothing()?;
        for done in cpu::on_each(&mut self.crowds, |_, clients| clients.run(until))? {
            all.add(&done)?;
        }
        Ok(all)
    }

    fn measure(&mut self, conditions: &Conditions) -> Result<Sample> {
        self.gather(conditions)?;
        self.run(Until::Time(Instant::now() + conditions.warm_up))?;
        let before = self.server.cpu_time()?;
        let started = Instant::now();
        let done = self.run(Until::Time(started + conditions.measured))?;
        let elapsed = started.elapsed().as_secs_f64();
        let spent = self.server.cpu_time()? - before;
        let units = self.units(&done);
        let scale = if self.work.is_bulk() { 1.0 } else { 1e6 };
        #[expect(clippy::cast_precision_loss, reason = "microseconds far below 2^52")]
        let percentile = |percent: f64| {
            let latency = &done.latency;
            (!latency.is_empty()).then(|| latency.value_at_percentile(percent) as f64)
        };
        Ok(Sample {
            cost: spent.used.as_secs_f64() * scale / units,
            rate: units / elapsed,
            busy: spent.used.as_secs_f64() / elapsed,
            queued: spent.queued.as_secs_f64() / elapsed,
            resumed: done.resumed_share(),
            p50: percentile(50.0),
            p99: percentile(99.0),
            system_calls: conditions.with_strace.then(|| self.system_calls()).transpose()?,
        })
    }

    /// The clients are those of `portcullis load`, the cheapest that there are: with others the
    /// server would be idle in between, and dearer for it. Those of [`Bed::run`] come when the
    /// others have gone, for strace's count.
    fn measure_kept(&mut self, conditions: &Conditions) -> Result<Sample> {
        let Work { connections, request_bytes, answer_bytes, .. } = self.work;
        let crowds = conditions.placement.server.len();
        let load = loading::run(&Plan {
            mode: Mode::Request,
            question: Some(Question::raw(request_bytes, answer_bytes)),
            connections: u32::try_from(connections)? * u32::try_from(crowds)?,
            threads: Some(crowds),
            warm_up: conditions.warm_up,
            duration: conditions.measured,
            ..loading::plan(&self.server)?
        })?;
        let Measured { seconds, cpu, tally } = &load.measured;
        if tally.failed() > 0 {
            return Err(format!("operations failed: {:?}", tally.failures).into());
        }
        let spent = cpu.ok_or("the server's CPU time is not known")?;
        let share = |time: Duration| time.as_secs_f64() / seconds;
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds and counts far below 2^52")]
        let (micros, done) = (
            |percent| tally.operations.nanos().value_at_percentile(percent) as f64 / 1e3,
            tally.done() as f64,
        );
        if conditions.with_strace {
            self.gather(conditions)?;
        }
        Ok(Sample {
            cost: spent.used.as_secs_f64() * 1e6 / done,
            rate: done / seconds,
            busy: share(spent.used),
            queued: share(spent.queued),
            resumed: None,
            p50: Some(micros(50.0)),
            p99: Some(micros(99.0)),
            system_calls: conditions.with_strace.then(|| self.system_calls()).transpose()?,
        })
    }

    /// System calls per operation, or per GiB.
    fn system_calls(&mut self) -> Result<f64> {
        let (done, calls) = strace::count(self.server.id(), || {
            self.run(if self.work.is_bulk() {
                Until::Time(Instant::now() + TRACED)
            } else {
                Until::Operations(TRACED_OPERATIONS * self.work.connections as u64)
            })
        })?;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let each = calls as f64 / self.units(&done);
        Ok(each)
    }

    /// Operations; of bulk work GiB.
    #[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
    fn units(&self, done: &Done) -> f64 {
        let progress = done.progress as f64;
        if self.work.is_bulk() { progress / f64::from(1 << 30) } else { progress }
    }
}
