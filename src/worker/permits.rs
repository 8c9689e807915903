//! Permits of servers that may have only so many connections: those that were granted to this
//! worker's clients reach them here, and workers whose clients got one from here are woken.

use std::sync::Arc;

use crate::backend::permits::{Grant, Permits};
use crate::io::{Io, Kind, Operation, Token};

use super::Worker;
use super::snapshot::Snapshot;

/// The permits of a configuration's backends; most have none.
pub(super) fn of(snapshot: &Snapshot) -> Vec<Arc<Permits>> {
    snapshot.backends.iter().filter_map(|backend| backend.permits.clone()).collect()
}

impl<I: Io> Worker<I> {
    /// Goes over to the permits of another snapshot of the same configuration, which are the same:
    /// but servers may have become reachable.
    pub(super) fn use_permits(&mut self, permits: Vec<Arc<Permits>>) {
        self.permits = permits;
        for permits in &self.permits {
            permits.settle(&mut self.wakes);
        }
    }

    /// Hands the permits that have come to their connections, then wakes the workers to whose
    /// clients this turn has given some. The last thing of a turn: what it grants to clients of
    /// this worker needs no wake-up.
    pub(super) fn fetch_permits(&mut self) {
        let backends = std::mem::take(&mut self.permits);
        for permits in &backends {
            while let Some(grant) = permits.next_grant(self.index) {
                self.grant(permits, grant);
            }
        }
        self.permits = backends;
        let own = self.index;
        for worker in self.wakes.drain(..).filter(|worker| *worker != own) {
            let token = Token::new(u32::from(worker), 0, Kind::Wake);
            self.io.submit(token, Operation::Wake { worker });
        }
    }

    fn grant(&mut self, permits: &Permits, grant: Grant) {
        let Grant { server, slot, generation } = grant;
        let mut taken = false;
        self.with_connection(slot, generation, |connection, cx| {
            taken = connection.is_queued();
            if taken {
                connection.granted(server, cx);
            }
        });
        if !taken {
            // The client has left meanwhile.
            permits.release(server, &mut self.wakes);
        }
    }

    /// Whether permits may be on their way to clients of this worker.
    pub(super) fn awaits_permits(&self) -> bool {
        self.permits.iter().any(|permits| permits.awaited(self.index) > 0)
    }

    /// Connections that hold a permit, by backend and server; for tests.
    pub fn permits_held(&self) -> Vec<(u16, u16)> {
        self.table.iter().filter_map(|(_, _, connection)| connection.permit()).collect()
    }
}
