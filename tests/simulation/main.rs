//! The worker on a simulated kernel, network and clock; one seed decides everything.
//!
//! - `cargo test --test simulation`: fixed seeds and hand-written scenarios.
//! - `PORTCULLIS_SEED=123 cargo test --test simulation replay -- --nocapture`: one seed again.
//! - `PORTCULLIS_SEEDS=1000 cargo test --test simulation seeds`: a wider sweep.
//!
//! Reading order: `run` (one run), `conversation` (the laws), `faults` (what goes wrong), `client`
//! and `server` (the model peers), `world` (events), `network` (TCP), `sim_io` and `execute` (the
//! kernel). `permits` runs several workers that share a backend's permits.

#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at what it did not expect"
)]

mod apart;
mod client;
mod conversation;
mod execute;
mod faults;
mod kernel_tests;
mod network;
mod pattern;
mod permits;
mod queue;
mod random;
mod receive_buffers;
mod run;
mod scenarios;
mod server;
mod sim_io;
mod slow;
mod sources;
mod trust;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use portcullis::telemetry::labels::{
    CloseReason, HandshakeOutcome, Label, Limit, ResumptionKind, ResumptionResult,
};

use run::{Outcome, Setting};

/// Seeds that each test run covers; `PORTCULLIS_SEEDS` replaces the number.
const SEEDS: u64 = 1000;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// Runs one seed; a failure has told its reason and how to replay it.
fn run_seed(seed: u64) -> Option<Outcome> {
    let result = catch_unwind(AssertUnwindSafe(|| Setting::draw(seed).run()));
    if result.is_err() {
        eprintln!(
            "seed {seed} failed; to replay it:\n    \
             PORTCULLIS_SEED={seed} cargo test --test simulation replay -- --nocapture"
        );
    }
    result.ok()
}

/// How often connections of all seeds ended so.
#[derive(Default)]
struct Reached(BTreeMap<&'static str, u64>);

impl Reached {
    fn add(&mut self, outcome: &Outcome) {
        let counters = &outcome.counters;
        for reason in CloseReason::ALL {
            *self.0.entry(reason.label()).or_default() += counters.closed.of(*reason).get();
        }
        for handshake in HandshakeOutcome::ALL {
            let count = counters.handshakes.of(*handshake).get();
            *self.0.entry(handshake.label()).or_default() += count;
        }
        for limit in Limit::ALL {
            *self.0.entry(limit.label()).or_default() += counters.limits.of(*limit).get();
        }
        *self.0.entry("connect_retries").or_default() += counters.connect_retries.get();
        *self.0.entry("steps_apart").or_default() += counters.steps_apart.get();
        *self.0.entry("rests").or_default() += counters.rests.get();
        for kind in [ResumptionKind::Ticket, ResumptionKind::Psk] {
            let resumed = counters.resumptions(kind).of(ResumptionResult::Resumed).get();
            *self.0.entry(kind.label()).or_default() += resumed;
        }
    }

    /// A sweep that never gets somewhere proves nothing about it.
    fn assert_everywhere(&self) {
        eprintln!("{:#?}", self.0);
        for label in [
            "finished",
            "client_truncated",
            "client_reset",
            "client_violation",
            "server_reset",
            "connect_failed",
            "connect_timeout",
            "handshake_failed",
            "idle_timeout",
            "half_closed_timeout",
            "client_too_slow",
            "server_too_slow",
            "record_timeout",
            "client_hello_timeout",
            "drain_timeout",
            "client_closed",
            "client_hello_too_large",
            "timeout",
            "plain_http",
            "not_tls",
            "draining",
            "connections_per_worker",
            "kernel_files",
            "receive_buffers",
            "connection_rate",
            "listener_connection_rate",
            "source_connections",
            "source_handshakes",
            "source_handshake_cpu",
            "connect_retries",
            "steps_apart",
            "rests",
            "server_connections",
            "backend_queue",
            "queue_full",
            "queue_timeout",
            "ticket",
            "psk",
        ] {
            assert!(self.0[label] > 0, "no seed reached {label}");
        }
        assert_eq!(self.0["internal_error"], 0);
    }
}

#[test]
fn seeds_keep_every_law() {
    let seeds = number_from("PORTCULLIS_SEEDS").unwrap_or(SEEDS);
    let mut reached = Reached::default();
    let mut failed = Vec::new();
    for seed in 0..seeds {
        match run_seed(seed) {
            Some(outcome) => reached.add(&outcome),
            None => failed.push(seed),
        }
    }
    assert!(failed.is_empty(), "{} of {seeds} seeds failed, see above: {failed:?}", failed.len());
    if seeds >= SEEDS {
        reached.assert_everywhere();
    }
}

#[test]
fn replay() {
    let seed = number_from("PORTCULLIS_SEED").unwrap_or(0);
    println!("seed {seed}: {:#?}", Setting::draw(seed));
    let outcome = run_seed(seed).expect("see above");
    for (talk, record) in outcome.talks.iter().zip(&outcome.records) {
        println!("{talk:#?}\n{record:#?}");
    }
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 0..5 {
        let trace = || run_seed(seed).expect("see above").trace;
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}
