//! What the end-to-end tests share: the server under test as a process, certificates made at run
//! time, doubles for clients and backends, and real peers when they are installed.
//!
//! Every server gets loopback addresses of its own and ports from the kernel, so that tests run
//! side by side. Nothing sleeps to synchronise: tests wait for a condition until a deadline.

pub(crate) mod address;
pub(crate) mod backend;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod metrics;
pub(crate) mod pattern;
pub(crate) mod peers;
pub(crate) mod process;
pub(crate) mod server;

use std::time::{Duration, Instant};

/// How long a condition that should come true at once may take on a loaded machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// How long one read or write of a test double may block before the test fails.
pub(crate) const STUCK: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value, or fails saying what was waited for.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        // The interval of a poll, not a synchronisation: the deadline above decides.
        std::thread::sleep(Duration::from_millis(10));
    }
}
