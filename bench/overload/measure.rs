//! One measurement: a fresh server under a load that is too much for it.

use portcullis::load::exchange::Question;
use portcullis::load::summary::Summary;
use portcullis::load::{self, Mode, Plan};

use crate::Times;
use crate::support::certificate::Certificate;
use crate::support::cpu::{self, Placement};
use crate::support::origin::Origin;
use crate::support::program::Program;
use crate::support::server::Server;
use crate::support::work::{REQUEST, Work};
use crate::support::{Result, loading};

/// Established connections, and how often they ask in a second, all together: a load that leaves
/// every server idle for most of the time.
const ESTABLISHED: u32 = 16;
const ASKED_PER_SECOND: f64 = 500.0;
/// Clients of the flood at a time, each of which comes back as soon as it was served.
const FLOODING: u32 = 64;
/// What a client waits for its handshake.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
/// Clients of the overload at a time, at most: what one thread's descriptors allow, twice.
const OVERLOADING_MAX: u32 = 19_000;

/// What a flood did to established connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flood {
    /// 99 of 100 answers came sooner before the flood, in microseconds.
    pub(crate) before: f64,
    /// The same during the flood.
    pub(crate) during: f64,
    /// Handshakes per second.
    pub(crate) handshakes: f64,
    /// Share of the time that the server was on its CPU.
    pub(crate) busy: f64,
    /// Answers or handshakes that failed.
    pub(crate) failed: f64,
}

/// Handshakes that came to their end within a client's patience.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goodput {
    /// Per second, with as many clients as it can serve.
    pub(crate) peak: f64,
    /// Begun per second in the overload.
    pub(crate) offered: f64,
    /// Per second in the overload.
    pub(crate) overloaded: f64,
}

/// A server with its origin behind it.
pub(crate) struct Bed {
    program: String,
    work: Work,
    server: Server,
    _origin: Origin,
}

impl Bed {
    pub(crate) fn start(
        program: &Program,
        certificate: &Certificate,
        placement: &Placement,
    ) -> Result<Self> {
        cpu::pin(&placement.clients)?;
        let origin = Origin::start(REQUEST, &placement.clients)?;
        let server = Server::start(program, certificate, Some(origin.address), placement, REQUEST)?;
        Ok(Self { program: program.name.clone(), work: REQUEST, server, _origin: origin })
    }

    /// Established connections' latency before and during a flood.
    pub(crate) fn flood(&self, times: Times) -> Result<Flood> {
        let summary = self.load(&Plan {
            mode: Mode::Flood,
            connections: ESTABLISHED,
            rate: Some(ASKED_PER_SECOND),
            question: Some(Question::raw(self.work.request_bytes, self.work.answer_bytes)),
            flood: Some((FLOODING, None)),
            warm_up: times.warm_up,
            duration: times.measured,
            ..self.plan()?
        })?;
        let (during, flood) = summary.flood.as_ref().ok_or("there was no flood")?;
        let p99 =
            |tally: &load::tally::Tally| micros(tally.operations.nanos().value_at_quantile(0.99));
        let busy = during.cpu.map_or(0.0, |cpu| cpu.used.as_secs_f64() / during.seconds);
        Ok(Flood {
            before: p99(&summary.measured.tally),
            during: p99(&during.tally),
            handshakes: count(flood.tally.handshakes.nanos().len()) / flood.seconds,
            busy,
            failed: count(during.tally.failed() + flood.tally.failed()),
        })
    }

    /// Handshakes done at the peak, and under four times as many.
    pub(crate) fn goodput(&self, times: Times) -> Result<Goodput> {
        let peak = self.load(&Plan {
            connections: FLOODING,
            warm_up: times.warm_up,
            duration: times.measured,
            ..self.plan()?
        })?;
        let peak = count(peak.measured.tally.done()) / peak.measured.seconds;
        let rate = 4.0 * peak;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
        let connections =
            (rate * PATIENCE.as_secs_f64()).clamp(1.0, f64::from(OVERLOADING_MAX)) as u32;
        let overload = self.load(&Plan {
            connections,
            rate: Some(rate),
            warm_up: times.overloaded / 2,
            duration: times.overloaded,
            ..self.plan()?
        })?;
        let measured = &overload.measured;
        let begun = measured.tally.done() + measured.tally.failed();
        Ok(Goodput {
            peak,
            offered: count(begun) / measured.seconds,
            overloaded: count(measured.tally.done()) / measured.seconds,
        })
    }

    fn load(&self, plan: &Plan) -> Result<Summary> {
        loading::run(plan).map_err(|error| self.server.explain(&self.program, &error))
    }

    fn plan(&self) -> Result<Plan> {
        Ok(Plan { timeout: PATIENCE, ..loading::plan(&self.server)? })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

fn micros(nanos: u64) -> f64 {
    count(nanos) / 1e3
}
