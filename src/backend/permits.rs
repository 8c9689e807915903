//! How many connections the servers of one backend may have, and which client is next: one object
//! for all workers, carried by every snapshot of a configuration.
//!
//! A *permit* is the right to one connection to a server. It is held from the choice of the server
//! until that connection's socket is closed. A client that finds none stands in line. Whoever
//! brings something new, a client or a permit, then matches the two ([`Permits::settle`]): the
//! permit goes to the first in line who can use it, stays taken meanwhile, and travels to that
//! client's worker as a message, so that nobody can overtake.
//!
//! # Why nobody waits in vain
//! There is no lock, and no thread waits for another. Both sides write before they look: a client
//! stands in line and then looks for a permit; a permit is given back and then somebody looked for.
//! All of that is sequentially consistent, so that one of two who come at once sees the other. A
//! thread that has taken a permit and finds nobody for it may meanwhile have hidden it from a
//! client that came: it gives it back and looks whether somebody has come since.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use super::inbox::Inbox;
use super::line::Line;
use crate::io::Token;
use crate::limits::CONNECTIONS_PER_WORKER_MAX;

/// Cells of the line for each client that may wait: gaps of those who left take the others, until
/// they have come to the head.
const CELLS_PER_CLIENT: usize = 4;
/// Cells of the line, at least, so that a short one does not run out of them: 16 KiB.
const CELLS_MIN: usize = 1024;

const SLOT_BITS: u32 = 20;
const GENERATION_BITS: u32 = 24;
/// Makes every packed word another than the line's and the inbox's reserved ones.
const MARK: u64 = 1 << 63;

const _: () = assert!(CONNECTIONS_PER_WORKER_MAX <= 1 << SLOT_BITS);
const _: () = assert!(Token::GENERATIONS <= 1 << GENERATION_BITS);

/// A client that waits, and where to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Waiter {
    /// Its worker's number.
    pub worker: u16,
    /// Its slot there.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
}

/// Where in line a client stands.
#[derive(Debug)]
pub struct Place(usize);

/// A permit that was given to a client in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Index of the server within its backend in the configuration.
    pub server: u16,
    /// The client's slot.
    pub slot: u32,
    /// The slot's generation; the client may have left meanwhile.
    pub generation: u32,
}

#[derive(Debug)]
struct Server {
    /// Connections at a time; `u32::MAX`: as many as there are.
    max: u32,
    in_use: AtomicU32,
    /// It has an address.
    reachable: AtomicBool,
}

/// The permits of one backend, and who waits for one.
#[derive(Debug)]
pub struct Permits {
    servers: Box<[Server]>,
    line: Line,
    /// By worker.
    inboxes: Box<[Inbox]>,
    /// Clients that are in line, or whose grant has not reached them.
    waiting: AtomicU32,
    waiting_max: u32,
    timeout: Duration,
    /// Clients that have come into line, ever.
    arrivals: AtomicU64,
    /// Where the next search for a free permit begins.
    turn: AtomicUsize,
}

fn pack(high: u16, slot: u32, generation: u32) -> u64 {
    debug_assert!(slot < 1 << SLOT_BITS && generation < 1 << GENERATION_BITS);
    let high = u64::from(high) << (SLOT_BITS + GENERATION_BITS);
    MARK | high | (u64::from(slot) << GENERATION_BITS) | u64::from(generation)
}

#[expect(clippy::cast_possible_truncation, reason = "masked")]
fn unpack(word: u64) -> (u16, u32, u32) {
    let high = (word >> (SLOT_BITS + GENERATION_BITS)) & u64::from(u16::MAX);
    let slot = (word >> GENERATION_BITS) & ((1 << SLOT_BITS) - 1);
    let generation = word & ((1 << GENERATION_BITS) - 1);
    (high as u16, slot as u32, generation as u32)
}

impl Waiter {
    fn pack(self) -> u64 {
        pack(self.worker, self.slot, self.generation)
    }
}

impl Permits {
    /// `max_connections` by server; `None`: any number. At most `waiting_max` clients of `workers`
    /// wait, each for `timeout` at most. No server is reachable yet.
    pub fn new(
        max_connections: impl IntoIterator<Item = Option<u32>>,
        waiting_max: u32,
        timeout: Duration,
        workers: usize,
    ) -> Self {
        let cells = (waiting_max as usize * CELLS_PER_CLIENT).max(CELLS_MIN);
        Self::with_cells(max_connections, waiting_max, timeout, workers, cells)
    }

