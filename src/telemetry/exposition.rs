//! Prometheus text from the workers' counters, made anew for each scrape: nothing is counted twice
//! and no worker notices.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit as EncodedUnit};

use super::backends::{Backend, Server};
use super::counters::{ByLabel, Counter, Counters};
use super::histogram::{BOUNDS_NANOS, Histogram};
use super::kernel::{Kernel, Socket};
use super::labels::{
    CloseReason, GivingWay, Group, HandshakeOutcome, HandshakeQueue, HandshakeStep, KeyType, Label,
    Limit, ResumptionKind, ResumptionResult, Span, State, Suite, Version,
};
use super::names::{self, Kind, Metric, Unit};

/// The content type of [`Process::render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NANOS_PER_SECOND: f64 = 1e9;

/// One worker, as seen from outside.
#[derive(Debug)]
pub struct Observed {
    /// What it counts.
    pub counters: Arc<Counters>,
    up: AtomicBool,
}

impl Observed {
    /// Says whether its thread runs; the control thread's supervisor calls it.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// Whether its thread runs.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }
}

/// Everything a scrape shows.
#[derive(Debug)]
pub struct Process {
    started: SystemTime,
    /// By worker's number.
    pub workers: Vec<Observed>,
    /// What the kernel counts; the control thread asks it.
    pub kernel: Kernel,
    /// Backends whose servers may have only so many connections; the control thread sets their
    /// gauges.
    pub backends: Vec<Backend>,
    /// Gauge: sessions in the cache of all workers; the control thread sets it.
    pub shared_sessions: Counter,
    /// Gauge: bytes of these; the control thread sets it.
    pub shared_bytes: Counter,
    /// Gauge: Unix time at which the ticket key's epoch began, in seconds; the control thread sets
    /// it.
    pub ticket_epoch: Counter,
    /// Access-log records written; the control thread counts it.
    pub records_written: Counter,
    /// Access-log records lost to failed writes; the control thread counts it.
    pub records_failed: Counter,
}

impl Process {
    /// A process with this many workers, none of them up yet.
    pub fn new(workers: usize, started: SystemTime) -> Self {
        let observed = || Observed { counters: Arc::default(), up: AtomicBool::new(false) };
        Self {
            started,
            workers: std::iter::repeat_with(observed).take(workers).collect(),
            kernel: Kernel::default(),
            backends: Vec::new(),
            shared_sessions: Counter::default(),
            shared_bytes: Counter::default(),
            ticket_epoch: Counter::default(),
            records_written: Counter::default(),
            records_failed: Counter::default(),
        }
    }

    /// The same with the gauges of these backends.
    #[must_use]
    pub fn with_backends(self, backends: Vec<Backend>) -> Self {
        Self { backends, ..self }
    }

    /// The sum of one number over all workers.
    pub fn sum(&self, number: impl Fn(&Counters) -> u64) -> u64 {
        self.workers.iter().map(|worker| number(&worker.counters)).fold(0, u64::wrapping_add)
    }

    /// All metrics as Prometheus reads them; [`CONTENT_TYPE`] says which of its formats.
    pub fn render(self: &Arc<Self>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(self)));
        let mut text = String::new();
        // The encoder fails only when its target does, and a String does not.
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            debug_assert!(false, "encoding into a String failed");
        }
        text
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page { encoder: &mut encoder, workers: &self.workers };
        self.encode_process(&mut page)?;
        encode_connections(&mut page)?;
        self.encode_kernel(&mut page)?;
        self.encode_backends(&mut page)?;
        self.encode_resumption(&mut page)?;
        encode_loop(&mut page)?;
        self.encode_access_log(&mut page)
    }
}

impl Process {
    fn encode_process(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        page.family(&names::BUILD)?.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        page.family(&names::START_TIME)?.encode_gauge(&started)?;
        let mut family = page.family(&names::WORKER_UP)?;
        for (index, worker) in self.workers.iter().enumerate() {
            family
                .encode_family(&[("worker", index.to_string().as_str())])?
                .encode_gauge(&u64::from(worker.is_up()))?;
        }
        Ok(())
    }

