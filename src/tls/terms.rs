//! A listener's terms: the certificates, versions, suites, groups and ALPN protocols it offers.

use std::sync::Arc;

/// What one listener offers to its clients.
#[derive(Debug)]
pub struct Terms {
    config: Arc<rustls::ServerConfig>,
}

impl Terms {
    /// Wraps a checked rustls configuration.
    pub fn new(config: Arc<rustls::ServerConfig>) -> Self {
        Self { config }
    }

    /// The same terms with reference counts of their own, for one worker: a handshake then writes
    /// no cache line that another core writes.
    #[must_use]
    pub fn own_copy(&self) -> Self {
        Self { config: Arc::new((*self.config).clone()) }
    }

    /// Whether a client that asks for this name (or for none) is served.
    pub fn recognizes(&self, _server_name: Option<&str>) -> bool {
        true
    }

    /// For each new session.
    pub fn config(&self) -> &Arc<rustls::ServerConfig> {
        &self.config
    }
}