    fn with_cells(
        max_connections: impl IntoIterator<Item = Option<u32>>,
        waiting_max: u32,
        timeout: Duration,
        workers: usize,
        cells: usize,
    ) -> Self {
        let server = |max: Option<u32>| Server {
            max: max.unwrap_or(u32::MAX),
            in_use: AtomicU32::new(0),
            reachable: AtomicBool::new(false),
        };
        let inbox = || Inbox::new(waiting_max as usize);
        Self {
            servers: max_connections.into_iter().map(server).collect(),
            line: Line::new(cells),
            inboxes: std::iter::repeat_with(inbox).take(workers).collect(),
            waiting: AtomicU32::new(0),
            waiting_max,
            timeout,
            arrivals: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    /// What a client may wait.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Says whether a server has an address. A permit of one that has none is of no use. Whoever
    /// makes a server reachable calls [`Permits::settle`] afterwards, on a worker.
    pub fn set_reachable(&self, server: u16, reachable: bool) {
        if let Some(server) = self.servers.get(usize::from(server)) {
            server.reachable.store(reachable, SeqCst);
        }
    }

    /// Whether a client that comes now has to stand in line.
    pub fn has_waiters(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// Takes a permit, if one is free.
    pub fn take(&self, server: u16) -> bool {
        self.servers.get(usize::from(server)).is_some_and(Server::take)
    }

    /// Puts a client into line; a permit of the server `except` is of no use to it, unless half of
    /// the line's room is behind it. `None`: as many wait as may, or so many have come and left
    /// behind the first that there is no room for their gaps. The caller settles afterwards.
    pub fn wait(&self, waiter: Waiter, except: Option<u16>) -> Option<Place> {
        let one_more = |waiting| (waiting < self.waiting_max).then_some(waiting + 1);
        self.waiting.fetch_update(SeqCst, SeqCst, one_more).ok()?;
        let inbox = self.inboxes.get(usize::from(waiter.worker));
        let joined = inbox.and_then(|inbox| {
            inbox.awaited().fetch_add(1, SeqCst);
            let place = self.line.join(waiter.pack(), except);
            if place.is_none() {
                inbox.awaited().fetch_sub(1, SeqCst);
            }
            place
        });
        let Some(place) = joined else {
            self.waiting.fetch_sub(1, SeqCst);
            return None;
        };
        self.arrivals.fetch_add(1, SeqCst);
        Some(Place(place))
    }

    /// Takes a client out of the line. False: a permit is on its way to its worker, where
    /// [`Permits::next_grant`] brings it. The caller settles afterwards: another is first now.
    pub fn leave(&self, waiter: Waiter, place: &Place) -> bool {
        let left = self.line.leave(place.0, waiter.pack());
        if left {
            self.stopped_waiting(waiter.worker);
        }
        left
    }

    /// Gives a permit back, to whoever is next. Adds the workers to be woken to `wakes`.
    pub fn release(&self, server: u16, wakes: &mut Vec<u16>) {
        if let Some(server) = self.servers.get(usize::from(server)) {
            let before = server.in_use.fetch_sub(1, SeqCst);
            debug_assert!(before > 0, "a permit was given back twice");
        }
        self.settle(wakes);
    }

    /// Hands out permits while there are free ones and clients in line who can use them. Adds the
    /// workers to be woken to `wakes`.
    pub fn settle(&self, wakes: &mut Vec<u16>) {
        loop {
            let arrivals = self.arrivals.load(SeqCst);
            while self.has_waiters() && self.grant(wakes) {}
            if self.arrivals.load(SeqCst) == arrivals {
                return;
            }
        }
    }

    /// Hands out one permit, of each server in turn.
    fn grant(&self, wakes: &mut Vec<u16>) -> bool {
        let count = self.servers.len();
        let first = self.turn.fetch_add(1, SeqCst).checked_rem(count).unwrap_or(0);
        let in_turn = (0..).zip(&self.servers).cycle().skip(first).take(count);
        for (index, server) in in_turn {
            if !server.take() {
                continue;
            }
            if let Some(who) = self.line.call(index) {
                let (worker, slot, generation) = unpack(who);
                if let Some(inbox) = self.inboxes.get(usize::from(worker)) {
                    inbox.push(pack(index, slot, generation));
                }
                if !wakes.contains(&worker) {
                    wakes.push(worker);
                }
                return true;
            }
            server.in_use.fetch_sub(1, SeqCst);
        }
        false
    }

    /// The next permit that has come to a client of `worker`, which alone calls this. It is the
    /// caller's to give back if the client is there no more.
    pub fn next_grant(&self, worker: u16) -> Option<Grant> {
        let word = self.inboxes.get(usize::from(worker))?.pop()?;
        self.stopped_waiting(worker);
        let (server, slot, generation) = unpack(word);
        Some(Grant { server, slot, generation })
    }

    fn stopped_waiting(&self, worker: u16) {
        if let Some(inbox) = self.inboxes.get(usize::from(worker)) {
            inbox.awaited().fetch_sub(1, SeqCst);
        }
        self.waiting.fetch_sub(1, SeqCst);
    }

    /// Clients of `worker` that wait, or whose permits have not been fetched with
    /// [`Permits::next_grant`]: until there are none, the worker may not end.
    pub fn awaited(&self, worker: u16) -> u32 {
        self.inboxes.get(usize::from(worker)).map_or(0, |inbox| inbox.awaited().load(SeqCst))
    }

    /// Clients that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    /// By server: permits in use, and the most that may be; `None`: any number.
    pub fn in_use(&self) -> impl Iterator<Item = (u32, Option<u32>)> + '_ {
        self.servers.iter().map(|server| {
            let max = Some(server.max).filter(|max| *max != u32::MAX);
            (server.in_use.load(SeqCst), max)
        })
    }

    /// Permits that were granted and not fetched.
    pub fn on_their_way(&self) -> usize {
        self.inboxes.iter().map(Inbox::len).sum()
    }

    /// Asserts what holds while no worker is at work here; for tests.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn check_invariants(&self) {
        for (index, server) in (0..).zip(&self.servers) {
            let in_use = server.in_use.load(SeqCst);
            assert!(in_use <= server.max, "{in_use} of {} permits of {index}", server.max);
            let is_free = server.reachable.load(SeqCst) && in_use < server.max;
            assert!(
                !is_free || !self.line.has_use_for(index),
                "a client waits although server {index} has a free permit: {self:?}"
            );
        }
        let awaited = self.inboxes.iter().map(|inbox| inbox.awaited().load(SeqCst)).sum::<u32>();
        assert_eq!(awaited, self.waiting(), "every client that waits is some worker's");
        assert!(self.waiting() <= self.waiting_max, "{} wait", self.waiting());
    }
}

impl Server {
    fn take(&self) -> bool {
        let one_more = |in_use| (in_use < self.max).then(|| in_use + 1);
        self.reachable.load(SeqCst) && self.in_use.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }
}

#[cfg(test)]
mod tests;
