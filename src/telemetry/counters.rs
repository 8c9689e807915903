//! A worker's counters: written by that worker alone, read by the control thread at any time.
//! No lock and no locked instruction: a single writer may load and store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::histogram::Histogram;
use super::labels::{
    CloseReason, GivingWay, Group, HandshakeOutcome, HandshakeQueue, HandshakeStep, KeyType, Label,
    Limit, ResumptionKind, ResumptionResult, Span, State, Suite, Version,
};

/// One number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker calls it.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Subtracts `n`. Only the owning worker calls it, on gauges.
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// Sets a gauge to `n`. Only its owner calls it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Raises the value to `n` if it is lower. Only the owning worker calls it.
    pub fn raise_to(&self, n: u64) {
        if n > self.0.load(Relaxed) {
            self.0.store(n, Relaxed);
        }
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One counter for each value of a closed set.
#[derive(Debug)]
pub struct ByLabel<const N: usize>([Counter; N]);

impl<const N: usize> Default for ByLabel<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> ByLabel<N> {
    /// The counter of `label`.
    ///
    /// # Panics
    /// When `label` is of another set than this array was made for.
    #[expect(clippy::indexing_slicing, reason = "sizes come from the label set itself")]
    pub fn of<L: Label>(&self, label: L) -> &Counter {
        debug_assert_eq!(N, L::ALL.len(), "counters of another label set");
        &self.0[label.index()]
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: Counter,
    /// Gauge: open connections by state.
    pub connections: ByLabel<{ State::COUNT }>,
    /// Handshakes by how they ended.
    pub handshakes: ByLabel<{ HandshakeOutcome::COUNT }>,
    /// Completed handshakes by version.
    pub versions: ByLabel<{ Version::COUNT }>,
    /// Completed handshakes by suite.
    pub suites: ByLabel<{ Suite::COUNT }>,
    /// Completed handshakes by group.
    pub groups: ByLabel<{ Group::COUNT }>,
    /// Offers of a TLS 1.2 ticket by what came of them.
    pub ticket_resumptions: ByLabel<{ ResumptionResult::COUNT }>,
    /// Offers of a TLS 1.2 session ID by what came of them.
    pub session_id_resumptions: ByLabel<{ ResumptionResult::COUNT }>,
    /// Offers of a TLS 1.3 pre-shared key by what came of them.
    pub psk_resumptions: ByLabel<{ ResumptionResult::COUNT }>,
    /// Tickets given to clients.
    pub tickets: Counter,
    /// Sessions kept in the caches.
    pub sessions: Counter,
    /// Sessions not kept for all workers, because the cache was in use just then.
    pub sessions_contended: Counter,
    /// Gauge: sessions in the worker's own cache.
    pub cached_sessions: Counter,
    /// Gauge: bytes of these.
    pub cached_bytes: Counter,
    /// Gauge: operations that give way to others.
    pub operations_waiting: ByLabel<{ GivingWay::COUNT }>,
    /// Gauge: steps of handshakes that wait for the processor.
    pub handshake_queue: ByLabel<{ HandshakeQueue::COUNT }>,
    /// How long steps of handshakes waited for the processor.
    pub handshake_waits: [Histogram; HandshakeQueue::COUNT],
    /// Nanoseconds spent on steps of handshakes, by what they were and the certificate's key.
    pub handshake_nanos: [ByLabel<{ KeyType::COUNT }>; HandshakeStep::COUNT],
    /// Steps of handshakes, likewise.
    pub handshake_steps: [ByLabel<{ KeyType::COUNT }>; HandshakeStep::COUNT],
    /// Steps of handshakes that were done on another thread of the worker's core.
    pub steps_apart: Counter,
    /// Connections that were asked which CPU took in their last packet.
    pub cpu_samples: Counter,
    /// Of these, those whose CPU was the worker's own.
    pub cpu_matches: Counter,
    /// Connections by why they ended.
    pub closed: ByLabel<{ CloseReason::COUNT }>,
    /// Plaintext bytes from clients, opened for servers.
    pub inbound_bytes: Counter,
    /// Plaintext bytes from servers, sealed for clients.
    pub outbound_bytes: Counter,
    /// Connects that failed and were tried again on another server.
    pub connect_retries: Counter,
    /// Connects that failed.
    pub connect_failures: Counter,
    /// Times that a connection came to rest.
    pub rests: Counter,
    /// Limits that bit.
    pub limits: ByLabel<{ Limit::COUNT }>,
    /// Gauge: 1 while accept is paused because a limit bit.
    pub accept_paused: Counter,
    /// Time per part of a connection's life.
    pub spans: [Histogram; Span::COUNT],
    /// Turns of the loop.
    pub turns: Counter,
    /// Completions handled.
    pub completions: Counter,
    /// Nanoseconds spent handling completions (not waiting in the kernel).
    pub busy_nanos: Counter,
    /// The longest turn's handling, in nanoseconds.
    pub longest_turn_nanos: Counter,
    /// Completions that belonged to a connection already gone.
    pub stale_completions: Counter,
    /// Stages that panicked; each cost one connection.
    pub panics: Counter,
}

impl Counters {
    /// Offers of one kind to resume, by what came of them.
    pub fn resumptions(&self, kind: ResumptionKind) -> &ByLabel<{ ResumptionResult::COUNT }> {
        match kind {
            ResumptionKind::Ticket => &self.ticket_resumptions,
            ResumptionKind::SessionId => &self.session_id_resumptions,
            ResumptionKind::Psk => &self.psk_resumptions,
        }
    }

    /// Steps of one kind, and the nanoseconds that they took.
    #[expect(clippy::indexing_slicing, reason = "sized by HandshakeStep::COUNT")]
    pub fn steps(&self, step: HandshakeStep) -> [&ByLabel<{ KeyType::COUNT }>; 2] {
        [&self.handshake_steps[step.index()], &self.handshake_nanos[step.index()]]
    }

    /// How long steps waited in one queue.
    #[expect(clippy::indexing_slicing, reason = "sized by HandshakeQueue::COUNT")]
    pub fn handshake_wait(&self, queue: HandshakeQueue) -> &Histogram {
        &self.handshake_waits[queue.index()]
    }

    /// The histogram of one span.
    #[expect(clippy::indexing_slicing, reason = "sized by Span::COUNT")]
    pub fn span(&self, span: Span) -> &Histogram {
        &self.spans[span.index()]
    }
}