    fn encode_kernel(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        page.sockets(&names::ACCEPT_QUEUE, &self.kernel, |socket| &socket.waiting)?;
        page.sockets(&names::BACKLOG, &self.kernel, |socket| &socket.backlog)?;
        page.sockets(&names::DROPS, &self.kernel, |socket| &socket.drops)?;
        for (metric, count) in self.kernel.counts() {
            page.family(metric)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn encode_backends(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        let mut family = page.family(&names::BACKEND_WAITING)?;
        for backend in &self.backends {
            family
                .encode_family(&[("backend", backend.name.as_str())])?
                .encode_gauge(&backend.waiting.get())?;
        }
        self.servers(page, &names::SERVER_CONNECTIONS, |server| float(server.connections.get()))?;
        self.servers(page, &names::SERVER_CONNECTIONS_MAX, |server| {
            server.max.map_or(f64::INFINITY, f64::from)
        })
    }

    fn servers(
        &self,
        page: &mut Page<'_, '_>,
        metric: &Metric,
        value: impl Fn(&Server) -> f64,
    ) -> fmt::Result {
        let mut family = page.family(metric)?;
        for Backend { name, servers, .. } in &self.backends {
            for server in servers {
                family
                    .encode_family(&[
                        ("backend", name.as_str()),
                        ("server", server.address.as_str()),
                    ])?
                    .encode_gauge(&value(server))?;
            }
        }
        Ok(())
    }

    fn encode_resumption(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        for (metric, gauge) in [
            (&names::SHARED_SESSIONS, &self.shared_sessions),
            (&names::SHARED_BYTES, &self.shared_bytes),
            (&names::TICKET_EPOCH, &self.ticket_epoch),
        ] {
            page.family(metric)?.encode_gauge(&gauge.get())?;
        }
        Ok(())
    }

    fn encode_access_log(&self, page: &mut Page<'_, '_>) -> fmt::Result {
        page.family(&names::RECORDS_WRITTEN)?
            .encode_counter::<NoLabelSet, _, u64>(&self.records_written.get(), None)?;
        page.counter(&names::RECORDS_DROPPED, |c| c.limits.of(Limit::AccessLogRecords).get())?;
        page.family(&names::RECORDS_FAILED)?
            .encode_counter::<NoLabelSet, _, u64>(&self.records_failed.get(), None)
    }
}

fn encode_connections(page: &mut Page<'_, '_>) -> fmt::Result {
    page.gauges::<State, _>(&names::CONNECTIONS, |c| &c.connections)?;
    page.counter(&names::ACCEPTED, |c| c.accepted.get())?;
    page.counter(&names::CPU_SAMPLES, |c| c.cpu_samples.get())?;
    page.counter(&names::CPU_MATCHES, |c| c.cpu_matches.get())?;
    page.counters::<CloseReason, _>(&names::CLOSED, |c| &c.closed)?;
    page.counters::<HandshakeOutcome, _>(&names::HANDSHAKES, |c| &c.handshakes)?;
    page.counters::<Version, _>(&names::VERSIONS, |c| &c.versions)?;
    page.counters::<Suite, _>(&names::SUITES, |c| &c.suites)?;
    page.counters::<Group, _>(&names::GROUPS, |c| &c.groups)?;
    page.gauges::<HandshakeQueue, _>(&names::HANDSHAKE_QUEUE, |c| &c.handshake_queue)?;
    page.histograms::<HandshakeQueue>(&names::HANDSHAKE_WAITS, Counters::handshake_wait)?;
    page.steps(&names::HANDSHAKE_STEPS, |[steps, _], key| float(steps.of(key).get()))?;
    page.steps(&names::HANDSHAKE_CPU, |[_, nanos], key| seconds(nanos.of(key).get()))?;
    page.counter(&names::STEPS_APART, |c| c.steps_apart.get())?;
    page.gauges::<GivingWay, _>(&names::OPERATIONS_WAITING, |c| &c.operations_waiting)?;
    page.resumptions(&names::RESUMPTIONS)?;
    page.counter(&names::TICKETS, |c| c.tickets.get())?;
    page.counter(&names::SESSIONS, |c| c.sessions.get())?;
    page.counter(&names::SESSIONS_CONTENDED, |c| c.sessions_contended.get())?;
    page.gauge(&names::CACHED_SESSIONS, |c| float(c.cached_sessions.get()))?;
    page.gauge(&names::CACHED_BYTES, |c| float(c.cached_bytes.get()))?;
    page.counter(&names::INBOUND, |c| c.inbound_bytes.get())?;
    page.counter(&names::OUTBOUND, |c| c.outbound_bytes.get())?;
    page.counter(&names::CONNECT_RETRIES, |c| c.connect_retries.get())?;
    page.counter(&names::CONNECT_FAILURES, |c| c.connect_failures.get())?;
    page.counter(&names::RESTS, |c| c.rests.get())?;
    page.counters::<Limit, _>(&names::LIMITS, |c| &c.limits)?;
    page.gauge(&names::ACCEPT_PAUSED, |c| float(c.accept_paused.get()))?;
    page.histograms::<Span>(&names::STAGES, Counters::span)
}

fn encode_loop(page: &mut Page<'_, '_>) -> fmt::Result {
    page.counter(&names::TURNS, |c| c.turns.get())?;
    page.counter(&names::COMPLETIONS, |c| c.completions.get())?;
    page.gauge(&names::COMPLETIONS_PER_TURN, |c| {
        float(c.completions.get()) / float(c.turns.get().max(1))
    })?;
    page.counter_seconds(&names::BUSY, |c| c.busy_nanos.get())?;
    page.gauge(&names::LONGEST_TURN, |c| seconds(c.longest_turn_nanos.get()))?;
    page.counter(&names::STALE_COMPLETIONS, |c| c.stale_completions.get())?;
    page.counter(&names::PANICS, |c| c.panics.get())
}

/// What is being written, with the workers it is about.
struct Page<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
    workers: &'a [Observed],
}

impl Page<'_, '_> {
    fn family<'s>(&'s mut self, metric: &'s Metric) -> Result<MetricEncoder<'s>, fmt::Error> {
        let kind = match metric.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
            Kind::Info => MetricType::Info,
        };
        let unit = match metric.unit {
            Unit::Count => None,
            Unit::Bytes => Some(&EncodedUnit::Bytes),
            Unit::Seconds => Some(&EncodedUnit::Seconds),
        };
        self.encoder.encode_descriptor(metric.stem(), metric.help, unit, kind)
    }

