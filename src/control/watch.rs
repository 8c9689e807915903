//! Watching the counters: workers never log, so the control thread looks every
//! [`crate::limits::WATCH_INTERVAL`] and says once when a limit starts to bite and once when it
//! stops, that a stage panicked, and, in samples, why handshakes fail and connections are cut.

use std::fmt;
use std::time::Instant;

use crate::config::{Limits, Timeouts, show_duration};
use crate::limits::{
    CLIENT_HELLO_RECORDS_MAX, FAILURE_SUMMARY_INTERVAL, LIMIT_QUIET, RECEIVE_BUFFERS,
};
use crate::telemetry::counters::Counters;
use crate::telemetry::exposition::Process;
use crate::telemetry::labels::{CloseReason, HandshakeOutcome, Label, Limit};
use crate::telemetry::log::{Episode, Sampled, Turn};

/// The values of the limits, for the lines about them.
#[derive(Debug, Clone)]
pub struct Values {
    /// Connections per worker.
    pub connections_per_worker: u32,
    /// `limits`.
    pub limits: Limits,
    /// `RLIMIT_NOFILE`, as raised.
    pub open_files: u64,
    /// `timeouts`.
    pub timeouts: Timeouts,
}

/// One line for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A limit starts to bite.
    LimitReached {
        /// Worker's number.
        worker: usize,
        /// Which limit.
        limit: Limit,
    },
    /// A limit has not bitten for [`LIMIT_QUIET`].
    LimitOver {
        /// Worker's number.
        worker: usize,
        /// Which limit.
        limit: Limit,
    },
    /// Stages panicked since the last look.
    Panics {
        /// Worker's number.
        worker: usize,
        /// How many.
        count: u64,
    },
    /// Handshakes failed, on all workers together.
    HandshakesFailed {
        /// Why.
        outcome: HandshakeOutcome,
        /// How many since the last such line.
        count: u64,
    },
    /// Connections ended in a way that an operator can do something about, on all workers together.
    Cut {
        /// Why.
        reason: CloseReason,
        /// How many since the last such line.
        count: u64,
    },
}

/// What was seen before.
#[derive(Debug)]
pub struct Watch {
    workers: Vec<Seen>,
    failures: Vec<(u64, Sampled)>,
    cuts: Vec<(u64, Sampled)>,
}

#[derive(Debug)]
struct Seen {
    limits: Vec<(u64, Episode)>,
    panics: u64,
}

impl Watch {
    /// Nothing seen yet.
    pub fn new(workers: usize) -> Self {
        let seen =
            || Seen { limits: vec![(0, Episode::new(LIMIT_QUIET)); Limit::COUNT], panics: 0 };
        Self {
            workers: std::iter::repeat_with(seen).take(workers).collect(),
            failures: vec![(0, Sampled::new(FAILURE_SUMMARY_INTERVAL)); HandshakeOutcome::COUNT],
            cuts: vec![(0, Sampled::new(FAILURE_SUMMARY_INTERVAL)); CloseReason::COUNT],
        }
    }

    /// What there is to say since the last look.
    pub fn look(&mut self, process: &Process, now: Instant) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (worker, (seen, observed)) in self.workers.iter_mut().zip(&process.workers).enumerate()
        {
            seen.look(worker, &observed.counters, now, &mut notices);
        }
        for (outcome, (total, sampled)) in HandshakeOutcome::ALL.iter().zip(&mut self.failures) {
            if *outcome == HandshakeOutcome::Ok {
                continue;
            }
            let new = process.sum(|counters| counters.handshakes.of(*outcome).get());
            if let Some(count) = sampled.add(grown(total, new), now) {
                notices.push(Notice::HandshakesFailed { outcome: *outcome, count });
            }
        }
        for (reason, (total, sampled)) in CloseReason::ALL.iter().zip(&mut self.cuts) {
            if !is_told(*reason) {
                continue;
            }
            let new = process.sum(|counters| counters.closed.of(*reason).get());
            if let Some(count) = sampled.add(grown(total, new), now) {
                notices.push(Notice::Cut { reason: *reason, count });
            }
        }
        notices
    }
}

