//! The messages a worker accepts from the control thread.

use std::sync::Arc;
use std::time::Duration;

use super::snapshot::Snapshot;
use crate::tls::resumption::ticket::Keys;

/// One message.
#[derive(Debug, Clone)]
pub enum Command {
    /// Use this configuration for connections accepted from now on, and for connects to come.
    Snapshot(Arc<Snapshot>),
    /// Seal tickets with these keys from now on: an epoch has begun.
    TicketKeys(Arc<Keys>),
    /// Stop accepting; end when the last connection has ended, or abort what is left after
    /// `timeout`.
    Drain {
        /// `timeouts.drain`.
        timeout: Duration,
    },
    /// Abort every connection and end.
    Stop,
}
