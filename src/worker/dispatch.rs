//! From a completion to the connection it belongs to; the only match on operation kinds outside
//! the journey itself.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::backend::permits::Waiter;
use crate::config::Refuse;
use crate::connection::common::Common;
use crate::connection::context::Context;
use crate::connection::{Connection, Delivery};
use crate::io::{Completion, Io, Kind, Payload};
use crate::telemetry::labels::{CloseReason, HandshakeOutcome, Limit};

use super::Worker;
use super::scheduler::Waiting;

/// The context of one event of a connection, made of the worker's disjoint parts.
macro_rules! context {
    ($worker:expr, $slot:expr, $generation:expr) => {
        Context {
            now: $worker.now,
            unix: $worker.unix,
            operations: &mut $worker.operations,
            step_wanted: &mut $worker.step_wanted,
            pool: &mut $worker.pool,
            counters: &$worker.counters,
            resumption: &$worker.resumption,
            cursors: &mut $worker.cursors,
            sources: &$worker.sources,
            waiter: Waiter { worker: $worker.index, slot: $slot, generation: $generation },
            wakes: &mut $worker.wakes,
        }
    };
}

impl<I: Io> Worker<I> {
    /// Hands one completion to whom it concerns.
    pub(super) fn dispatch(&mut self, completion: Completion) {
        match completion.token.kind {
            Kind::Accept => self.on_accept(&completion),
            Kind::Mailbox => self.obey_commands(),
            // The accept that it cancelled speaks for itself.
            Kind::CancelAccept | Kind::Internal | Kind::SampleClient | Kind::Wake => {}
            _ => self.on_operation(completion),
        }
    }

    /// A client has come.
    pub(super) fn welcome(&mut self, token: crate::io::Token, listener: u32, client: SocketAddr) {
        let Some(bind) = self.binds.get(listener as usize) else {
            return;
        };
        self.counters.accepted.add(1);
        let local = Some(bind.address).filter(|address| !address.ip().is_unspecified());
        let snapshot = Rc::clone(&self.snapshot);
        let listener = bind.listener;
        let common = Common::new(snapshot, client, local, listener, self.now);
        let admitted = self.admit(listener, client.ip());
        let mut cx = context!(self, token.slot, token.generation);
        let connection = match admitted {
            Ok(source) => Connection::begin(common, source, &mut cx),
            Err(refusal) => {
                self.counters.limits.of(refusal.limit()).add(1);
                let how = self.snapshot.admission.refuse;
                Connection::refused(common, refusal.outcome(), how, &mut cx)
            }
        };
        self.table.occupy(token.slot, token.generation, connection);
        self.after_event(token.slot, token.generation);
    }

    /// One of a connection's operations has ended.
    fn on_operation(&mut self, completion: Completion) {
        let Completion { token, result, more, payload } = completion;
        let Some(connection) = self.table.connection(token.slot, token.generation) else {
            self.counters.stale_completions.add(1);
            match payload {
                Payload::Received(at) => self.io.recycle(at),
                Payload::Sent(buffer) => self.pool.give(buffer),
                Payload::None | Payload::Peer(_) | Payload::Computed(_) => {}
            }
            return;
        };
        if let Payload::Computed(task) = payload {
            return self.step_returns(token, *task);
        }
        self.served_established |= connection.is_established();
        // One that comes to rest, or ends, has nothing to wait for.
        let moves = matches!(payload, Payload::Received(_) | Payload::Sent(_));
        if moves && connection.is_kept(self.now) {
            self.kept_at = Some(self.now);
        }
        let (received, delivery) = match payload {
            Payload::Received(at) => (Some(at), Delivery::None),
            Payload::Sent(buffer) => (None, Delivery::Sent(buffer)),
            Payload::Peer(address) => (None, Delivery::Address(address)),
            Payload::None | Payload::Computed(_) => (None, Delivery::None),
        };
        let mut cx = context!(self, token.slot, token.generation);
        let io = &mut self.io;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let delivery = match &received {
                Some(at) => Delivery::Received(io.received(at)),
                None => delivery,
            };
            connection.complete(token.kind, result, more, delivery, &mut cx);
        }));
        if let Some(at) = received {
            self.io.recycle(at);
        }
        if outcome.is_err() {
            self.contain_panic(token.slot, token.generation);
        }
        self.after_event(token.slot, token.generation);
    }

    /// A connection's timer has come.
    pub(super) fn on_timer(&mut self, slot: u32) {
        if let Some(generation) = self.table.generation(slot) {
            self.with_connection(slot, generation, Connection::timer);
        }
    }

    /// Lets `act` work on a connection, if the slot and generation still name one.
    pub(super) fn with_connection(
        &mut self,
        slot: u32,
        generation: u32,
        act: impl FnOnce(&mut Connection, &mut Context<'_>),
    ) {
        let Some(connection) = self.table.connection(slot, generation) else {
            return;
        };
        let mut cx = context!(self, slot, generation);
        if catch_unwind(AssertUnwindSafe(|| act(connection, &mut cx))).is_err() {
            self.contain_panic(slot, generation);
        }
        self.after_event(slot, generation);
    }

    pub(super) fn drop_overdue(&mut self, waiting: Waiting) {
        let Waiting { slot, generation, .. } = waiting;
        let mut dropped = false;
        self.with_connection(slot, generation, |connection, cx| {
            dropped = connection.refuse(HandshakeOutcome::Overload, Refuse::Reset, cx);
        });
        if dropped {
            self.counters.limits.of(Limit::HandshakesDropped).add(1);
        }
    }

    /// A stage has panicked: its connection ends, nobody else's does. What the kernel holds is
    /// with the `Io`, so that unwinding has freed none of it.
    fn contain_panic(&mut self, slot: u32, generation: u32) {
        self.counters.panics.add(1);
        let Some(connection) = self.table.connection(slot, generation) else {
            return;
        };
        let mut cx = context!(self, slot, generation);
        connection.abort(CloseReason::InternalError, &mut cx);
    }

    /// Submits what an event has led to, arms the timer, frees the slot of a connection that is
    /// done.
    fn after_event(&mut self, slot: u32, generation: u32) {
        self.submit_operations(slot, generation);
        if let Some(queue) = self.step_wanted.take() {
            self.scheduler.push(queue, Waiting { slot, generation, since: self.now });
        }
        let Some(connection) = self.table.connection(slot, generation) else {
            return;
        };
        if let Some(at) = connection.take_timer() {
            self.timers.set(slot, at);
        }
        if let Some(reason) = connection.done() {
            self.free(slot, generation, reason);
        }
    }

    /// Frees a slot, with all that is kept for it.
    fn release(&mut self, slot: u32) {
        self.timers.forget(slot);
        self.io.forget(slot);
        self.table.release(slot);
    }

    fn free(&mut self, slot: u32, generation: u32, reason: CloseReason) {
        let Some(connection) = self.table.connection(slot, generation) else {
            return;
        };
        let mut cx = context!(self, slot, generation);
        let record = connection.end(self.index, reason, &mut cx);
        self.release(slot);
        self.ended = self.ended.saturating_add(1);
        if let Some(records) = &mut self.records
            && records.push(Box::new(record)).is_err()
        {
            self.counters.limits.of(Limit::AccessLogRecords).add(1);
        }
    }
}
