//! What a worker knows of the configuration: built and checked by the control thread, immutable,
//! shared by all workers, replaced as a whole by [`super::command::Command::Snapshot`].

use std::sync::Arc;

use crate::backend::permits::Permits;
use crate::config::{Handshake, ProxyVersion, Timeouts};
use crate::io::Address;
use crate::tls::terms::Terms;

use super::admission::Admission;

/// One configuration, as the data plane uses it.
#[derive(Debug)]
pub struct Snapshot {
    /// By index of the listener in the configuration.
    pub listeners: Vec<Listener>,
    /// By index of the backend in the configuration.
    pub backends: Vec<Backend>,
    /// Who is let in.
    pub admission: Admission,
    /// How time is shared out to handshakes.
    pub handshake: Handshake,
    /// Deadlines of every stage.
    pub timeouts: Timeouts,
    /// Bytes a client may send before its `ClientHello` is complete.
    pub client_hello_bytes: usize,
    /// Bytes a second that a peer must take of what waits for it; 0: none.
    pub min_rate: u32,
}

/// A worker's own handle on a snapshot. Connections count references on it, and on the TLS terms
/// in it, on this core only: no cache line of the shared snapshot is ever written by a worker.
#[derive(Debug)]
pub struct Local {
    shared: Arc<Snapshot>,
    terms: Vec<Terms>,
}

impl Local {
    /// A handle for the calling worker.
    pub fn new(shared: Arc<Snapshot>) -> Self {
        let terms = shared.listeners.iter().map(|listener| listener.terms.own_copy()).collect();
        Self { shared, terms }
    }

    /// A listener's terms, by its index.
    pub fn terms(&self, listener: u16) -> Option<&Terms> {
        self.terms.get(usize::from(listener))
    }
}

impl std::ops::Deref for Local {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.shared
    }
}

/// What a listener offers and where it leads.
#[derive(Debug)]
pub struct Listener {
    /// TLS terms: certificates, versions, suites, ALPN.
    pub terms: Arc<Terms>,
    /// Index into [`Snapshot::backends`].
    pub backend: u16,
    /// New connections in a second that are let in; `None`: as many as come.
    pub connection_rate: Option<u32>,
}

/// A group of servers.
#[derive(Debug)]
pub struct Backend {
    /// One entry per address, so a server whose name resolves to three addresses stands here three
    /// times. Empty while no name resolves.
    pub servers: Vec<Server>,
    /// Servers are connected only when a client has said something.
    pub on_first_byte: bool,
    /// PROXY header to begin with.
    pub send_proxy_protocol: Option<ProxyVersion>,
    /// How many connections its servers may have; `None`: any number. All snapshots of one
    /// configuration share it.
    pub permits: Option<Arc<Permits>>,
}

/// One address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Index of the server within its backend in the configuration.
    pub server: u16,
    /// Where to connect to.
    pub address: Address,
}
