//! Which accepts are armed, and when not: at the connection limit, while too many handshakes wait,
//! and while the kernel has no descriptors to give. Accept pauses; it never spins.
//!
//! Every listening socket keeps up to [`ACCEPTS_ARMED`] single accepts in flight, each with its
//! own slot, so that the kernel can tell us every client's address (a multishot accept has one
//! address for all). Near the connection limit only as many are armed as there is room for, but
//! one per listening socket always: so a burst over several sockets at once can open more
//! connections than the limit, by less than the accepts that were armed.

use std::time::Duration;

use crate::io::{Completion, Errno, Io, Kind, Operation, Payload, Time, Token};
use crate::limits::ACCEPTS_ARMED;
use crate::sys::slots::Slots;
use crate::telemetry::labels::Limit;

use super::Worker;
use super::outbox::Rank;

/// How long accept pauses when the kernel has no descriptor or memory for another client.
pub const BACK_OFF: Duration = Duration::from_millis(100);

/// A worker's accepts.
#[derive(Debug)]
pub(super) struct Accepting {
    /// Connections open at a time.
    connections: u32,
    /// Slots with an accept in flight, by listening socket: few, however large the table is.
    armed: Vec<Vec<u32>>,
    /// These accepts, by slot.
    accepts: Slots<Accept>,
    /// The connection limit is reached, or too many handshakes wait.
    full: bool,
    /// Until when accept pauses after an error.
    paused_until: Option<Time>,
}

/// An accept in flight.
#[derive(Debug)]
struct Accept {
    generation: u32,
    listener: u32,
    /// It has been cancelled, and still completes.
    cancelled: bool,
}

impl Accepting {
    pub(super) fn new(connections: u32, binds: usize) -> Self {
        Self {
            connections,
            armed: vec![Vec::new(); binds],
            accepts: Slots::reserve(super::slots(connections, binds)),
            full: false,
            paused_until: None,
        }
    }

    /// Accepts in flight.
    pub(super) fn len(&self) -> u32 {
        self.accepts.len()
    }

    pub(super) fn resumes_at(&self) -> Option<Time> {
        self.paused_until
    }

    /// No accept will be armed any more.
    pub(super) fn end(&mut self) {
        self.paused_until = None;
    }

    /// An accept has ended; the listening socket on which it was, if it was one of these.
    fn ended(&mut self, token: Token) -> Option<u32> {
        let accept = self.accepts.get(token.slot)?;
        let listener = accept.listener;
        if accept.generation != token.generation {
            return None;
        }
        self.accepts.clear(token.slot);
        if let Some(armed) = self.armed.get_mut(listener as usize) {
            armed.retain(|other| *other != token.slot);
        }
        Some(listener)
    }

    /// Whether it has memory to give back.
    pub(super) fn is_large(&self) -> bool {
        self.accepts.is_large()
    }

    /// Gives back the memory that nobody has needed since the last call.
    pub(super) fn trim(&mut self) {
        self.accepts.trim();
    }
}

impl<I: Io> Worker<I> {
    /// Arms what may be armed; at the limit, cancels what is.
    pub(super) fn arm_accepts(&mut self) {
        if self.drain_until.is_some() {
            return;
        }
        if self.accepting.paused_until.is_some_and(|until| self.now < until) {
            return;
        }
        self.accepting.paused_until = None;
        // Handshakes: a quarter of them is done before accept goes on, so that it does not flutter.
        let busy =
            if self.accepting.full { !self.scheduler.has_room() } else { self.scheduler.is_full() };
        let full = self.table.open() >= self.accepting.connections;
        if full || busy {
            if !self.accepting.full {
                self.accepting.full = true;
                let limit =
                    if full { Limit::ConnectionsPerWorker } else { Limit::HandshakesPending };
                self.counters.limits.of(limit).add(1);
                self.counters.accept_paused.raise_to(1);
                self.cancel_accepts();
            }
            return;
        }
        if self.accepting.full || self.counters.accept_paused.get() > 0 {
            self.accepting.full = false;
            self.counters.accept_paused.sub(self.counters.accept_paused.get());
        }
        for listener in 0..self.accepting.armed.len() {
            self.arm(listener);
        }
    }

    fn arm(&mut self, listener: usize) {
        let Ok(number) = u32::try_from(listener) else {
            return;
        };
        while let Some(armed) = self.accepting.armed.get_mut(listener) {
            let room =
                self.table.open() + self.accepting.accepts.len() < self.accepting.connections;
            if armed.len() >= ACCEPTS_ARMED as usize || (!armed.is_empty() && !room) {
                return;
            }
            let Some((slot, generation)) = self.table.reserve() else {
                return;
            };
            armed.push(slot);
            let accept = Accept { generation, listener: number, cancelled: false };
            self.accepting.accepts.insert(slot, accept);
            let token = Token::new(slot, generation, Kind::Accept);
            self.submit(token, Operation::Accept { listener: number }, Rank::Beginning);
        }
    }

    /// Cancels every armed accept. One that had succeeded still brings its client.
    pub(super) fn cancel_accepts(&mut self) {
        let armed = std::mem::take(&mut self.accepting.armed);
        for slot in armed.iter().flatten() {
            if let Some(accept) = self.accepting.accepts.get_mut(*slot)
                && !std::mem::replace(&mut accept.cancelled, true)
            {
                let token = Token::new(*slot, accept.generation, Kind::CancelAccept);
                self.submit(token, Operation::Cancel { target: Kind::Accept }, Rank::Beginning);
            }
        }
        self.accepting.armed = armed;
    }

    /// An accept has ended: with a client, or with a reason to pause.
    pub(super) fn on_accept(&mut self, completion: &Completion) {
        let Some(listener) = self.accepting.ended(completion.token) else {
            self.counters.stale_completions.add(1);
            return;
        };
        match (&completion.result, &completion.payload) {
            (Ok(_), Payload::Peer(client)) => self.welcome(completion.token, listener, *client),
            (Err(Errno::CANCELED | Errno::CONNECTION_ABORTED), _) => {
                self.nobody_comes(completion.token.slot);
            }
            (result, _) => {
                self.nobody_comes(completion.token.slot);
                if result.is_err_and(Errno::is_exhaustion) {
                    if self.counters.accept_paused.get() == 0 {
                        self.counters.limits.of(Limit::KernelFiles).add(1);
                    }
                    self.counters.accept_paused.raise_to(1);
                }
                // Whatever it was: an accept that fails at once, armed at once, would spin.
                if self.drain_until.is_none() {
                    self.accepting.paused_until = Some(self.now + BACK_OFF);
                }
            }
        }
    }

    fn nobody_comes(&mut self, slot: u32) {
        self.io.forget(slot);
        self.table.give_back(slot);
    }
}
