//! What a thread has seen: latencies, bytes, and each failure by its reason.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::exchange::BadAnswer;
use crate::io::Errno;
use crate::tls::client::{Agreed, Fault, alert_name};

/// Latencies that are told apart, in nanoseconds: from a microsecond to a thousand seconds. What
/// lies outside counts as the nearest.
const LATENCY_NANOS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;
/// Decimal digits that a latency keeps.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Why a connection or an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Nobody listens there.
    ConnectRefused,
    /// The connection was not made within the timeout.
    ConnectTimeout,
    /// No port is free between these two addresses.
    NoLocalPort,
    /// This process or this machine has no descriptor left.
    NoDescriptor,
    /// Connecting failed otherwise; the kernel's error number.
    Connect(i32),
    /// The handshake was not done within the timeout.
    HandshakeTimeout,
    /// The server closed before the handshake was done.
    HandshakeClosed,
    /// The server reset the connection before the handshake was done.
    HandshakeReset,
    /// TLS failed.
    Tls(Fault),
    /// The session ticket that the client waited for did not come within the timeout.
    NoTicket,
    /// The answer was not complete within the timeout.
    AnswerTimeout,
    /// The server closed before the answer was complete.
    AnswerClosed,
    /// The server reset the connection before the answer was complete.
    AnswerReset,
    /// The answer is no HTTP response.
    AnswerMalformed,
    /// The answer is longer than it should be.
    AnswerTooLong,
    /// The answer is an HTTP error, with this status.
    Status(u16),
    /// The server closed a connection on which nothing was asked.
    IdleClosed,
    /// The server reset a connection on which nothing was asked.
    IdleReset,
    /// The server did not end its side within the timeout, after the client had.
    CloseTimeout,
    /// It was due by the rate, but not begun before the end: every client was busy.
    NotStarted,
}

impl Reason {
    /// Why a connect failed.
    pub fn of_connect(error: Errno) -> Self {
        const TIMED_OUT: Errno = Errno(110);
        const ADDRESS_NOT_AVAILABLE: Errno = Errno(99);
        match error {
            Errno::CONNECTION_REFUSED => Self::ConnectRefused,
            TIMED_OUT => Self::ConnectTimeout,
            ADDRESS_NOT_AVAILABLE => Self::NoLocalPort,
            Errno::PROCESS_FILES | Errno::SYSTEM_FILES => Self::NoDescriptor,
            Errno(number) => Self::Connect(number),
        }
    }

    /// One word, for tables and for programs that read them.
    pub fn name(self) -> String {
        let fixed = match self {
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoLocalPort => "no_local_port",
            Self::NoDescriptor => "no_descriptor",
            Self::Connect(number) => return format!("connect_error_{number}"),
            Self::HandshakeTimeout => "handshake_timeout",
            Self::HandshakeClosed => "handshake_closed",
            Self::HandshakeReset => "handshake_reset",
            Self::Tls(Fault::Alert(number)) => return alert(number),
            Self::Tls(Fault::Certificate) => "certificate_not_trusted",
            Self::Tls(Fault::Handshake) => "handshake_failed",
            Self::Tls(Fault::Record) => "bad_record",
            Self::Tls(Fault::KeyUpdate) => "key_update",
            Self::Tls(Fault::KeysUsedUp) => "keys_used_up",
            Self::NoTicket => "no_ticket",
            Self::AnswerTimeout => "answer_timeout",
            Self::AnswerClosed => "answer_closed",
            Self::AnswerReset => "answer_reset",
            Self::AnswerMalformed => "answer_malformed",
            Self::AnswerTooLong => "answer_too_long",
            Self::Status(status) => return format!("http_{status}"),
            Self::IdleClosed => "idle_closed",
            Self::IdleReset => "idle_reset",
            Self::CloseTimeout => "close_timeout",
            Self::NotStarted => "not_started",
        };
        fixed.to_owned()
    }

    /// What it means or what to do, where the word does not say so.
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::NoLocalPort => {
                "every port between these addresses is in use or in TIME-WAIT: give more \
                 addresses, --source 127.0.0.0/24, or a lower --rate"
            }
            Self::NoDescriptor => "raise the limit of open files, or give more --threads",
            Self::Connect(101 | 113) => "no route to the target",
            Self::Connect(38) => "--source needs Linux 6.11",
            Self::Tls(Fault::Handshake) => {
                "no version, suite or group in common, or the server broke the protocol"
            }
            Self::Tls(Fault::Record) => "is it a TLS port?",
            Self::Tls(Fault::Certificate) => "it does not come from an authority of --ca",
            Self::AnswerMalformed => "no HTTP/1.1: if the server echoes, say --protocol raw",
            Self::AnswerClosed => "the server closed before the answer was complete",
            Self::AnswerTooLong => "--down says how many bytes an answer has",
            Self::NoTicket => "the server gives no tickets: resumption is off there",
            Self::IdleClosed => "the server's idle timeout, or an answer with Connection: close",
            Self::CloseTimeout => "the client had ended its side, the server did not",
            Self::NotStarted => "every client was busy: give more --connections or a lower --rate",
            _ => return None,
        })
    }
}

