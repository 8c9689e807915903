//! Gauges of backends whose servers may have only so many connections; the control thread sets
//! them.

use super::counters::Counter;

/// One such backend.
#[derive(Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Clients that wait for a server.
    pub waiting: Counter,
    /// Its servers.
    pub servers: Vec<Server>,
}

/// One of its servers.
#[derive(Debug)]
pub struct Server {
    /// As the configuration writes it.
    pub address: String,
    /// Connections at a time; `None`: any number.
    pub max: Option<u32>,
    /// Connections, those that are being made or closed among them.
    pub connections: Counter,
}

impl Backend {
    /// A backend for which nobody waits.
    pub fn new(name: String, servers: Vec<Server>) -> Self {
        Self { name, waiting: Counter::default(), servers }
    }
}

impl Server {
    /// A server without a connection.
    pub fn new(address: String, max: Option<u32>) -> Self {
        Self { address, max, connections: Counter::default() }
    }
}
