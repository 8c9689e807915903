//! The echo server on our own loop: the ring, the queues and the session of the terminator, with
//! the worker's order of things (receives are submitted behind the turn's sends) and without its
//! timers, routes and counters.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use portcullis::io::buffer::Pool;
use portcullis::io::queue::Queue;
use portcullis::io::{
    Completion, Errno, Io, Kind, Operation, Payload, ReceivedAt, Side, Time, Token,
};
use portcullis::limits::{ACCEPTS_ARMED, QUEUE_HIGH_WATER_BYTES};
use portcullis::sys::ring::Ring;
use portcullis::tls::session::{Session, Sinks};
use rustls::ServerConfig;

use crate::support::Result;

/// Connections at once, and accepts armed: two direct descriptors each, of 20,000.
const SLOTS: u32 = 8192;

/// One connection.
struct Connection {
    tls: Session,
    plaintext: Queue,
    records: Queue,
    receiving: bool,
    sending: bool,
    /// Nothing comes any more, or nothing more is wanted.
    ended: bool,
}

/// The loop. A slot is free, or has an accept armed, or a connection; it is freed when the
/// connection's descriptor is closed, before which nothing of it may be in flight. So all
/// operations of a slot are of its present connection, and generations are not needed.
struct Loop {
    ring: Ring,
    config: Arc<ServerConfig>,
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    pool: Pool,
    /// Receives wanted this turn.
    receives: Vec<u32>,
    /// Read once a turn.
    now: Time,
}

/// Serves until the process is ended.
pub(crate) fn serve(listener: TcpListener, config: &Arc<ServerConfig>) -> Result<()> {
    let wake = Arc::new(EventFd::new()?);
    let ring = Ring::new(SLOTS, vec![OwnedFd::from(listener)], wake)
        .map_err(|(step, error)| format!("{step}: {error}"))?;
    let slots = std::iter::repeat_with(|| None).take(SLOTS as usize).collect();
    let free = (0..SLOTS).rev().collect();
    let (pool, receives) = (Pool::default(), Vec::new());
    let config = Arc::clone(config);
    let mut this = Loop { ring, config, slots, free, pool, receives, now: Time::default() };
    for _ in 0..ACCEPTS_ARMED {
        this.accept();
    }
    let mut completions = Vec::new();
    loop {
        this.ring.wait(None, &mut completions);
        this.now = this.ring.now();
        for completion in completions.drain(..) {
            this.complete(completion)?;
        }
        for slot in std::mem::take(&mut this.receives) {
            let operation = Operation::Recv { side: Side::Client, streams: false };
            this.ring.submit(Token::new(slot, 0, Kind::RecvClient), operation);
        }
    }
}

impl Loop {
    fn submit(&mut self, slot: u32, kind: Kind, operation: Operation) {
        self.ring.submit(Token::new(slot, 0, kind), operation);
    }

    fn accept(&mut self) {
        if let Some(slot) = self.free.pop() {
            self.submit(slot, Kind::Accept, Operation::Accept { listener: 0 });
        }
    }

    fn complete(&mut self, completion: Completion) -> Result<()> {
        let Completion { token, result, more, payload } = completion;
        let slot = token.slot;
        match (token.kind, payload) {
            (Kind::Accept, _) => {
                result.map_err(|error| format!("accept: {error}"))?;
                let connection = Connection::new(Arc::clone(&self.config))?;
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    *place = Some(connection);
                }
                self.accept();
            }
            (Kind::RecvClient, Payload::Received(at)) => self.received(slot, at, more),
            (Kind::RecvClient, _) => {
                if let Some(connection) = self.connection(slot) {
                    connection.receiving = more;
                    let later = [Errno::NO_BUFFERS, Errno::TRY_AGAIN].map(Err);
                    connection.ended |= !more && !later.contains(&result);
                }
            }
            (Kind::SendClient, Payload::Sent(buffer)) => {
                let Some(Some(connection)) = self.slots.get_mut(slot as usize) else {
                    return Ok(());
                };
                let sent = result.unwrap_or(0) as usize;
                connection.records.sent(buffer, sent, &mut self.pool);
                connection.sending = false;
                if result.is_err() {
                    connection.ended = true;
                    connection.records.discard(&mut self.pool);
                }
            }
            (Kind::CloseClient, _) => {
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    *place = None;
                }
                self.ring.forget(slot);
                self.free.push(slot);
                return Ok(());
            }
            _ => return Ok(()),
        }
        self.pump(slot);
        Ok(())
    }

    fn connection(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    fn received(&mut self, slot: u32, at: ReceivedAt, more: bool) {
        let Some(Some(connection)) = self.slots.get_mut(slot as usize) else {
            return self.ring.recycle(at);
        };
        connection.receiving = more;
        let echoed = connection.echo(self.ring.received(&at), &mut self.pool, self.now);
        self.ring.recycle(at);
        if echoed.is_err() {
            connection.ended = true;
            // Ends the receive, too.
            self.submit(slot, Kind::ResetClient, Operation::Reset { side: Side::Client });
        }
    }

    /// Submits what is possible and not in flight.
    fn pump(&mut self, slot: u32) {
        let Some(Some(connection)) = self.slots.get_mut(slot as usize) else {
            return;
        };
        if !connection.sending
            && let Some(buffer) = connection.records.take()
        {
            connection.sending = true;
            let operation = Operation::Send { side: Side::Client, buffer, ends: false };
            self.ring.submit(Token::new(slot, 0, Kind::SendClient), operation);
        }
        if connection.ended && !connection.sending && !connection.receiving {
            self.submit(slot, Kind::CloseClient, Operation::Close { side: Side::Client });
        } else if !connection.ended
            && !connection.receiving
            && connection.records.pending() < QUEUE_HIGH_WATER_BYTES
        {
            connection.receiving = true;
            self.receives.push(slot);
        }
    }
}

impl Connection {
    fn new(config: Arc<ServerConfig>) -> Result<Self> {
        let tls = Session::new(config).map_err(|failure| format!("{failure:?}"))?;
        let (plaintext, records) = (Queue::default(), Queue::default());
        Ok(Self { tls, plaintext, records, receiving: false, sending: false, ended: false })
    }

    /// Opens what has come, and seals it again.
    fn echo(&mut self, bytes: &mut [u8], pool: &mut Pool, now: Time) -> Result<()> {
        let (plaintext, records) = (&mut self.plaintext, &mut self.records);
        let mut sinks = Sinks { plaintext, records, pool, now };
        self.tls.receive(bytes, &mut sinks).map_err(|failure| format!("{failure:?}"))?;
        while let Some(buffer) = self.plaintext.take() {
            let (plain, length) = (buffer.unsent(), buffer.unsent().len());
            let sealed = self.tls.seal(plain, &mut self.records, pool);
            self.plaintext.sent(buffer, length, pool);
            sealed.map_err(|failure| format!("{failure:?}"))?;
        }
        Ok(())
    }
}