impl Seen {
    fn look(
        &mut self,
        worker: usize,
        counters: &Counters,
        now: Instant,
        notices: &mut Vec<Notice>,
    ) {
        let paused = counters.accept_paused.get() > 0;
        for (limit, (total, episode)) in Limit::ALL.iter().zip(&mut self.limits) {
            let new = grown(total, counters.limits.of(*limit).get()) > 0;
            // A pause without end is one long bite, counted once.
            let goes_on = paused && pauses_accept(*limit) && episode.is_going_on();
            let limit = *limit;
            match episode.observe(new || goes_on, now) {
                Turn::Started => notices.push(Notice::LimitReached { worker, limit }),
                Turn::Ended => notices.push(Notice::LimitOver { worker, limit }),
                Turn::Same => {}
            }
        }
        let count = grown(&mut self.panics, counters.panics.get());
        if count > 0 {
            notices.push(Notice::Panics { worker, count });
        }
    }
}

/// By how much a counter has grown; remembers the new value.
fn grown(seen: &mut u64, now: u64) -> u64 {
    let before = std::mem::replace(seen, now);
    now.saturating_sub(before)
}

fn pauses_accept(limit: Limit) -> bool {
    matches!(limit, Limit::ConnectionsPerWorker | Limit::KernelFiles | Limit::HandshakesPending)
}

impl Notice {
    /// Writes the line to the log.
    pub fn log(self, values: &Values) {
        let text = Text(self, values);
        match self {
            Self::LimitReached { .. } => tracing::warn!("{text}"),
            Self::Panics { .. } => tracing::error!("{text}"),
            Self::LimitOver { .. } | Self::HandshakesFailed { .. } => tracing::info!("{text}"),
            Self::Cut { reason, .. } if is_of_clients(reason) => tracing::info!("{text}"),
            Self::Cut { .. } => tracing::warn!("{text}"),
        }
    }
}

/// What an operator may change about handshakes that fail so, if anything.
fn failure(outcome: HandshakeOutcome, values: &Values) -> String {
    let key = match outcome {
        HandshakeOutcome::Timeout => {
            return format!("; timeouts.handshake is {:?}", values.timeouts.handshake);
        }
        HandshakeOutcome::ClientHelloTimeout => {
            return format!("; timeouts.client_hello is {:?}", values.timeouts.client_hello);
        }
        HandshakeOutcome::ClientHelloTooLarge => {
            return format!("; limits.client_hello_bytes is {}", values.limits.client_hello_bytes);
        }
        HandshakeOutcome::Draining => {
            return format!("; timeouts.drain is {:?}", values.timeouts.drain);
        }
        HandshakeOutcome::ClientCertificateStatusUnknown => {
            return "; listener.client_auth.crl has no list of an issuer, or one past its next \
                    update: put the newer one there and start again"
                .to_owned();
        }
        HandshakeOutcome::ConnectionRate => "limits.connection_rate",
        HandshakeOutcome::ListenerConnectionRate => "listener.connection_rate",
        HandshakeOutcome::SourceConnections => "limits.per_source.connections",
        HandshakeOutcome::SourceHandshakes => "limits.per_source.handshakes",
        HandshakeOutcome::SourceHandshakeCpu => "limits.per_source.handshake_cpu",
        HandshakeOutcome::ClientCertificateRequired => "listener.client_auth.mode",
        HandshakeOutcome::ClientCertificateRevoked => "listener.client_auth.crl",
        HandshakeOutcome::ClientCertificateUnknownIssuer => "listener.client_auth.ca",
        HandshakeOutcome::Overload => "handshake.queue_deadline and handshake.max_pending",
        HandshakeOutcome::NoApplicationProtocol => "listener.alpn",
        HandshakeOutcome::NoSharedCertificate | HandshakeOutcome::UnrecognizedName => {
            "listener.certificate"
        }
        HandshakeOutcome::NoSharedCipher => "tls.cipher_suites",
        HandshakeOutcome::NoSharedGroup => "tls.groups",
        HandshakeOutcome::NoSharedVersion => "tls.versions",
        HandshakeOutcome::Ok
        | HandshakeOutcome::BadHandshake
        | HandshakeOutcome::BadRecord
        | HandshakeOutcome::ClientAlert
        | HandshakeOutcome::ClientCertificateChainTooLong
        | HandshakeOutcome::ClientCertificateExpired
        | HandshakeOutcome::ClientCertificateRefused
        | HandshakeOutcome::ClientClosed
        | HandshakeOutcome::ClientHelloTooManyRecords
        | HandshakeOutcome::ClientReset
        | HandshakeOutcome::InternalError
        | HandshakeOutcome::NotTls
        | HandshakeOutcome::PlainHttp => return String::new(),
    };
    format!("; {key} decides")
}

