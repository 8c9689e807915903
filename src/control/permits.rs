//! The permits of backends whose servers may have only so many connections: made once per
//! configuration, shown in the metrics.

use std::sync::Arc;

use crate::backend::permits::Permits;
use crate::config::Config;
use crate::telemetry::access_log::BackendNames;
use crate::telemetry::backends::{Backend, Server};

/// By backend; `None` where no server has `max_connections`.
pub type All = Vec<Option<Arc<Permits>>>;

/// The permits of a configuration.
pub fn make(config: &Config, workers: usize) -> All {
    let permits = |backend: &crate::config::Backend| {
        let max_connections = backend.servers.iter().map(|server| server.max_connections);
        let queue = backend.queue;
        let permits = || Permits::new(max_connections, queue.max, queue.timeout, workers);
        backend.is_limited().then(permits).map(Arc::new)
    };
    config.backends.iter().map(permits).collect()
}

/// Gauges for those backends that have permits.
pub fn gauges(all: &All, names: &[BackendNames]) -> Vec<Backend> {
    let limited = all.iter().zip(names).filter_map(|(permits, names)| {
        let max = permits.as_ref()?.in_use().map(|(_, max)| max);
        let servers = names.servers.iter().zip(max);
        let server = |(address, max): (&String, _)| Server::new(address.clone(), max);
        Some(Backend::new(names.name.clone(), servers.map(server).collect()))
    });
    limited.collect()
}

/// Sets the gauges that [`gauges`] has made.
pub fn show(all: &All, gauges: &[Backend]) {
    for (permits, backend) in all.iter().flatten().zip(gauges) {
        backend.waiting.set(u64::from(permits.waiting()));
        for (server, (in_use, _)) in backend.servers.iter().zip(permits.in_use()) {
            server.connections.set(u64::from(in_use));
        }
    }
}
