//! Which of a connection's operations the kernel holds.

use crate::io::{Kind, Side};

/// A set of operation kinds. At most one operation of each kind is in flight per connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InFlight(u32);

impl InFlight {
    /// The operations on the client's socket.
    pub const CLIENT: Self = Self(
        bit(Kind::LocalAddress)
            | bit(Kind::RecvClient)
            | bit(Kind::SendClient)
            | bit(Kind::ShutdownClient)
            | bit(Kind::ResetClient)
            | bit(Kind::CloseClient)
            | bit(Kind::CancelRecvClient)
            | bit(Kind::CancelSendClient)
            | bit(Kind::AcknowledgeClient)
            | bit(Kind::PollClient)
            | bit(Kind::CancelPollClient),
    );

    /// The operations on the server's socket.
    pub const SERVER: Self = Self(
        bit(Kind::Connect)
            | bit(Kind::CancelConnect)
            | bit(Kind::RecvServer)
            | bit(Kind::SendServer)
            | bit(Kind::ShutdownServer)
            | bit(Kind::ResetServer)
            | bit(Kind::CloseServer)
            | bit(Kind::CancelRecvServer)
            | bit(Kind::CancelSendServer)
            | bit(Kind::PollServer)
            | bit(Kind::CancelPollServer),
    );

    /// The operations on one side's socket.
    pub fn of(side: Side) -> Self {
        match side {
            Side::Client => Self::CLIENT,
            Side::Server => Self::SERVER,
        }
    }

    /// Whether `kind` is in flight.
    pub fn has(self, kind: Kind) -> bool {
        self.0 & bit(kind) != 0
    }

    /// Whether any of `kinds` is in flight.
    pub fn any(self, kinds: Self) -> bool {
        self.0 & kinds.0 != 0
    }

    /// The same but for one kind.
    #[must_use]
    pub fn without(self, kind: Kind) -> Self {
        Self(self.0 & !bit(kind))
    }

    /// Nothing is in flight.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kernel has taken an operation.
    ///
    /// # Panics
    /// When one of that kind is in flight already.
    pub fn start(&mut self, kind: Kind) {
        assert!(!self.has(kind), "a second {kind:?} in flight");
        self.0 |= bit(kind);
    }

    /// The kernel has given an operation back.
    ///
    /// # Panics
    /// When none of that kind was in flight.
    pub fn end(&mut self, kind: Kind) {
        assert!(self.has(kind), "{kind:?} completed but was not in flight");
        self.0 &= !bit(kind);
    }
}

const fn bit(kind: Kind) -> u32 {
    1 << (kind as u8)
}

/// The kind of a side's receive.
pub fn recv(side: Side) -> Kind {
    match side {
        Side::Client => Kind::RecvClient,
        Side::Server => Kind::RecvServer,
    }
}

/// The kind of the cancel of a side's receive.
pub fn cancel_recv(side: Side) -> Kind {
    match side {
        Side::Client => Kind::CancelRecvClient,
        Side::Server => Kind::CancelRecvServer,
    }
}

/// The kind of a side's poll.
pub fn poll(side: Side) -> Kind {
    match side {
        Side::Client => Kind::PollClient,
        Side::Server => Kind::PollServer,
    }
}

/// The kind of a side's send.
pub fn send(side: Side) -> Kind {
    match side {
        Side::Client => Kind::SendClient,
        Side::Server => Kind::SendServer,
    }
}

/// The kind of a side's shutdown.
pub fn shutdown(side: Side) -> Kind {
    match side {
        Side::Client => Kind::ShutdownClient,
        Side::Server => Kind::ShutdownServer,
    }
}

/// The kind of a side's reset.
pub fn reset(side: Side) -> Kind {
    match side {
        Side::Client => Kind::ResetClient,
        Side::Server => Kind::ResetServer,
    }
}

/// The kind of a side's close.
pub fn close(side: Side) -> Kind {
    match side {
        Side::Client => Kind::CloseClient,
        Side::Server => Kind::CloseServer,
    }
}

/// Each operation that may wait for a peer, and the kind of the cancel that ends it.
pub fn cancellable(side: Side) -> &'static [(Kind, Kind)] {
    match side {
        Side::Client => &[
            (Kind::RecvClient, Kind::CancelRecvClient),
            (Kind::PollClient, Kind::CancelPollClient),
            (Kind::SendClient, Kind::CancelSendClient),
        ],
        Side::Server => &[
            (Kind::RecvServer, Kind::CancelRecvServer),
            (Kind::PollServer, Kind::CancelPollServer),
            (Kind::SendServer, Kind::CancelSendServer),
            (Kind::Connect, Kind::CancelConnect),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sides_are_disjoint_and_hold_every_cancellable_operation() {
        for side in [Side::Client, Side::Server] {
            for (target, cancel) in cancellable(side) {
                let mut in_flight = InFlight::default();
                in_flight.start(*target);
                assert!(in_flight.any(InFlight::of(side)));
                in_flight.start(*cancel);
                in_flight.end(*target);
                assert!(in_flight.any(InFlight::of(side)));
                in_flight.end(*cancel);
                assert!(in_flight.is_empty());
            }
        }
        assert!(!InFlight::CLIENT.any(InFlight::SERVER));
    }
}
