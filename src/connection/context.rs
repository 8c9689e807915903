//! What a stage may use of its worker while it handles one event.

use std::rc::Rc;

use crate::backend::balance::RoundRobin;
use crate::backend::permits::Waiter;
use crate::io::buffer::Pool;
use crate::io::{Kind, Operation, Time};
use crate::telemetry::counters::Counters;
use crate::telemetry::labels::HandshakeQueue;
use crate::tls::resumption::bridge::Resumption;
use crate::worker::sources::Sources;

/// Lent to a connection for the time of one event.
pub struct Context<'a> {
    /// The time of this turn.
    pub now: Time,
    /// The same as Unix time, in seconds.
    pub unix: u32,
    /// Operations to submit when the event is handled.
    pub operations: &'a mut Vec<(Kind, Operation)>,
    /// Where the connection's handshake is to wait for a step that it asks for.
    pub step_wanted: &'a mut Option<HandshakeQueue>,
    /// The worker's send buffers.
    pub pool: &'a mut Pool,
    /// The worker's counters.
    pub counters: &'a Counters,
    /// The worker's tickets and sessions.
    pub resumption: &'a Rc<Resumption>,
    /// The worker's cursor into each backend's servers.
    pub cursors: &'a mut [RoundRobin],
    /// What all workers count of each source of clients.
    pub sources: &'a Sources,
    /// Where the connection is found by whoever has a permit for it.
    pub waiter: Waiter,
    /// Workers for which there is a permit, to be woken.
    pub wakes: &'a mut Vec<u16>,
}