    /// Calls `write` with each worker's number, as a label, and counters.
    fn each_worker(
        &mut self,
        metric: &Metric,
        mut write: impl FnMut(&mut MetricEncoder<'_>, &str, &Counters) -> fmt::Result,
    ) -> fmt::Result {
        let workers = self.workers;
        let mut family = self.family(metric)?;
        for (index, worker) in workers.iter().enumerate() {
            write(&mut family, &index.to_string(), &worker.counters)?;
        }
        Ok(())
    }

    fn counter(&mut self, metric: &Metric, value: impl Fn(&Counters) -> u64) -> fmt::Result {
        self.each_worker(metric, |family, worker, counters| {
            family
                .encode_family(&[("worker", worker)])?
                .encode_counter::<NoLabelSet, _, u64>(&value(counters), None)
        })
    }

    fn counter_seconds(
        &mut self,
        metric: &Metric,
        nanos: impl Fn(&Counters) -> u64,
    ) -> fmt::Result {
        self.each_worker(metric, |family, worker, counters| {
            family
                .encode_family(&[("worker", worker)])?
                .encode_counter::<NoLabelSet, _, u64>(&seconds(nanos(counters)), None)
        })
    }

    fn gauge(&mut self, metric: &Metric, value: impl Fn(&Counters) -> f64) -> fmt::Result {
        self.each_worker(metric, |family, worker, counters| {
            family.encode_family(&[("worker", worker)])?.encode_gauge(&value(counters))
        })
    }

    fn counters<L: Label, const N: usize>(
        &mut self,
        metric: &Metric,
        set: impl Fn(&Counters) -> &ByLabel<N>,
    ) -> fmt::Result {
        let key = second_label(metric);
        self.each_worker(metric, |family, worker, counters| {
            for label in L::ALL {
                family
                    .encode_family(&[("worker", worker), (key, label.label())])?
                    .encode_counter::<NoLabelSet, _, u64>(&set(counters).of(*label).get(), None)?;
            }
            Ok(())
        })
    }

    fn gauges<L: Label, const N: usize>(
        &mut self,
        metric: &Metric,
        set: impl Fn(&Counters) -> &ByLabel<N>,
    ) -> fmt::Result {
        let key = second_label(metric);
        self.each_worker(metric, |family, worker, counters| {
            for label in L::ALL {
                family
                    .encode_family(&[("worker", worker), (key, label.label())])?
                    .encode_gauge(&set(counters).of(*label).get())?;
            }
            Ok(())
        })
    }

    fn sockets(
        &mut self,
        metric: &Metric,
        kernel: &Kernel,
        value: impl Fn(&Socket) -> &Counter,
    ) -> fmt::Result {
        let mut family = self.family(metric)?;
        for socket in kernel.sockets() {
            let (worker, address) = (socket.worker.to_string(), socket.address.to_string());
            let labels = [
                ("worker", worker.as_str()),
                ("listener", socket.listener.as_str()),
                ("address", address.as_str()),
            ];
            let (mut one, value) = (family.encode_family(&labels)?, value(socket).get());
            match metric.kind {
                Kind::Counter => one.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                _ => one.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn resumptions(&mut self, metric: &Metric) -> fmt::Result {
        self.each_worker(metric, |family, worker, counters| {
            for kind in ResumptionKind::ALL {
                for result in ResumptionResult::ALL {
                    let labels =
                        [("worker", worker), ("kind", kind.label()), ("result", result.label())];
                    let value = counters.resumptions(*kind).of(*result).get();
                    family
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
            }
            Ok(())
        })
    }

    fn steps(
        &mut self,
        metric: &Metric,
        value: impl Fn([&ByLabel<{ KeyType::COUNT }>; 2], KeyType) -> f64,
    ) -> fmt::Result {
        self.each_worker(metric, |family, worker, counters| {
            for step in HandshakeStep::ALL {
                for key in KeyType::ALL {
                    let labels = [("worker", worker), ("step", step.label()), ("key", key.label())];
                    family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(
                        &value(counters.steps(*step), *key),
                        None,
                    )?;
                }
            }
            Ok(())
        })
    }

    fn histograms<L: Label>(
        &mut self,
        metric: &Metric,
        of: impl Fn(&Counters, L) -> &Histogram,
    ) -> fmt::Result {
        let key = second_label(metric);
        self.each_worker(metric, |family, worker, counters| {
            for label in L::ALL {
                let histogram = of(counters, *label);
                let buckets = buckets(histogram);
                // The count is the buckets' sum, so that the two agree within one scrape.
                let count = buckets.iter().map(|(_, count)| count).sum();
                family
                    .encode_family(&[("worker", worker), (key, label.label())])?
                    .encode_histogram::<NoLabelSet>(
                        seconds(histogram.sum_nanos()),
                        count,
                        &buckets,
                        None,
                    )?;
            }
            Ok(())
        })
    }
}

/// Upper bounds in seconds with counts, not cumulative: the encoder adds them up.
fn buckets(histogram: &Histogram) -> Vec<(f64, u64)> {
    BOUNDS_NANOS
        .iter()
        .map(|nanos| seconds(*nanos))
        .chain([f64::INFINITY])
        .zip(histogram.buckets())
        .collect()
}

fn second_label(metric: &Metric) -> &'static str {
    debug_assert_eq!(metric.labels.len(), 2, "{}", metric.name);
    metric.labels.get(1).copied().unwrap_or_default()
}

fn seconds(nanos: u64) -> f64 {
    float(nanos) / NANOS_PER_SECOND
}

#[expect(
    clippy::cast_precision_loss,
    reason = "samples are doubles; beyond 2^53 ns, 104 days of busy time, the last digit blurs"
)]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests;
