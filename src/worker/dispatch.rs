//! From a completion to the connection it belongs to; the only match on operation kinds outside
//! the journey itself.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use crate::connection::common::Common;
use crate::connection::context::Context;
use crate::connection::{Connection, Delivery};
use crate::io::{Completion, Io, Kind, Payload};
use crate::telemetry::labels::{CloseReason, Limit};

use super::Worker;
use super::table::Entry;

/// The context of one event, made of the worker's disjoint parts.
macro_rules! context {
    ($worker:expr) => {
        Context {
            now: $worker.now,
            unix: $worker.unix,
            operations: &mut $worker.operations,
            pool: &mut $worker.pool,
            counters: &$worker.counters,
            resumption: &$worker.resumption,
            cursors: &mut $worker.cursors,
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
            Kind::CancelAccept | Kind::Internal | Kind::SampleClient => {}
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
        let common = Common::new(snapshot, client, local, bind.listener, self.now);
        let mut cx = context!(self);
        let connection = Box::new(Connection::begin(common, &mut cx));
        self.table.occupy(token.slot, connection);
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
                Payload::None | Payload::Peer(_) => {}
            }
            return;
        };
        let (received, delivery) = match payload {
            Payload::Received(at) => (Some(at), Delivery::None),
            Payload::Sent(buffer) => (None, Delivery::Sent(buffer)),
            Payload::Peer(address) => (None, Delivery::Address(address)),
            Payload::None => (None, Delivery::None),
        };
        let mut cx = context!(self);
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
    pub(super) fn on_timer(&mut self, slot: u32, generation: u32) {
        self.with_connection(slot, generation, Connection::timer);
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
        let mut cx = context!(self);
        if catch_unwind(AssertUnwindSafe(|| act(connection, &mut cx))).is_err() {
            self.contain_panic(slot, generation);
        }
        self.after_event(slot, generation);
    }

    /// A stage has panicked: its connection ends, nobody else's does. What the kernel holds is
    /// with the `Io`, so that unwinding has freed none of it.
    fn contain_panic(&mut self, slot: u32, generation: u32) {
        self.counters.panics.add(1);
        let Some(connection) = self.table.connection(slot, generation) else {
            return;
        };
        let mut cx = context!(self);
        connection.abort(CloseReason::InternalError, &mut cx);
    }

    /// Submits what an event has led to, arms the timer, frees the slot of a connection that is
    /// done.
    fn after_event(&mut self, slot: u32, generation: u32) {
        self.submit_operations(slot, generation);
        let Some(connection) = self.table.connection(slot, generation) else {
            return;
        };
        if let Some(at) = connection.take_timer() {
            self.timers.insert(slot, generation, at);
        }
        if let Some(reason) = connection.done() {
            self.free(slot, reason);
        }
    }

    fn free(&mut self, slot: u32, reason: CloseReason) {
        let Entry::Open(connection) = self.table.release(slot) else {
            return;
        };
        let mut cx = context!(self);
        let record = connection.free(self.index, reason, &mut cx);
        if let Some(records) = &mut self.records
            && records.push(record).is_err()
        {
            self.counters.limits.of(Limit::AccessLogRecords).add(1);
        }
    }
}
