//! What each source of clients has open and has cost, and how fast new connections come: counted
//! once for all workers, because the kernel spreads a source's connections over them.
//!
//! Nobody locks and nobody waits here. What is counted lies in a table of fixed size ([`table`])
//! and in buckets of one word each ([`rate`]); a worker that loses a race looks again.

pub mod rate;
pub mod table;

use std::net::IpAddr;
use std::time::Duration;

use crate::config::PerSource;
use crate::config::network::leading;
use crate::io::Time;

use rate::Rate;
use table::{Denial, Handle, Most, Table};

/// The counts of all workers.
#[derive(Debug)]
pub struct Sources {
    table: Table,
    all: Rate,
    /// By index of the listener in the configuration.
    listeners: Box<[Rate]>,
}

impl Sources {
    /// Nothing counted. At most `sources` are at a time; 0: none ever is.
    pub fn new(sources: u32, listeners: usize) -> Self {
        let listeners = std::iter::repeat_with(Rate::default).take(listeners).collect();
        Self { table: Table::new(sources), all: Rate::default(), listeners }
    }

    /// Counts a new connection and its handshake for its client's source, until
    /// [`Sources::handshake_ended`] and [`Sources::leave`].
    ///
    /// # Errors
    /// Which limit of the source is in the way, or that there is no place to count it; then nothing
    /// is counted.
    pub fn enter(&self, client: IpAddr, limits: &PerSource, now: Time) -> Result<Handle, Denial> {
        let most = Most::of(limits);
        self.table.enter(source_of(client, limits), most, now)
    }

    /// A connection's handshake is complete or has failed.
    pub fn handshake_ended(&self, source: Handle) {
        self.table.handshake_ended(source);
    }

    /// A connection is gone.
    pub fn leave(&self, source: Handle) {
        self.table.leave(source);
    }

    /// Takes what a step of a handshake has cost out of its source's bucket, which holds what
    /// `a_second` allows and may fall below empty.
    pub fn charge(&self, source: Handle, cost: Duration, a_second: Duration, now: Time) {
        self.table.charge(source, cost, a_second, now);
    }

    /// Whether a source's bucket is empty.
    pub fn is_spent(&self, source: Handle, now: Time) -> bool {
        self.table.is_spent(source, now)
    }

    /// Takes a place among the new connections of this second, of all listeners.
    pub fn take_of_all(&self, a_second: u32, now: Time) -> bool {
        self.all.take(a_second, now)
    }

    /// Takes a place among the new connections of this second, of one listener.
    pub fn take_of_listener(&self, listener: u16, a_second: u32, now: Time) -> bool {
        self.listeners.get(usize::from(listener)).is_none_or(|rate| rate.take(a_second, now))
    }

    /// Gives back what [`Sources::take_of_listener`] has taken.
    pub fn give_back_to_listener(&self, listener: u16, a_second: u32) {
        if let Some(rate) = self.listeners.get(usize::from(listener)) {
            rate.give_back(a_second);
        }
    }

    /// Connections and handshakes that are counted, of all sources together. Looks at the whole
    /// table: for tests.
    pub fn totals(&self) -> (u64, u64) {
        self.table.totals()
    }
}

/// The source that an address belongs to. An IPv4-mapped IPv6 address is an IPv4 address.
fn source_of(client: IpAddr, limits: &PerSource) -> IpAddr {
    let client = client.to_canonical();
    let prefix = if client.is_ipv4() { limits.ipv4_prefix } else { limits.ipv6_prefix };
    leading(client, prefix)
}

#[cfg(test)]
mod tests;