/// What an operator may change about connections that end so, if anything.
fn cut(reason: CloseReason, values: &Values) -> String {
    let timeouts = &values.timeouts;
    match reason {
        CloseReason::ConnectFailed => {
            "; the backend's servers refuse connections or cannot be reached".to_owned()
        }
        CloseReason::ConnectTimeout => format!(
            "; the backend's servers do not answer within timeouts.connect, {:?}",
            timeouts.connect
        ),
        CloseReason::NoServer => "; no name of the backend's servers resolves".to_owned(),
        CloseReason::QueueTimeout => {
            "; they waited for backend.queue.timeout because every server had max_connections: add \
             servers, or raise the one that has room"
                .to_owned()
        }
        CloseReason::IdleTimeout => format!("; timeouts.idle is {:?}", timeouts.idle),
        CloseReason::HalfClosedTimeout => {
            format!("; timeouts.half_closed is {:?}", timeouts.half_closed)
        }
        CloseReason::ClientTooSlow => format!(
            "; they took fewer than limits.min_rate, {} bytes a second, over \
             timeouts.stalled, {:?}",
            values.limits.min_rate, timeouts.stalled
        ),
        CloseReason::ServerTooSlow => format!(
            "; the backend's servers took fewer than limits.min_rate, {} bytes a second, over \
             timeouts.stalled, {:?}",
            values.limits.min_rate, timeouts.stalled
        ),
        CloseReason::RecordTimeout => format!(
            "; a TLS record was begun and not complete within timeouts.stalled, {:?}",
            timeouts.stalled
        ),
        CloseReason::DrainTimeout => format!("; timeouts.drain is {:?}", timeouts.drain),
        CloseReason::Finished
        | CloseReason::ClientTruncated
        | CloseReason::ClientReset
        | CloseReason::ClientViolation
        | CloseReason::ServerReset
        | CloseReason::HandshakeFailed
        | CloseReason::QueueFull
        | CloseReason::InternalError => String::new(),
    }
}

/// Whether there is a line about connections that end so. The others end by the peers' doing, or
/// are told of as failed handshakes and panics.
fn is_told(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::ConnectFailed
            | CloseReason::ConnectTimeout
            | CloseReason::NoServer
            | CloseReason::QueueTimeout
            | CloseReason::IdleTimeout
            | CloseReason::HalfClosedTimeout
            | CloseReason::ClientTooSlow
            | CloseReason::ServerTooSlow
            | CloseReason::RecordTimeout
            | CloseReason::DrainTimeout
    )
}

/// Everyday ends, which no server of the operator's is to blame for.
fn is_of_clients(reason: CloseReason) -> bool {
    matches!(
        reason,
        CloseReason::IdleTimeout
            | CloseReason::HalfClosedTimeout
            | CloseReason::ClientTooSlow
            | CloseReason::RecordTimeout
    )
}

const SERVERS_ARE_FULL: &str = "every server of a backend has max_connections, and clients wait \
    in line, for backend.queue.timeout at most; portcullis_backend_waiting says how many; raise \
    max_connections if the servers have room, or add servers";
const LINE_IS_FULL: &str = "backend.queue.max clients wait for a server already, and more get a \
    reset; add servers, or raise backend.queue.max if they would be served within \
    backend.queue.timeout";

/// What a limit that bites does, and which key changes it.
fn advice(f: &mut fmt::Formatter<'_>, limit: Limit, values: &Values) -> fmt::Result {
    match limit {
        Limit::ConnectionsPerWorker => write!(
            f,
            "all {} connections are in use, and accept pauses until one ends; raise \
             limits.connections_per_worker (and the descriptor limit) or add workers",
            values.connections_per_worker
        ),
        Limit::KernelFiles => write!(
            f,
            "the kernel has no descriptors or memory for another connection, and \
             accept pauses until it has; the descriptor limit is {}: raise \
             LimitNOFILE= (ulimit -n) or fs.file-max, or lower \
             limits.connections_per_worker",
            values.open_files
        ),
        Limit::HandshakesPending => write!(
            f,
            "more handshakes wait for the processor than handshake.max_pending allows, and accept \
             pauses until a quarter of them is done; the kernel queues up to listener.backlog \
             clients meanwhile; add workers or cores, or see who floods you"
        ),
        Limit::HandshakesDropped => write!(
            f,
            "handshakes waited longer than handshake.queue_deadline, and their clients got a reset \
             before any cryptography; add workers or cores, or see who floods you"
        ),
        Limit::ConnectionRate
        | Limit::ListenerConnectionRate
        | Limit::SourceConnections
        | Limit::SourceHandshakes
        | Limit::SourceHandshakeCpu
        | Limit::SourceTable => f.write_str(&admission_advice(limit, &values.limits)),
        Limit::ClientHelloBytes => write!(
            f,
            "a client sent more than {} bytes without a complete ClientHello and was \
             refused; if it is genuine, raise limits.client_hello_bytes",
            values.limits.client_hello_bytes
        ),
        Limit::ClientHelloRecords => write!(
            f,
            "a client sent its ClientHello in more than {CLIENT_HELLO_RECORDS_MAX} records and was \
             refused; no client known does that"
        ),
        Limit::ReceiveBuffers => write!(
            f,
            "all {RECEIVE_BUFFERS} receive buffers are in use, and receives wait a \
             turn; no data is lost; add workers (workers.count) if it lasts"
        ),
        Limit::SessionsPerWorker | Limit::Sessions | Limit::SessionBytes => {
            f.write_str(session_advice(limit))
        }
        Limit::ServerConnections => f.write_str(SERVERS_ARE_FULL),
        Limit::BackendQueue => f.write_str(LINE_IS_FULL),
        Limit::AccessLogRecords => write!(
            f,
            "the access log does not keep up and records are dropped; put \
             access_log.path on a faster disk, or remove [access_log]"
        ),
    }
}

