//! What a run has measured, as it stands in `results.json`.

use serde::Serialize;

use crate::support::measure::Sample;
use crate::support::program::Program;
use crate::support::spread::{Spread, median_ratio};
use crate::support::work::Work;

/// A whole run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// CPU, memory, kernel.
    pub(crate) machine: String,
    /// What was run.
    pub(crate) command: String,
    /// Key of the certificate.
    pub(crate) certificate: String,
    /// Each server's name and version.
    pub(crate) versions: Vec<(String, String)>,
    /// Which CPUs each number of workers had.
    pub(crate) placements: Vec<String>,
    /// Times that each server was measured.
    pub(crate) rounds: usize,
    /// Seconds of each measurement.
    pub(crate) seconds: f64,
    /// Connections whose idle memory was measured.
    pub(crate) idle: usize,
    /// One for each kind of work.
    pub(crate) comparisons: Vec<Comparison>,
    /// User memory in bytes per idle connection.
    pub(crate) memory: Vec<Memory>,
}

/// All servers at one kind of work.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// Its name.
    pub(crate) work: &'static str,
    /// What it is, in a few words.
    pub(crate) what: String,
    /// Of `cost`; the unit of `system_calls` is what comes after the stroke.
    pub(crate) unit: &'static str,
    /// Servers, with one number of workers after the other.
    pub(crate) entries: Vec<Entry>,
}

/// One server at one kind of work.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) server: String,
    /// A build of Portcullis.
    pub(crate) ours: bool,
    /// Its workers, one CPU each.
    pub(crate) workers: usize,
    /// One for each round that succeeded.
    pub(crate) samples: Vec<Sample>,
    /// Why the others did not.
    pub(crate) errors: Vec<String>,
    /// Of the samples' costs.
    pub(crate) cost: Option<Spread>,
    /// Median of the rounds' ratios to the best peer with as many workers, which is the one with
    /// the lowest median.
    pub(crate) ratio_to_best_peer: Option<f64>,
    /// Of the samples' median latencies, in microseconds.
    pub(crate) p50: Option<Spread>,
    /// Of the latencies that 99 of 100 of each sample's operations did not exceed.
    pub(crate) p99: Option<Spread>,
    /// Of the samples' system calls per operation, or per GiB.
    pub(crate) system_calls: Option<Spread>,
}

/// Memory of one server.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    /// Its name.
    pub(crate) server: String,
    /// A build of Portcullis.
    pub(crate) ours: bool,
    /// Its workers.
    pub(crate) workers: usize,
    /// One for each round that succeeded.
    pub(crate) samples: Vec<f64>,
    /// Why the others did not.
    pub(crate) errors: Vec<String>,
    /// Of the samples.
    pub(crate) bytes: Option<Spread>,
}

impl Comparison {
    pub(crate) fn new(work: Work) -> Self {
        let what = format!("{}, {} connections", work.handshake_words(), work.connections);
        Self { work: work.name, what, unit: work.unit(), entries: Vec::new() }
    }

    /// Adds the servers with one number of workers.
    pub(crate) fn add(&mut self, mut entries: Vec<Entry>) {
        let best = entries
            .iter()
            .filter(|entry| !entry.ours)
            .filter_map(|entry| Some((entry.cost?.median, entry.costs())))
            .min_by(|(one, _), (other, _)| one.total_cmp(other));
        if let Some((_, best)) = best {
            for entry in &mut entries {
                entry.ratio_to_best_peer = median_ratio(&entry.costs(), &best);
            }
        }
        self.entries.append(&mut entries);
    }

    /// Work whose unit is a GiB.
    pub(crate) fn is_bulk(&self) -> bool {
        self.unit.ends_with("GiB")
    }
}

impl Entry {
    pub(crate) fn new(
        program: &Program,
        workers: usize,
        samples: Vec<Sample>,
        errors: Vec<String>,
    ) -> Self {
        let of = |field: fn(&Sample) -> Option<f64>| Spread::of(samples.iter().filter_map(field));
        Self {
            server: program.name.clone(),
            ours: program.is_ours(),
            workers,
            errors,
            cost: of(|sample| Some(sample.cost)),
            ratio_to_best_peer: None,
            p50: of(|sample| sample.p50),
            p99: of(|sample| sample.p99),
            system_calls: of(|sample| sample.system_calls),
            samples,
        }
    }

    fn costs(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.cost).collect()
    }

    /// The median of a field of the samples.
    pub(crate) fn median(&self, field: fn(&Sample) -> f64) -> f64 {
        Spread::of(self.samples.iter().map(field)).map_or(0.0, |spread| spread.median)
    }

    /// The clients kept it busy: it was on its CPUs, or others were, for nearly all of the time.
    pub(crate) fn was_saturated(&self) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a few CPUs")]
        let most = self.workers as f64;
        self.median(|sample| sample.busy + sample.queued) > 0.9 * most
    }
}

/// What else an operation has besides CPU time, less of which is better.
type Measure = fn(&Entry) -> Option<Spread>;
const MEASURES: [(&str, Measure); 2] =
    [("p99", |entry| entry.p99), ("system calls", |entry| entry.system_calls)];

impl Comparison {
    /// Each case in which a build of Portcullis has more than the best peer with as many workers,
    /// or has failed.
    fn losses(&self) -> Vec<String> {
        let mut losses = Vec::new();
        for ours in self.entries.iter().filter(|entry| entry.ours) {
            let case = format!("`{}`, {}, {} workers", self.work, ours.server, ours.workers);
            if ours.cost.is_none() {
                losses.push(format!("{case}: failed"));
            }
            if let Some(ratio) = ours.ratio_to_best_peer.filter(|ratio| *ratio > 1.0) {
                losses.push(format!("{case}: {ratio:.2} x the CPU time of the best peer"));
            }
            for (name, measure) in MEASURES {
                let peers =
                    self.entries.iter().filter(|peer| !peer.ours && peer.workers == ours.workers);
                if let Some(ratio) = excess(measure(ours), peers.filter_map(measure)) {
                    losses.push(format!("{case}: {ratio:.2} x the {name} of the best peer"));
                }
            }
        }
        losses
    }
}

impl Results {
    /// Each case in which a build of Portcullis has more than the best peer: of CPU time, of p99,
    /// of system calls, of memory.
    pub(crate) fn losses(&self) -> Vec<String> {
        let mut losses: Vec<_> = self.comparisons.iter().flat_map(Comparison::losses).collect();
        for ours in self.memory.iter().filter(|memory| memory.ours) {
            let peers = self.memory.iter().filter(|of| !of.ours && of.workers == ours.workers);
            if let Some(ratio) = excess(ours.bytes, peers.filter_map(|peer| peer.bytes)) {
                let case = format!("idle memory, {}, {} workers", ours.server, ours.workers);
                losses.push(format!("{case}: {ratio:.2} x that of the best peer"));
            }
        }
        losses
    }
}

/// How many times the least median of the peers' is ours, if it is more.
fn excess(ours: Option<Spread>, peers: impl Iterator<Item = Spread>) -> Option<f64> {
    let least = peers.map(|peer| peer.median).min_by(f64::total_cmp)?;
    Some(ours?.median / least).filter(|ratio| *ratio > 1.0)
}
