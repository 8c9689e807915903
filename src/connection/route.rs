//! Stage 3 of 5: route. The handshake is complete; a server is chosen and connected.
//!
//! Meanwhile the client may send: up to the high-water mark of its direction is taken, the rest
//! waits in the kernel. A server that does not answer costs one more try, on another server. Where
//! servers may have only so many connections, a client that finds no permit free stands in line
//! (`queue.rs`).

use std::rc::Rc;

use crate::backend::permits::Permits;
use crate::backend::proxy_protocol::{self, Certificate, Header, Tls};
use crate::io::{Connect, Kind, Operation, Side};
use crate::limits::CONNECT_TRIES_MAX;
use crate::telemetry::labels::{CloseReason, Span};
use crate::worker::snapshot::{Server, Snapshot};

use super::close::{Close, How};
use super::common::Common;
use super::context::Context;
use super::queue::Queued;
use super::relay::Relay;
use super::{Event, Stage};

/// Waiting for a server.
#[derive(Debug)]
pub struct Route {
    /// Index of the backend.
    backend: u16,
    /// Tries begun.
    tries: u8,
    /// Index, in the snapshot's list, of the server being tried.
    trying: usize,
    /// The present try has run into its timeout and is being cancelled.
    timed_out: bool,
}

impl Route {
    pub(super) fn begin(common: &mut Common, cx: &mut Context<'_>) -> Stage {
        let Some(backend) = common.backend() else {
            return Close::abort(common, CloseReason::NoServer, cx);
        };
        common.story.backend = Some(backend);
        let route = Self { backend, tries: 0, trying: 0, timed_out: false };
        if common.story.local.is_none() && route.sends_proxy_header(common) {
            common.set_deadline(common.snapshot.timeouts.connect, cx);
            common.submit(Kind::LocalAddress, Operation::LocalAddress, cx);
            return Stage::Route(route);
        }
        route.connect(common, cx)
    }