/// [`advice`] about sessions.
fn session_advice(limit: Limit) -> &'static str {
    match limit {
        Limit::SessionsPerWorker => {
            "older sessions leave the worker's own cache for newer ones; that costs nothing while \
             the cache of all workers has them; else raise resumption.sessions_per_worker"
        }
        Limit::Sessions => {
            "older sessions leave the cache of all workers for newer ones, and their clients will \
             need a full handshake; raise resumption.sessions and resumption.session_bytes"
        }
        _ => {
            "a session is too large to be kept or sealed into a ticket, because its client's \
             certificates are; such clients need a full handshake each time"
        }
    }
}

/// [`advice`] about the limits that refuse clients.
fn admission_advice(limit: Limit, limits: &Limits) -> String {
    let per_source = &limits.per_source;
    let count = |value: Option<u32>| value.map_or_else(String::new, |value| format!(" of {value}"));
    let networks = "; raise it, or name in limits.per_source.allow the networks behind which many \
                    clients share an address";
    match limit {
        Limit::ConnectionRate => format!(
            "new connections come faster than limits.connection_rate{} a second, and those above \
             it are refused; raise it, or see who floods you",
            count(limits.connection_rate)
        ),
        Limit::ListenerConnectionRate => "new connections come faster than the connection_rate of \
             their listener, and those above it are refused; raise it, or see who floods you"
            .to_owned(),
        Limit::SourceConnections => format!(
            "a source has its limits.per_source.connections{}, and what it opens besides is \
             refused{networks}",
            count(per_source.connections)
        ),
        Limit::SourceHandshakes => format!(
            "a source has its limits.per_source.handshakes{} under way, and what it opens besides \
             is refused{networks}",
            count(per_source.handshakes)
        ),
        Limit::SourceHandshakeCpu => format!(
            "a source's handshakes have cost its limits.per_source.handshake_cpu{} a second, and \
             those above it are refused before any cryptography{networks}",
            per_source
                .handshake_cpu
                .map_or_else(String::new, |cpu| { format!(" of {}", show_duration(cpu)) })
        ),
        _ => format!(
            "more sources have something open than limits.per_source.sources, {}, can count side \
             by side, and newcomers are let in uncounted; raise it (16 bytes each)",
            per_source.sources
        ),
    }
}

struct Text<'a>(Notice, &'a Values);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.1;
        match self.0 {
            Notice::LimitReached { worker, limit } => {
                write!(f, "worker {worker}: limit {limit} reached: ")?;
                advice(f, limit, values)
            }
            Notice::LimitOver { worker, limit } => {
                write!(f, "worker {worker}: limit {limit} no longer reached for {LIMIT_QUIET:?}")
            }
            Notice::Panics { worker, count } => write!(
                f,
                "worker {worker}: {count} connection(s) ended by a defect of Portcullis; please \
                 report the panic message above; no other connection was harmed"
            ),
            Notice::HandshakesFailed { outcome, count } => write!(
                f,
                "{count} handshake(s) failed: {outcome}{} (at most one line for each reason in \
                 {FAILURE_SUMMARY_INTERVAL:?})",
                failure(outcome, values)
            ),
            Notice::Cut { reason, count } => write!(
                f,
                "{count} connection(s) ended: {reason}{} (at most one line for each reason in \
                 {FAILURE_SUMMARY_INTERVAL:?})",
                cut(reason, values)
            ),
        }
    }
}

#[cfg(test)]
mod tests;
