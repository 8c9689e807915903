//! Every metric: its name, kind, unit, labels and meaning. What is not here is not exposed.

/// What a metric's samples mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts per bucket, with their sum.
    Histogram,
    /// Always 1; its labels are the information. Its name ends in `_info`.
    Info,
}

/// A metric's base unit; its name carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number of things.
    Count,
    /// `_bytes`.
    Bytes,
    /// `_seconds`.
    Seconds,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// As dashboards query it; a histogram's series add `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// What its samples mean.
    pub kind: Kind,
    /// Base unit.
    pub unit: Unit,
    /// One sentence, without its full stop.
    pub help: &'static str,
    /// Label names, in order.
    pub labels: &'static [&'static str],
}

impl Metric {
    /// The name without the suffixes that unit and kind add.
    pub fn stem(&self) -> &'static str {
        let name = match self.kind {
            Kind::Counter => self.name.trim_end_matches("_total"),
            Kind::Info => self.name.trim_end_matches("_info"),
            Kind::Gauge | Kind::Histogram => self.name,
        };
        match self.unit {
            Unit::Count => name,
            Unit::Bytes => name.trim_end_matches("_bytes"),
            Unit::Seconds => name.trim_end_matches("_seconds"),
        }
    }
}

macro_rules! metrics {
    ($(
        $ident:ident: $name:literal $kind:ident $unit:ident [$($label:literal),*] $help:literal;
    )+) => {
        $(
            #[doc = $help]
            pub const $ident: Metric = Metric {
                name: concat!("portcullis_", $name),
                kind: Kind::$kind,
                unit: Unit::$unit,
                help: $help,
                labels: &[$($label),*],
            };
        )+

        /// Every metric, in the order in which they are exposed.
        pub const ALL: &[Metric] = &[$($ident),+];
    };
}