    pub(super) fn handle(
        self,
        event: Event<'_>,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        match event {
            Event::Connected(Ok(())) => self.connected(common, cx),
            Event::Connected(Err(_)) => self.failed(common, cx),
            Event::Received(_, bytes) => match common.open(bytes, cx) {
                Ok(()) => self.wait(common, cx),
                Err(_) => Close::client_violation(common, cx),
            },
            // A client that ended cleanly may still wait for the answer to what it has sent.
            Event::Ended(_) if common.inbound.ended() => self.wait(common, cx),
            Event::Ended(_) => {
                Close::begin(CloseReason::ClientTruncated, How::Close, How::Reset, common, cx)
            }
            Event::ReceiveFailed(_) | Event::SendFailed(_) => {
                Close::abort(common, CloseReason::ClientReset, cx)
            }
            Event::Deadline => self.deadline(common, cx),
            Event::Closed(_) => self.connect(common, cx),
            Event::Settled | Event::Readable(_) | Event::Sent(_) => {
                let asked_address = self.tries == 0 && !common.has_in_flight(Kind::LocalAddress);
                if asked_address { self.connect(common, cx) } else { self.wait(common, cx) }
            }
        }
    }

    /// Begins the next try, with a server that has a permit free; or waits for one.
    fn connect(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        let snapshot = Rc::clone(&common.snapshot);
        let servers = self.servers(&snapshot);
        let permits = self.permits(&snapshot);
        let failed = (self.tries > 0).then_some(self.trying);
        // Nobody overtakes those who wait.
        let may_take = permits.is_none_or(|permits| !permits.has_waiters());
        let fits = |index: usize| {
            let has_permit = |server: &Server| permits.is_none_or(|one| one.take(server.server));
            Some(index) != failed && may_take && servers.get(index).is_some_and(has_permit)
        };
        let cursor = cx.cursors.get_mut(usize::from(self.backend));
        let chosen = cursor.and_then(|cursor| cursor.next_where(servers.len(), fits));
        match chosen.and_then(|index| Some((index, servers.get(index)?))) {
            Some((index, server)) => self.try_server(index, server, common, cx),
            None if permits.is_some() && !servers.is_empty() => {
                let failed = failed.and_then(|index| servers.get(index)).map(|one| one.server);
                // An address of the same server is better than none.
                let except =
                    failed.filter(|failed| servers.iter().any(|other| other.server != *failed));
                Queued::begin(self, except, common, cx)
            }
            None => Close::abort(common, CloseReason::NoServer, cx),
        }
    }

    /// Begins the next try with `server`, of which the client got a permit in line.
    pub(super) fn granted(self, server: u16, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        let snapshot = Rc::clone(&common.snapshot);
        let servers = self.servers(&snapshot);
        let failed = (self.tries > 0).then_some(self.trying);
        let is_its = |index: usize| servers.get(index).is_some_and(|one| one.server == server);
        let chosen = cx.cursors.get_mut(usize::from(self.backend)).and_then(|cursor| {
            let other = |index: usize| is_its(index) && Some(index) != failed;
            cursor.next_where(servers.len(), other).or_else(|| failed.filter(|one| is_its(*one)))
        });
        if let Some((index, server)) = chosen.and_then(|at| Some((at, servers.get(at)?))) {
            return self.try_server(index, server, common, cx);
        }
        // It has got an address since this client came, which knows of none.
        common.release_permit(cx);
        Close::abort(common, CloseReason::NoServer, cx)
    }

    fn try_server(
        mut self,
        index: usize,
        server: &Server,
        common: &mut Common,
        cx: &mut Context<'_>,
    ) -> Stage {
        common.server.open = true;
        if self.permits(&common.snapshot).is_some() {
            common.hold_permit(server.server);
        }
        self.tries += 1;
        self.trying = index;
        self.timed_out = false;
        common.story.server = Some(server.server);
        common.set_deadline(common.snapshot.timeouts.connect, cx);
        let address = server.address.clone();
        let speaks = !common.inbound.is_empty() || self.sends_proxy_header(common);
        let connect = Connect { address, source: None, speaks };
        common.submit(Kind::Connect, Operation::Connect(Box::new(connect)), cx);
        self.wait(common, cx)
    }

    fn servers<'s>(&self, snapshot: &'s Snapshot) -> &'s [Server] {
        let backend = snapshot.backends.get(usize::from(self.backend));
        backend.map(|backend| backend.servers.as_slice()).unwrap_or_default()
    }

    /// The permits of the backend, if its servers may have only so many connections.
    pub(super) fn permits<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Permits> {
        snapshot.backends.get(usize::from(self.backend))?.permits.as_deref()
    }

    fn wait(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.flush(Side::Client, cx);
        if common.has_room(Side::Server) {
            common.receive(Side::Client, cx);
        }
        Stage::Route(self)
    }

    fn connected(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        common.story.mark(Span::Connect, cx);
        // Without its header the server would take us for the client: better not at all.
        if self.prepend_proxy_header(common, cx).is_none() {
            return Close::abort(common, CloseReason::InternalError, cx);
        }
        Relay::begin(common, cx)
    }

    /// A try has failed: another server, if there is one to try; else the end.
    fn failed(self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        cx.counters.connect_failures.add(1);
        let servers = self.servers(&common.snapshot).len();
        if self.tries < CONNECT_TRIES_MAX && servers > 1 {
            cx.counters.connect_retries.add(1);
            common.submit(Kind::CloseServer, Operation::Close { side: Side::Server }, cx);
            return self.wait(common, cx);
        }
        let reason =
            if self.timed_out { CloseReason::ConnectTimeout } else { CloseReason::ConnectFailed };
        Close::abort(common, reason, cx)
    }

    fn deadline(mut self, common: &mut Common, cx: &mut Context<'_>) -> Stage {
        if common.has_in_flight(Kind::Connect) && !self.timed_out {
            self.timed_out = true;
            // The cancel is answered soon; this only keeps a deadline armed.
            common.set_deadline(common.snapshot.timeouts.connect, cx);
            common.cancel(Kind::Connect, Kind::CancelConnect, cx);
            return self.wait(common, cx);
        }
        Close::abort(common, CloseReason::ConnectTimeout, cx)
    }

    fn sends_proxy_header(&self, common: &Common) -> bool {
        let backend = common.snapshot.backends.get(usize::from(self.backend));
        backend.is_some_and(|backend| backend.send_proxy_protocol.is_some())
    }

    /// `None`: a header is due and cannot be made.
    fn prepend_proxy_header(&self, common: &mut Common, cx: &mut Context<'_>) -> Option<()> {
        let backend = common.snapshot.backends.get(usize::from(self.backend));
        let Some(version) = backend.and_then(|backend| backend.send_proxy_protocol) else {
            return Some(());
        };
        let story = &common.story;
        let certificate = story.client_certificate.as_ref();
        let certificate = certificate.map(|certificate| Certificate {
            name: certificate.name.as_deref(),
            resumed: certificate.resumed,
        });
        let header = Header {
            client: story.client,
            local: story.local,
            alpn: story.alpn.as_deref().map(str::as_bytes),
            authority: story.server_name.as_deref(),
            tls: Some(Tls { version: story.version, suite: story.suite, certificate }),
        };
        let mut bytes = [0; proxy_protocol::HEADER_BYTES_MAX];
        let len = proxy_protocol::encode(version, &header, &mut bytes)?;
        common.inbound.prepend(bytes.get(..len)?, cx.pool);
        Some(())
    }
}