/// `HandshakeFailure` as `alert_handshake_failure`.
fn alert(number: u8) -> String {
    let Some(name) = alert_name(number) else {
        return format!("alert_{number}");
    };
    let mut word = String::from("alert");
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            word.push('_');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}

impl From<BadAnswer> for Reason {
    fn from(bad: BadAnswer) -> Self {
        match bad {
            BadAnswer::Malformed => Self::AnswerMalformed,
            BadAnswer::TooLong => Self::AnswerTooLong,
            BadAnswer::Status(status) => Self::Status(status),
        }
    }
}

/// Latencies, to three digits.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    #[expect(clippy::expect_used, reason = "the bounds are constants, which a test has seen work")]
    fn default() -> Self {
        let (low, high) = LATENCY_NANOS.into_inner();
        let histogram = Histogram::new_with_bounds(low, high, SIGNIFICANT_DIGITS);
        Self(histogram.expect("the bounds are in order"))
    }
}

impl Latencies {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanos.max(*LATENCY_NANOS.start()));
    }

    /// Counts another thread's.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds, so that nothing can be out of range.
        let _same_bounds = self.0.add(&other.0);
    }

    /// The histogram, in nanoseconds.
    pub fn nanos(&self) -> &Histogram<u64> {
        &self.0
    }
}

/// What was seen in one window.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// From when an operation was due to its end.
    pub operations: Latencies,
    /// From a connection's begin to the end of its handshake.
    pub handshakes: Latencies,
    /// Handshakes that resumed a session.
    pub resumed: u64,
    /// Bytes asked, as plaintext.
    pub up_bytes: u64,
    /// Bytes answered, as plaintext.
    pub down_bytes: u64,
    /// Failures.
    pub failures: BTreeMap<Reason, u64>,
    /// What the last handshake has agreed on.
    pub agreed: Option<Agreed>,
}

impl Tally {
    /// Counts a failure.
    pub fn fail(&mut self, reason: Reason) {
        self.fail_often(reason, 1);
    }

    /// Counts so many failures.
    pub fn fail_often(&mut self, reason: Reason, count: u64) {
        if count > 0 {
            *self.failures.entry(reason).or_default() += count;
        }
    }

    /// Counts what another thread has seen.
    pub fn add(&mut self, other: &Self) {
        self.operations.add(&other.operations);
        self.handshakes.add(&other.handshakes);
        self.resumed += other.resumed;
        self.up_bytes += other.up_bytes;
        self.down_bytes += other.down_bytes;
        for (reason, count) in &other.failures {
            self.fail_often(*reason, *count);
        }
        self.agreed = other.agreed.or(self.agreed);
    }

    /// Operations that came to their end.
    pub fn done(&self) -> u64 {
        self.operations.nanos().len()
    }

    /// Failures of all reasons.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_outside_the_bounds_are_counted_as_the_nearest() {
        let mut latencies = Latencies::default();
        for latency in [Duration::ZERO, Duration::from_millis(5), Duration::MAX] {
            latencies.record(latency);
        }
        let nanos = latencies.nanos();
        assert_eq!(nanos.len(), 3);
        assert!(nanos.max() >= 1_000_000_000_000, "{}", nanos.max());
        let median = nanos.value_at_quantile(0.5);
        assert!((4_990_000..=5_010_000).contains(&median), "{median}");
    }

    #[test]
    fn what_two_threads_saw_adds_up() {
        let (mut one, mut other) = (Tally::default(), Tally::default());
        one.operations.record(Duration::from_micros(10));
        one.fail(Reason::ConnectRefused);
        other.operations.record(Duration::from_micros(20));
        other.fail(Reason::ConnectRefused);
        other.fail(Reason::Status(503));
        one.add(&other);
        assert_eq!((one.done(), one.failed()), (2, 3));
        assert_eq!(one.failures.get(&Reason::ConnectRefused), Some(&2));
    }

    #[test]
    fn reasons_have_words_of_their_own() {
        assert_eq!(Reason::Tls(Fault::Alert(40)).name(), "alert_handshake_failure");
        assert_eq!(Reason::Tls(Fault::Alert(250)).name(), "alert_250");
        assert_eq!(Reason::of_connect(Errno(99)), Reason::NoLocalPort);
        assert_eq!(Reason::of_connect(Errno(113)).name(), "connect_error_113");
        assert_eq!(Reason::Status(503).name(), "http_503");
    }
}
