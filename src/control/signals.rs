//! Signals, as the control thread's loop sees them.

use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::failure::Failure;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT, by number: drain; the second one: end at once.
    End(i32),
    /// SIGHUP.
    Reload,
}

/// Keeps these signals away from the calling thread, so that they interrupt no worker's
/// `io_uring_enter` (EINTR); the control thread gets them all the same (signal(7)).
pub(super) fn keep_away() {
    let mut signals = SigSet::empty();
    signals.add(Number::SIGTERM);
    signals.add(Number::SIGINT);
    signals.add(Number::SIGHUP);
    // It fails for invalid arguments only; then the worker sees an EINTR now and then.
    let _harmless = signals.thread_block();
}

/// The handlers, installed.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
}

impl Signals {
    /// Installs the handlers. From here on none of these signals kills the process.
    pub fn install() -> Result<Self, Failure> {
        let install = |kind| {
            signal(kind).map_err(|source| Failure::Os { what: "install a signal handler", source })
        };
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hangup: install(SignalKind::hangup())?,
        })
    }

    /// Waits until asked to end; reloads are ignored, because nothing runs yet.
    pub async fn end(&mut self) {
        while self.next().await == Signal::Reload {}
    }

    /// Waits for the next signal. Safe to cancel.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::End(SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => Signal::End(SignalKind::interrupt().as_raw_value()),
            _ = self.hangup.recv() => Signal::Reload,
        }
    }
}
