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
    /// Rounds, and the seconds of each measurement.
    pub(crate) rounds: usize,
    /// See `rounds`.
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
    /// Of the samples' latencies.
    pub(crate) p50: Option<Spread>,
    /// See `p50`.
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

impl Results {
    /// Each comparison in which a build of Portcullis has more than the best peer: of CPU time, of
    /// the slowest operations' time, of memory.
    pub(crate) fn losses(&self) -> Vec<String> {
        let mut losses = Vec::new();
        for Comparison { work, entries, .. } in &self.comparisons {
            for ours in entries.iter().filter(|entry| entry.ours) {
                let Entry { server, workers, .. } = ours;
                let case = format!("`{work}`, {server}, {workers} workers");
                if let Some(ratio) = ours.ratio_to_best_peer.filter(|ratio| *ratio > 1.0) {
                    losses.push(format!("{case}: {ratio:.2} x the CPU time of the best peer"));
                }
                let peers = entries.iter().filter(|peer| !peer.ours && peer.workers == *workers);
                let slowest = |entry: &Entry| Some((entry.p99?.median, entry.server.clone()));
                let best = peers.filter_map(slowest).min_by(|a, b| a.0.total_cmp(&b.0));
                if let (Some((ours, _)), Some((best, peer))) = (slowest(ours), best)
                    && ours > best
                {
                    losses.push(format!("{case}: {:.2} x the p99 of {peer}", ours / best));
                }
            }
            for entry in entries.iter().filter(|entry| entry.ours && entry.cost.is_none()) {
                losses
                    .push(format!("`{work}`, {}, {} workers: failed", entry.server, entry.workers));
            }
        }
        for ours in self.memory.iter().filter(|memory| memory.ours) {
            let peers =
                self.memory.iter().filter(|peer| !peer.ours && peer.workers == ours.workers);
            let least = peers.filter_map(|peer| peer.bytes).map(|bytes| bytes.median);
            if let (Some(bytes), Some(least)) = (ours.bytes, least.min_by(f64::total_cmp))
                && bytes.median > least
            {
                losses.push(format!(
                    "idle memory, {}, {} workers: {:.2} x that of the best peer",
                    ours.server,
                    ours.workers,
                    bytes.median / least,
                ));
            }
        }
        losses
    }
}