metrics! {
    BUILD: "build_info" Info Count ["version"]
        "The version that runs";
    START_TIME: "process_start_time_seconds" Gauge Seconds []
        "When the process started, in seconds since 1970-01-01 UTC";
    WORKER_UP: "worker_up" Gauge Count ["worker"]
        "1 while the worker's thread runs";
    CONNECTIONS: "connections" Gauge Count ["worker", "state"]
        "Open connections by where on their journey they are";
    ACCEPTED: "connections_accepted_total" Counter Count ["worker"]
        "Connections accepted";
    CPU_SAMPLES: "incoming_cpu_samples_total" Counter Count ["worker"]
        "Connections of a pinned worker, 1 of 16, whose last packet's CPU was looked at";
    CPU_MATCHES: "incoming_cpu_matches_total" Counter Count ["worker"]
        "Of these, those whose packet came to the worker's own CPU; see workers.steering";
    CLOSED: "connections_closed_total" Counter Count ["worker", "reason"]
        "Connections ended, by why they ended";
    HANDSHAKES: "handshakes_total" Counter Count ["worker", "outcome"]
        "Handshakes ended, by outcome: ok, or the one reason why not";
    VERSIONS: "handshakes_by_version_total" Counter Count ["worker", "version"]
        "Completed handshakes by TLS version";
    SUITES: "handshakes_by_suite_total" Counter Count ["worker", "suite"]
        "Completed handshakes by cipher suite";
    GROUPS: "handshakes_by_group_total" Counter Count ["worker", "group"]
        "Completed handshakes by key exchange group";
    HANDSHAKE_QUEUE: "handshake_queue" Gauge Count ["worker", "queue"]
        "Steps of handshakes that wait for the processor, in the order in which they are served";
    HANDSHAKE_WAITS: "handshake_queue_wait_seconds" Histogram Seconds ["worker", "queue"]
        "How long steps of handshakes waited for the processor; who was dropped is not among them";
    HANDSHAKE_STEPS: "handshake_steps_total" Counter Count ["worker", "step", "key"]
        "Steps of handshakes, by what they were and the certificate's key";
    HANDSHAKE_CPU: "handshake_cpu_seconds_total" Counter Seconds ["worker", "step", "key"]
        "Time that steps of handshakes took; its rate is the share of the core that they take";
    STEPS_APART: "handshake_steps_apart_total" Counter Count ["worker"]
        "Dear steps of handshakes, done beside the worker: established connections went first";
    OPERATIONS_WAITING: "operations_waiting" Gauge Count ["worker", "rank"]
        "Operations that give way to others: streams' receives, of clients that come, of ends";
    RESUMPTIONS: "resumptions_total" Counter Count ["worker", "kind", "result"]
        "Clients' offers to resume a session, by what they offered and what came of it";
    TICKETS: "tickets_issued_total" Counter Count ["worker"]
        "Session tickets given to clients";
    SESSIONS: "sessions_cached_total" Counter Count ["worker"]
        "Sessions put into the caches";
    SESSIONS_CONTENDED: "sessions_contended_total" Counter Count ["worker"]
        "Sessions that only their worker's cache took, because the shared one was in use just then";
    CACHED_SESSIONS: "cached_sessions" Gauge Count ["worker"]
        "Sessions in the worker's own cache";
    CACHED_BYTES: "cached_sessions_bytes" Gauge Bytes ["worker"]
        "Memory of the sessions in the worker's own cache";
    SHARED_SESSIONS: "shared_sessions" Gauge Count []
        "Sessions in the cache that all workers share";
    SHARED_BYTES: "shared_sessions_bytes" Gauge Bytes []
        "Memory of the sessions in the cache that all workers share";
    TICKET_EPOCH: "ticket_epoch_start_seconds" Gauge Seconds []
        "When the epoch of the ticket key in use began, in seconds since 1970-01-01 UTC";
    INBOUND: "inbound_bytes_total" Counter Bytes ["worker"]
        "Plaintext of clients that servers took";
    OUTBOUND: "outbound_bytes_total" Counter Bytes ["worker"]
        "Plaintext of servers that was sent to clients";
    CONNECT_RETRIES: "connect_retries_total" Counter Count ["worker"]
        "Connects that failed and were tried again on another server";
    CONNECT_FAILURES: "connect_failures_total" Counter Count ["worker"]
        "Connects to a server that failed";
    BACKEND_WAITING: "backend_waiting" Gauge Count ["backend"]
        "Clients that wait because every server of the backend has all the connections it may have";
    SERVER_CONNECTIONS: "server_connections" Gauge Count ["backend", "server"]
        "Connections to a server, where the number of the backend's connections is limited";
    SERVER_CONNECTIONS_MAX: "server_connections_max" Gauge Count ["backend", "server"]
        "Connections that such a server may have at a time; +Inf: any number";
    RESTS: "connection_rests_total" Counter Count ["worker"]
        "Times that a connection gave its buffers back because no byte had moved for a while";
    LIMITS: "limit_reached_total" Counter Count ["worker", "limit"]
        "How often a limit had an effect; the log says which key to change";
    ACCEPT_PAUSED: "accept_paused" Gauge Count ["worker"]
        "1 while the worker accepts no connection because a limit is reached";
    ACCEPT_QUEUE: "listener_accept_queue" Gauge Count ["worker", "listener", "address"]
        "Connections that wait in the kernel until the worker accepts them";
    BACKLOG: "listener_backlog" Gauge Count ["worker", "listener", "address"]
        "Connections that may wait there; 0 when the socket is closed";
    DROPS: "listener_drops_total" Counter Count ["worker", "listener", "address"]
        "Connection attempts that the kernel dropped at this very socket, as its queue was full";
    KERNEL_LISTEN_OVERFLOWS: "kernel_listen_overflows_total" Counter Count []
        "Connection attempts that met a full accept queue; of the whole network namespace";
    KERNEL_LISTEN_DROPS: "kernel_listen_drops_total" Counter Count []
        "Connection attempts dropped at a listening socket; of the whole network namespace";
    KERNEL_SYN_COOKIES_SENT: "kernel_syn_cookies_sent_total" Counter Count []
        "SYN cookies sent; of the whole network namespace";
    KERNEL_SYN_COOKIES_RECEIVED: "kernel_syn_cookies_received_total" Counter Count []
        "SYN cookies that came back and were good; of the whole network namespace";
    KERNEL_SYN_COOKIES_FAILED: "kernel_syn_cookies_failed_total" Counter Count []
        "Packets that brought a wrong SYN cookie, or none; of the whole network namespace";
    KERNEL_REQUEST_QUEUE_COOKIES: "kernel_request_queue_full_cookies_total" Counter Count []
        "SYNs that met a full SYN queue and got a cookie; of the whole network namespace";
    KERNEL_REQUEST_QUEUE_DROPS: "kernel_request_queue_full_drops_total" Counter Count []
        "SYNs that met a full SYN queue and were dropped; of the whole network namespace";
    STAGES: "stage_duration_seconds" Histogram Seconds ["worker", "stage"]
        "Time that ended parts of connections' journeys took; total is from accept to close";
    TURNS: "loop_turns_total" Counter Count ["worker"]
        "Turns of the worker's loop";
    COMPLETIONS: "loop_completions_total" Counter Count ["worker"]
        "Completions of the ring that the worker's loop handled";
    COMPLETIONS_PER_TURN: "loop_completions_per_turn" Gauge Count ["worker"]
        "Mean completions per turn since the start; divide the rates of both counters for now";
    BUSY: "loop_busy_seconds_total" Counter Seconds ["worker"]
        "Time spent handling completions, not waiting in the kernel";
    LONGEST_TURN: "loop_longest_turn_seconds" Gauge Seconds ["worker"]
        "The longest that one turn took since the start, waiting in the kernel left out";
    STALE_COMPLETIONS: "stale_completions_total" Counter Count ["worker"]
        "Completions of connections already gone; each was dropped";
    PANICS: "panics_total" Counter Count ["worker"]
        "Defects caught; each cost one connection and nobody else";
    RECORDS_WRITTEN: "access_log_records_written_total" Counter Count []
        "Access-log records written";
    RECORDS_DROPPED: "access_log_records_dropped_total" Counter Count ["worker"]
        "Access-log records dropped because the writer did not keep up";
    RECORDS_FAILED: "access_log_records_failed_total" Counter Count []
        "Access-log records lost because a write failed";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_kind_and_unit() {
        for metric in ALL {
            let name = metric.name;
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(metric.kind == Kind::Info, name.ends_with("_info"), "{name}");
            let base = name.trim_end_matches("_total");
            assert_eq!(metric.unit == Unit::Bytes, base.ends_with("_bytes"), "{name}");
            assert_eq!(metric.unit == Unit::Seconds, base.ends_with("_seconds"), "{name}");
            assert!(!metric.help.ends_with('.'), "{name}: the encoder adds the full stop");
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
